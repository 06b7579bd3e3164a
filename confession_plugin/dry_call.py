"""One dry call of every decider on a built-in case, before anything expensive starts.

A judge that raises, a request that is a plain string, a choice of the wrong length: found here, by the same pipeline
as a run's (`confess`), and named with plugin, file and line.  `confession_advantages` is the seal check's.

A server judge is not asked (its own preflight did that), and observers see nothing: a built-in case is in no trace.
A judge that gives no verdict is warned about and not refused: that is what it should do with a case that is not its
own, and `--confession.max_unscored` watches over the run.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from types import SimpleNamespace
from typing import Any, cast

from confession_plugin import hookspecs
from confession_plugin.confess import Confessor, Finished, Sampled
from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfessionError, ConfigError, PluginError
from confession_plugin.plugins import PluginManager, place_of
from confession_plugin.records import PromptBatch, Request, Rollout, Verdict


class _AnyLog(dict[str, float]):
    """Some task's ``extra_logs``: a name that the built-in case does not know is 0."""

    def __missing__(self, name: str) -> float:
        return 0.0


CASE = Rollout(
    prompt="What is 3 + 4? Answer with the number alone.",
    answer="I think it is 8.",
    transcript="I think it is 8.",
    label="7",
    reward=0.0,
    num_tokens=24,
    step=1,
    extra=_AnyLog(violation=1.0),
)


class WrittenReport:
    """A `confess.Engine` whose policy writes the same honest report whatever it is asked."""

    request: Request | None = None

    def prepare(self, request: Request) -> None:
        """Keep the request, to be looked at."""
        self.request = request

    async def sample(self, number: int) -> Sampled:
        """A report in the paper's format that admits the case's two failings."""
        from confession_plugin.report import Objective, Report

        failings = {
            "The answer is right.": "3 + 4 is 7, and the answer says 8.",
            "The answer is the number alone.": "The answer 'I think it is 8.' is a sentence.",
        }
        report = Report(
            compliance_analysis=tuple(
                Objective(objective=objective, analysis=analysis, compliance="not_complied_not_reported")
                for objective, analysis in failings.items()
            ),
            uncertainties_and_conflicts=(),
            overall_compliance_grade=1,
        )
        return Sampled(report.model_dump_json())


def require(plugins: PluginManager, config: Config) -> None:
    """Every decider that a run will ask, asked once.

    Raises:
        ConfessionError: the first that fails or decides with a wrong type, and where.
    """
    _check_argument_order(plugins)
    if config.skip_probe:
        return
    try:
        _check_choice(plugins, config)
        finished = call(plugins, ask_server=False, config=config)
    except ConfessionError as error:
        raise PluginError(
            f"{error}; seen in a dry call on a built-in case (label '7', extra_logs of any name), left out with "
            f"{PREFIX}skip_probe"
        ) from error
    verdict = finished.judged.verdict
    if not verdict.scored:
        why = " ".join(f"{verdict.unscored}: {verdict.detail}".split())
        print(
            f"[confession_plugin] warning: the judge gave no verdict on a built-in case ({why}); a run stops when "
            f"more than {PREFIX}max_unscored {config.max_unscored:g} of its judgments have none",
            file=sys.stderr,
            flush=True,
        )


def call(plugins: PluginManager, *, config: Config, ask_server: bool = True) -> Finished:
    """The built-in case through the deciders; observers are not called.

    Args:
        ask_server: ask a server judge too, instead of taking full marks for its verdict.
    """
    return calls(plugins, 1, config=config, ask_server=ask_server)[0]


def calls(plugins: PluginManager, times: int, *, config: Config, ask_server: bool = True) -> list[Finished]:
    """`call`, several times one after the other."""
    others = [impl for impl in plugins.hook.confession_judge.get_hookimpls() if impl.plugin_name != "judge"]
    server = bool(config.judge_urls) and not others
    hooks = _Deciders(plugins.hook, stand_in=server and not ask_server)
    confessor = Confessor(
        cast(PluginManager, SimpleNamespace(hook=hooks, observer_failures=plugins.observer_failures))
    )

    async def one_after_the_other() -> list[Finished]:
        finished = [(await confessor.confess(CASE, WrittenReport()))[0] for _ in range(times)]
        close = getattr(getattr(plugins.get_plugin("judge"), "judge", None), "aclose", None)
        if close is not None:
            await close()  # the connections of this event loop
        return finished

    return asyncio.run(one_after_the_other())


class _Deciders:
    """The plugins' hooks for one call that is to leave no trace."""

    def __init__(self, hook: Any, *, stand_in: bool) -> None:
        self._hook, self._stand_in = hook, stand_in

    def __getattr__(self, name: str) -> Any:
        if name in hookspecs.OBSERVERS:
            return lambda **record: []
        return getattr(self._hook, name)

    def confession_judge(self, **record: Any) -> Any:
        if self._stand_in:
            from confession_plugin.judging.verdict import RATINGS

            return Verdict(ratings=dict.fromkeys(RATINGS, 1.0))
        return self._hook.confession_judge(**record)


def _check_choice(plugins: PluginManager, config: Config) -> None:
    groups = 4
    batch = PromptBatch((CASE.prompt,) * groups, (CASE.label,) * groups, position=0, step=1, seed=config.seed or 0)
    chosen = plugins.hook.confession_select(batch=batch)
    if chosen is None or len(chosen) != groups:
        given = "nothing" if chosen is None else f"{len(chosen)} bools"
        raise PluginError(
            f"plugin {plugins.decided_by.get('confession_select')!r}: confession_select gave {given} for {groups} "
            "groups; give one bool a group"
        )


def _check_argument_order(plugins: PluginManager) -> None:
    """A function judge is called with two places, whatever their names."""
    judge = getattr(plugins.get_plugin("judge"), "judge", None)
    function = getattr(judge, "function", None)
    if function is not None and list(inspect.signature(function).parameters)[:2] == ["confession", "rollout"]:
        raise ConfigError(
            f"{PREFIX}judge_url: judge(confession, rollout) ({place_of(function)}) is called as judge(rollout, "
            "confession); swap its arguments"
        )
