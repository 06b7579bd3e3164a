"""Spans, masks and the honesty baseline over scored members: pure tensors, and the host's own estimators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from honesty import channel_of, host_baseline
from hypothesis import given
from hypothesis import strategies as st

from confession_plugin.channels import Spans, TokenValues, estimate_scored, keep


@st.composite
def layouts(draw: Any) -> tuple[list[list[int]], list[int]]:
    """Action masks of prompt | turns of answer | request | confession | padding, and the confession's length."""
    rows, lengths = [], []
    width = 40
    for _ in range(draw(st.integers(1, 4))):
        row = [0] * draw(st.integers(1, 5))
        for _ in range(draw(st.integers(1, 3))):
            row += [1] * draw(st.integers(0, 4)) + [0] * draw(st.integers(0, 2))
        length = draw(st.integers(0, 5))
        row += [0] * (2 if length else 0) + [1] * length
        rows.append(row + [0] * (width - len(row)))
        lengths.append(length)
    return rows, lengths


@given(layouts(), st.sampled_from(["dual", "exclusive"]), st.data())
def test_masks_part_the_action_mask(layout: Any, mode: Any, data: Any) -> None:
    rows, lengths = layout
    mask, length = torch.tensor(rows), torch.tensor(lengths)
    asked = length > 0
    scored = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))) & asked
    spans = Spans(asked, length, scored)
    answer, confession = spans.answer_mask(mask), spans.confession_mask(mask)
    assert torch.equal(answer | confession, mask.bool()) and not (answer & confession).any()
    assert torch.equal(confession.sum(-1), length)
    for row, count in zip(confession.tolist(), lengths, strict=True):
        marked = [position for position, on in enumerate(row) if on]
        assert marked == list(range(marked[0], marked[0] + count)) if marked else count == 0  # one run of tokens
    trained_answer, trained_confession = spans.trained_masks(mask, mode)
    assert torch.equal(trained_confession, confession & scored.unsqueeze(-1))
    assert torch.equal(trained_answer, answer & ~asked.unsqueeze(-1) if mode == "exclusive" else answer)


def test_keep_stops_nan_and_gradients() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf")], requires_grad=True)
    kept = keep(values, torch.tensor([True, False, False]))
    assert kept.tolist() == [1.0, 0.0, 0.0]
    kept.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [1.0, 0.0, 0.0]


SCORED = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0], dtype=torch.bool)


@pytest.mark.parametrize("estimator", ["rloo", "group_norm", "dr_grpo"])
def test_a_partly_scored_group_is_a_smaller_group(estimator: str) -> None:
    rewards = torch.rand(20, generator=torch.Generator().manual_seed(0))
    channel = channel_of(estimator, torch.where(SCORED, rewards, torch.full_like(rewards, -99.0)), SCORED, 4)
    found = estimate_scored(channel).advantages[0].squeeze(-1)
    for group in range(5):
        members = [i for i in range(4 * group, 4 * group + 4) if SCORED[i]]
        others = [i for i in range(4 * group, 4 * group + 4) if not SCORED[i]]
        assert not found[others].any()
        if len(members) < 2:  # nothing to be compared with
            assert not found[members].any()
        else:
            assert torch.allclose(found[members], host_baseline(estimator, rewards[members], len(members)))


def test_reinforce_baseline_and_flash_reinforce_take_the_mean_of_the_scored() -> None:
    rewards = torch.rand(20, generator=torch.Generator().manual_seed(1))
    seen = torch.where(SCORED, rewards, torch.full_like(rewards, -99.0))
    channel = channel_of("flash_reinforce", seen, SCORED, 4)
    found = estimate_scored(channel).advantages[0].squeeze(-1)
    assert torch.allclose(found[SCORED], rewards[SCORED] - rewards[SCORED].mean(), atol=1e-6)
    channel = channel_of("reinforce_baseline", seen, SCORED, 4)
    used: list[torch.Tensor] = []

    def recording(rewards: torch.Tensor, rows: torch.Tensor, size: int) -> TokenValues:
        used.append(rewards[rows].reshape(-1, size))
        return channel.estimate(rewards, rows, size)

    estimate_scored(replace(channel, estimate=recording))
    groups = [group for group in range(5) if SCORED[4 * group : 4 * group + 4].sum() > 1]
    means = torch.stack([rewards[4 * g : 4 * g + 4][SCORED[4 * g : 4 * g + 4]].mean() for g in groups])
    assert torch.allclose(used[0].mean(-1), means)  # the gaps leave each group's mean where the scored put it


def test_nothing_scored_is_nothing_learnt() -> None:
    none_scored = torch.zeros(8, dtype=torch.bool)
    for estimator in ("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce"):
        channel = channel_of(estimator, torch.full((8,), float("nan")), none_scored, 4)
        assert not estimate_scored(channel).advantages[0].any()
