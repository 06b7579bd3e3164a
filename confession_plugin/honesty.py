"""What the plugins make of the honesty channel (hook `confession_advantages`), asked and checked for any host.

The host supplies the channel and its own advantage code as `HonestyChannel.estimate`; a plugin is given copies, and
what it gives back is checked before it meets the answer's values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from confession_plugin.channels import HonestyChannel, TokenValues
from confession_plugin.errors import PluginError
from confession_plugin.plugins import PluginManager

Estimate = Callable[[Tensor, Tensor, int], TokenValues]


def honesty_values(plugins: PluginManager, channel: HonestyChannel) -> TokenValues:
    """Advantages and returns of the honesty channel, finite float32 on the CPU.

    Raises:
        PluginError: an honesty reward, or what a plugin gave, is not finite in float32 or has another shape.
    """
    if not torch.isfinite(channel.rewards[channel.scored]).all():
        raise PluginError("an honesty reward is not finite in float32; look at what gives it (confession_reward)")
    count = len(channel.rewards)
    given = replace(
        channel,
        rewards=copy.deepcopy(channel.rewards),
        scored=copy.deepcopy(channel.scored),
        masks=copy.deepcopy(channel.masks),
        estimate=_guarded(channel.estimate, count),
    )
    found = plugins.hook.confession_advantages(honesty=given)
    return _checked_values(found, channel.masks, plugins.decided_by.get("confession_advantages"))


def _guarded(estimate: Estimate, count: int) -> Estimate:
    """The host's estimate of `count` entries, behind a look at what a plugin calls it with."""

    def guarded(rewards: Tensor, rows: Tensor, group_size: int) -> TokenValues:
        if rewards.shape != (count,) or sorted(set(rows.tolist()) & set(range(count))) != sorted(rows.tolist()):
            raise PluginError(
                f"honesty.estimate: give ({count},) rewards, and rows that are different numbers below {count}"
            )
        if group_size < 1 or len(rows) % group_size:
            raise PluginError(f"honesty.estimate: {len(rows)} rows are no groups of {group_size}")
        return estimate(rewards.detach().to(torch.float32), rows, group_size)

    return guarded


def _checked_values(found: object, masks: Sequence[Tensor], plugin: str | None) -> TokenValues:
    """The channel's values as finite float32 (B, A) tensors, one per experience, that nothing else holds.

    Raises:
        PluginError: something else; names the plugin.
    """
    if found is None:
        raise PluginError("no plugin gave advantages: all that implement confession_advantages gave None")
    if not isinstance(found, TokenValues):  # a wrapper's word, which nothing has checked
        raise PluginError(f"confession_advantages gave {type(found).__name__}; give the honesty channel's TokenValues")
    advantages, returns = list(found.advantages), list(found.returns)
    values: Sequence[Tensor]
    for name, values in (("advantages", advantages), ("returns", returns)):
        # A subclass of Tensor could run code of its own where it meets the answer's values.
        plain = all(type(value) is Tensor and not value.is_complex() for value in values)
        if not plain or [value.shape for value in values] != [mask.shape for mask in masks]:
            raise PluginError(
                f"plugin {plugin!r}: confession_advantages gave {name} of other shapes than honesty.masks; give one "
                "(B, A) float tensor for each mask"
            )
    checked = TokenValues(
        *([value.detach().to("cpu", torch.float32, copy=True) for value in values] for values in (advantages, returns))
    )
    for name, values in (("advantages", checked.advantages), ("returns", checked.returns)):
        if not all(torch.isfinite(value[mask]).all() for value, mask in zip(values, masks, strict=True)):
            raise PluginError(f"plugin {plugin!r}: confession_advantages gave {name} that are not finite in float32")
    return checked
