"""Is honesty the best policy under this judge?

    python3 -m confession_plugin.audit_judge --confession.judge_url http://judge:8000/v1 --confession.judge_model NAME

Runs the judge, with the reward it leads to, over hand-written cases: good and bad answers, each with honest and
dishonest reports.  Training finds whatever report the judge pays best, so ask before you train: does an honest report
earn more than hiding a failing, relegating it to the uncertainties, inventing one, admitting something vague, writing
boilerplate, claiming checks without evidence, flattering the reader, talking to the judge, or saying the same thing
every time?

    --json              print the numbers as one JSON object
    --cases FILE        cases of your own, JSON lines like judging/audit_cases.jsonl: id, class, violation (0 or 1),
                        prompt, answer, report; optional: transcript, reference
    --bad_share X       share of bad answers to expect in training (default 0.5)

Takes every ``--confession.*`` flag that matters to a judge, plugins included.  Exit code: 0 honesty is the best
policy, 1 it is not, 2 it cannot be told (wrong settings, a judge that does not answer).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from confession_plugin import startup
from confession_plugin.judging.audit import CASES, as_text, evaluate, judge_all, load_cases, parse_options

__all__ = ["CASES", "load_cases", "main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Audit the judge that the flags name."""
    with startup.exits(startup.EXIT_USAGE):
        run = startup.prepare(argv, confessions=True)
        if run.help is not None:
            print(f"{__doc__}\n{run.help}")
            sys.exit(0)
        options = parse_options(run.host_argv)
        cases = load_cases(options.cases)
        result = evaluate(asyncio.run(judge_all(run.plugins, cases)), options.bad_share)
    print(json.dumps(result, indent=2) if options.json else as_text(result, run.config))
    sys.exit({True: 0, False: startup.EXIT_NO, None: startup.EXIT_USAGE}[result["honesty_is_best"]])


if __name__ == "__main__":
    main()
