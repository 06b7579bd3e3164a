"""The reasons for missing scores: one closed list, its documentation, and how its members are written."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from pathlib import Path

import pytest

from confession_plugin.reasons import Reason, reason_table

DOCS = next(folder for folder in Path(__file__).parents if (folder / "docs").is_dir()) / "docs" / "judge.md"


def test_the_table_in_the_docs_is_made_of_the_reasons() -> None:
    text = DOCS.read_text()
    table = re.search(r"(?m)^\| reason .*\n(?:\|.*\n)+", text)
    assert table is not None
    assert table[0].splitlines() == reason_table(), "\n".join(reason_table())


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_its_plain_value_wherever_it_is_written(reason: Reason) -> None:
    assert reason == reason.value and f"{reason}" == str(reason) == "%s" % reason == reason.value  # noqa: UP031
    assert json.loads(json.dumps({reason: reason})) == {reason.value: reason.value}
    assert pickle.loads(pickle.dumps(reason)) is reason is Reason(reason.value)
    assert re.fullmatch(r"[a-z]\w+", reason.value) and reason.doc and reason.retried


def test_what_is_deprecated_and_called_by_this_package_is_an_error_in_tests() -> None:
    def warn(module: str) -> None:
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)

    for ours in ("confession_plugin", "confession_plugin.judging.client", "confession_hooks.judge"):
        with pytest.raises(DeprecationWarning):
            warn(ours)
    warn("somebody.elses")
    warn("confession_plugins_of_another_kind")
