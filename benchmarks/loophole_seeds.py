"""The loophole world over three seeds: is what one run shows there in every run?

    python3 benchmarks/loophole_seeds.py [--seeds 0 1 2] [--out runs/seeds]

About five minutes a seed on two cores.  Prints each finding's start and end by seed, and fails if one does not hold.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
WORLD = ROOT / "examples" / "loophole"
sys.path.insert(0, str(WORLD))

from curves import findings, load  # noqa: E402


def run(seed: int, out: Path) -> None:
    """One run through the demo's own script; its exit status is judged by the findings below."""
    environment = {**os.environ, "SEED": str(seed), "OUT": str(out)}
    environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    subprocess.run(["bash", str(WORLD / "run.sh")], env=environment, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "seeds")
    parser.add_argument("--keep", action="store_true", help="do not repeat runs that are there already")
    args = parser.parse_args()
    table = Table(title="The loophole world over seeds: start -> end", title_justify="left", title_style="bold")
    table.add_column("")
    by_seed = {}
    for seed in args.seeds:
        out = args.out / str(seed)
        if not (args.keep and (out / "loophole.png").exists()):
            run(seed, out)
        by_seed[seed] = findings(load(out))
        table.add_column(f"seed {seed}")
    table.add_column("expected")
    for rows in zip(*by_seed.values(), strict=True):
        cells = [f"{row.start:.2f} -> {row.end:.2f}" + ("" if row.holds else " [red]no[/]") for row in rows]
        table.add_row(rows[0].name, *cells, rows[0].expected)
    Console().print(table)
    sys.exit(0 if all(row.holds for rows in by_seed.values() for row in rows) else 1)


if __name__ == "__main__":
    main()
