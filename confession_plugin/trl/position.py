"""How far a run has come, in micro-batches: the choice of groups is a function of it, so a resumed run repeats it.

The host counts optimizer steps over the whole run (``state.global_step``) and micro-batches of this process
(``trainer._step``).  One generation feeds ``steps_per_generation * num_iterations`` micro-batches.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class Position(TrainerCallback):
    """Counts the micro-batches of a run; the host calls it when training begins, resumed or not."""

    def __init__(self) -> None:
        self._before = 0  # micro-batches of the run before this process's first, less this process's own count then
        self._trainer: Any = None

    def watch(self, trainer: Any) -> None:
        """Follow this trainer."""
        self._trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note where a resumed run takes up, by the host's own rule for the data it skips."""
        accumulated, done = args.gradient_accumulation_steps, state.global_step
        try:
            length = len(kwargs["train_dataloader"])
        except (KeyError, TypeError):  # a stream has no length, and no epochs that end in the middle of a step
            self._before = done * accumulated - self._trainer._step
            return
        epochs, rest = divmod(done, max(-(-length // accumulated), 1))
        self._before = epochs * length + rest * accumulated - self._trainer._step

    @property
    def generation(self) -> int:
        """Generations before the one that feeds the current micro-batch, over the whole run."""
        args = self._trainer.args
        return int((self._before + self._trainer._step) // (args.steps_per_generation * self._trainer.num_iterations))
