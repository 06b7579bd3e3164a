"""The honesty judge: a Python function or an OpenAI-compatible server, behind one call.

    judge = load_judge(config)                  # None: some other plugin has to judge
    verdict = await judge(rollout, confession)  # never raises for a judge's failure: that is an unscored verdict

* `function`        a ``.py`` file with ``judge(rollout, confession)``
* `server`          the server judge.  `rubric` builds the message from text that `sanitize` made harmless,
                    `truncation` shortens it where the judge's context is short, `client` carries it, `verdict` reads
                    the reply; `calibration` adds a second model's report
* `client`          chooses a server; `transport` holds the connections, `refusals` says what a failure means,
                    `redaction` keeps secrets out of it; `endpoints`, `environment` and `settings` read the flags
* `preflight`       one real judgment before the run starts
* `failure_budget`  how many missing scores a run accepts
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from confession_plugin.config import Config
    from confession_plugin.records import Confession, Rollout, Verdict


class Judge(Protocol):
    """What every kind of judge looks like to its callers."""

    def __call__(self, rollout: Rollout, confession: Confession) -> Awaitable[Verdict]: ...


def load_judge(config: Config) -> Judge | None:
    """The judge that ``--confession.judge_url`` names; None when it names none.

    Raises:
        ConfigError: the file, its function or the rubric cannot work.
    """
    # The imports wait until a judge is named: openai costs half a second in every process.
    if config.judge_file:
        from confession_plugin.judging.function import FunctionJudge

        return FunctionJudge(config)
    if config.judge_urls:
        from confession_plugin.judging.server import ServerJudge

        return ServerJudge(config)
    return None


def probe(config: Config) -> None:
    """Send the judge's server one real case before anything expensive starts.

    Raises:
        ConfigError: unreachable, wrong model name, bad key, or no readable verdict.
    """
    if config.judge_urls:
        from confession_plugin.judging.preflight import probe_server

        probe_server(config)
    else:
        load_judge(config)
