"""Several confessions about one answer (`--confession.samples_per_answer`): the answer trains once, all of them train,
and they are each other's baseline.

On the host's own classes (see `confession_plugin.openrlhf.check.simulator`); whole runs are in test_training.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from in_process import host_args
from seal_support import ESTIMATORS, REWARD_MODEL, fresh_seams, in_place

from confession_plugin import session
from confession_plugin.config import Config
from confession_plugin.errors import PluginError
from confession_plugin.openrlhf import samples
from confession_plugin.openrlhf.check import compare, passes, seal
from confession_plugin.openrlhf.check.random_rollouts import RandomRollouts, responses
from confession_plugin.openrlhf.executor import ConfessionTokens
from confession_plugin.plugins import configured

NESTED = Config(enable=True, samples_per_answer=3)
VARIANTS = {
    "plain": [],
    "gspo by sequence": ["--actor.policy_loss_type", "gspo", "--actor.loss_agg_mode", "seq-mean-token-mean"],
    "KL as loss": ["--algo.kl.init_coef", "0.1", "--algo.kl.use_loss", "--algo.kl.estimator", "k3"],
    "dynamic batch": ["--train.dynamic_batch_enable"],
    "importance": ["--algo.advantage.is_correction_level", "token", "--actor.entropy_coef", "0.01"],
}


@pytest.mark.parametrize(
    ("estimator", "variant"),
    [*((estimator, "plain") for estimator in ESTIMATORS), *(("group_norm", variant) for variant in VARIANTS)],
)
def test_the_seal_holds(estimator: str, variant: str) -> None:
    """Nothing of three confessions reaches the answer; at coef 0 its gradients are the stock step's, which has one
    row an answer where ours has three."""
    report = seal.check_seal(host_args("--algo.advantage.estimator", estimator, *VARIANTS[variant]), NESTED)
    assert report.holds, str(report)
    assert "several confessions" in report.combination


def test_a_local_reward_model_sees_each_answer_once() -> None:
    report = seal.check_seal(host_args(*REWARD_MODEL), NESTED)
    assert report.holds, str(report)


def test_an_answer_that_trains_with_every_confession_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The leak this option could have: extra confessions whose answers are trained, too."""

    class Everything(list[Any]):
        def __getitem__(self, at: Any) -> Any:
            return self  # `action_ranges[-1:]`, and the answer's with it

    join = samples._join
    monkeypatch.setattr(
        samples,
        "_join",
        lambda *args: {**(joined := join(*args)), "action_ranges": Everything(joined["action_ranges"])},
    )
    with fresh_seams():
        report = seal.check_seal(host_args(*VARIANTS["KL as loss"]), NESTED)
    assert not report.holds


def gradients(config: Config, responses: list[dict[str, Any]], *flags: str) -> list[dict[str, torch.Tensor]]:
    with in_place(config):
        return passes.one_pass(host_args(*flags), responses).trained.actor


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("estimator", ["rloo", "group_norm", "dr_grpo", "reinforce_baseline", "flash_reinforce"])
def test_three_confessions_train_as_three_samples_with_one_answer_would(estimator: str, aggregation: str) -> None:
    """A group of three equal answers with a confession each, or one answer with three confessions: the confessions'
    gradients are the same.  (Answers are left untrained: there the two differ, one answer against three.)"""
    rollouts = RandomRollouts(groups=4, samples=3, asked=(True,), samples_per_answer=3)
    nested = responses(rollouts)[::3]  # the first sample of each group, with its extra confessions

    def separate(response: dict[str, Any], number: int) -> dict[str, Any]:
        first: ConfessionTokens = response["confession"]
        chosen = (replace(first, extra=()), *first.extra)[number]
        return {**response, "confession": chosen}

    grouped = [separate(response, number) for response in nested for number in range(3)]
    # The host wants groups of at least two: a second sample of each prompt that confesses nothing.
    unheard = {**nested[0], "confession": ConfessionTokens(numbers={"asked": 1, "step": 1})}
    padded = [sample for response in nested for sample in (response, unheard)]
    flags = ["--algo.advantage.estimator", estimator, "--actor.loss_agg_mode", aggregation]
    flags += ["--algo.kl.init_coef", "0", "--rollout.micro_batch_size", "2", "--train.micro_batch_size", "2"]
    exclusive = Config(enable=True, answer_training="exclusive")
    whole = ["--rollout.n_samples_per_prompt", "3", "--train.batch_size", "12"]
    halves = ["--rollout.n_samples_per_prompt", "2", "--train.batch_size", "8"]
    one = gradients(exclusive, grouped, *flags, *whole)
    other = gradients(exclusive.model_copy(update={"samples_per_answer": 3}), padded, *flags, *halves)
    assert len(one) == len(other) == 1  # one optimizer step each
    assert max(float(gradient.abs().max()) for gradient in one[0].values()) > 1e-4
    assert compare.largest_change(one, other) < 1e-5


def test_a_recording_with_another_number_of_confessions_is_refused() -> None:
    config = Config(enable=True)
    rollouts = RandomRollouts(samples_per_answer=3)
    with pytest.raises(PluginError, match=r"3 confessions an answer.*samples_per_answer"):
        from confession_plugin.openrlhf import recording

        with session.using(config, configured(config)):
            recording._check_nesting(recording._path("recorded", 1), responses(rollouts))
