"""Spans, masks and the honesty baseline over scored members: pure tensors, and the host's own estimators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import host_args

from confession_plugin.channels import HonestyChannel, Spans, TokenValues, estimate_scored, keep
from confession_plugin.openrlhf.advantages import known_estimator


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


def host_baseline(estimator: str, rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """(N,) what the host's own code makes of these rewards (one token a sample, no KL)."""
    from types import SimpleNamespace

    from openrlhf.trainer.ppo_utils.experience import Experience
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    args = host_args("--algo.advantage.estimator", estimator)
    args.rollout.n_samples_per_prompt = group_size
    maker = RemoteExperienceMaker(
        None, None, None, None, SimpleNamespace(value=0.0), SimpleNamespace(args=args), SimpleNamespace(pad_token_id=0)
    )
    count = len(rewards)
    experience = Experience(
        action_mask=torch.ones(count, 1),
        rewards=rewards.clone(),
        kl=torch.zeros(count, 1),
        values=torch.zeros(count, 1),
        response_length=torch.ones(count),
        truncated=torch.zeros(count),
        index=list(range(count)),
    )
    maker.compute_advantages_and_returns([experience])
    return experience.advantages.squeeze(-1)


def channel_of(estimator: str, rewards: torch.Tensor, scored: torch.Tensor, group_size: int) -> HonestyChannel:
    masks = [scored.unsqueeze(-1)]

    def estimate(rewards: torch.Tensor, rows: torch.Tensor, size: int) -> TokenValues:
        values = torch.zeros(len(rewards), 1)
        values[rows, 0] = host_baseline(estimator, rewards[rows], size)
        values = keep(values, masks[0])
        return TokenValues([values], [values])

    return HonestyChannel(rewards, scored, masks, group_size, known_estimator(estimator), estimate)


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
