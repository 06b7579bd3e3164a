"""What stops a run that has started: cheap comparisons in every batch (see test_leaks.py, kind (e))."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from in_process import host_args
from seal_support import CONFIG, ESTIMATORS, estimator, in_place, run

from confession_plugin.errors import HostError, PluginError
from confession_plugin.openrlhf.check import compare
from confession_plugin.openrlhf.check.passes import masks_of
from confession_plugin.openrlhf.check.random_rollouts import RandomRollouts, responses
from confession_plugin.openrlhf.executor import ConfessionTokens
from confession_plugin.openrlhf.host_flags import instead

# ── Chosen groups without a confession ──


class ForeignEngine:
    """A rollout worker of somebody else's, in this process: it answers, and knows nothing of confessions.

    `confesses`: it does run this plugin.
    """

    def __init__(self, confesses: bool = False) -> None:
        self._confesses = confesses
        self.get_num_unfinished_requests = SimpleNamespace(remote=lambda: 0)
        self.generate_responses = SimpleNamespace(remote=self._answers)

    def _answers(self, *, prompt: str, label: Any, num_samples: int, **_: Any) -> list[dict[str, Any]]:
        answers = responses(RandomRollouts(groups=1, samples=num_samples), confess=False)
        numbers = {"asked": True, "step": 1}  # no room for a confession, say: the sample has its reason
        if self._confesses:
            answers = [{**one, "confession": ConfessionTokens(numbers=numbers)} for one in answers]
        return answers


def one_batch(engine: ForeignEngine, probability: float) -> list[Any]:
    """A batch through the host's own samples generator: its loader, its dispatch, its collection."""
    from openrlhf.trainer.ppo_utils import samples_generator
    from openrlhf.utils import get_strategy

    args = host_args("--rollout.vllm_generate_batch_size", "4")
    config = CONFIG.model_copy(update={"probability": probability, "seed": 1})
    loader = [[f"source {i}", f"prompt {i}", "label", None] for i in range(4)]
    local_ray = SimpleNamespace(get=lambda refs: refs, wait=lambda refs, **_: (refs[:1], refs[1:]))
    with in_place(config), instead(samples_generator, "ray", local_ray):
        batches = [tuple([one[field]] for field in range(4)) for one in loader]
        generator = samples_generator.SamplesGenerator(
            get_strategy(args), batches, None, SimpleNamespace(pad_token_id=0), [engine]
        )
        return generator.generate_samples(max_len=64, n_samples_per_prompt=4)[0]


def test_a_foreign_rollout_worker_stops_the_run() -> None:
    """Its samples are fine for the host: without this the run would train on without a single confession."""
    with pytest.raises(HostError, match="16 samples were chosen to confess and 0 came back with a confession"):
        one_batch(ForeignEngine(), probability=1.0)


def test_where_none_is_asked_any_worker_will_do() -> None:
    assert len(one_batch(ForeignEngine(), probability=0.0)) == 16


def test_samples_that_say_why_they_have_no_confession_do_not_stop_the_run() -> None:
    assert len(one_batch(ForeignEngine(confesses=True), probability=1.0)) == 16


# ── Honesty rewards that are not finite ──


@pytest.mark.parametrize("reward", [math.inf, -math.inf, math.nan, 1e39])
@pytest.mark.parametrize("name", ["group_norm", "gae"])
def test_honesty_rewards_that_are_not_finite_stop_the_run(name: str, reward: float) -> None:
    """Before any number is made of them, whoever let them through (a recording, another host's worker)."""
    with pytest.raises(PluginError, match=r"honesty reward is not finite in float32.*confession_reward"):
        run(estimator(name), honesty=lambda sample, group: reward if sample == 9 else 0.5, unscored=())


def test_what_stands_in_place_of_a_missing_score_is_never_read() -> None:
    made = run(estimator("group_norm"), unscored=(5,), honesty=lambda sample, group: 0.1 * sample)
    assert compare.finite(made)


# ── The host's penalties ──

PENALTIES: dict[str, list[str]] = {
    "overlong": ["--rollout.max_new_tokens", "7", "--reward.overlong_buffer_len", "6"],
    "stop properly": ["--reward.stop_properly_penalty_coef", "0.5"],
    "stop properly, fixed": ["--reward.stop_properly_penalty_coef", "-0.5"],
}


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_penalty_of_the_hosts_changes_an_honesty_reward(name: str, penalty: str) -> None:
    plain, penalised = run(estimator(name)), run([*estimator(name), *PENALTIES[penalty]])
    assert compare.on_masks(plain, penalised, masks_of(plain, CONFIG)) == 0
    assert compare.shaped(plain, penalised) > 0  # and the answers' rewards did change


def counts_tokens(experiences: list[Any], args: Any) -> None:
    """As a later host may: the overlong penalty by the action mask, under the settings of today's."""
    for one in experiences:
        if args.reward.overlong_buffer_len is not None:
            one.rewards = one.rewards - (one.action_mask.sum(-1) > 3).float()


def unknown(experiences: list[Any], args: Any) -> None:
    """A penalty with a setting of its own, which this package does not know to switch off."""
    for one in experiences:
        one.rewards = one.rewards - 0.1 * one.action_mask.sum(-1)


def test_a_penalty_that_counts_tokens_is_switched_off_by_its_settings() -> None:
    plain = run(estimator("group_norm"))
    penalised = _with_penalty(counts_tokens, PENALTIES["overlong"])
    assert compare.on_masks(plain, penalised, masks_of(plain, CONFIG)) == 0
    assert compare.shaped(plain, penalised) > 0


def test_an_unknown_penalty_stops_the_run() -> None:
    with pytest.raises(HostError, match=r"changed an honesty reward.*leave out the --reward\.\* penalties"):
        _with_penalty(unknown, [])


def _with_penalty(penalty: Callable[[list[Any], Any], None], flags: list[str]) -> Any:
    from openrlhf.trainer.ppo_utils import experience_maker

    with instead(experience_maker, "apply_length_penalties", penalty):
        return run([*estimator("group_norm"), *flags])


def test_the_runs_own_settings_keep_their_penalties() -> None:
    """The honesty view has settings of its own; the run's are not touched."""
    from confession_plugin.openrlhf.estimators import maker_for_honesty

    args = host_args(*PENALTIES["overlong"])
    maker = SimpleNamespace(args=args, strategy=SimpleNamespace(args=args), kl_ctl=SimpleNamespace(value=0.1))
    mine = maker_for_honesty(maker)
    assert mine.strategy.args is mine.args and mine.args.reward.overlong_buffer_len is None
    assert args.reward.overlong_buffer_len == 6
    assert mine.kl_ctl is not maker.kl_ctl
