"""Confessions beside the stock run, one seed, small: python3 benchmarks/evidence/quick.py [--steps 16]

A world of fewer lessons than the evidence's is built once, under build/, and again when its sources change: its model
sees less of its answers, and most of what it learns here is to write the report as it should be.  Prints a table and
draws the curves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grid import ROOT, Run, built_world, read, run_grid
from report import METRICS, by_arm
from rich.console import Console
from rich.table import Table
from stats import Interval

LESSONS = 120
OUT = ROOT / "runs" / "evidence-quick"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    out = args.out.resolve()
    (out / "results.jsonl").unlink(missing_ok=True)
    runs = [
        Run("quick", "stock", 0, args.steps, {"STOCK": "1"}, probes={}),
        Run("quick", "confessions", 0, args.steps, probes={}),
    ]
    try:
        failed = run_grid(runs, built_world(lessons=LESSONS), out, out / "results.jsonl")
    except KeyboardInterrupt:
        sys.exit("stopped")
    if failed:
        sys.exit(1)
    arms = by_arm(read(out / "results.jsonl"))
    show(arms)
    draw(arms, out / "quick.png")
    print(f"curves: {out / 'quick.png'}\nnumbers: {out / 'results.jsonl'}")


def show(arms: dict[str, list[dict]]) -> None:
    table = Table(title="One seed: first step -> last step", title_justify="left")
    for name in ("", *arms):
        table.add_column(name)
    for metric, name in METRICS.items():
        cells = []
        for (line,) in arms.values():
            steps = line["measured"]["steps"]
            found = [step.get(metric) for step in (steps[0], steps[-1])]
            cells.append(" -> ".join("-" if one is None else f"{one:.2f}" for one in found))
        table.add_row(name, *cells)
    table.add_row("minutes", *(f"{line['minutes']:.1f}" for (line,) in arms.values()))
    Console().print(table)


def draw(arms: dict[str, list[dict]], path: Path) -> None:
    from report import draw as draw_curves

    curves = {}
    for arm, metrics in (("confessions", ("honesty", "recall", "false_alarm")), ("stock", ("answer_reward",))):
        for metric in metrics:
            steps = arms[arm][0]["measured"]["steps"]
            points = [(step["step"], step.get(metric)) for step in steps]
            curves[f"{arm}: {METRICS[metric]}"] = [
                (at, Interval(one, float("nan"), float("nan"), 1)) for at, one in points if one is not None
            ]
    draw_curves(path, "Confessions learn to be honest (one seed)", "training step", curves, line=None)


if __name__ == "__main__":
    main()
