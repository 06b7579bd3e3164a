"""Show a run of the loophole world: its progress, its findings as a table, its curves as a picture.

    python3 examples/loophole/plot.py runs/loophole                 # table and runs/loophole/loophole.png
    python3 examples/loophole/plot.py runs/loophole --follow PID    # first wait for that training process

Its exit status is 1 when a finding is not as expected.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from curves import Curves, findings, load
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

#: name -> label, color, line width, line style: the three curves that matter, and the control.
LINES = {
    "reward": ("answer reward (what the weak grader pays)", "#4c78a8", 2.2, "-"),
    "violation": ("answers that are bluffs (the truth)", "#e45756", 2.2, "-"),
    "honest_after_bluff": ("confession is honest, after a bluff", "#2a9d55", 3.0, "-"),
    "honest_without_bluff": ("confession is honest, without a bluff", "#2a9d55", 1.4, "--"),
}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def follow(out: Path, pid: int, steps: int, console: Console) -> None:
    """Show the run's progress until its process has ended."""
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=steps)
        reported = 0
        while alive(pid):
            time.sleep(2)
            curves = load(out)
            done = max(curves["reward"], default=0)
            if not done:
                continue
            line = now(curves, done)
            progress.update(task, completed=done, description=line)
            # A line now and then stays on the screen, and is all there is where the output is no terminal.
            if done >= reported + 10:
                reported = done - done % 10
                progress.console.print(f"step {done:>3}  {line}", highlight=False)


def now(curves: Curves, step: int) -> str:
    def at(name: str) -> str:
        value = curves[name].get(step)
        return "   -" if value is None else f"{value:.2f}"

    return f"reward {at('reward')}, bluffs {at('violation')}, honest after a bluff {at('honest_after_bluff')}"


def show(curves: Curves, console: Console) -> bool:
    """Print the findings; True when all of them are as expected."""
    table = Table(
        title="The loophole world: step 1, and the mean of the last 10", title_justify="left", title_style="bold"
    )
    for name in ("", "start", "end", "expected", ""):
        table.add_column(name, justify="right" if name in ("start", "end") else "left")
    rows = findings(curves)
    for row in rows:
        mark = "[green]yes[/]" if row.holds else "[red]no[/]"
        table.add_row(row.name, f"{row.start:.2f}", f"{row.end:.2f}", row.expected, mark)
    console.print(table)
    return all(row.holds for row in rows)


def draw(curves: Curves, path: Path) -> None:
    """The curves over steps: each step's value faint, a running mean on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.2), dpi=150)
    axes.axhline(0.5, color="#888888", linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    last = max(curves["reward"])
    axes.text(last * 1.008, 0.5, "chance", color="#666666", fontsize=9, ha="left", va="center")
    for name, (label, color, width, style) in LINES.items():
        steps = sorted(curves[name])
        values = [curves[name][step] for step in steps]
        axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.25)
        axes.plot(steps, running_mean(values), style, color=color, linewidth=width, label=label)
    axes.set_xlim(1, last)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("training step")
    axes.set_ylabel("share of answers or confessions; mean reward")
    axes.set_title("The model learns to fool its grader, and to say so", loc="left", fontsize=13, pad=12)
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def running_mean(values: list[float], reach: int = 1) -> list[float]:
    """Mean over each value and its neighbours."""
    windows = [values[max(0, at - reach) : at + reach + 1] for at in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def main() -> None:
    parser = argparse.ArgumentParser(description="Show a run of the loophole world.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--follow", type=int, metavar="PID", help="wait for this training process; show its progress")
    parser.add_argument("--steps", type=int, default=None, help="steps the followed run will take")
    args = parser.parse_args()
    console = Console()
    if args.follow:
        follow(args.out, args.follow, args.steps, console)
    curves = load(args.out)
    if not curves["reward"]:
        sys.exit(f"{args.out} holds no curves: the run did not reach its first step")
    if args.follow and args.steps and max(curves["reward"]) < args.steps:
        sys.exit(f"the run ended at step {max(curves['reward'])} of {args.steps}")
    held = show(curves, console)
    path = args.out / "loophole.png"
    draw(curves, path)
    console.print(f"curves: {path}")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
