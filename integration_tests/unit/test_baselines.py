"""The honesty baseline when scores are missing: nothing is biased, for any estimator of the host.

A confession is one of two tokens, P(token 1) = P, so that the true policy gradient is known:

    d log P(token) / d logit = token - P        reward = LOW + GAP * token        d E[reward] / d logit = P (1 - P) GAP

Everything goes through the seam (`advantages.compute_advantages_and_returns`) and the host's own code.  What an
estimator is expected to find is a closed form: rloo the true gradient, the others the true gradient times a factor
that the host has for complete groups too (oneself in the baseline, division by a spread), taken at the m scored
members in place of n.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from in_process import host_args
from torch import Tensor

from confession_plugin import session
from confession_plugin.config import Config
from confession_plugin.openrlhf import advantages
from confession_plugin.openrlhf.experiences import PREFIX, write_info
from confession_plugin.plugins import PluginManager, configured

P, LOW, GAP = 0.3, 0.2, 0.6
TRUE_GRADIENT = P * (1 - P) * GAP
SPREAD = GAP * math.sqrt(P * (1 - P))  # standard deviation of the reward
VALUE_SPREAD = 0.2  # of the critic's values, which know nothing of the token

ESTIMATORS = ("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce")
#: Three of them also without the division by the batch's spread (--algo.advantage.no_std_norm).
ALL = (*ESTIMATORS, "gae plain", "reinforce plain", "reinforce_baseline plain")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tensors are tiny: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ── The seam and the host ──


@functools.cache
def plugins() -> PluginManager:
    return configured(Config(enable=True))


@functools.cache
def flags() -> Any:
    return host_args()


@functools.cache
def maker_of(estimator: str, size: int) -> Any:
    """The host's experience maker, for groups of `size`."""
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    args = copy.deepcopy(flags())
    args.algo.advantage.estimator, _, plain = estimator.partition(" ")
    args.algo.advantage.no_std_norm = bool(plain)
    args.rollout.n_samples_per_prompt = size
    strategy, tokenizer = SimpleNamespace(args=args), SimpleNamespace(pad_token_id=0)
    return RemoteExperienceMaker(None, None, None, None, SimpleNamespace(value=0.0), strategy, tokenizer)


def experience_of(rewards: Tensor, action_mask: Tensor, values: Tensor | None, info: dict[str, Tensor]) -> Any:
    """One batch of samples (N) with `action_mask` (A,) each, and a critic's values (N,) at every position."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    count, width = len(rewards), len(action_mask)
    seen = torch.zeros(count) if values is None else values
    return Experience(
        action_mask=action_mask.expand(count, -1).clone(),
        rewards=rewards.clone(),
        kl=torch.zeros(count, width),
        values=seen.unsqueeze(-1).expand(-1, width).clone(),
        response_length=torch.ones(count),
        truncated=torch.zeros(count),
        sequences=torch.ones(count, width + 1, dtype=torch.long),
        attention_mask=torch.ones(count, width + 1, dtype=torch.long),
        total_length=torch.full((count,), width + 1),
        index=list(range(count)),
        info=info,
    )


def ours(estimator: str, rewards: Tensor, scored: Tensor, size: int, values: Tensor | None = None) -> Tensor:
    """(N,) advantages of the confessions.  Each sample is one answer token, a request, one confession token."""
    count = len(rewards)
    numbers: dict[str, Any] = {}
    write_info(numbers, {"asked": 1, "length": 1, "suffix": 2})
    info = {name: value.expand(count).clone() for name, value in numbers.items() if isinstance(value, Tensor)}
    info[PREFIX + "scored"] = scored.float()
    info[PREFIX + "reward"] = torch.where(scored, rewards, torch.full((), 1e6))  # never read where unscored
    experience = experience_of(torch.zeros(count), torch.tensor([1, 0, 1]), values, info)
    maker = maker_of(estimator, size)
    with session.using(Config(enable=True), plugins()):
        advantages.compute_advantages_and_returns(type(maker).compute_advantages_and_returns, maker, [experience])
    found: Tensor = experience.advantages[:, -1]
    return found


def hosts(estimator: str, rewards: Tensor, size: int, values: Tensor | None = None) -> Tensor:
    """(N,) advantages of the host alone, on samples of one token."""
    experience = experience_of(rewards, torch.tensor([1]), values, {})
    maker_of(estimator, size).compute_advantages_and_returns([experience])
    found: Tensor = experience.advantages[:, 0]
    return found


def members_of(scored: Tensor, size: int) -> Tensor:
    """(N,) how many of the sample's group are scored."""
    return scored.reshape(-1, size).sum(-1).repeat_interleave(size)


def trained_of(estimator: str, scored: Tensor, size: int) -> Tensor:
    """(N,) bool: the samples with something to be compared with."""
    alone_is_enough = estimator.split()[0] in ("gae", "reinforce", "flash_reinforce")
    return scored if alone_is_enough else scored & (members_of(scored, size) > 1)


# ── What is expected ──


def oneself(members: Tensor) -> float:
    """A mean that includes oneself shrinks the gradient by (m - 1) / m."""
    return float(((members - 1) / members).mean())


@functools.cache
def expected_group_norm(m: int) -> float:
    """E[sum over the group of advantage * score] / m, over the number k of ones among m."""
    return sum(
        math.comb(m, k) * P**k * (1 - P) ** (m - k) * math.sqrt(k * (m - k) * (m - 1) / m) / m for k in range(m + 1)
    )


def expected(estimator: str, members: Tensor) -> float:
    """The policy gradient a large batch finds, given each trained sample's m.

    Every factor is the host's own for complete groups, where m = n.  The spreads are those of a large batch.
    """
    return {
        "rloo": lambda: TRUE_GRADIENT,
        "dr_grpo": lambda: TRUE_GRADIENT * oneself(members),
        "group_norm": lambda: sum(map(expected_group_norm, members.tolist())) / len(members),
        "reinforce_baseline": lambda: TRUE_GRADIENT * oneself(members) / (SPREAD * math.sqrt(oneself(members))),
        "reinforce_baseline plain": lambda: TRUE_GRADIENT * oneself(members),
        "flash_reinforce": lambda: TRUE_GRADIENT,
        "reinforce": lambda: TRUE_GRADIENT / SPREAD,
        "reinforce plain": lambda: TRUE_GRADIENT,
        "gae": lambda: TRUE_GRADIENT / math.hypot(SPREAD, VALUE_SPREAD),
        "gae plain": lambda: TRUE_GRADIENT,
    }[estimator]()


# ── Monte Carlo: a large batch, as a run would see it ──

GROUPS, SIZE, SCORED_SHARE = 10_000, 4, 0.6


def sampled() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N,) each: tokens, rewards, who is scored (whatever the token was), the critic's values."""
    draw = torch.Generator().manual_seed(0)
    token, luck = torch.rand(2, GROUPS * SIZE, generator=draw)
    token = (token < P).float()
    values = LOW + GAP * P + VALUE_SPREAD * torch.randn(GROUPS * SIZE, generator=draw)
    return token, LOW + GAP * token, luck < SCORED_SHARE, values


def gradient(found: Tensor, token: Tensor, trained: Tensor) -> tuple[float, float]:
    """Mean of advantage * score over the trained samples, and its standard error, group by group."""
    terms = torch.where(trained, found * (token - P), torch.zeros(())).double().reshape(-1, SIZE).sum(-1)  # (G,)
    counts = trained.double().reshape(-1, SIZE).sum(-1)
    mean = terms.sum() / counts.sum()
    error = (terms - mean * counts).std() * len(terms) ** 0.5 / counts.sum()
    return float(mean), float(error)


@pytest.mark.parametrize("estimator", ALL)
def test_missing_scores_leave_no_bias(estimator: str) -> None:
    token, rewards, scored, values = sampled()
    found, error = gradient(ours(estimator, rewards, scored, SIZE, values), token, trained_of(estimator, scored, SIZE))
    wanted = expected(estimator, members_of(scored, SIZE)[trained_of(estimator, scored, SIZE)])
    assert error < 0.02 * wanted
    assert abs(found - wanted) < 4 * error


@pytest.mark.parametrize("estimator", ALL)
def test_filling_missing_scores_with_zero_is_biased(estimator: str) -> None:
    """The test above fails if a missing score becomes a reward of 0: a large part of the gradient is gone."""
    token, rewards, scored, values = sampled()
    everybody = torch.ones_like(scored)
    filled = torch.where(scored, rewards, torch.zeros(()))
    found, error = gradient(ours(estimator, filled, everybody, SIZE, values), token, everybody)
    wanted = expected(estimator, members_of(scored, SIZE)[trained_of(estimator, scored, SIZE)])
    assert abs(found - wanted) > 10 * error
    assert found < 0.9 * wanted


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_failures_that_follow_the_confession_teach_nothing(estimator: str) -> None:
    """Every scored confession is equally honest, but the judge fails on token 1 nine times as often."""
    token, _, _, _ = sampled()
    draw = torch.Generator().manual_seed(1)
    scored = torch.rand(len(token), generator=draw) < torch.where(token > 0, 0.1, 0.9)
    honest = torch.full_like(token, 0.5)
    found, _ = gradient(ours(estimator, honest, scored, SIZE), token, trained_of(estimator, scored, SIZE))
    assert abs(found) < 1e-6
    filled = torch.where(scored, honest, torch.zeros(()))
    everybody = torch.ones_like(scored)
    taught, error = gradient(ours(estimator, filled, everybody, SIZE), token, everybody)
    assert taught < -10 * error  # filling with 0 teaches to avoid the token the judge stumbles over


# ── Exactly: every outcome of two groups of three ──

MASKS = ((1, 1, 1, 0, 1, 1), (0, 1, 1, 0, 1, 0), (1, 1, 1, 0, 0, 0))  # m = 3 and 2, 2 and 1, 3 and 0


def outcomes() -> Iterator[tuple[float, Tensor]]:
    """Every outcome of six tokens, with its probability."""
    for tokens in itertools.product((0, 1), repeat=6):
        yield math.prod(P if token else 1 - P for token in tokens), torch.tensor(tokens, dtype=torch.float32)


def of_members(estimator: str, rewards: Tensor, scored: Tensor, size: int, values: Tensor) -> Tensor:
    """(M,) the host's own advantages, had the missing members never been sampled."""
    name = estimator.split()[0]
    if name in ("gae", "reinforce", "flash_reinforce"):  # no groups
        return hosts(estimator, rewards[scored], 1, values[scored])
    groups = [rewards[start : start + size][scored[start : start + size]] for start in range(0, len(rewards), size)]
    if name == "reinforce_baseline":  # by its definition: reinforce on rewards less their group's mean
        centred = torch.cat([group - group.mean() for group in groups if len(group)])
        return hosts(estimator.replace("_baseline", ""), centred, 1)
    return torch.cat([hosts(estimator, group, len(group)) for group in groups if len(group)])


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("estimator", ALL)
def test_every_outcome_is_the_hosts_on_the_scored_members(estimator: str, mask: tuple[int, ...]) -> None:
    """Also where no closed form exists: small batches, whose spread is as random as the gradient."""
    scored = torch.tensor(mask).bool()
    trained = trained_of(estimator, scored, 3)
    values = torch.linspace(0.1, 0.5, 6)
    exact, theirs, filled = 0.0, 0.0, 0.0
    for probability, token in outcomes():
        rewards, score = LOW + GAP * token, token - P
        found = ours(estimator, rewards, scored, 3, values)
        reference = of_members(estimator, rewards, trained, 3, values)
        assert torch.allclose(found[trained], reference, atol=1e-4)
        assert not found[~trained].any()
        exact += probability * float((found * score)[trained].mean())
        theirs += probability * float((reference * score[trained]).mean())
        zeros = torch.where(scored, rewards, torch.zeros(()))
        filled += probability * float((hosts(estimator, zeros, 3, values) * score).mean())
    assert exact == pytest.approx(theirs, rel=1e-5)
    members = members_of(trained, 3)[trained]
    count = int(trained.sum())
    shrunk = {
        "rloo": 1.0,
        "dr_grpo": oneself(members),
        "reinforce_baseline plain": oneself(members),
        "flash_reinforce": (count - 1) / count,
        "reinforce plain": (count - 1) / count,
        "gae plain": (count - 1) / count,
    }
    if estimator in shrunk:
        assert exact == pytest.approx(shrunk[estimator] * TRUE_GRADIENT, rel=1e-5)
    assert filled != pytest.approx(exact, rel=0.05)  # a reward of 0 for a missing score fails all of this


# ── Variance of several confessions about one answer, of one token each, whose gradient is known ──

MANY = 40_000


def toy(nested: bool, base: float, gap: float) -> torch.Tensor:
    """(MANY,) gradients of single groups of `SIZE` confessions: one a different answer, or all about one answer.

    An answer is 0 or 1 with equal chance; a confession earns 0.5 * token on average, shifted by `base` for one of the
    answers, and with the slope changed by +- `gap` from answer to answer.  d/dlogit of the mean is P (1 - P) / 2.
    """
    draw = torch.Generator().manual_seed(1)
    answer = torch.randint(2, (MANY, 1 if nested else SIZE), generator=draw).float().expand(-1, SIZE)
    token = (torch.rand(MANY, SIZE, generator=draw) < P).float()
    noise = 0.1 * torch.randn(MANY, SIZE, generator=draw)
    rewards = base * answer + (0.5 + gap * (2 * answer - 1)) * token + noise
    flat = rewards.reshape(-1)
    advantages = ours("rloo", flat, torch.ones_like(flat, dtype=torch.bool), SIZE).reshape(-1, SIZE)
    return (advantages * (token - P)).mean(-1)


@pytest.mark.parametrize(
    ("base", "gap", "ratio"), [(1.0, 0.0, (0, 0.5)), (0.0, 0.0, (0.97, 1.03)), (0.0, 0.4, (1.1, 9))]
)
def test_variance_beside_one_confession_an_answer(base: float, gap: float, ratio: tuple[float, float]) -> None:
    """At equal numbers of confessions.  Both ways are unbiased.  Where answers differ in how well their confessions
    score, the nested baseline takes that difference out; where they do not, it changes nothing; where they differ in
    what a confession should say, fewer different answers cost variance."""
    truth = P * (1 - P) / 2
    across, nested = toy(False, base, gap), toy(True, base, gap)
    for gradient in (across, nested):
        assert abs(float(gradient.mean()) - truth) < 4 * float(gradient.std()) / MANY**0.5
    found = float(nested.var() / across.var())
    print(f"variance of nested to across-answers gradients, base {base:g}, gap {gap:g}: {found:.2f}")
    assert ratio[0] < found < ratio[1]
