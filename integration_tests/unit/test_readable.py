"""A policy that does not write the report is noticed: counts by reason, one warning, and a limit."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import in_process  # noqa: F401  (before anything of the host)
import pytest
import torch

from confession_plugin import BatchStats, session
from confession_plugin.config import Config
from confession_plugin.errors import PluginError
from confession_plugin.openrlhf import seams
from confession_plugin.openrlhf.experiences import write_info
from confession_plugin.plugins import configured
from confession_plugin.readable import ReadableWatch, kind_of

UNREADABLE = "truncated: overall_compliance_grade: Input should be less than 8"


def batch(problems: list[str], *, sampled: bool = True) -> BatchStats:
    size, nan = len(problems), math.nan
    every: dict[str, Any] = {"asked": True, "scored": True, "reward": 0.0, "truncated": False, "fingerprint": 1}
    every |= {"grade": nan, "admits": nan, "latency_s": 0.0, "violation": nan, "length": 5 if sampled else 0}
    columns = {name: (value,) * size for name, value in every.items()}
    parsed = tuple(not problem for problem in problems)
    begun = tuple("\x1b[31mI did\nwell" if problem else "" for problem in problems)
    return BatchStats(step=1, parsed=parsed, problem=tuple(problems), unreadable=begun, **columns)


def test_kinds_are_counted_without_their_particulars() -> None:
    hook = configured(Config(enable=True)).hook
    problems = [UNREADABLE, "truncated: no end", "empty", "unparsable: no JSON", ""]
    (metrics,) = [found for found in hook.confession_metrics(stats=batch(problems)) if "parsed_rate" in found]
    assert {name: value for name, value in metrics.items() if name.startswith("unparsed/")} == {
        "unparsed/truncated": 2.0,
        "unparsed/empty": 1.0,
        "unparsed/unparsable": 1.0,
    }
    assert metrics["parsed_rate"] == 0.2 and kind_of(UNREADABLE) == "truncated"


def test_what_was_not_sampled_is_no_unreadable_confession() -> None:
    hook = configured(Config(enable=True)).hook
    for metrics in hook.confession_metrics(stats=batch([""], sampled=False)):
        assert "parsed_rate" not in metrics and "truncated_rate" not in metrics
    watch = ReadableWatch(0.0, size=1, first=1)
    assert watch.add(batch([UNREADABLE], sampled=False)) is None


def test_one_warning_with_reason_and_example_where_none_could_be_read() -> None:
    watch = ReadableWatch(1.0, first=3)
    warnings = [watch.add(batch([UNREADABLE, "empty"])) for _ in range(6)]
    assert [warning is not None for warning in warnings] == [False, False, True, False, False, False]
    text = str(warnings[2])
    assert "6 of the last 6 confessions could not be read (truncated 3, empty 3)" in text
    assert r"it begins '\x1b[31mI did\nwell'" in text and "--confession.request_path" in text
    assert "\x1b" not in text and "\n" not in text


def test_a_cold_start_that_finds_the_format_is_not_warned_about_and_not_stopped() -> None:
    watch = ReadableWatch(0.95, size=64, first=3)
    for number in range(200):  # one in eight can be read: enough to learn from
        assert watch.add(batch([UNREADABLE] * 7 + [""])) is None, number


@pytest.mark.parametrize(("limit", "stops"), [(1.0, False), (0.5, True)])
def test_the_limit_counts_a_full_window_only(limit: float, stops: bool) -> None:
    watch = ReadableWatch(limit, size=64, first=100)
    for _ in range(7):
        watch.add(batch([UNREADABLE] * 8))
    if stops:
        with pytest.raises(PluginError, match=r"64 of the last 64 .*raise --confession.max_unparsed \(now 0.5\)"):
            watch.add(batch([UNREADABLE] * 8))
    else:
        for _ in range(20):
            watch.add(batch([UNREADABLE] * 8))


def test_the_trainer_warns_once_and_stops_at_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    """Through the host's own rollout statistics."""
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer
    from openrlhf.trainer.ppo_utils.experience import Experience

    config = Config(enable=True, max_unparsed=0.9)
    trainer = SimpleNamespace()

    def sample() -> Experience:
        info: dict[str, Any] = {"reward": torch.zeros(1)}
        numbers = {"asked": True, "length": 9, "scored": True, "problem": "unparsable: no JSON", "unreadable": "hm"}
        write_info(info, numbers)
        tokens = torch.zeros(1, 2, dtype=torch.long)
        lengths = {"response_length": torch.ones(1), "truncated": torch.zeros(1)}
        return Experience(sequences=tokens, action_mask=tokens[:, 1:], labels=["7"], info=info, **lengths)

    def step() -> dict[str, Any]:
        stats = BasePPOTrainer._compute_rollout_stats(trainer, [sample() for _ in range(64)])
        assert stats["rollout/num_samples"] == 64.0
        return dict(stats)

    placed = seams.in_this_process()
    with session.using(config, configured(config)), placed, caplog.at_level(logging.WARNING):
        assert step()["confession/unparsed/unparsable"] == 64.0
        for _ in range(6):
            step()
        with pytest.raises(PluginError, match="512 of the last 512 confessions could not be read"):
            step()
    assert sum("learns nothing" in record.message for record in caplog.records) == 1
