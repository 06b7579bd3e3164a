"""Single properties of the seal, each on the host's own classes: what an honesty or a task reward, a confession's
length, a missing score, a penalty can move."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from in_process import host_args
from seal_support import COEF_0, CONFIG, ESTIMATORS, EXCLUSIVE, REWARD_MODEL, estimator, run, stock

from confession_plugin.channels import Spans
from confession_plugin.openrlhf.check import compare, seal
from confession_plugin.openrlhf.check.compare import TOLERANCE
from confession_plugin.openrlhf.check.passes import Pass, masks_of
from confession_plugin.openrlhf.experiences import spans_of

HONESTY = {
    "constant": lambda sample, group: 0.7,
    "huge": lambda sample, group: random.Random(sample).gauss(0, 1e9),
    "reversed": lambda sample, group: -float(sample),
    "ones and zeros": lambda sample, group: float(sample % 3 == 0),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("honesty", HONESTY)
def test_honesty_rewards_do_not_reach_the_answer(name: str, honesty: str) -> None:
    flags = estimator(name)
    base, moved = run(flags), run(flags, honesty=HONESTY[honesty])
    assert compare.on_masks(base, moved, masks_of(base, CONFIG, answer=True)) == 0
    assert compare.on_masks(base, moved, masks_of(base, CONFIG)) > 0  # and the rewards did change
    assert base.trained.status["policy_loss"] == moved.trained.status["policy_loss"]
    assert compare.gradients(run(flags, COEF_0), run(flags, COEF_0, honesty=HONESTY[honesty])) == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_task_rewards_do_not_reach_the_confession(name: str) -> None:
    base, moved = run(estimator(name)), run(estimator(name), answer_reward=lambda sample, group: float(sample) ** 3)
    assert compare.on_masks(base, moved, masks_of(base, CONFIG)) == 0
    assert compare.confession_losses(base, moved) == 0
    assert base.trained.status["policy_loss"] != moved.trained.status["policy_loss"]  # and the rewards did change


@pytest.mark.parametrize("length", [1, 3, 40])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_confessions_length_changes_nothing_on_the_answer(name: str, length: int) -> None:
    flags = [*estimator(name), "--algo.kl.use_loss", "--algo.kl.estimator", "k3"]
    plain, confessed = stock(flags), run(flags, COEF_0, confession_tokens=length)
    assert compare.outcomes(plain, confessed) == compare.shaped(plain, confessed) == 0
    assert compare.gradients(plain, confessed) < TOLERANCE
    assert compare.answer_numbers(plain, confessed) < TOLERANCE
    for one, other in zip(plain.experiences, confessed.experiences, strict=True):
        on_answer = one.action_mask.bool()
        theirs = other.advantages[:, : one.advantages.shape[-1]][on_answer]
        # Not a bit moves; but a critic's values come out of a longer batch with other rounding.
        assert compare.distance(one.advantages[on_answer], theirs) <= (1e-5 if name == "gae" else 0.0)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("unscored", [(0,), (0, 1, 2), (0, 1, 2, 3), tuple(range(16))])
def test_unscored_confessions(name: str, unscored: tuple[int, ...]) -> None:
    """Their tokens take no gradient, the answer's gradient stays the stock one, nothing turns into NaN."""
    flags = estimator(name)
    result = run(flags, unscored=unscored)
    for one, mask in zip(result.experiences, masks_of(result, CONFIG), strict=True):
        spans: Spans = spans_of(one)
        assert torch.isfinite(one.advantages).all()
        assert not mask[~spans.scored.bool()].any()
        assert not one.advantages[spans.confession_mask(one.action_mask) & ~mask].any()
    assert compare.finite(result)
    at_zero = run(flags, COEF_0, unscored=unscored)
    assert compare.gradients(stock(flags), at_zero) < TOLERANCE
    if len(unscored) == 16:
        assert compare.gradients(at_zero, result) == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_batches_without_and_with_only_confessions(name: str) -> None:
    flags = estimator(name)
    assert compare.gradients(stock(flags), run(flags, asked=(False,))) < TOLERANCE
    assert compare.gradients(stock(flags), run(flags, COEF_0, asked=(True,))) < TOLERANCE
    only = run(flags, EXCLUSIVE, asked=(True,))
    assert compare.finite(only)
    assert only.trained.status["policy_loss"] == 0
    assert only.trained.status["confession/policy_loss"] != 0


def test_exclusive_answers_of_confessing_groups_take_no_gradient() -> None:
    exclusive = EXCLUSIVE.model_copy(update={"coef": 0.0})
    flags = estimator("group_norm")
    asked = (True, False, True, False)  # samples 0-3 and 8-11
    base = run(flags, exclusive, asked=asked)
    other = run(flags, exclusive, asked=asked, answer_reward=lambda sample, group: random.Random(sample).random() * 9)
    assert compare.gradients(base, other) > 0  # rewards of trained groups do matter
    same = run(flags, exclusive, asked=asked, answer_reward=_where_trained(base))
    assert compare.gradients(base, same) == 0


def _where_trained(base: Pass) -> Any:
    """The base's rewards where answers train, others where they are context only."""
    rewards = [float(sample["rewards"]) for sample in base.outcomes]
    return lambda sample, group: rewards[sample] if group % 2 else 123.0 + sample


@pytest.mark.parametrize("two_turns", [False, True])
def test_two_turn_answers(two_turns: bool) -> None:
    flags = [*estimator("gae"), "--algo.advantage.lambd", "0.9", "--algo.advantage.gamma", "0.95"]
    ours = run(flags, COEF_0, two_turns=two_turns)
    assert compare.gradients(stock(flags, two_turns=two_turns), ours) < TOLERANCE


PENALTIES = ["--rollout.max_new_tokens", "7", "--reward.overlong_buffer_len", "3"]
PENALTIES += ["--reward.stop_properly_penalty_coef", "0.5"]


def test_penalties_read_the_answer_only() -> None:
    flags = [*estimator("group_norm"), *PENALTIES]
    report = seal.check_seal(host_args(*flags), CONFIG)
    assert report.holds, report
    plain, penalised = stock(estimator("group_norm")), stock(flags)
    assert compare.shaped(plain, penalised) > 0  # the penalties do bite in this batch


def test_a_reward_model_sees_the_answer_only() -> None:
    report = seal.check_seal(host_args(*estimator("group_norm"), *REWARD_MODEL), CONFIG)
    assert report.holds, report


@pytest.mark.parametrize("name", ["group_norm", "gae"])
@pytest.mark.parametrize("nested", [1, 3])
def test_logged_numbers_and_the_next_kl_coefficient_are_the_stock_runs(name: str, nested: int) -> None:
    """Every number the host logs but the tokens of a sample; an adaptive controller's next coefficient, too."""
    flags = [*estimator(name), "--algo.kl.use_loss", "--algo.kl.init_coef", "0.01", "--algo.kl.target", "0.03"]
    plain = stock(flags)
    ours = run(flags, COEF_0.model_copy(update={"samples_per_answer": nested}), confession_tokens=20)
    assert compare.answer_numbers(plain, ours) < TOLERANCE
    assert plain.trained.status.keys() <= ours.trained.status.keys()
    assert plain.trained.kl_coefficient == pytest.approx(ours.trained.kl_coefficient, rel=1e-6)
    assert plain.trained.kl_coefficient != 0.01  # the controller did move
    assert ours.trained.status["total_length"] > plain.trained.status["total_length"]


def test_the_confessions_share_of_the_gradient_is_logged() -> None:
    """None of it at coef 0, more of it the larger the coefficient."""
    flags = estimator("gae")
    shares = [run(flags, CONFIG.model_copy(update={"coef": coef}), asked=(True,)).trained.status for coef in (0, 1, 3)]
    for name in ("confession/grad_share", "confession/critic_grad_share"):
        none, one, three = (status[name] for status in shares)
        assert none == 0 and 0 < one < three < 1
