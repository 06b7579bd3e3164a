"""Leaks in this package itself: each is put in by hand, and the check must fail (see test_leaks.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from in_process import host_args
from seal_support import CONFIG, EXCLUSIVE, REWARD_MODEL, estimator, fresh_seams

from confession_plugin import channels
from confession_plugin.config import Config
from confession_plugin.errors import HostError
from confession_plugin.openrlhf import advantages, estimators, experiences, losses, samples
from confession_plugin.openrlhf.check import seal

Patch = pytest.MonkeyPatch


def changed_channels(
    change: Callable[[estimators.Channel, estimators.Channel, Any], tuple[Any, Any]],
) -> Callable[[Patch], None]:
    """The rewards of both channels, changed before they are used: (answer, honesty, spans) -> (answer, honesty)."""

    def put_in(monkeypatch: Patch) -> None:
        original = advantages.channels_of

        def leaky(maker: Any, batch: Any, rows: Any) -> Any:
            answer, honesty = original(maker, batch, rows)
            to_answer, to_honesty = change(answer, honesty, [experiences.spans_of(one) for one in rows])
            return (
                replace(answer, rewards=answer.rewards + to_answer),
                replace(honesty, rewards=honesty.rewards + to_honesty),
            )

        monkeypatch.setattr(advantages, "channels_of", leaky)

    return put_in


summed_rewards = changed_channels(lambda answer, honesty, spans: (honesty.rewards, 0))
"""One reward per sample, as hosts have it."""

punished_where_honesty_is_zero = changed_channels(
    lambda answer, honesty, spans: (-(honesty.scored & (honesty.rewards == 0)).float(), 0)
)
"""A rule that fires only on values that judges give."""

paid_for_being_scored = changed_channels(lambda answer, honesty, spans: (honesty.scored.float(), 0))

paid_for_long_confessions = changed_channels(
    lambda answer, honesty, spans: (0.01 * torch.cat([one.length for one in spans]), 0)
)

honesty_reads_the_task_reward = changed_channels(lambda answer, honesty, spans: (0, answer.rewards))

honesty_reads_failed_tasks = changed_channels(lambda answer, honesty, spans: (0, -(answer.rewards == 0).float()))


def merged_everywhere(monkeypatch: Patch) -> None:
    """Both channels' values added on every token, the honesty's flowing back."""

    def added(answer: channels.TokenValues, honesty: channels.TokenValues, *masks: Any) -> channels.TokenValues:
        flowed = [one.flip(-1).cumsum(-1).flip(-1) for one in honesty.advantages]
        return channels.TokenValues([a + h for a, h in zip(answer.advantages, flowed, strict=True)], answer.returns)

    monkeypatch.setattr(advantages, "merge", added)


def joint_token_denominator(monkeypatch: Patch) -> None:
    """A token mean over answer and confession: the confession's length rescales the answer's gradient."""

    def joint(host: Any, data_iter: Any, strategy: Any, accumulated: int, mask_fn: Any) -> Iterator[Any]:
        for item, norm in host(data_iter, strategy, accumulated, mask_fn):
            yield item, {"answer": norm, "confession": norm}

    monkeypatch.setattr(losses, "iter_grad_accum_global_norm", joint)


def joint_sequence_statistic(monkeypatch: Patch) -> None:
    """GSPO's ratio, and its token mean, over answer and confession together."""
    original, step, whole = losses.ChannelLoss, losses.training_step, {}

    def joint(weight: float, mask: torch.Tensor, norm: Any) -> losses.ChannelLoss:
        return original(weight, whole["mask"] if weight == 1.0 else mask, norm)

    def training_step(host: Any, self: Any, experience: Any, *args: Any, **kwargs: Any) -> Any:
        whole["mask"] = experience.action_mask.bool()
        return step(host, self, experience, *args, **kwargs)

    monkeypatch.setattr(losses, "ChannelLoss", joint)
    monkeypatch.setattr(losses, "training_step", training_step)


def logged_means_weigh_all_tokens(monkeypatch: Patch) -> None:
    """The host weighs micro-batches by action tokens, and an adaptive KL controller reads the mean."""
    step = losses.training_step

    def training_step(host: Any, self: Any, experience: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = float(experience.action_mask.sum())
        status = step(host, self, experience, *args, **kwargs)
        return status | {"num_action_tokens": tokens} if "num_action_tokens" in status else status

    monkeypatch.setattr(losses, "training_step", training_step)


def statistics_read_all_tokens(monkeypatch: Patch) -> None:
    monkeypatch.setattr(experiences, "masked_mean", lambda host, *args, **kwargs: host(*args, **kwargs))


def reward_model_sees_the_confession(monkeypatch: Patch) -> None:
    monkeypatch.setattr(advantages, "AnswerOnlyRewardModel", lambda group, samples_list, pad: group)


def length_penalty_reads_the_whole_response(monkeypatch: Patch) -> None:
    original = samples.process_response

    def whole(host: Any, self: Any, response: Any, **kwargs: Any) -> Any:
        experience = original(host, self, response, **kwargs)
        marked = torch.where(experience.action_mask[0])[0]
        experience.response_length = torch.tensor([int(marked[-1] - marked[0]) + 1])
        return experience

    monkeypatch.setattr(samples, "process_response", whole)


def dynamic_filtering_reads_honesty(monkeypatch: Patch) -> None:
    original = samples.process_response

    def honest_scores(host: Any, self: Any, response: Any, **kwargs: Any) -> Any:
        experience = original(host, self, response, **kwargs)
        experience.scores = experience.scores + experience.info["confession/reward"]
        return experience

    monkeypatch.setattr(samples, "process_response", honest_scores)


def rewards_keep_the_servers_shape(monkeypatch: Patch) -> None:
    """A list of one stays a list: another shape than a number's."""
    original = samples.process_response

    def kept(host: Any, self: Any, response: Any, **kwargs: Any) -> Any:
        experience = original(host, self, response, **kwargs)
        experience.scores = torch.tensor([response["scores"]])
        return experience

    monkeypatch.setattr(samples, "process_response", kept)


def context_only_answers_train(monkeypatch: Patch) -> None:
    """In exclusive mode the asked groups' answers take gradients all the same."""
    original = losses.trained_masks
    monkeypatch.setattr(losses, "trained_masks", lambda experience, mode=None: original(experience, "dual"))


def confession_losses_read_the_answers_values(monkeypatch: Patch) -> None:
    """The confession's loss on the mean of all advantages."""
    original = losses._on_mask

    def mixed(value: Any, mask: torch.Tensor) -> Any:
        kept = original(value, mask)
        same = isinstance(value, torch.Tensor) and value.shape == mask.shape and not value.requires_grad
        return kept + 0.1 * value.mean() * mask if same else kept

    monkeypatch.setattr(losses, "_on_mask", mixed)


@dataclass(frozen=True)
class Leak:
    put_in: Callable[[Patch], None]
    caught_as: str
    flags: tuple[str, ...] = ()
    config: Config = CONFIG


KL = ("--algo.kl.use_loss", "--algo.kl.init_coef", "0.1", "--algo.kl.estimator", "k3")
OVERLONG = ("--rollout.max_new_tokens", "7", "--reward.overlong_buffer_len", "3")

LEAKS = {
    "summed rewards": Leak(summed_rewards, "honesty -> answer advantages"),
    "punished where honesty is zero": Leak(punished_where_honesty_is_zero, "honesty -> answer advantages"),
    "paid for being scored": Leak(paid_for_being_scored, "honesty -> answer advantages"),
    "paid for long confessions": Leak(paid_for_long_confessions, "gradients against stock"),
    "honesty reads the task reward": Leak(honesty_reads_the_task_reward, "answer -> honesty advantages"),
    "honesty reads failed tasks": Leak(honesty_reads_failed_tasks, "answer -> honesty advantages"),
    "honesty reads the reward model": Leak(
        honesty_reads_the_task_reward, "answer -> honesty advantages", tuple(REWARD_MODEL)
    ),
    "merged everywhere": Leak(merged_everywhere, "honesty -> answer advantages"),
    "joint token denominator": Leak(joint_token_denominator, "gradients against stock"),
    "joint sequence statistic": Leak(
        joint_sequence_statistic, "gradients against stock", ("--actor.policy_loss_type", "gspo")
    ),
    "logged means weigh all tokens": Leak(logged_means_weigh_all_tokens, "numbers against stock", KL),
    "logged statistics read all tokens": Leak(statistics_read_all_tokens, "task rewards against stock"),
    "the reward model sees the confession": Leak(
        reward_model_sees_the_confession, "task rewards against stock", tuple(REWARD_MODEL)
    ),
    "a length penalty reads the whole response": Leak(
        length_penalty_reads_the_whole_response, "samples against stock", OVERLONG
    ),
    "dynamic filtering reads honesty": Leak(
        dynamic_filtering_reads_honesty, "honesty -> samples", ("--algo.dynamic_filtering_enable",)
    ),
    "rewards keep the server's shape": Leak(rewards_keep_the_servers_shape, "samples against stock"),
    "context-only answers train": Leak(
        context_only_answers_train, "exclusive gradients against stock", config=EXCLUSIVE
    ),
    "the confession's loss reads the answer's values": Leak(
        confession_losses_read_the_answers_values, "answer -> honesty losses"
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_caught_by_the_check(name: str, monkeypatch: Patch) -> None:
    """(d) It does not hold, and the comparison that says so is the one that watches this way."""
    leak = LEAKS[name]
    leak.put_in(monkeypatch)
    with fresh_seams():
        report = seal.check_seal(host_args(*estimator("group_norm"), *leak.flags), leak.config)
    assert not report.holds, f"{name} went unnoticed: {report}"
    broken = {one.name for one in report.comparisons if not one.holds}
    assert leak.caught_as in broken, broken
    assert str(report).startswith("seal VIOLATED: group_norm")


def test_nan_times_zero_is_caught(monkeypatch: Patch) -> None:
    """``value * mask`` instead of ``where``: a log-prob that the engine reported as NaN would reach the answer."""
    flags = [*estimator("dr_grpo"), "--algo.advantage.is_correction_level", "token"]
    flags += ["--algo.advantage.is_correction_mode", "clip"]
    assert _with_nan_log_probs(flags) is True
    monkeypatch.setattr(losses, "keep", lambda values, mask: values * mask)
    assert _with_nan_log_probs(flags) is False


def _with_nan_log_probs(flags: list[str]) -> bool:
    """Are all gradients finite when a confession's rollout log-probs are not?"""
    from seal_support import COEF_0, in_place

    from confession_plugin.openrlhf.check import passes
    from confession_plugin.openrlhf.check.random_rollouts import RandomRollouts, responses

    made = responses(RandomRollouts())
    for response in made:
        if "confession" in response:
            response["confession"].log_probs[:] = [float("nan")] * len(response["confession"].log_probs)
    with fresh_seams(), in_place(COEF_0):
        trained = passes.one_pass(host_args(*flags), made).trained
    return all(bool(torch.isfinite(value).all()) for step in trained.actor for value in step.values())


def test_a_violated_seal_refuses_to_start_and_names_seam_and_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    punished_where_honesty_is_zero(monkeypatch)
    wanted = (
        r"the seal is violated: honesty -> task rewards moved by .* with honesty rewards .*"
        r"at RemoteExperienceMaker.compute_advantages_and_returns .*does not start"
    )
    with pytest.raises(HostError, match=wanted):
        seal.require_seal(host_args(*estimator("group_norm")), CONFIG)
