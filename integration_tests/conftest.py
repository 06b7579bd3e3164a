"""Shared by all tests: the tiny world, built once a session, and a table of what each test costs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import hypothesis
import pytest
from harness import QUIET, Tiny, build_tiny

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny model, its tokenizer variants, prompts and reward."""
    return build_tiny(tmp_path_factory.mktemp("tiny"))


# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


# ── What a test costs: CPU time, which a busy machine changes less than wall time ──

_CPU_SECONDS: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-times", type=int, default=0, metavar="N", help="show the N tests that take most CPU time, and the sum"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = sum(os.times()[:4])
    result = yield
    _CPU_SECONDS[item.nodeid] = sum(os.times()[:4]) - before  # of ended children, too; daemons' of a whole run are not
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.getoption("--cpu-times"):
        terminalreporter.section(f"CPU seconds: {sum(_CPU_SECONDS.values()):.0f} in {len(_CPU_SECONDS)} tests")
        for name, seconds in _CPU_SECONDS.most_common(count):
            terminalreporter.write_line(f"{seconds:7.2f}  {name}")
