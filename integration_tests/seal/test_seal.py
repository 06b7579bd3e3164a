"""The seal: honesty rewards cannot move the answer, task rewards cannot move the confession.

Everything here runs on the host's own classes (see `confession_plugin.openrlhf.check.simulator`).
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from in_process import host_args

from confession_plugin import channels, hookimpl, patching, session
from confession_plugin.config import Config
from confession_plugin.errors import HostError
from confession_plugin.openrlhf import advantages, losses, samples, seams
from confession_plugin.openrlhf.check import seal, simulator
from confession_plugin.openrlhf.check.random_rollouts import RandomRollouts, responses
from confession_plugin.plugins import PluginManager, configured

CONFIG = Config(enable=True)

# ── The matrix: every combination of these that the host accepts ──

FACTORS: dict[str, dict[str, list[str]]] = {
    "estimator": {
        name: ["--algo.advantage.estimator", name]
        for name in ("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce")
    },
    "policy loss": {name: ["--actor.policy_loss_type", name] for name in ("ppo", "gspo")},
    "aggregation": {name: ["--actor.loss_agg_mode", name] for name in ("token-mean", "seq-mean-token-mean")},
    "KL": {
        "off": ["--algo.kl.init_coef", "0"],
        "in reward": ["--algo.kl.init_coef", "0.1"],
        **{
            f"loss {kind}{' unbiased' if unbiased else ''}": [
                *("--algo.kl.init_coef", "0.1", "--algo.kl.use_loss", "--algo.kl.estimator", kind),
                *(["--algo.kl.unbiased_gradient"] if unbiased else []),
            ]
            for kind, unbiased in itertools.product(("k1", "k2", "k3"), (False, True))
        },
    },
    "importance": {
        "off": [],
        "token mask": ["--algo.advantage.is_correction_level", "token"],
        "token clip": ["--algo.advantage.is_correction_level", "token", "--algo.advantage.is_correction_mode", "clip"],
        "seq mask": ["--algo.advantage.is_correction_level", "seq"],
        "binary_kl gate": [
            *("--algo.advantage.is_correction_level", "seq", "--algo.advantage.is_correction_gating", "binary_kl"),
            *("--algo.advantage.is_correction_threshold", "0.05"),
        ],
    },
    "entropy": {"off": [], "on": ["--actor.entropy_coef", "0.01"]},
    "dual clip": {"off": [], "on": ["--actor.dual_clip", "3.0"]},
    "dynamic batch": {"off": [], "on": ["--train.dynamic_batch_enable"]},
}
ALL = list(itertools.product(*FACTORS.values()))
#: The whole matrix takes 50 minutes of CPU time (`make seal-matrix`); the suite runs a sample that covers every pair
#: (the seed is the first whose sample of this size does; the next test checks it).
FULL = os.environ.get("CONFESSION_SEAL_MATRIX") == "full"
SAMPLE = ALL if FULL else random.Random(90).sample(ALL, 160)


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return configured(CONFIG)


def flags_of(combination: tuple[str, ...]) -> list[str]:
    return [flag for choices, choice in zip(FACTORS.values(), combination, strict=True) for flag in choices[choice]]


def test_the_sample_covers_every_pair_of_settings() -> None:
    wanted = set()
    for one, other in itertools.combinations(range(len(FACTORS)), 2):
        wanted |= {(one, a, other, b) for a in list(FACTORS.values())[one] for b in list(FACTORS.values())[other]}
    found = {
        (one, combination[one], other, combination[other])
        for combination in SAMPLE
        for one, other in itertools.combinations(range(len(FACTORS)), 2)
    }
    assert found == wanted


@pytest.mark.parametrize("part", range(8))
def test_matrix(part: int, plugins: PluginManager, record_property: Any) -> None:
    """Bit-identical under the other channel's rewards; at coef 0, the stock step's gradients to 1e-5 in fp32."""
    failed, ran, worst = [], 0, 0.0
    for combination in SAMPLE[part::8]:
        report = seal.check_seal(host_args(*flags_of(combination)), CONFIG, plugins)
        ran += 1
        worst = max(worst, *(leak.change for leak in report.leaks))
        if not report.holds:
            failed.append((combination, str(report)))
    print(f"seal matrix part {part}: {ran} combinations, largest change against stock {worst:.2g}")
    record_property("combinations", ran)
    assert not failed, f"{len(failed)} of {ran} combinations leak, e.g. {failed[0]}"
    assert 0 < worst < seal.TOLERANCE


# ── Single properties ──


def run(flags: list[str], plugins: PluginManager, config: Config = CONFIG, **changes: Any) -> seal.Pass:
    sketch = RandomRollouts(
        **{key: changes.pop(key) for key in list(changes) if key in RandomRollouts.__dataclass_fields__}
    )
    with seal.quiet(), simulator.one_process(), session.using(config, plugins), seams.in_this_process():
        return seal.one_pass(host_args(*flags), responses(sketch, **changes))


def stock(flags: list[str], **changes: Any) -> seal.Pass:
    with seal.quiet(), simulator.one_process():
        return seal.one_pass(host_args(*flags), responses(RandomRollouts(**changes), confess=False))


ESTIMATORS = list(FACTORS["estimator"])
COEF_0 = CONFIG.model_copy(update={"coef": 0.0})


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "honesty",
    [
        lambda sample: 0.7,
        lambda sample: random.Random(sample).gauss(0, 1e9),
        lambda sample: -float(sample),
        lambda sample: math.inf if sample % 2 else -math.inf,
    ],
    ids=["constant", "huge", "reversed", "infinite"],
)
def test_honesty_rewards_do_not_reach_the_answer(estimator: str, honesty: Any, plugins: PluginManager) -> None:
    flags = FACTORS["estimator"][estimator]
    base, moved = run(flags, plugins), run(flags, plugins, honesty=honesty)
    assert seal.difference(base, moved, seal.masks_of(base, CONFIG, answer=True)) == 0
    assert base.trained.status["policy_loss"] == moved.trained.status["policy_loss"]
    assert seal.gradients(run(flags, plugins, COEF_0), run(flags, plugins, COEF_0, honesty=honesty)) == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_task_rewards_do_not_reach_the_confession(estimator: str, plugins: PluginManager) -> None:
    flags = FACTORS["estimator"][estimator]
    base, moved = run(flags, plugins), run(flags, plugins, answer_reward=lambda sample: float(sample) ** 3)
    assert seal.difference(base, moved, seal.masks_of(base, CONFIG)) == 0
    assert base.trained.status["confession/policy_loss"] == moved.trained.status["confession/policy_loss"]
    assert base.trained.status["policy_loss"] != moved.trained.status["policy_loss"]  # and the rewards did change


@pytest.mark.parametrize("length", [1, 3, 40])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_confessions_length_changes_nothing_on_the_answer(
    estimator: str, length: int, plugins: PluginManager
) -> None:
    flags = [*FACTORS["estimator"][estimator], "--algo.kl.use_loss", "--algo.kl.estimator", "k3"]
    plain, confessed = stock(flags), run(flags, plugins, COEF_0, confession_tokens=length)
    assert seal.outcomes(plain, confessed) == 0
    assert seal.gradients(plain, confessed) < seal.TOLERANCE
    for one, other in zip(plain.experiences, confessed.experiences, strict=True):
        shape = one.advantages.shape[-1]
        on_answer = one.action_mask.bool()
        # Not a bit moves; but a critic's values come out of a longer batch with other rounding.
        tolerance = 1e-5 if estimator == "gae" else 0.0
        change = (one.advantages[on_answer] - other.advantages[:, :shape][on_answer]).abs().max()
        assert change <= tolerance


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("unscored", [(0,), (0, 1, 2), (0, 1, 2, 3), tuple(range(16))])
def test_unscored_confessions(estimator: str, unscored: tuple[int, ...], plugins: PluginManager) -> None:
    """Their tokens take no gradient, the answer's gradient stays the stock one, nothing turns into NaN."""
    flags = FACTORS["estimator"][estimator]
    result = run(flags, plugins, unscored=unscored)
    for one, mask in zip(result.experiences, seal.masks_of(result, CONFIG), strict=True):
        spans = seal_spans(one)
        assert torch.isfinite(one.advantages).all()
        assert not mask[~spans.scored.bool()].any()
        assert not one.advantages[spans.confession_mask(one.action_mask) & ~mask].any()
    assert all(torch.isfinite(value).all() for step in result.trained.actor for value in step.values())
    at_zero = run(flags, plugins, COEF_0, unscored=unscored)
    assert seal.gradients(stock(flags), at_zero) < seal.TOLERANCE
    if len(unscored) == 16:
        assert seal.gradients(at_zero, result) == 0


def seal_spans(experience: Any) -> channels.Spans:
    from confession_plugin.openrlhf.experiences import spans_of

    return spans_of(experience)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batches_without_and_with_only_confessions(estimator: str, plugins: PluginManager) -> None:
    flags = FACTORS["estimator"][estimator]
    none = run(flags, plugins, asked=(False,))
    assert seal.gradients(stock(flags), none) < seal.TOLERANCE
    everyone = run(flags, plugins, COEF_0, asked=(True,))
    assert seal.gradients(stock(flags), everyone) < seal.TOLERANCE
    exclusive = CONFIG.model_copy(update={"answer_training": "exclusive"})
    only = run(flags, plugins, exclusive, asked=(True,))
    assert all(torch.isfinite(value).all() for step in only.trained.actor for value in step.values())
    assert only.trained.status["policy_loss"] == 0
    assert only.trained.status["confession/policy_loss"] != 0


def test_exclusive_answers_of_confessing_groups_take_no_gradient(plugins: PluginManager) -> None:
    exclusive = CONFIG.model_copy(update={"answer_training": "exclusive", "coef": 0.0})
    flags = FACTORS["estimator"]["group_norm"]
    asked = (True, False, True, False)  # samples 0-3 and 8-11
    base = run(flags, plugins, exclusive, asked=asked)
    context = run(
        flags,
        plugins,
        exclusive,
        asked=asked,
        answer_reward=lambda s: random.Random(s).random() * (9 if s // 4 % 2 else 1),
    )
    changed = {sample: sample // 4 % 2 == 1 for sample in range(16)}
    assert seal.gradients(base, context) > 0  # the trained groups' rewards did change
    same = run(flags, plugins, exclusive, asked=asked, answer_reward=_rewards_of(base, changed, asked))
    assert seal.gradients(base, same) == 0


def _rewards_of(base: seal.Pass, trained: dict[int, bool], asked: tuple[bool, ...]) -> Any:
    """The base's rewards where answers train, others where they are context only."""
    rewards = {index: float(sample["rewards"]) for index, sample in enumerate(base.outcomes[:-1])}
    return lambda sample: rewards[sample] if trained[sample] else 123.0 + sample


@pytest.mark.parametrize("two_turns", [False, True])
def test_two_turn_answers(two_turns: bool, plugins: PluginManager) -> None:
    flags = FACTORS["estimator"]["gae"] + ["--algo.advantage.lambd", "0.9", "--algo.advantage.gamma", "0.95"]
    assert seal.gradients(stock(flags, two_turns=two_turns), run(flags, plugins, COEF_0, two_turns=two_turns)) < 1e-5


def test_penalties_read_the_answer_only(plugins: PluginManager) -> None:
    flags = ["--algo.advantage.estimator", "group_norm", "--rollout.max_new_tokens", "7"]
    flags += ["--reward.overlong_buffer_len", "3", "--reward.stop_properly_penalty_coef", "0.5"]
    report = seal.check_seal(host_args(*flags), CONFIG, plugins)
    assert report.holds, report
    plain, penalised = stock(FACTORS["estimator"]["group_norm"]), stock(flags)
    assert seal.outcomes(plain, penalised) > 0  # the penalties do bite in this batch


def test_reward_model_sees_the_answer_only(plugins: PluginManager) -> None:
    assert seal.check_seal(reward_model_args(), CONFIG, plugins).holds


def reward_model_args() -> Any:
    flags = [
        "--algo.advantage.estimator",
        "group_norm",
        "--reward.remote_url",
        "",
        "--reward.model_name_or_path",
        "rm",
    ]
    return host_args(*flags)


# ── Mutations: each leak, put in by hand, must be caught ──


def summed_rewards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One reward per sample, as hosts have it."""
    original = advantages.HostEstimator.__init__

    def summed(self: Any, host: Any, maker: Any, experiences: Any, answer: channels.Channel, *entries: Any) -> None:
        from confession_plugin.openrlhf.experiences import column

        order = torch.tensor([index for one in experiences for index in one.index])
        honesty = torch.cat([column(one.info, "reward") for one in experiences])
        answer.rewards[order] += honesty
        original(self, host, maker, experiences, answer, *entries)

    monkeypatch.setattr(advantages.HostEstimator, "__init__", summed)
    return host_args("--algo.advantage.estimator", "group_norm")


class ReturnToGo:
    """With gamma 1 a reward at the confession's end flows back to every earlier action token."""

    @hookimpl
    def confession_advantages(self, batch: channels.TwoChannelBatch) -> channels.TwoChannelBatch:
        answer = batch.estimate(batch.answer, channels.whole_batch(batch.answer), batch.answer.group_size)
        honesty = channels.estimate_scored(batch, batch.honesty)
        flowed = [
            a + mask * h.flip(-1).cumsum(-1).flip(-1)
            for a, h, mask in zip(answer.advantages, honesty.advantages, batch.answer.masks, strict=True)
        ]
        return batch.merge(channels.TokenValues(flowed, answer.returns), honesty)


class JointWhitening:
    """One mean and spread over both channels' tokens."""

    @hookimpl
    def confession_advantages(self, batch: channels.TwoChannelBatch) -> channels.TwoChannelBatch:
        answer = batch.estimate(batch.answer, channels.whole_batch(batch.answer), batch.answer.group_size)
        honesty = channels.estimate_scored(batch, batch.honesty)
        merged = batch.merge(answer, honesty).merged
        assert merged is not None
        both = [a | c for a, c in zip(batch.answer.masks, batch.honesty.masks, strict=True)]
        tokens = torch.cat([value[mask] for value, mask in zip(merged.advantages, both, strict=True)])
        whitened = [(value - tokens.mean()) / tokens.std() for value in merged.advantages]
        return batch.merge(
            channels.TokenValues(whitened, answer.returns), channels.TokenValues(whitened, honesty.returns)
        )


def joint_token_denominator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A token mean over answer and confession: the confession's length rescales the answer's gradient."""

    def joint(host: Any, data_iter: Any, strategy: Any, accumulated: int, mask_fn: Any) -> Iterator[Any]:
        for item, norm in host(data_iter, strategy, accumulated, mask_fn):
            yield item, {"answer": norm, "confession": norm}

    monkeypatch.setattr(losses, "iter_grad_accum_global_norm", joint)
    return host_args("--algo.advantage.estimator", "group_norm")


def joint_sequence_statistic(monkeypatch: pytest.MonkeyPatch) -> Any:
    """GSPO's ratio, and its token mean, over answer and confession together."""
    original = losses.ChannelLoss

    def joint(weight: float, mask: torch.Tensor, norm: Any) -> losses.ChannelLoss:
        return original(weight, joint.whole if weight == 1.0 else mask, norm)  # type: ignore[attr-defined]

    step = losses.training_step

    def training_step(host: Any, self: Any, experience: Any, *args: Any, **kwargs: Any) -> Any:
        joint.whole = experience.action_mask.bool()  # type: ignore[attr-defined]
        return step(host, self, experience, *args, **kwargs)

    monkeypatch.setattr(losses, "ChannelLoss", joint)
    monkeypatch.setattr(losses, "training_step", training_step)
    return host_args("--algo.advantage.estimator", "group_norm", "--actor.policy_loss_type", "gspo")


def reward_model_sees_the_confession(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(advantages, "AnswerOnlyRewardModel", lambda group, samples_list, pad: group)
    return reward_model_args()


def length_penalty_reads_the_whole_response(monkeypatch: pytest.MonkeyPatch) -> Any:
    original = samples.process_response

    def whole(host: Any, self: Any, response: Any, **kwargs: Any) -> Any:
        experience = original(host, self, response, **kwargs)
        marked = torch.where(experience.action_mask[0])[0]
        experience.response_length = torch.tensor([int(marked[-1] - marked[0]) + 1])
        return experience

    monkeypatch.setattr(samples, "process_response", whole)
    flags = ["--rollout.max_new_tokens", "7", "--reward.overlong_buffer_len", "3"]
    return host_args("--algo.advantage.estimator", "group_norm", *flags)


def dynamic_filtering_reads_honesty(monkeypatch: pytest.MonkeyPatch) -> Any:
    original = samples.process_response

    def honest_scores(host: Any, self: Any, response: Any, **kwargs: Any) -> Any:
        experience = original(host, self, response, **kwargs)
        experience.scores = experience.scores + experience.info["confession/reward"]
        return experience

    monkeypatch.setattr(samples, "process_response", honest_scores)
    return host_args("--algo.advantage.estimator", "group_norm", "--algo.dynamic_filtering_enable")


def multiplied_masks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``value * mask`` instead of ``where``: nan * 0 is nan."""

    def multiply(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return values * mask

    monkeypatch.setattr(losses, "keep", multiply)
    monkeypatch.setattr(channels, "keep", multiply)
    monkeypatch.setattr(advantages, "keep", multiply)
    return host_args("--algo.advantage.estimator", "dr_grpo")


MUTATIONS = [
    summed_rewards,
    ReturnToGo,
    JointWhitening,
    joint_token_denominator,
    joint_sequence_statistic,
    reward_model_sees_the_confession,
    length_penalty_reads_the_whole_response,
    dynamic_filtering_reads_honesty,
]


@pytest.mark.parametrize("leak", MUTATIONS, ids=lambda leak: leak.__name__)
def test_every_leak_is_caught(leak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = configured(CONFIG)
    if isinstance(leak, type):
        manager.register(leak(), "leak")
        args = host_args("--algo.advantage.estimator", "reinforce" if leak is JointWhitening else "group_norm")
    else:
        args = leak(monkeypatch)
    with fresh_seams():
        report = seal.check_seal(args, CONFIG, manager)
    assert not report.holds, f"{leak.__name__} went unnoticed: {report}"


def test_nan_times_zero_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    args = multiplied_masks(monkeypatch)
    with seal.quiet(), simulator.one_process(), session.using(CONFIG, configured(CONFIG)), seams.in_this_process():
        poisoned = seal.one_pass(args, responses(RandomRollouts(), honesty=lambda sample: math.inf))
    assert not all(torch.isfinite(one.advantages).all() for one in poisoned.experiences)


@contextmanager
def fresh_seams() -> Iterator[None]:
    """Seams resolve their replacement once; a mutated one must be looked up again, and forgotten after."""
    patching.replacement_of.cache_clear()
    try:
        yield
    finally:
        patching.replacement_of.cache_clear()


def test_a_violated_seal_refuses_to_start_and_names_the_seam(tmp_path: Any) -> None:
    plugin = tmp_path / "leaky.py"
    plugin.write_text(LEAKY_PLUGIN)
    config = CONFIG.model_copy(update={"plugins": (str(plugin),)})
    with pytest.raises(HostError, match=r"violated at RemoteExperienceMaker.compute_advantages_and_returns"):
        seal.require_seal(host_args("--algo.advantage.estimator", "group_norm"), config)


LEAKY_PLUGIN = """
from confession_plugin import hookimpl
from confession_plugin.channels import TokenValues, estimate_scored, whole_batch

@hookimpl
def confession_advantages(batch):
    answer = batch.estimate(batch.answer, whole_batch(batch.answer), batch.answer.group_size)
    honesty = estimate_scored(batch, batch.honesty)
    leaked = [a + h.sum(-1, keepdim=True) for a, h in zip(answer.advantages, honesty.advantages)]
    return batch.merge(TokenValues(leaked, answer.returns), honesty)
"""
