"""Tables and plots of what was run: python3 benchmarks/evidence/report.py [--write]

Reads the results file (see `run.py`).  Prints every table; with --write fills the template ``evidence.md.in`` into
docs/evidence.md and draws its plots.  Each table says which command made it, over how many seeds, and how many minutes
a run took.  An interval is 95 % by Student's t over seeds, of the mean over a run's last 5 steps; for pooled
counts of planted answers it is Wilson's.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

from experiments import EQUIVALENCE_MARGIN, ERRORS, GRIDS, HELD_OUT_KIND, LAMBDAS
from grid import HERE, ROOT, read
from stats import NOTHING, Interval, equivalent, over_seeds, wilson

Line = dict[str, Any]
Arms = Mapping[str, Sequence[Line]]

LAST = 5
#: Steps in a point of a curve over a run.
WINDOW = 10
#: Name in `measure.py`'s steps -> heading.
METRICS = {
    "answer_reward": "answer reward",
    "violation": "violations",
    "honesty": "honesty reward",
    "recall": "recall",
    "false_alarm": "false alarms",
    "precision": "precision",
    "joint_miss": "joint miss",
}


# ── Numbers of a run ──


def value(line: Line, metric: str) -> float:
    """Mean over the run's last steps; NaN where it is not defined in any of them."""
    steps = line.get("measured", {}).get("steps", [])[-LAST:]
    found = [step[metric] for step in steps if step.get(metric) is not None and math.isfinite(step[metric])]
    return mean(found) if found else math.nan


def interval(lines: Iterable[Line], metric: str) -> Interval:
    return over_seeds([value(line, metric) for line in lines])


def probed(lines: Iterable[Line], probe: str, kind: str, truth: str) -> Interval:
    """Right labels of planted answers, all seeds together: {"kinds": {KIND: {TRUTH: {"right": n, "cases": n}}}}."""
    cells = [line["probes"].get(probe, {}).get("kinds", {}).get(kind, {}).get(truth) for line in lines]
    cells = [cell for cell in cells if cell]
    return wilson(sum(cell["right"] for cell in cells), sum(cell["cases"] for cell in cells)) if cells else NOTHING


def probed_at_all(lines: Iterable[Line], probe: str, truth: str) -> Interval:
    """The same over all kinds, one share a seed."""
    shares = []
    for line in lines:
        cells = [kind[truth] for kind in line["probes"].get(probe, {}).get("kinds", {}).values()]
        cases = sum(cell["cases"] for cell in cells)
        shares += [sum(cell["right"] for cell in cells) / cases] if cases else []
    return over_seeds(shares)


def by_arm(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """The newest line of each run, by arm."""
    newest = {line["key"]: line for line in lines}
    arms: dict[str, list[Line]] = {}
    for line in newest.values():
        arms.setdefault(line["arm"], []).append(line)
    return arms


# ── Tables ──


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def metrics_table(arms: Arms, metrics: Sequence[str] = tuple(METRICS)) -> str:
    rows = [[arm, *(interval(lines, metric) for metric in metrics), len(lines)] for arm, lines in arms.items()]
    return markdown(["arm", *(METRICS[metric] for metric in metrics), "seeds"], rows)


def equivalence_table(arms: Arms) -> str:
    """Answer reward against stock, seed by seed."""
    stock = {line["seed"]: value(line, "answer_reward") for line in arms.get("stock", ())}
    rows = []
    for arm in ("just_ask", "confessions", "summed"):
        found = {line["seed"]: value(line, "answer_reward") for line in arms.get(arm, ())}
        seeds = sorted(stock.keys() & found.keys())
        test = equivalent([stock[seed] for seed in seeds], [found[seed] for seed in seeds], EQUIVALENCE_MARGIN)
        shown = "-" if test.difference.n < 2 else "yes" if test.holds else "not shown"
        rows.append([arm, signed(test.difference), f"{test.margin:g}", shown, len(seeds)])
    return markdown(["against stock", "difference (90 %)", "margin", "equivalent", "seeds"], rows)


def signed(one: Interval) -> str:
    bounds = f" ({one.low:+.3f} to {one.high:+.3f})" if math.isfinite(one.low) else ""
    return f"{one.mean:+.3f}{bounds}" if one.n else "-"


def kinds_table(arms: Arms, probe: str = "builtin") -> str:
    """Planted answers: right labels, broken / kept, of all kinds and by kind of instruction."""
    probes = [line["probes"].get(probe, {}) for lines in arms.values() for line in lines]
    kinds = sorted({kind for one in probes for kind in one.get("kinds", {})})

    def share(lines: Sequence[Line], kind: str, truth: str) -> str:
        found = probed(lines, probe, kind, truth)
        return f"{found.mean:.2f}" if found.n else "-"

    rows = [
        [
            arm,
            *(probed_at_all(lines, probe, truth) for truth in ("broken", "kept")),
            *(" / ".join(share(lines, kind, truth) for truth in ("broken", "kept")) for kind in kinds),
        ]
        for arm, lines in arms.items()
    ]
    return markdown([f"planted answers, {probe}", "broken, of all", "kept, of all", *kinds], rows)


def baselines_table(arms: Arms) -> str:
    """Also what needs no run: always and never confessing, from the violations of the untrained model."""
    metrics = ("recall", "false_alarm", "precision", "joint_miss")
    rows: list[list[object]] = [[arm, *(interval(lines, one) for one in metrics)] for arm, lines in arms.items()]
    bad = interval(arms.get("just ask", ()), "violation")
    rows.append(["always confess", "1.00", "1.00", bad, "0.00"])
    rows.append(["never confess", "0.00", "0.00", "-", bad])
    for arm, lines in arms.items():
        found = [line["after"] for line in lines if line.get("after")]
        if found:
            total = {name: sum(one[name] for one in found) for name in found[0]}
            rows.append([f"monitor, on the answers of: {arm}", *monitor_cells(total)])
    return markdown(["", *(METRICS[one] for one in metrics)], rows)


def monitor_cells(total: Mapping[str, int]) -> list[Interval]:
    hits, false = total["bad_flagged"], total["good_flagged"]
    missed = total["bad"] - hits
    cases = total["bad"] + total["good"]
    pairs = ((hits, total["bad"]), (false, total["good"]), (hits, hits + false), (missed, cases))
    return [wilson(*pair) for pair in pairs]


TABLES: Mapping[str, Callable[[Arms], str]] = {
    "arms": lambda arms: "\n\n".join([metrics_table(arms), equivalence_table(arms), kinds_table(arms)]),
    "baselines": baselines_table,
    "transfer": lambda arms: "\n\n".join([metrics_table(arms), kinds_table(arms), kinds_table(arms, "ordered")]),
}


def section(experiment: str, lines: Iterable[Line]) -> str:
    """An experiment's tables and where they come from."""
    arms = by_arm(line for line in lines if line["experiment"] == experiment)
    if not arms:
        return "Not run yet."
    tables = TABLES.get(experiment, metrics_table)(arms)
    seeds = sorted({line["seed"] for lines in arms.values() for line in lines})
    minutes = median(line["minutes"] for lines in arms.values() for line in lines)
    count = sum(map(len, arms.values()))
    steps = max(line["steps"] for lines in arms.values() for line in lines)
    command = f"run.py {experiment} --seeds {' '.join(map(str, seeds))} --steps {steps}"
    return f"{tables}\n\n`python3 benchmarks/evidence/{command}`: {count} runs, {minutes:.1f} minutes a run (median)."


# ── Plots ──

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def draw(
    path: Path, title: str, x: str, curves: Mapping[str, Sequence[tuple[float, Interval]]], line: float | None
) -> None:
    """Means with their intervals."""
    with figure(path, title, x) as axes:
        for (name, points), color in zip(curves.items(), COLORS, strict=False):
            points = [(at, one) for at, one in points if one.n]
            known = [(at, one) for at, one in points if math.isfinite(one.low)]
            axes.plot([at for at, _ in points], [one.mean for _, one in points], "o-", color=color, label=name)
            axes.vlines(
                [at for at, _ in known], [one.low for _, one in known], [one.high for _, one in known], color=color
            )
        if line is not None:
            axes.axvline(line, color="#888888", linestyle=(0, (2, 3)), linewidth=1)


@contextmanager
def figure(path: Path, title: str, x: str) -> Iterator[Any]:
    """Axes for shares, on white, so that they are read on light and dark pages."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), dpi=130)
    yield axes
    axes.set(xlabel=x, ylim=(-0.03, 1.03))
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def over_steps(line: Line, metric: str) -> list[tuple[float, float]]:
    """(middle of a window of steps, the window's mean) of one run."""
    steps = line["measured"]["steps"]
    points = []
    for first in range(1, max((step["step"] for step in steps), default=0) + 1, WINDOW):
        window = [step for step in steps if first <= step["step"] < first + WINDOW]
        found = [step[metric] for step in window if step.get(metric) is not None]
        if found:
            points.append((mean(step["step"] for step in window), mean(found)))
    return points


def draw_runs(path: Path, title: str, lines: Sequence[Line], metrics: Mapping[str, str]) -> None:
    """Each seed's curve faint, their mean on top: an interval over three seeds would hide them."""
    with figure(path, title, f"training step, means of {WINDOW}") as axes:
        for (metric, name), color in zip(metrics.items(), COLORS, strict=False):
            runs = [dict(over_steps(line, metric)) for line in lines]
            for run in runs:
                axes.plot(list(run), list(run.values()), color=color, linewidth=0.8, alpha=0.35)
            places = sorted({at for run in runs for at in run})
            means = [mean(run[at] for run in runs if at in run) for at in places]
            axes.plot(places, means, color=color, linewidth=2.2, label=name)


def plots(lines: Sequence[Line], folder: Path) -> None:
    """Confessions over training steps; judge error, beside the theory's line; the coupling's weight."""
    trained = by_arm(line for line in lines if line["experiment"] == "arms").get("confessions")
    if trained:
        shown = {metric: METRICS[metric] for metric in ("honesty", "recall", "false_alarm", "answer_reward")}
        draw_runs(folder / "arms.png", "Trained with confessions, each seed and their mean", trained, shown)
        kinds = {f"{kind}_broken": kind for kind in ("count", "order", "use", "avoid", "end")}
        draw_runs(folder / "kinds.png", "Broken instructions reported as broken, by kind", trained, kinds)

    def of(experiment: str) -> Callable[[str, str], Interval]:
        arms = by_arm(line for line in lines if line["experiment"] == experiment)
        return lambda arm, metric: interval(arms.get(arm, ()), metric)

    error = of("judge_error")
    for which in ("q1", "q2"):
        curves = {
            f"{METRICS[metric]}, K={nested}": [
                (q, error(f"q1={q if which == 'q1' else 0.0},q2={q if which == 'q2' else 0.0},K={nested}", metric))
                for q in ERRORS
            ]
            for metric in ("recall", "false_alarm")
            for nested in (1, 4)
        }
        if _has_a_line(curves):
            said = {"q1": "false accept q1 (q2 = 0)", "q2": "false reject q2 (q1 = 0)"}[which]
            # Lying pays no more than honesty while 1 - q2 > q1: for one kind of error alone, up to 1.
            draw(folder / f"judge_{which}.png", f"Honesty under a judge's {said}", said, curves, 1.0)
    weight = of("coupling")
    curves = {
        METRICS[metric]: [(at, weight(f"lambda={at:g}", metric)) for at in LAMBDAS]
        for metric in ("recall", "false_alarm", "violation", "answer_reward")
    }
    if _has_a_line(curves):
        draw(folder / "coupling.png", "An admission in the answer's reward (UNSEALED)", "lambda", curves, 0.0)


def _has_a_line(curves: Mapping[str, Sequence[tuple[float, Interval]]]) -> bool:
    """Two points of one curve at least."""
    return any(sum(one.n > 0 for _, one in points) > 1 for points in curves.values())


def filled(template: str, lines: Sequence[Line]) -> str:
    """The page, with ``{{name}}`` for an experiment's section or a setting."""
    settings = {"margin": f"{EQUIVALENCE_MARGIN:g}", "held_out": HELD_OUT_KIND}

    def fill(match: re.Match[str]) -> str:
        return settings[match[1]] if match[1] in settings else section(match[1], lines)

    return re.sub(r"\{\{(\w+)\}\}", fill, template)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "evidence" / "results.jsonl")
    parser.add_argument("--write", action="store_true", help="docs/evidence.md and its plots")
    args = parser.parse_args()
    lines = read(args.results)
    if args.write:
        plots(lines, ROOT / "docs" / "images" / "evidence")
        page = filled((HERE / "evidence.md.in").read_text(), lines)
        (ROOT / "docs" / "evidence.md").write_text(page)
        return
    for experiment in GRIDS:
        print(f"\n## {experiment}\n\n{section(experiment, lines)}")


if __name__ == "__main__":
    main()
