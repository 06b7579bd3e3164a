"""What the second pass must not reach: the host's random state, its metrics and windows, its settings.

Everything here is put back when the block ends, however it ends.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch

_ABSENT = object()


@contextmanager
def same_random_state() -> Iterator[None]:
    """Random numbers drawn inside, in any thread, are not missing outside: torch's, numpy's and Python's."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    python, numbers = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)


@contextmanager
def instead(owner: Any, **values: Any) -> Iterator[None]:
    """Other values for attributes of an object, for the length of a block."""
    before = {name: vars(owner).get(name, _ABSENT) for name in values}
    vars(owner).update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = value


@contextmanager
def second_generation(trainer: Any, max_new_tokens: int, seed: int) -> Iterator[None]:
    """Inside, the trainer's own generation samples confessions: their budget, random numbers of their own."""
    config = trainer.generation_config
    budget, kwargs = config.max_new_tokens, trainer.generation_kwargs
    with same_random_state(), instead(trainer, generation_kwargs={**kwargs, "max_new_tokens": max_new_tokens}):
        torch.manual_seed(seed)
        config.max_new_tokens = max_new_tokens
        try:
            yield
        finally:
            config.max_new_tokens = budget


#: Of the entropy controller: what one pass over a micro-batch moves.
WINDOWS = ("entropy_coef", "_last_world_entropy", "_entropy_window_stats")


@contextmanager
def second_loss(trainer: Any, *, max_new_tokens: int, entropy_scale: float) -> Iterator[Mapping[str, list[float]]]:
    """Inside, the trainer's own loss is the confessions': gives the metrics that it logs there.

    The auxiliary loss of a mixture of experts is the answers' (its pass reads their prompts already), and the entropy
    bonus is weighed by `entropy_scale`.
    """
    seen: dict[str, defaultdict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
    kept = {name: getattr(trainer, name) for name in WINDOWS if hasattr(trainer, name)}
    changed = {"entropy_coef": kept["entropy_coef"] * entropy_scale} if "entropy_coef" in kept else {}
    with ExitStack() as stack:
        stack.enter_context(same_random_state())
        stack.enter_context(
            instead(
                trainer,
                **{**kept, **changed},
                _metrics=seen,
                aux_loss_enabled=False,
                max_completion_length=max_new_tokens,
            )
        )
        yield seen["train"]
