"""A pytest plugin for the host's own test-suite: its tests run with our seams in place.

    CONFESSION_TEST_SAMPLES=3 python -m pytest -p host_suite .../site-packages/tests

The host's tests load its modules from their files, under other names: a module gets the seams of its file.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections import defaultdict
from types import ModuleType

import in_process  # noqa: F401  (before anything of the host)

from confession_plugin import patching, session
from confession_plugin.config import Config
from confession_plugin.openrlhf import seams
from confession_plugin.plugins import configured

BY_FILE: dict[str, list[patching.Seam]] = defaultdict(list)
PLACED: set[str] = set()

for _seam in seams.WORKER_SEAMS:
    _spec = importlib.util.find_spec(_seam.module)
    assert _spec is not None and _spec.origin is not None
    BY_FILE[os.path.realpath(_spec.origin)].append(_seam)

_execute = importlib.machinery.SourceFileLoader.exec_module


def _execute_with_seams(loader: importlib.machinery.SourceFileLoader, module: ModuleType) -> None:
    _execute(loader, module)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        for seam in BY_FILE.get(os.path.realpath(loader.path), ()):
            patching.put_in(seam, module)
            PLACED.add(seam.path)
    finally:
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before


def pytest_configure() -> None:
    importlib.machinery.SourceFileLoader.exec_module = _execute_with_seams  # type: ignore[method-assign]
    config = Config(enable=True, samples_per_answer=int(os.environ["CONFESSION_TEST_SAMPLES"]))
    session.begin(config, configured(config))


def pytest_terminal_summary(terminalreporter: object) -> None:
    print("\nseams placed:", ", ".join(sorted(PLACED)))
