"""What executors answer, in whatever shapes the host takes: numbers and token ids read out of it.

Reward functions give numbers, reward servers lists of one, agents tensors or arrays.  The host makes tensors of them
and takes any shape with one element; what it makes of them is kept, flat (see `flatten`).
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from confession_plugin.errors import ConfigError


def one_number(value: Any) -> float | None:
    """The number in a reward or an entry of ``extra_logs``; None where there is not exactly one.

    Of a tensor with several elements it is the first, which is the one the host logs.
    """
    if hasattr(value, "flatten"):  # a tensor or an array
        value = value.flatten().tolist()[:1]
    while isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return float(value) if isinstance(value, numbers.Real) else None


def numbers_in(extra_logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The entries of ``extra_logs`` that are numbers."""
    found = {str(name): one_number(value) for name, value in (extra_logs or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def integers(values: Any) -> list[int]:
    """Token ids as Python integers: custom executors give lists, arrays or tensors of any integer type."""
    return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def floats(values: Any) -> list[float]:
    """Log-probs as Python floats, likewise."""
    return [float(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def answered_tokens(response: Mapping[str, Any], max_len: int) -> list[int]:
    """Prompt and answer as the host trains them: its first `max_len` tokens."""
    return integers(response["observation_tokens"][:max_len])


def action_ranges(response: Mapping[str, Any], length: int) -> list[tuple[int, int]]:
    """(start, end) of every answer span within the first `length` tokens."""
    ranges = [(int(start), min(int(end), length)) for start, end in response["action_ranges"]]
    return [(start, end) for start, end in ranges if start < length]


def flatten(sample: Any) -> None:
    """Make rewards, scores and logged numbers of one sample (1,) tensors, as the host makes them of plain numbers.

    The host takes a reward server's ``[0.5]`` and keeps it as (1, 1); per-sample columns are one-dimensional.

    Raises:
        ConfigError: a reward that is not one number.
    """
    for name in ("rewards", "scores"):
        value = getattr(sample, name)
        if value is not None:
            if value.numel() != 1:
                raise ConfigError(
                    f"{name}: one sample has {value.numel()} of them (shape {tuple(value.shape[1:])}); a reward "
                    "function, server or agent gives one number a sample"
                )
            setattr(sample, name, value.reshape(1))
    for name, value in sample.info.items():
        if isinstance(value, Tensor) and value.numel() == 1:
            sample.info[name] = value.reshape(1)


def require_numbers(response: Mapping[str, Any]) -> None:
    """Say which entry the host could make no tensor of, where there is one.

    Raises:
        ConfigError: names the entry and what the reward function gave.
    """
    extra = response.get("extra_logs", {})
    if not isinstance(extra, Mapping):
        raise ConfigError(f"extra_logs is {_shown(extra)}; a reward function gives a dictionary of numbers, or {{}}")
    given = {name: response.get(name) for name in ("reward", "scores") if response.get(name) is not None}
    for name, value in {**given, **{f"extra_logs[{name!r}]": value for name, value in extra.items()}}.items():
        try:
            torch.tensor([value.flatten()[0].item() if isinstance(value, Tensor) else value])
        except (TypeError, ValueError, RuntimeError, IndexError):
            raise ConfigError(f"{name} is {_shown(value)}; a reward function gives one number") from None


def _shown(value: Any, width: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def prompt_text(prompt: str, token_ids: Sequence[int], tokenizer: Any) -> str:
    """What the policy read before its first word.

    An agent's ``reset`` may have written it, and a prompt that is too long is cut on the left: then the tokens are
    decoded.  Else it is the prompt itself, since decoding does not give every text back exactly.
    """
    known: Any = tokenizer(text=prompt, add_special_tokens=False)["input_ids"]
    known = known[0] if known and isinstance(known[0], list) else known  # a processor answers with a batch of one
    if list(known) == list(token_ids):
        return prompt
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False))
