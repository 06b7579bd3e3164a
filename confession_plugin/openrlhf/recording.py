"""Recorded rollouts: the executor's responses of each training batch, saved and driven through the trainer again.

Two runs that replay one recording differ in the trainer alone: with confessions at ``coef 0`` and without the plugin
they must end with the same weights.  Also for users: a training change can be tried on the rollouts of a real run.

Without ``--confession.enable`` a replay feeds the recorded answers to the otherwise stock trainer.

A recording is JSON: reading a file that somebody shared executes nothing.  Numbers come back bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from confession_plugin import session
from confession_plugin.config import PREFIX
from confession_plugin.errors import ConfigError, PluginError

FORMAT = "confession-plugin rollouts 1"

#: On a sample, for as long as it is a list item: the response it was made of.
_RESPONSE = "_confession_response"


def remember(sample: Any, response: dict[str, Any]) -> None:
    """Keep a sample's response until its batch is saved."""
    setattr(sample, _RESPONSE, response)


def judged(sample: Any, tokens: Any) -> None:
    """The kept response's confession, now that it is judged; nothing where none is kept."""
    if hasattr(sample, _RESPONSE):
        getattr(sample, _RESPONSE)["confession"] = tokens


def save(folder: str, step: int, samples: Sequence[Any]) -> None:
    """Write one training batch: its samples' responses, in order."""
    responses = [sample.__dict__.pop(_RESPONSE) for sample in samples]
    path = _path(folder, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    try:
        text = json.dumps({"format": FORMAT, "responses": encoded(responses)}, allow_nan=False)
    except TypeError as error:
        raise PluginError(f"{PREFIX}record_rollouts: a sample cannot be recorded: {error}") from None
    partial.write_text(text, encoding="ascii")
    partial.rename(path)  # a killed run leaves whole files only


def load(folder: str, step: int) -> list[dict[str, Any]] | None:
    """The responses of one training batch; None behind the last.

    Raises:
        ConfigError: the file is no recording of this format.
    """
    path = _path(folder, step)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        responses: list[dict[str, Any]] = decoded(content["responses"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{PREFIX}replay_rollouts: {path} is not a recording that this version reads ({type(error).__name__}: "
            f"{error}); record it again with {PREFIX}record_rollouts"
        ) from None
    return responses


# ── Samples as JSON: an object with one key that begins with "$" stands for what JSON does not have ──


def encoded(value: Any) -> Any:
    """The value in terms of JSON.

    Raises:
        TypeError: names a type that has no such form.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list):
        return [encoded(part) for part in value]
    if isinstance(value, tuple):
        return {"$tuple": [encoded(part) for part in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encoded(part) for key, part in value.items()}
        return {"$items": [[encoded(key), encoded(part)] for key, part in value.items()]}
    return _encoded_object(value)


def _encoded_object(value: Any) -> Any:
    import numpy
    import torch

    from confession_plugin.openrlhf.executor import ConfessionTokens

    if isinstance(value, torch.Tensor):
        data = encoded(value.detach().cpu().flatten().tolist())
        return {"$tensor": [str(value.dtype).removeprefix("torch."), list(value.shape), data]}
    if isinstance(value, ConfessionTokens):
        return {"$confession": {field.name: encoded(getattr(value, field.name)) for field in fields(value)}}
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        return encoded(value.tolist())  # Python's own numbers: every reader takes those
    raise TypeError(f"{type(value).__name__} is neither text, number, list, mapping nor tensor")


def decoded(value: Any) -> Any:
    """The value that `encoded` was given."""
    if isinstance(value, list):
        return [decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    return (
        _DECODERS[kind](value[kind]) if kind.startswith("$") else {key: decoded(part) for key, part in value.items()}
    )


def _tensor(parts: Any) -> Any:
    import torch

    name, shape, data = parts
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return torch.tensor(decoded(data), dtype=dtype).reshape(shape)


def _confession(values: Any) -> Any:
    from confession_plugin.openrlhf.executor import ConfessionTokens

    return ConfessionTokens(**{name: decoded(value) for name, value in values.items()})


_DECODERS: Mapping[str, Callable[[Any], Any]] = {
    "$float": float,
    "$tuple": lambda parts: tuple(map(decoded, parts)),
    "$items": lambda pairs: {decoded(key): decoded(part) for key, part in pairs},
    "$tensor": _tensor,
    "$confession": _confession,
}


def check(folder: str) -> None:
    """There is something to replay.

    Raises:
        ConfigError: there is not.
    """
    if _path(folder, 1).with_suffix(".pt").exists():
        raise ConfigError(
            f"{PREFIX}replay_rollouts: {folder} holds recordings of 0.1 (.pt), which can run code when they are read; "
            f"record them again with {PREFIX}record_rollouts"
        )
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
    return Path(folder) / f"rollouts-{step:06d}.json"
