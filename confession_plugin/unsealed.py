"""``--confession.unsealed_coupling FILE``: the seal broken on purpose.  A control for experiments, never a feature.

    # summed.py: both rewards in one number, for both spans
    def couple(answer, honesty, scored, admits):
        total = answer + honesty
        return total, total

What would happen if confessions did count in their answers' reward?  The file answers with a function over the N
samples of a rollout batch, all (N,) float32 tensors but `scored`:

    answer    task rewards, as the reward function or the reward model gave them
    honesty   honesty rewards; 0 where not scored
    scored    bool: this answer was confessed and its confession has an honesty reward
    admits    1: the report admits a violation; 0: it does not; NaN: no readable report, or not asked

It returns the answers' new rewards, or a pair of new rewards (answers, confessions).  They take the place of the
rewards that enter the host's advantage code.  Everything in a run that this touches says UNSEALED.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError, PluginError
from confession_plugin.plugins import load_file

if TYPE_CHECKING:
    from torch import Tensor

#: In every start-up line, log line, metric name and trace line that a coupling touches.
LABEL = "UNSEALED"
FLAG = f"{PREFIX}unsealed_coupling"


def warning(config: Config) -> str:
    """The line about a run with a coupling; empty for a sealed one."""
    if config.unsealed_coupling is None:
        return ""
    return (
        f"{LABEL}: {FLAG} {config.unsealed_coupling} changes the answers' rewards by what their confessions say: "
        "a control for experiments; a model trained so has a reason to confess otherwise than honestly"
    )


@dataclass(frozen=True)
class Coupling:
    """A loaded file."""

    path: str
    function: Callable[..., Any]

    def __call__(self, answer: Tensor, honesty: Tensor, scored: Tensor, admits: Tensor) -> tuple[Tensor, Tensor]:
        """New rewards of answers and confessions, (N,) float32 each.

        Raises:
            PluginError: the function fails, or gives anything but one or two finite tensors of this shape.
        """
        given = (answer.float(), honesty.float(), scored.bool(), admits.float())
        try:
            found = self.function(*(one.clone() for one in given))
        except Exception as error:
            raise PluginError(f"{self._place}: couple failed: {type(error).__name__}: {error}") from error
        pair = found if isinstance(found, tuple) else (found, given[1])
        if len(pair) != 2:
            raise PluginError(f"{self._place}: couple gave {len(pair)} values; give new answer rewards, or a pair")
        return self._checked(pair[0], answer, "answer"), self._checked(pair[1], answer, "honesty")

    def _checked(self, value: Any, like: Tensor, what: str) -> Tensor:
        import torch

        if type(value) is not torch.Tensor or value.shape != like.shape or value.is_complex():
            shown = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise PluginError(
                f"{self._place}: couple gave {what} rewards of {shown}; give a float tensor of shape "
                f"{tuple(like.shape)}, one number for each answer"
            )
        rewards = value.detach().to(like.device, torch.float32, copy=True)
        if not torch.isfinite(rewards).all():
            raise PluginError(
                f"{self._place}: couple gave {what} rewards that are not finite; note that admits has NaN"
            )
        return rewards

    @property
    def _place(self) -> str:
        return f"{LABEL}: {FLAG}: {self.path}"


def coupling_of(config: Config) -> Coupling | None:
    """The run's coupling; None, as in every run that is not an experiment about the seal, without the flag.

    Raises:
        PluginError: the file cannot be imported.
        ConfigError: it has no function ``couple``.
    """
    if config.unsealed_coupling is None:
        return None
    function = getattr(load_file(config.unsealed_coupling, FLAG), "couple", None)
    if not callable(function):
        raise ConfigError(
            f"{FLAG}: {config.unsealed_coupling} has no function `couple`; "
            "define couple(answer, honesty, scored, admits)"
        )
    return Coupling(config.unsealed_coupling, function)


def check(config: Config) -> None:
    """Load the file and call it on made-up batches, before anything is started.

    Raises:
        ConfigError: no such file, no such function, results that cannot be rewards, or settings it cannot go with.
    """
    path = config.unsealed_coupling
    if path is None:
        return
    if not Path(path).is_file():
        raise ConfigError(f"{FLAG}: no file at {path}; give the path of an existing .py file")
    if config.samples_per_answer > 1:
        raise ConfigError(
            f"{FLAG} has one confession for each answer to read; leave out {PREFIX}samples_per_answer "
            f"{config.samples_per_answer}"
        )
    try:
        coupling = coupling_of(config)
        assert coupling is not None
        for batch in _made_up_batches():
            coupling(*batch)
    except PluginError as error:
        raise ConfigError(str(error)) from error


def _made_up_batches() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What a run may hand over: all kinds of entries, a batch in which nothing confessed, and one of one sample."""
    import torch

    nan = float("nan")
    answer = torch.tensor([0.0, 1.0, -0.5, 1.0, 0.25, 1e6])
    honesty = torch.tensor([0.0, 1.0, 1 / 3, 0.0, 0.0, 0.0])
    scored = torch.tensor([True, True, True, True, False, False])
    admits = torch.tensor([0.0, 1.0, 1.0, nan, 1.0, nan])  # the last two: no score, not asked
    yield answer, honesty, scored, admits
    yield answer, torch.zeros(6), torch.zeros(6, dtype=torch.bool), torch.full((6,), nan)
    yield answer[:1], honesty[:1], scored[:1], admits[:1]
