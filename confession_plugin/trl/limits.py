"""What a run with confessions cannot do under this host: refused in one line, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError
from confession_plugin.trl.losses import DENOMINATORS

#: Flags of ours that do nothing under this host.
NOT_HERE = ("record_rollouts", "replay_rollouts", "unsealed_coupling")


def check(config: Config, args: Any, given: Mapping[str, Any]) -> None:
    """Refuse what cannot be kept exact, and what was never tried.

    Args:
        args: the host's GRPOConfig.
        given: arguments of the trainer by name.

    Raises:
        ConfigError: the first thing that cannot work.
    """
    for name in NOT_HERE:
        if getattr(config, name, None) is not None:
            raise ConfigError(f"{PREFIX}{name} is not supported with TRL; leave it out")
    for name in ("tools", "environment_factory", "rollout_func"):
        if given.get(name):
            raise ConfigError(
                f"{name}: answers of several turns are not supported with TRL; train this run without {PREFIX}enable"
            )
    if args.loss_type not in DENOMINATORS:
        raise ConfigError(
            f"loss_type {args.loss_type} is unknown to this release; give one of {', '.join(DENOMINATORS)}"
        )
    if config.answer_training == "exclusive" and (args.entropy_coef or args.use_adaptive_entropy):
        raise ConfigError(
            f"entropy_coef, use_adaptive_entropy: the bonus is a mean over each micro-batch, which {PREFIX}"
            "answer_training exclusive would weigh unevenly; leave the bonus out, or train dual"
        )
    for name in _not_possible(args):
        raise ConfigError(f"{name} is not supported with confessions; train this run without it")
    for name in untested(args):
        if not config.untested_host:
            raise ConfigError(
                f"{name} is untested with confessions; leave it out, or add {PREFIX}untested_host to try"
            )


def _not_possible(args: Any) -> list[str]:
    wanted = {
        "use_vllm": args.use_vllm,
        "use_liger_kernel": getattr(args, "use_liger_kernel", False) or getattr(args, "use_liger_loss", False),
    }
    return [name for name, on in wanted.items() if on]


def untested(args: Any) -> list[str]:
    """Settings under which this adapter has not been tried."""
    state = getattr(getattr(args, "distributed_state", None), "distributed_type", "NO")
    kind = getattr(state, "value", state)
    wanted = {
        "use_transformers_continuous_batching": getattr(args, "use_transformers_continuous_batching", False),
        f"training under {kind}": kind not in ("NO", "MULTI_CPU"),
        "deepspeed": bool(args.deepspeed),
        "fsdp": bool(args.fsdp),
    }
    return [name for name, on in wanted.items() if on]
