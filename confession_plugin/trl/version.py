"""Is the installed TRL one this adapter fits?"""

from __future__ import annotations

import inspect
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from confession_plugin import startup
from confession_plugin.config import Config
from confession_plugin.errors import HostError

TESTED_VERSIONS = ("1.9.0", "1.16.0")

#: What is overridden or called, and the parameters that are relied on.
SIGNATURES = {
    "_generate_and_score_completions": ("self", "inputs"),
    "_compute_loss": ("self", "model", "inputs"),
    "_generate": ("self", "prompts"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_log_completion_extra": ("self", "column", "values"),
    "_generate_single_turn": ("self", "prompt_ids", "images", "multimodal_fields"),
    "_get_per_token_logps_and_entropies": ("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
}


def require_installed() -> str:
    """The version of TRL in this environment.

    Raises:
        HostError: it is not installed.
    """
    try:
        return version("trl")
    except PackageNotFoundError:
        raise HostError("TRL is not installed; pip install 'confession-plugin[trl]'") from None


def check_version(config: Config) -> str:
    """The installed version, if this release was tested with it.

    Raises:
        HostError: TRL is missing, or its version is untested and ``--confession.untested_host`` is not given.
    """
    return startup.require_tested("TRL", require_installed(), TESTED_VERSIONS, config)


def check_signatures(trainer: Any) -> None:
    """The methods that are overridden are as this release knows them.

    Args:
        trainer: the host's class.

    Raises:
        HostError: names the first that is not.
    """
    for name, expected in SIGNATURES.items():
        method = getattr(trainer, name, None)
        found = tuple(inspect.signature(inspect.unwrap(method)).parameters) if method is not None else ()
        if found[: len(expected)] != expected:
            raise HostError(
                f"{trainer.__name__}.{name} takes ({', '.join(found)}) in this TRL, not ({', '.join(expected)}, ...); "
                f"install a tested version: {', '.join(TESTED_VERSIONS)}"
            )
