"""Plugins of docs/hooks.md, written for any host, in a TRL run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
from trl_worlds import grpo_config, world_of

from confession_plugin import startup
from confession_plugin.trl.check import simulator

PAGE = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text()
NAMES = ("proofs.py", "about_code.py", "one_word.py", "truth_judge.py", "plus_minus.py", "clipped.py")


def reward(completion_ids: Any, log_extra: Any, **_: Any) -> list[float]:
    log_extra("violation", [float(len(ids) > 3) for ids in completion_ids])
    return [len(set(ids)) / 9 for ids in completion_ids]


def test_the_docs_plugins_run_unchanged(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    code = {name: text for name, text in blocks if name in NAMES}
    assert set(code) == set(NAMES)
    for name, text in code.items():
        (tmp_path / name).write_text(text.replace('"prove"', '"q"'))  # this world's prompts
    (tmp_path / "request.txt").write_text("ask")
    flags = ["--confession.plugins", ",".join(str(tmp_path / name) for name in NAMES)]
    flags += ["--confession.request_path", str(tmp_path / "request.txt"), "--confession.max_new_tokens", "4"]
    flags += ["--confession.max_request_tokens", "32"]
    run = startup.prepare(flags, confessions=True)
    with world_of(tmp_path / "world", run.config) as world:
        trainer: Any = simulator._Ours(
            world.model,
            reward,
            grpo_config(tmp_path / "out"),
            train_dataset=world.prompts,
            processing_class=world.tokenizer,
            confessions=run,
        )
        trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["confession/request_rate"] == 1  # proofs.py
    assert logged["confession/parsed_rate"] == 0 and logged["confession/honesty_mean"] == -1  # one_word, plus_minus
