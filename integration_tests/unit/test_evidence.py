"""benchmarks/evidence: its statistics against known values, its grid on real processes, its tables on made-up lines.

What the runs themselves show is tested in integration_tests/runs/test_evidence_quick.py.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import wait_until

EVIDENCE = Path(__file__).parents[2] / "benchmarks" / "evidence"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# ── Statistics ──


def test_students_quantiles() -> None:
    from stats import student_t

    known = {(0.975, 1): 12.706, (0.975, 2): 4.303, (0.975, 4): 2.776, (0.95, 4): 2.132, (0.975, 9): 2.262}
    for (p, df), value in known.items():
        assert student_t(p, df) == pytest.approx(value, abs=6e-4)
    assert student_t(0.975, 100_000) == pytest.approx(1.95996, abs=1e-3)


def test_an_interval_over_seeds() -> None:
    from stats import over_seeds

    found = over_seeds([1.0, 2.0, 3.0, math.nan])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert math.isnan(over_seeds([1.0]).low) and over_seeds([]).n == 0


def test_wilsons_interval() -> None:
    from stats import wilson

    some, none = wilson(8, 10), wilson(0, 10)
    assert (some.low, some.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert (none.low, none.high) == (pytest.approx(0.0, abs=1e-12), pytest.approx(0.2775, abs=1e-4))


def test_equivalence_needs_the_whole_interval_inside() -> None:
    from stats import equivalent

    stock = [0.50, 0.51, 0.49, 0.50, 0.50]
    near, far, wide = (
        [a + d for a, d in zip(stock, ds, strict=True)]
        for ds in ([0.01, -0.01] * 2 + [0.0], [0.1] * 5, [0.1, -0.1] * 2 + [0])
    )
    assert equivalent(stock, near, 0.05).holds
    assert not equivalent(stock, far, 0.05).holds
    assert not equivalent(stock, wide, 0.05).holds  # its mean difference is as small
    assert not equivalent(stock[:1], near[:1], 0.05).holds


def test_the_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    from stats import bootstrap

    found = bootstrap([float(value) for value in range(100)])
    half = 1.96 * (9999 / 12) ** 0.5 / 10
    assert found.mean == 49.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


# ── The grid ──

RUN_SH = """
if [ "${SEED}" = 13 ] && [ ! -e "$WORLD/fixed" ]; then exit 1; fi
echo run >> "$WORLD/calls"
if [ "${SEED}" = 99 ]; then sleep 600 & echo $! > "$WORLD/child"; wait; fi
mkdir -p "$OUT/model"; echo "$*" > "$OUT/flags"
"""
MEASURE = """
import json, sys
flags = open(sys.argv[1] + "/flags").read()
json.dump({"steps": [{"step": 1, "recall": 0.25, "flags": flags}]}, open(sys.argv[-1], "w"))
"""
PROBE = "import json, sys\njson.dump({'words': sys.argv[1:-2]}, open(sys.argv[-1], 'w'))\n"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a world's scripts that take no time."""
    import grid

    reports = tmp_path / "reports"
    reports.mkdir()
    for name, text in {"run.sh": RUN_SH, "measure.py": MEASURE, "probe.py": PROBE}.items():
        (reports / name).write_text(text)
    (tmp_path / "world" / "model").mkdir(parents=True)
    monkeypatch.setattr(grid, "REPORTS", reports)
    return tmp_path


def do(folder: Path, *runs: Any) -> tuple[int, list[dict[str, Any]]]:
    import grid

    results = folder / "results.jsonl"
    failed = grid.run_grid(runs, folder / "world", folder / "out", results, say=lambda _: None)
    return failed, grid.read(results)


def calls(folder: Path) -> int:
    path = folder / "world" / "calls"
    return len(path.read_text().split()) if path.exists() else 0


def test_a_run_is_done_once_and_again_with_other_settings(small: Path) -> None:
    from grid import Run

    first = Run("arms", "plain", 0, files={"coupling.py": "x = 1\n"}, flags=("--a", "{out}/coupling.py"))
    failed, (line,) = do(small, first)
    assert not failed and line["measured"]["steps"][0]["recall"] == 0.25
    assert line["measured"]["steps"][0]["flags"].split() == ["--a", str(small / "out/arms/plain-0/coupling.py")]
    assert "SEED=0" in line["command"] and line["minutes"] > 0
    do(small, first)
    assert calls(small) == 1
    do(small, Run("arms", "plain", 0, steps=31))
    assert calls(small) == 2


def test_a_failed_run_is_said_and_tried_again(small: Path) -> None:
    from grid import Run

    failed, lines = do(small, Run("arms", "plain", 13), Run("arms", "plain", 1))
    assert failed == 1 and [line["seed"] for line in lines] == [1]
    (small / "world" / "fixed").touch()
    failed, lines = do(small, Run("arms", "plain", 13))
    assert not failed and len(lines) == 2


def test_a_line_cut_off_by_a_crash_is_no_line(small: Path) -> None:
    from grid import Run

    do(small, Run("arms", "plain", 0))
    results = small / "results.jsonl"
    results.write_text(results.read_text()[:-20])
    do(small, Run("arms", "plain", 0))
    assert calls(small) == 2


def test_the_untrained_model_is_probed_without_a_run(small: Path) -> None:
    from grid import Run

    _, (line,) = do(small, Run("transfer", "untrained", 0, 0, probes={"a": ("--system", "Lie.")}, base=True))
    assert line["probes"]["a"]["words"] == [str(small / "world" / "model"), "--system", "Lie."]
    assert calls(small) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_running(small: Path, number: signal.Signals) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(EVIDENCE)!r}); import grid; from pathlib import Path\n"
        f"grid.REPORTS = Path({str(small / 'reports')!r}); here = Path({str(small)!r})\n"
        "grid.run_grid([grid.Run('arms', 'plain', 99)], here / 'world', here / 'out', here / 'results.jsonl')\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    child = small / "world" / "child"
    wait_until(lambda: child.exists() and bool(child.read_text().strip()))
    runner.send_signal(number)
    assert runner.wait(60) != 0
    wait_until(lambda: not alive(int(child.read_text())))
    assert not (small / "results.jsonl").exists()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_every_run_of_every_experiment_is_another() -> None:
    from experiments import GRIDS
    from grid import _folder_name

    for name, (grid, seeds) in GRIDS.items():
        runs = list(grid(range(seeds), 30))
        assert {run.experiment for run in runs} == {name}
        assert len({_folder_name(run.arm, run.seed) for run in runs}) == len(runs) > 0
        assert len({run.fingerprint for run in runs}) == len(runs)


def test_a_start_comes_before_what_starts_from_it() -> None:
    from experiments import GRIDS

    for grid, seeds in GRIDS.values():
        done: set[tuple[str, int]] = set()
        for run in grid(range(seeds), 30):
            assert not run.start or (run.start, run.seed) in done
            done.add((run.arm, run.seed))


# ── The report ──


def line_of(experiment: str, arm: str, seed: int, **numbers: float) -> dict[str, Any]:
    line = {
        "key": f"{experiment}/{arm}/{seed}",
        "experiment": experiment,
        "arm": arm,
        "seed": seed,
        "steps": 8,
        "minutes": 2.0,
    }
    cells = {"broken": {"right": 8, "cases": 10}, "kept": {"right": 0, "cases": 0}}
    return {
        **line,
        "measured": {"steps": [{"step": step, **numbers} for step in range(1, 9)]},
        "probes": {"builtin": {"kinds": {"words": cells}}},
    }


def test_the_tables_say_their_numbers_and_where_they_come_from() -> None:
    from report import section

    lines = [line_of("arms", "stock", seed, answer_reward=0.5 + seed / 1000) for seed in range(3)]
    lines += [line_of("arms", "just_ask", seed, answer_reward=0.5, recall=0.25) for seed in range(3)]
    text = section("arms", lines)
    assert "| just_ask | 0.50 (0.50 to 0.50) | - | - | 0.25 (0.25 to 0.25)" in text
    assert "| just_ask | -0.001 (-0.003 to +0.001) | 0.05 | yes | 3 |" in text
    assert "| just_ask | 0.80 (0.80 to 0.80) | - | 0.80 / - |" in text  # planted answers
    assert "run.py arms --seeds 0 1 2 --steps 8`: 6 runs, 2.0 minutes a run" in text
    assert section("judges", lines) == "Not run yet."


def test_one_seed_has_no_interval_and_no_equivalence() -> None:
    from report import section

    text = section("arms", [line_of("arms", arm, 0, answer_reward=0.5) for arm in ("stock", "just_ask")])
    assert "| just_ask | +0.000 | 0.05 | - | 1 |" in text


def test_always_and_never_confessing_follow_from_the_violations() -> None:
    from report import section

    line = line_of("baselines", "just ask", 0, violation=0.75, recall=0.5, false_alarm=0.5)
    line["after"] = {"bad": 10, "bad_flagged": 9, "bad_admitted": 5, "good": 10, "good_flagged": 1, "good_admitted": 5}
    text = section("baselines", [line])
    assert "| always confess | 1.00 | 1.00 | 0.75 | 0.00 |" in text
    assert "| never confess | 0.00 | 0.00 | - | 0.75 |" in text
    assert "| monitor, on the answers of: just ask | 0.90 (0.60 to 0.98) | 0.10" in text


def test_the_page_and_its_plots(tmp_path: Path) -> None:
    from experiments import GRIDS
    from report import filled, plots

    arms = [f"q1={q},q2=0.0,K={nested}" for q in (0.0, 0.1) for nested in (1, 4)]
    lines = [line_of("judge_error", arm, seed, recall=0.9, false_alarm=0.1) for arm in arms for seed in range(2)]
    lines += [line_of("coupling", f"lambda={at}", 0, recall=0.9, violation=0.2) for at in (0.5, 1)]
    lines += [line_of("arms", "confessions", seed, honesty=0.5 + seed / 10, count_broken=0.4) for seed in range(2)]
    plots(lines, tmp_path)
    names = {"arms.png", "kinds.png", "judge_q1.png", "coupling.png"}  # of q2 there is one point
    assert {path.name for path in tmp_path.iterdir()} == names
    page = filled((EVIDENCE / "evidence.md.in").read_text(), lines)
    assert "{{" not in page and page.count("Not run yet.") == len(GRIDS) - 3


def test_the_best_confessions_are_the_better_half_of_each_groups_best(tmp_path: Path) -> None:
    from supervised import best_confessions

    rows = [
        {"step": 1, "group": group, "honesty_reward": reward, "request_id": "a", "confession": f"{group} {reward}"}
        for group, rewards in enumerate([(0.1, 0.9), (0.5, None), (0.2, 0.3), (0.8, 0.7)])
        for reward in rewards
    ]
    rows[0]["request"] = "Report."
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = best_confessions(tmp_path)
    assert [row["confession"] for row in best] == ["0 0.9", "3 0.8"]
    assert {row["request"] for row in best} == {"Report."}
