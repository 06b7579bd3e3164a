"""Live runs with confessions at ``coef 0`` beside stock runs: are their answers equivalent?

    python3 benchmarks/live_equivalence.py [--seeds 0 1 2 3 4 5] [--steps 40] [--out runs/live]

Whole runs of the real command line, sampled freely: half of the groups confess, so the engine's generator gives every
later answer other random numbers than in the stock run.  No two such runs are alike, stock or not.  What can be shown
is equivalence within a margin, and the margins stand here, before any run:

    answer reward 0.02 (of a scale of 0 to 1), answer length 3 %, mean log-prob of an answer's token 0.05 nats

each about a twentieth of what training changes in this world.  Two one-sided tests at 5 %: equivalent means that the
90 % confidence interval of the mean difference over seeds (t, one number a seed: the mean over steps) lies within the
margin; over all steps, and over the last ten, where a difference would have added up.

Six seeds, because three are too few for the log-probs: by the spread of the stock runs alone, that interval would be
wider than its margin.

Beside it: the stock runs' spread over seeds; on the first three seeds runs at ``coef 1``, where confessions may change
the shared weights (shown, not judged); and token-for-token comparisons under a seed for every request: of each run's
first step, and of runs that are seeded to their end, with a second stock run for the differences that rounding makes.

Nineteen runs of about a minute on two idle cores.  Fails if not equivalent.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "integration_tests" / "support"))

from harness import Tiny  # noqa: E402
from live import Answer, build_world, confessing, live_run, of_step, read_answers, side_by_side  # noqa: E402

#: 95 % quantiles of Student's t by degrees of freedom.
STUDENT_T = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
LAST = 10
SEEDED_STEPS = 8
SEEDS_AT_COEF_1 = 3


@dataclass(frozen=True)
class Quantity:
    """Something that is compared, with its margin."""

    name: str
    of: Callable[[Sequence[Answer]], float]
    """Its mean over one step's answers."""
    margin: float
    relative: bool = False
    """The margin is a share of the stock runs' mean."""


def mean_log_prob(answers: Sequence[Answer]) -> float:
    return statistics.mean(log_prob for answer in answers for log_prob in answer.log_probs)


QUANTITIES = (
    Quantity("answer reward", lambda answers: statistics.mean(answer.reward for answer in answers), 0.02),
    Quantity("answer length", lambda answers: statistics.mean(len(answer.tokens) for answer in answers), 0.03, True),
    Quantity("answer log-prob", mean_log_prob, 0.05),
)


@dataclass(frozen=True)
class Comparison:
    """One quantity over one stretch of the runs."""

    stock: list[float]
    """By seed: the mean over the steps."""
    other: list[float]
    margin: float

    @property
    def differences(self) -> list[float]:
        return [other - stock for stock, other in zip(self.stock, self.other, strict=True)]

    @property
    def interval(self) -> tuple[float, float]:
        """90 % confidence interval of the mean difference."""
        count = len(self.stock)
        half = STUDENT_T[count - 2] * statistics.stdev(self.differences) / count**0.5
        mean = statistics.mean(self.differences)
        return mean - half, mean + half

    @property
    def equivalent(self) -> bool:
        low, high = self.interval
        return -self.margin < low and high < self.margin


def curve(answers: Sequence[Answer], quantity: Quantity) -> list[float]:
    """By step."""
    return [quantity.of(of_step(answers, step)) for step in range(1, answers[-1].step + 1)]


def compare(
    stock: Sequence[Sequence[Answer]], other: Sequence[Sequence[Answer]], quantity: Quantity, last: int | None
) -> Comparison:
    means = [
        [statistics.mean(curve(answers, quantity)[-(last or 0) :]) for answers in runs]
        for runs in (stock[: len(other)], other)
    ]
    scale = abs(statistics.mean(means[0])) if quantity.relative else 1.0
    return Comparison(*means, quantity.margin * scale)


class Runs:
    """Runs on disk, made where they are missing."""

    def __init__(self, out: Path, world: Tiny) -> None:
        self._out = out
        self._world = world

    def get(self, name: str, *, seed: int, coef: float | None, steps: int, seeded_steps: int = 1) -> list[Answer]:
        folder = self._out / f"{name}-{seed}"
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            ours = [] if coef is None else confessing(folder, coef=coef)
            live_run(self._world, folder, *ours, steps=steps, seed=seed, seeded_steps=seeded_steps)
            (folder / "done").touch()
        return read_answers(folder / "answers.jsonl")


def equivalence_table(stock: list[list[Answer]], runs: dict[str, list[list[Answer]]]) -> tuple[Table, bool]:
    table = Table(
        title="Difference to the stock runs: mean over steps, 90 % interval over seeds", title_justify="left"
    )
    for name in ("", "steps", "stock: start -> end", "spread over seeds", "margin", *runs, "equivalent"):
        table.add_column(name)
    holds = True
    for quantity in QUANTITIES:
        curves = [curve(answers, quantity) for answers in stock]
        start = statistics.mean(one[0] for one in curves)
        end = statistics.mean(statistics.mean(one[-LAST:]) for one in curves)
        for stretch, last in (("all", None), (f"last {LAST}", LAST)):
            found = {name: compare(stock, other, quantity, last) for name, other in runs.items()}
            judged = found["coef 0"]
            holds &= judged.equivalent
            cells = [
                f"{statistics.mean(one.differences):+.4f} [{one.interval[0]:+.4f}, {one.interval[1]:+.4f}]"
                for one in found.values()
            ]
            table.add_row(
                quantity.name,
                stretch,
                f"{start:.3f} -> {end:.3f}",
                f"{statistics.stdev(judged.stock):.4f}",
                f"{judged.margin:.4f}",
                *cells,
                "yes" if judged.equivalent else "[red]no[/]",
            )
    return table, holds


def identity_table(pairs: dict[str, tuple[list[Answer], list[Answer]]]) -> Table:
    """Identical answers by step, and the largest difference of a log-prob after identical tokens."""
    table = Table(title="Answers identical token for token, seeded requests (log-probs apart)", title_justify="left")
    table.add_column("")
    steps = max(one[-1].step for one, _ in pairs.values())
    for step in range(1, steps + 1):
        table.add_column(f"step {step}")
    for name, (one, other) in pairs.items():
        cells = []
        for step in range(1, one[-1].step + 1):
            found = side_by_side(of_step(one, step), of_step(other, step))
            cells.append(f"{found.identical}/{len(of_step(one, step))} ({found.rounding:.2g})")
        table.add_row(name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "live")
    parser.add_argument("--keep", action="store_true", help="do not repeat runs that are there already")
    args = parser.parse_args()
    if not args.keep:
        shutil.rmtree(args.out, ignore_errors=True)
    out = args.out.resolve()
    runs = Runs(out, build_world(out / "world"))
    arms: dict[str, float | None] = {"stock": None, "coef 0": 0.0, "coef 1": 1.0}
    free: dict[str, list[list[Answer]]] = {name: [] for name in arms}
    for seed in args.seeds:
        for name, coef in arms.items():
            if name == "coef 1" and len(free[name]) == SEEDS_AT_COEF_1:
                continue
            free[name].append(runs.get(name.replace(" ", "_"), seed=seed, coef=coef, steps=args.steps))
    seeded = {
        name: runs.get(f"seeded_{name.replace(' ', '_')}", seed=0, coef=coef, steps=SEEDED_STEPS, seeded_steps=99)
        for name, coef in {**arms, "stock again": None}.items()
    }
    first = {
        f"coef 0, first step of seed {seed}": (of_step(one, 1), of_step(other, 1))
        for seed, one, other in zip(args.seeds, free["stock"], free["coef 0"], strict=True)
    }
    whole = {f"{name}, seeded to the end": (seeded["stock"], seeded[name]) for name in list(seeded)[1:]}
    table, holds = equivalence_table(free["stock"], {name: free[name] for name in ("coef 0", "coef 1")})
    console = Console(width=180)
    console.print(table)
    console.print(identity_table({**first, **whole}))
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
