"""The contract plugin authors read: ten hooks.

A plugin is a module or object with functions of these names, each marked::

    from confession_plugin import Verdict, hookimpl

    @hookimpl
    def confession_judge(rollout, confession):
        return Verdict(ratings={"honest": 1.0})

Take only the arguments you need.  Load it with ``--confession.plugins my.module,./file.py`` or the entry-point group
``confession_plugin``; the built-in behaviours in ``confession_hooks`` are plugins like yours and run after it.
docs/hooks.md has a tested example of each hook, and says how to test a plugin without a cluster.

* **Deciders** (select, request, parse, judge, reward, advantages): the first result that is not None counts, later
  registered plugins first.  An exception, or a value of another type, stops the run and names the plugin: a wrong
  decision must not train.
* **Observers** (judged, metrics): everyone is called.  A failure is counted and logged once, never fatal.
* **Set-up** (add_options, configure): everyone is called, once per process; an exception stops the start.

Records are frozen: read them, do not change what they hold.
"""

from __future__ import annotations

import numbers
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from confession_plugin.channels import HonestyChannel, TokenValues
    from confession_plugin.config import Config, OptionGroup
    from confession_plugin.records import (
        BatchStats,
        Confession,
        Judged,
        Parsed,
        PromptBatch,
        Request,
        Rollout,
        Verdict,
    )

PROJECT = "confession"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

DECIDERS = frozenset(
    {
        "confession_select",
        "confession_request",
        "confession_parse",
        "confession_judge",
        "confession_reward",
        "confession_advantages",
    }
)
OBSERVERS = frozenset({"confession_judged", "confession_metrics"})
SETUP = frozenset({"confession_add_options", "confession_configure"})


# ── Set-up ──


@hookspec
def confession_add_options(options: OptionGroup) -> None:
    """Add flags of your own: ``options.add("my_plugin.threshold", float, default=0.5, help="...")``.

    When: in the driver alone, before the command line is read.  The value reaches every process as
    ``config.extra[name]`` and must be JSON-serialisable.
    """


@hookspec
def confession_configure(config: Config) -> None:
    """Take what you need from the settings.

    When: once in every process (driver, trainer, rollout workers), before any hook but the flags'.  In the driver the
    host's own flags are not read yet.  Raise `ConfigError` to refuse the run.
    """


# ── Deciders ──


@hookspec(firstresult=True)
def confession_select(batch: PromptBatch) -> Sequence[bool] | None:
    """Choose the prompt groups of this batch that confess: one bool a group.

    When: before any of their answers is sampled, in the process that dispatches prompts; never in evaluation.  The
    choice must not depend on answers (that would bias the baseline) and must be a function of the batch alone, so that
    a resumed run repeats it.
    """


@hookspec(firstresult=True)
def confession_request(rollout: Rollout) -> Request | None:
    """Give the message that asks for the confession about this answer.

    When: in the rollout worker, once per answer, after it is finished.  The message is appended as tokens and never
    trained.
    """


@hookspec(firstresult=True)
def confession_parse(text: str, truncated: bool, rollout: Rollout) -> Parsed | None:
    """Read the report out of the confession's text, or say why it cannot be read.

    When: in the rollout worker, after each confession.  ``Parsed(problem=...)`` is the policy's doing and earns the
    lowest reward; the judge is not called for it.
    """


@hookspec(firstresult=True)
def confession_judge(rollout: Rollout, confession: Confession) -> Verdict | Awaitable[Verdict] | None:
    """Rate the honesty of this confession.  May be ``async``.

    When: in the rollout worker's event loop, for confessions with a report, while other rollouts go on: what waits
    should be ``async``.  Without a verdict return ``Verdict(unscored="why")`` or raise `Unscored`, never a number.
    Any other exception stops the run.
    """


@hookspec(firstresult=True)
def confession_reward(verdict: Verdict, confession: Confession) -> float | None:
    """Turn a scored verdict into the honesty reward, a finite number.

    When: in the rollout worker, for scored verdicts only.  A confession that could not be read has the one rating
    ``readable`` 0, which must stay the lowest reward there is.
    """


@hookspec(firstresult=True)
def confession_advantages(honesty: HonestyChannel) -> TokenValues | None:
    """Give per-token advantages and returns of the honesty channel, and of no other.

    When: in the trainer process, once per rollout batch, after the answer channel is finished; and in the seal check.
    `honesty` holds copies of that channel's rewards, scored flags and masks, and ``honesty.estimate`` to run the
    host's estimator on them.  Return one finite (B, A) tensor per mask, twice.  Values outside the masks are
    discarded; the merge with the answer channel is not a plugin's.
    """


# ── Observers ──


@hookspec
def confession_judged(record: Judged) -> None:
    """See one finished confession with its texts and verdict, scored or not.

    When: in the rollout worker, between rollouts: keep it short.
    """


@hookspec
def confession_metrics(stats: BatchStats) -> Mapping[str, float] | None:
    """Give named numbers for the host's loggers, shown as ``train/confession/<name>``.

    When: in the trainer process, once per training batch.  Leave a number out where it is undefined; one that is not
    finite is left out with a warning.  A built-in metric's name replaces it.
    """


# ── What a decider may return ──

#: The largest finite float32: rewards become float32 tensors, where anything larger is infinite.
_LARGEST = 3.4028234663852886e38


def wanted_instead_of(hook: str, value: Any) -> str | None:
    """What a decider should have returned in place of this (not None) value; None where the value will do."""
    from confession_plugin import records

    wanted: Mapping[str, tuple[Callable[[Any], bool], str]] = {
        "confession_select": (_is_choice, "one bool a group"),
        "confession_request": (lambda it: isinstance(it, records.Request), "a Request(text)"),
        "confession_parse": (
            lambda it: isinstance(it, records.Parsed),
            "Parsed(report=...), or Parsed(problem=...) to say why there is none",
        ),
        "confession_judge": (
            lambda it: isinstance(it, records.Verdict),
            "a Verdict(ratings={...}), or Verdict(unscored='why')",
        ),
        "confession_reward": (_is_reward, "a number that is finite in float32"),
        "confession_advantages": (
            lambda it: type(it).__name__ == "TokenValues",
            "the honesty channel's TokenValues (see channels.estimate_scored)",
        ),
    }
    fits, text = wanted[hook]
    return None if fits(value) else text


def _is_choice(value: Any) -> bool:
    # By name: numpy's bool is a bool to every user and no subclass of Python's.
    return isinstance(value, Sequence) and all(type(one).__name__ in ("bool", "bool_") for one in value)


def _is_reward(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(float(value)) <= _LARGEST


def hook_names() -> list[str]:
    """Names of all hooks, in file order."""
    here: dict[str, Any] = globals()
    return [name for name in here if name.startswith("confession_") and name not in ("confession_plugin",)]
