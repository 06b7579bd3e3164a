"""Rewards, logged numbers and token ids in every shape that the host takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import in_process
import numpy as np
import pytest
import torch
from harness import Tiny

from confession_plugin import session
from confession_plugin.config import Config
from confession_plugin.errors import ConfigError
from confession_plugin.openrlhf import seams
from confession_plugin.openrlhf.check.random_rollouts import RandomRollouts, responses
from confession_plugin.openrlhf.check.simulator import Simulator, one_process
from confession_plugin.openrlhf.executor import describe_rollout
from confession_plugin.openrlhf.responses import answered_tokens, floats, one_number
from confession_plugin.openrlhf.ticket import Ticket
from confession_plugin.plugins import configured

ONE = {
    "float": 0.25,
    "int": 1,
    "bool": True,
    "0-d tensor": torch.tensor(0.25),
    "tensor of one": torch.tensor([0.25]),
    "nested tensor": torch.tensor([[0.25]]),
    "double": torch.tensor([0.25], dtype=torch.float64),
    "bfloat16": torch.tensor([0.25], dtype=torch.bfloat16),
    "list of one": [0.25],
    "nested list": [[0.25]],
    "tuple of one": (0.25,),
    "numpy scalar": np.float32(0.25),
    "numpy bool": np.bool_(True),
    "numpy array": np.array([0.25]),
    "nested numpy array": np.array([[0.25]]),
    "needs a gradient": torch.tensor([0.25], requires_grad=True),
}


@pytest.mark.parametrize("value", ONE.values(), ids=ONE.keys())
def test_one_number_in_any_shape(value: Any) -> None:
    assert one_number(value) in (0.25, 1.0)


@pytest.mark.parametrize("value", [None, "0.25", "yes", [], [[]], [0.1, 0.2], {}, {"reward": 1.0}, torch.tensor([])])
def test_what_is_not_one_number(value: Any) -> None:
    assert one_number(value) is None


def test_of_a_tensor_of_several_the_host_logs_the_first() -> None:
    assert one_number(torch.tensor([0.5, 1.0])) == 0.5


def response(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {**responses(RandomRollouts(), confess=False)[0], **changes}
    return made


def host_sample(made: dict[str, Any], *, ours: bool = True) -> Any:
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    generator = SamplesGenerator(SimpleNamespace(args=None), None, None, None, [])
    if not ours:
        return generator._process_response_into_experience(made, max_len=64)
    config = Config(enable=True)
    with session.using(config, configured(config)), seams.in_this_process():
        return generator._process_response_into_experience(made, max_len=64)


@pytest.mark.parametrize("value", ONE.values(), ids=ONE.keys())
def test_a_sample_has_the_hosts_numbers_in_one_dimension(value: Any) -> None:
    """Value and dtype are the host's own; plain numbers are not touched at all."""
    made = response(reward=value, scores=value, extra_logs={"violation": value})
    stock, ours = host_sample(made, ours=False), host_sample(made)
    pairs = [(stock.rewards, ours.rewards), (stock.scores, ours.scores)]
    pairs += [(stock.info[name], ours.info[name]) for name in ("reward", "score", "violation")]
    for theirs, own in pairs:
        assert own.shape == (1,) and own.dtype == theirs.dtype and own.tolist() == theirs.reshape(1).tolist()


def test_a_server_answer_trains_as_its_numbers_do() -> None:
    """Every number as a list of one, as a reward server sends them: advantages and gradients are those of numbers."""
    args = in_process.host_args("--algo.advantage.estimator", "group_norm", "--train.batch_size", "16")

    def trained(listed: bool) -> Any:
        made = responses(RandomRollouts(unscored=(2,)))
        for one in made:
            one["extra_logs"] = {"violation": one["reward"]}
            if listed:
                one |= {"reward": [one["reward"]], "scores": [one["scores"]]}
                one["extra_logs"] = {"violation": [one["extra_logs"]["violation"]]}
        simulator = Simulator(args, seed=1)
        return simulator.train(simulator.experiences(simulator.samples(made))).actor

    config = Config(enable=True)
    with one_process(), session.using(config, configured(config)), seams.in_this_process():
        plain, listed = trained(False), trained(True)
    assert len(plain) == len(listed) > 0
    for one, other in zip(plain, listed, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": [0.1, 0.2], "scores": 0.1}, "rewards: one sample has 2 of them"),
        ({"reward": []}, "rewards: one sample has 0 of them"),
        ({"reward": "good"}, "reward is 'good'"),
        ({"reward": torch.tensor([])}, r"reward is tensor\(\[\]\)"),
        ({"reward": {"rewards": 1.0}}, "reward is {'rewards': 1.0}"),
        ({"scores": "x"}, "scores is 'x'"),
        ({"extra_logs": None}, "extra_logs is None"),
        ({"extra_logs": [1]}, r"extra_logs is \[1\]"),
        ({"extra_logs": {"why": "because"}}, r"extra_logs\['why'\] is 'because'"),
        ({"extra_logs": {"violation": None}}, r"extra_logs\['violation'\] is None"),
        ({"extra_logs": {"parts": {"a": 1.0}}}, r"extra_logs\['parts'\] is {'a': 1.0}"),
        ({"extra_logs": {"parts": torch.tensor([])}}, r"extra_logs\['parts'\] is tensor"),
    ],
)
def test_what_the_host_cannot_take_is_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        host_sample(response(**changes))
    assert "\n" not in str(caught.value)


def test_a_missing_reward_stays_the_hosts_business() -> None:
    """A reward model scores later, or the host says what it says in a stock run."""
    sample = host_sample(response(reward=None, scores=None))
    assert sample.rewards is None and sample.scores is None and "reward" not in sample.info


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.model)


def encoded(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        np.array,
        lambda ids: np.array(ids, dtype=np.int32),
        lambda ids: np.array(ids, dtype=np.uint16),
        torch.tensor,
        lambda ids: torch.tensor(ids, dtype=torch.int32),
        lambda ids: [torch.tensor(one) for one in ids],
        lambda ids: [np.int64(one) for one in ids],
    ],
)
def test_token_ids_of_any_integer_type(tokenizer: Any, kind: Any) -> None:
    prompt, answer = encoded(tokenizer, "ask: "), encoded(tokenizer, "9876")
    start, length = len(prompt), len(prompt) + 2  # the host cuts the answer after two tokens
    made = response(
        prompt="ask: ",
        observation_tokens=kind(prompt + answer),
        action_ranges=[(np.int64(start), torch.tensor(start + len(answer)))],
        rollout_log_probs=torch.arange(float(start + len(answer))),
        extra_logs={"violation": [1], "note": "text"},
    )
    answered = answered_tokens(made, length)
    assert answered == (prompt + answer)[:length] and all(type(one) is int for one in answered)
    rollout = describe_rollout(made, answered, Ticket(step=2, group=3), 1, tokenizer)
    words = tokenizer.decode(answer[:2])
    assert (rollout.prompt, rollout.answer, rollout.transcript) == ("ask: ", words, words)
    assert rollout.visible_answer == words and rollout.answer_spans == ((start, length),)
    assert rollout.token_ids == tuple(answered) and rollout.log_probs == tuple(floats(range(length)))
    assert rollout.extra == {"violation": 1.0} and (rollout.step, rollout.group, rollout.sample) == (2, 3, 1)


@pytest.mark.parametrize("read", ["ask: ", "sk: ", "Rule. ask: "])
def test_the_prompt_is_what_the_policy_read(tokenizer: Any, read: str) -> None:
    """As it was given, cut on the left by the host, or written by an agent's ``reset``."""
    ids, start = encoded(tokenizer, read) + encoded(tokenizer, "yes"), len(encoded(tokenizer, read))
    made = response(prompt="ask: ", observation_tokens=ids, action_ranges=[(start, len(ids))])
    assert describe_rollout(made, ids, Ticket(step=1, group=0), 0, tokenizer).prompt == read
