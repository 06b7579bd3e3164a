"""Recorded rollouts: the executor's responses of each training batch, saved and driven through the trainer again.

Two runs that replay one recording differ in the trainer alone: with confessions at ``coef 0`` and without the plugin
they must end with the same weights.  Also for users: a training change can be tried on the rollouts of a real run.

Without ``--confession.enable`` a replay feeds the recorded answers to the otherwise stock trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from confession_plugin import session
from confession_plugin.config import PREFIX
from confession_plugin.errors import ConfigError, PluginError

#: On a sample, for as long as it is a list item: the response it was made of.
_RESPONSE = "_confession_response"


def remember(sample: Any, response: dict[str, Any]) -> None:
    """Keep a sample's response until its batch is saved."""
    setattr(sample, _RESPONSE, response)


def save(folder: str, step: int, samples: Sequence[Any]) -> None:
    """Write one training batch: its samples' responses, in order."""
    responses = [sample.__dict__.pop(_RESPONSE) for sample in samples]
    path = _path(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    torch.save(responses, partial)
    partial.rename(path)  # a killed run leaves whole files only


def load(folder: str, step: int) -> list[dict[str, Any]] | None:
    """The responses of one training batch; None behind the last."""
    path = _path(folder, step)
    # Written by this package from the host's own objects: tensors, lists, strings and `ConfessionTokens`.
    return torch.load(path, weights_only=False) if path.exists() else None


def check(folder: str) -> None:
    """There is something to replay.

    Raises:
        ConfigError: there is not.
    """
    if not _path(folder, 1).exists():
        raise ConfigError(
            f"{PREFIX}replay_rollouts: no {_path(folder, 1).name} in {folder}; record it first with "
            f"{PREFIX}record_rollouts"
        )


def replay(generator: Any, folder: str, step: int, *, answers_only: bool, **generate_kwargs: Any) -> Any:
    """What the host's ``generate_samples`` returns: (samples, filter pass rate, prompts consumed, exhausted)."""
    responses = load(folder, step)
    if responses is None:
        return [], None, 0, True
    expected = generator.args.rollout.batch_size * generator.args.rollout.n_samples_per_prompt
    if len(responses) != expected:
        raise PluginError(
            f"{_path(folder, step)} holds {len(responses)} samples, this run wants {expected} a step; replay with the "
            "recording's --rollout.batch_size and --rollout.n_samples_per_prompt"
        )
    if answers_only:
        responses = [{key: value for key, value in one.items() if key != "confession"} for one in responses]
    else:
        _check_nesting(_path(folder, step), responses)
    samples = [generator._process_response_into_experience(one, **generate_kwargs) for one in responses]
    return samples, None, generator.args.rollout.batch_size, load(folder, step + 1) is None


def _check_nesting(path: Path, responses: Sequence[dict[str, Any]]) -> None:
    wanted = session.config().samples_per_answer
    asked = [one["confession"] for one in responses if one.get("confession") is not None]
    for found in {1 + len(tokens.extra) for tokens in asked if tokens.request} - {wanted}:
        raise PluginError(
            f"{path} holds {found} confessions an answer, this run wants {wanted}; replay with the recording's "
            f"{PREFIX}samples_per_answer"
        )


def replayed_answers(host: Any, self: Any, **generate_kwargs: Any) -> Any:
    """Seam of a replay without confessions: the host's ``generate_samples`` reads the recording."""
    self._replayed_steps = getattr(self, "_replayed_steps", 0) + 1
    folder = session.config().replay_rollouts
    assert folder is not None
    return replay(self, folder, self._replayed_steps, answers_only=True, **generate_kwargs)


def _path(folder: str, step: int) -> Path:
    return Path(folder) / f"rollouts-{step:06d}.pt"
