"""Run one experiment: every run of its grid that has no line in the results yet.

    python3 benchmarks/evidence/run.py arms [--seeds 0 1 2 3 4] [--steps 30] [--results runs/evidence/results.jsonl]

What the experiments are stands in `experiments.py`; `report.py` makes tables and plots of the results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments import GRIDS
from grid import ROOT, built_world, run_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=GRIDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--arms", nargs="+", default=None, help="only these")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--world", type=Path, default=None, help="a built world; default: built once, under build/")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "evidence")
    parser.add_argument("--results", type=Path, default=None, help="default: OUT/results.jsonl")
    args = parser.parse_args()
    grid, seeds = GRIDS[args.experiment]
    runs = [one for one in grid(args.seeds or range(seeds), args.steps) if args.arms is None or one.arm in args.arms]
    out = args.out.resolve()
    try:
        world = (args.world or built_world()).resolve()
        failed = run_grid(runs, world, out, args.results or out / "results.jsonl")
    except KeyboardInterrupt:
        sys.exit(f"stopped; the same command goes on where {args.experiment} was")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
