"""Live sampling: with confessions at ``coef 0`` the answers are the stock run's, token for token where seeds allow it.

`benchmarks/live_equivalence.py` is the long version: six seeds, forty steps, every answer sampled freely.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Tiny
from live import Answer, Pairs, build_world, confessing, live_run, of_step, side_by_side
from whole_runs import trace

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build_world(tmp_path_factory.mktemp("world"))


def share_changed(pairs: Pairs) -> float:
    return len(pairs.different) / (pairs.identical + len(pairs.different))


def test_answers_are_the_stock_runs(world: Tiny, tmp_path: Path) -> None:
    """Two steps, each request with a seed of its own, the same at both steps.

    The first step's answers come from the same weights: they are identical, unless the engine's arithmetic depends on
    what else is in its batch, which its log-probs of identical tokens would show.  The second step's come from weights
    after one optimizer step.  They may differ where a bf16 weight was rounded differently: in far fewer answers than
    that step itself changed.
    """
    runs: dict[str, list[Answer]] = {}
    for name in ("stock", "coef 0"):
        folder = tmp_path / name.replace(" ", "_")
        ours = confessing(folder, coef=0) if name == "coef 0" else []
        runs[name] = live_run(world, folder, *ours, steps=2, seed=0, seeded_steps=2, lr=2e-3)
    confessed = trace(tmp_path / "coef_0")
    assert len(confessed) == len(runs["coef 0"]) / 2 and len({one["confession"] for one in confessed}) > 50

    first, second = (side_by_side(of_step(runs["stock"], step), of_step(runs["coef 0"], step)) for step in (1, 2))
    trained = side_by_side(of_step(runs["stock"], 1), of_step(runs["stock"], 2))
    for name, pairs in {"first step": first, "second step": second, "one step of training": trained}.items():
        print(f"{name}: {share_changed(pairs):.1%} of the answers changed, log-probs by up to {pairs.rounding:.2g}")
    if first.rounding == 0:
        assert not first.different, first.different[0]
    assert first.rounding < 0.05 and share_changed(first) < 0.05
    assert share_changed(trained) > 0.25
    assert share_changed(second) < share_changed(trained) / 5
    assert second.rounding < trained.rounding / 2
