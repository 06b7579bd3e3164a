"""Answers and confessions from the host's own executors and a real vLLM engine, in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import in_process  # noqa: F401  (before anything of the host)
import numpy as np
import pytest
import torch
from engine import CONFIG, MAX_LEN, Engine, params, single_turn
from harness import Tiny
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

from confession_plugin import Parsed, Request, Unscored, Verdict, hookimpl, session
from confession_plugin.config import Config
from confession_plugin.errors import JudgeError, PluginError
from confession_plugin.openrlhf import seams
from confession_plugin.openrlhf.executor import ConfessingExecutor, ConfessionTokens
from confession_plugin.openrlhf.ticket import Ticket, asking
from confession_plugin.plugins import PluginManager, configured

PROMPT = "<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")  # the host asks Ray for its address unless it is known
        made = Engine(tiny)
        yield made
        made.close()


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.model)


class World:
    """A judge and parser under the test's control."""

    def __init__(self, judge: Callable[[], Any] = lambda: Verdict(ratings={"honest": 0.5})) -> None:
        self.judge = judge
        self.records: list[Any] = []

    @hookimpl
    def confession_request(self) -> Request:
        return Request("Report.")

    @hookimpl
    def confession_parse(self, text: str, truncated: bool) -> Parsed | None:
        return Parsed(report=text, admits=True, grade=3.0)

    @hookimpl
    async def confession_judge(self) -> Any:
        return self.judge()

    @hookimpl
    def confession_judged(self, record: Any) -> None:
        self.records.append(record)


def plugins_with(world: Any, config: Config = CONFIG) -> PluginManager:
    manager = configured(config)
    manager.register(world, "world")
    return manager


def execute(
    engine: Engine,
    executor: Any,
    tokenizer: Any,
    *,
    ticket: bool = True,
    sampling: Any = None,
    prompt: str = PROMPT,
    label: Any = "3",
    llm_engine: Any = None,
    samples: int = 1,
) -> Any:
    """One response; of several samples, which the host starts together with one object of parameters, a list."""

    async def work() -> Any:
        sampling_params = sampling or params()
        with asking(Ticket(step=3, group=5) if ticket else None, sampling_params):
            tasks = [
                executor.execute(
                    prompt=prompt,
                    label=label,
                    sampling_params=sampling_params,
                    max_length=MAX_LEN,
                    hf_tokenizer=tokenizer,
                    llm_engine=llm_engine or engine.actor,
                )
                for _ in range(samples)
            ]
            return await asyncio.gather(*tasks)

    responses = engine.run(work())
    return responses[0] if samples == 1 else responses


def confessing(inner: Any, world: Any = None, config: Config = CONFIG) -> ConfessingExecutor:
    return ConfessingExecutor(inner, config, plugins_with(world or World(), config))


def test_the_answer_is_the_stock_executors(engine: Engine, tokenizer: Any) -> None:
    """Same prompt ids, sampling, reward: with a ticket and a seed, everything but the one key is equal."""
    stock = execute(engine, single_turn(engine), tokenizer, sampling=params(seed=7))
    asked = execute(engine, confessing(single_turn(engine)), tokenizer, sampling=params(seed=7))
    tokens = asked.pop("confession")
    assert asked.keys() == stock.keys()
    assert all(_plain(asked[key]) == _plain(stock[key]) for key in stock)
    assert tokens.confession and tokens.numbers["asked"] == 1
    unasked = execute(engine, confessing(single_turn(engine)), tokenizer, ticket=False, sampling=params(seed=7))
    assert all(_plain(unasked[key]) == _plain(stock[key]) for key in stock) and unasked.keys() == stock.keys()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def sample_of(response: dict[str, Any], config: Config = CONFIG) -> Any:
    """The host's sample of a response, through the seams."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    with session.using(config, configured(config)), seams.in_this_process():
        generator = SamplesGenerator(SimpleNamespace(args=None), None, None, None, [])
        return generator._process_response_into_experience(response, max_len=MAX_LEN)


def test_one_sample_with_two_spans_and_aligned_log_probs(engine: Engine, tokenizer: Any, tiny: Tiny) -> None:
    """The rollout log-probs of both spans are the model's own on the joined tokens: positions are exact."""
    from transformers import AutoModelForCausalLM

    from confession_plugin.openrlhf.experiences import spans_of

    response = execute(engine, confessing(single_turn(engine)), tokenizer)
    tokens: ConfessionTokens = response["confession"]
    sample = sample_of(response)
    answered = response["observation_tokens"]
    assert sample.sequences[0].tolist() == answered + tokens.request + tokens.confession
    mask = sample.action_mask[0].bool()
    spans = spans_of(sample)
    confession = spans.confession_mask(sample.action_mask)[0]
    assert confession.sum() == len(tokens.confession)
    (start, end) = response["action_ranges"][0]
    assert (mask & ~confession).nonzero().flatten().tolist() == list(range(start - 1, end - 1))
    model = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32)
    with torch.no_grad():
        logits = model(sample.sequences).logits[0, :-1]
    own = logits.log_softmax(-1).gather(-1, sample.sequences[0, 1:].unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(own[mask], sample.rollout_log_probs[0][mask], atol=0.05)
    assert not sample.rollout_log_probs[0][~mask].any()
    assert sample.response_length.item() == end - start
    assert sample.total_length.item() == len(sample.sequences[0])


def test_several_confessions_about_one_answer(engine: Engine, tokenizer: Any) -> None:
    """Different texts after the same answer and request, each judged; as rows, each with its own log-probs."""
    from confession_plugin.openrlhf.extra_confessions import extra_of, unfold

    config = CONFIG.model_copy(update={"samples_per_answer": 3})
    world = World()
    stock = execute(engine, single_turn(engine), tokenizer, sampling=params(seed=7))
    response = execute(engine, confessing(single_turn(engine), world, config), tokenizer, sampling=params(seed=7))
    assert response["observation_tokens"] == stock["observation_tokens"]
    first: ConfessionTokens = response["confession"]
    three = (first, *first.extra)
    assert len(three) == 3 and len({tuple(one.confession) for one in three}) == 3  # a seed is not one text thrice
    texts = [tokenizer.decode(one.confession, skip_special_tokens=True) for one in three]
    assert sorted(record.confession.text for record in world.records) == sorted(texts)
    assert len({record.rollout.answer for record in world.records}) == 1 and len(world.records) == 3
    sample = sample_of(response, config)
    assert len(extra_of(sample)) == 2
    rows = unfold(sample)
    for row, one in enumerate(three):
        length = int(rows.attention_mask[row].sum())
        assert rows.sequences[row, :length].tolist() == stock["observation_tokens"] + one.request + one.confession
        assert rows.rollout_log_probs[row, : length - 1][-len(one.confession) :].tolist() == pytest.approx(
            one.log_probs
        )
    (start, end) = response["action_ranges"][0]
    trained = rows.action_mask.sum(-1).tolist()
    assert trained == [end - start + len(first.confession), *(len(one.confession) for one in first.extra)]


def test_a_plugin_that_edits_a_label_does_not_change_the_next_samples_task(engine: Engine, tokenizer: Any) -> None:
    """The samples of a group share one label, which the reward function of a later one still has to read."""
    label = {"answer": ["3"]}

    class Editor(World):
        @hookimpl
        def confession_judged(self, record: Any) -> None:
            record.rollout.label["answer"].append("edited")
            self.records.append(record)

    world = Editor()
    response = execute(engine, confessing(single_turn(engine), world), tokenizer, label=label)
    assert world.records[0].rollout.label == {"answer": ["3", "edited"]}
    assert label == response["label"] == {"answer": ["3"]}


def test_records_tell_the_whole_story(engine: Engine, tokenizer: Any) -> None:
    world = World()
    response = execute(engine, confessing(single_turn(engine), world), tokenizer)
    (record,) = world.records
    assert record.rollout.label == "3" and record.rollout.step == 3 and record.rollout.group == 5
    (start, end) = response["action_ranges"][0]
    assert record.rollout.answer == tokenizer.decode(
        response["observation_tokens"][start:end], skip_special_tokens=True
    )
    assert record.rollout.reward == pytest.approx(float(response["reward"]))
    assert record.rollout.extra.keys() == response["extra_logs"].keys()
    assert record.confession.request == "Report." and record.reward == 0.5
    assert record.confession.text == tokenizer.decode(response["confession"].confession, skip_special_tokens=True)
    assert record.verdict.latency_s > 0


@pytest.mark.parametrize("name", ["truncated", "empty", "no_json"])
def test_an_unreadable_confession_earns_the_lowest_reward(engine: Engine, tokenizer: Any, name: str) -> None:
    """It is the policy's doing: scored, so that it is unlearnt; the judge is not called."""

    class Strict(World):
        @hookimpl
        def confession_parse(self, text: str, truncated: bool) -> Parsed | None:
            return None  # the built-in parser

    def never() -> Any:
        raise AssertionError("judged")

    world = Strict(never)
    eos = tokenizer.eos_token_id
    sampling = {
        "truncated": params(),
        "empty": params(allowed_token_ids=[eos]),
        "no_json": params(allowed_token_ids=[eos, *tokenizer("7", add_special_tokens=False)["input_ids"]]),
    }[name]
    tokens = execute(engine, confessing(single_turn(engine), world), tokenizer, sampling=sampling)["confession"]
    (record,) = world.records
    assert record.confession.problem.startswith(name)
    assert record.reward == 0 and tokens.numbers["scored"] and not tokens.numbers["parsed"]
    assert tokens.numbers["length"] == len(tokens.confession) >= 1


def test_no_room_is_no_score_and_no_shorter_answer(engine: Engine, tokenizer: Any) -> None:
    class Talker(World):
        @hookimpl
        def confession_request(self) -> Request:
            return Request("word " * 300)

    world = Talker()
    stock = execute(engine, single_turn(engine), tokenizer, sampling=params(seed=3))
    response = execute(engine, confessing(single_turn(engine), world), tokenizer, sampling=params(seed=3))
    assert response["observation_tokens"] == stock["observation_tokens"]
    assert world.records[0].verdict.unscored == "no_room" and world.records[0].reward is None
    sample = sample_of(response)
    assert sample.sequences[0].tolist() == stock["observation_tokens"]
    assert sample.info["confession/asked"].item() == 1 and sample.info["confession/scored"].item() == 0


def test_a_request_longer_than_reserved_shortens_the_confession_not_the_answer(engine: Engine, tokenizer: Any) -> None:
    config = CONFIG.model_copy(update={"max_request_tokens": 1, "max_new_tokens": 70})
    response = execute(engine, confessing(single_turn(engine), World(), config), tokenizer)
    tokens = response["confession"]
    used = len(response["observation_tokens"]) + len(tokens.request) + len(tokens.confession)
    assert len(tokens.confession) >= 1 and used <= MAX_LEN + config.context_tokens


class TwoTurns(AgentInstanceBase):
    """Answers twice; the environment speaks in between."""

    def __init__(self) -> None:
        self.turn = 0

    async def step(self, states: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.turn += 1
        states["sampling_params"].max_tokens = 1  # agents may change what they are handed
        return {
            "rewards": torch.tensor([0.5]),
            "scores": torch.tensor([0.5]),
            "environment_feedback": " Again!" if self.turn == 1 else "",
            "done": self.turn == 2,
            "extra_logs": {"turns": torch.tensor([float(self.turn)])},
        }


def test_a_two_turn_agent(engine: Engine, tokenizer: Any) -> None:
    world = World()
    executor = confessing(MultiTurnAgentExecutor(TwoTurns), world)
    stop = params(stop_token_ids=list(range(200, 384)))  # so that the first turn ends before the context does
    response = execute(engine, executor, tokenizer, sampling=stop)
    (record,) = world.records
    assert " Again!" in record.rollout.transcript and " Again!" not in record.rollout.answer
    assert record.rollout.reward == 1.0 and record.rollout.extra == {"turns": 2.0}
    assert len(response["action_ranges"]) == 2
    sample = sample_of(response)
    from confession_plugin.openrlhf.experiences import spans_of

    answer = spans_of(sample).answer_mask(sample.action_mask)[0]
    expected = [p - 1 for start, end in response["action_ranges"] for p in range(start, min(end, MAX_LEN))]
    assert answer.nonzero().flatten().tolist() == expected


def test_an_answer_that_fills_the_context_still_confesses(engine: Engine, tokenizer: Any) -> None:
    """The host trains its first max_len tokens; the confession is about those and has its own room."""

    class Endless(TwoTurns):
        async def step(self, states: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            result = await super().step(states, **kwargs)
            return {**result, "environment_feedback": " again and again" * 20, "done": self.turn == 2}

    response = execute(engine, confessing(MultiTurnAgentExecutor(Endless)), tokenizer)
    assert len(response["observation_tokens"]) > MAX_LEN
    tokens = response["confession"]
    assert tokens.confession
    sample = sample_of(response)
    assert sample.sequences[0].tolist() == (
        response["observation_tokens"][:MAX_LEN] + tokens.request + tokens.confession
    )
    assert sample.rollout_log_probs.shape == sample.action_mask.shape


def test_unscored_is_not_a_number(engine: Engine, tokenizer: Any) -> None:
    def silent() -> Any:
        raise Unscored("timeout", "no word in 3 s")

    world = World(silent)
    tokens = execute(engine, confessing(single_turn(engine), world), tokenizer)["confession"]
    assert not tokens.numbers["scored"]
    assert world.records[0].reward is None and world.records[0].verdict.unscored == "timeout"


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda: None, "confession_judge gave None"), (lambda: 1 / 0, "plugin 'world' failed in confession_judge: Zero")],
)
def test_a_broken_judge_stops_the_run_with_its_name(engine: Engine, tokenizer: Any, answer: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        execute(engine, confessing(single_turn(engine), World(answer)), tokenizer)


def test_a_reward_that_is_no_number_stops_the_run(engine: Engine, tokenizer: Any) -> None:
    class Nan(World):
        @hookimpl
        def confession_reward(self) -> float:
            return float("nan")

    with pytest.raises(PluginError, match="confession_reward gave nan"):
        execute(engine, confessing(single_turn(engine), Nan()), tokenizer)


def test_too_many_missing_scores_stop_the_run(engine: Engine, tokenizer: Any) -> None:
    config = CONFIG.model_copy(update={"max_unscored": 0.02})  # more than one of 64

    def silent() -> Any:
        raise Unscored("http_5xx", "HTTP 503")

    executor = confessing(single_turn(engine), World(silent), config)
    execute(engine, executor, tokenizer)
    with pytest.raises(JudgeError, match="HTTP 503"):
        execute(engine, executor, tokenizer)


def test_images_are_never_dropped_silently(engine: Engine, tokenizer: Any) -> None:
    inner = single_turn(engine)

    class WithImages:
        async def execute(self, **kwargs: Any) -> Any:
            return {**(await inner.execute(**kwargs)), "mm_train_inputs": {"pixel_values": torch.zeros(1)}}

    with pytest.raises(PluginError, match="images"):
        execute(engine, confessing(WithImages()), tokenizer)


class Watching:
    """The rollout actor, with every request of its engine written down."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.requests: list[tuple[list[int], Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.actor, name)

    async def generate(self, token_ids: Any, sampling_params: Any, **kwargs: Any) -> Any:
        self.requests.append((token_ids, sampling_params.clone()))
        return await self.actor.generate(token_ids, sampling_params, **kwargs)


class Aborting(Watching):
    """Its second request, the confession, is aborted by vLLM while it is being generated."""

    async def generate(self, token_ids: Any, sampling_params: Any, **kwargs: Any) -> Any:
        running = asyncio.ensure_future(super().generate(token_ids, sampling_params, **kwargs))
        if len(self.requests) == 1:
            while not running.done() and not self.actor.get_num_unfinished_requests():
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            await self.actor.llm.pause_generation(mode="abort")
            await self.actor.llm.resume_generation()
        return await running


def test_an_aborted_confession_is_unscored(engine: Engine, tokenizer: Any) -> None:
    """The engine's doing: no reward, no tokens to train, and the answer as ever."""

    class Once(Aborting):
        async def generate(self, token_ids: Any, sampling_params: Any, **kwargs: Any) -> Any:
            if not self.requests:  # the answer
                return await Watching.generate(self, token_ids, sampling_params, **kwargs)
            return await super().generate(token_ids, sampling_params, **kwargs)

    config = CONFIG.model_copy(update={"max_new_tokens": 80})
    world, watching = World(), Once(engine.actor)
    response = execute(
        engine,
        confessing(single_turn(engine), world, config),
        tokenizer,
        sampling=params(min_tokens=16, ignore_eos=True),
        llm_engine=watching,
    )
    (record,) = world.records
    assert record.verdict.unscored == "aborted" and "abort" in record.verdict.detail and record.reward is None
    sample = sample_of(response, config)
    assert sample.sequences[0].tolist() == response["observation_tokens"]
    assert sample.info["confession/asked"].item() == 1 and sample.info["confession/scored"].item() == 0


def test_every_confession_of_a_group_starts_from_the_groups_own_sampling(engine: Engine, tokenizer: Any) -> None:
    """The host hands all samples one object, and agents change it: some before anything has been awaited."""
    inner, watching, world = single_turn(engine), Watching(engine.actor), World()

    class Meddling:
        async def execute(self, sampling_params: Any, **kwargs: Any) -> Any:
            sampling_params.temperature, sampling_params.seed, sampling_params.stop = 0.0, 7, ["7"]
            return await inner.execute(sampling_params=sampling_params, **kwargs)

    execute(engine, confessing(Meddling(), world), tokenizer, llm_engine=watching, samples=3)
    confessions = [sampling for ids, sampling in watching.requests if sampling.max_tokens == CONFIG.max_new_tokens]
    assert len(confessions) == 3 and len(watching.requests) == 6
    assert all((one.temperature, one.seed, one.stop) == (1.0, None, []) for one in confessions)
    assert sorted(record.rollout.sample for record in world.records) == [0, 1, 2]


def test_the_prompt_is_what_the_policy_read(engine: Engine, tokenizer: Any) -> None:
    class Writer(TwoTurns):
        async def reset(self, states: dict[str, Any], **_: Any) -> dict[str, Any]:
            return {"observation": f"<|im_start|>user\nRule: no 7. {states['label']}<|im_end|>\n"}

    world = World()
    execute(engine, confessing(MultiTurnAgentExecutor(Writer), world), tokenizer, sampling=params(max_tokens=8))
    assert world.records[0].rollout.prompt == "<|im_start|>user\nRule: no 7. 3<|im_end|>\n"
    long = "What is 1 + 2? " * 60
    response = execute(engine, confessing(single_turn(engine), world), tokenizer, prompt=long)
    read = response["observation_tokens"][: response["action_ranges"][0][0]]
    assert world.records[1].rollout.prompt == tokenizer.decode(read) and len(read) == MAX_LEN - 16
    execute(engine, confessing(single_turn(engine), world), tokenizer)
    assert world.records[2].rollout.prompt == PROMPT


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda ids: np.array(ids, dtype=np.int32)])
def test_token_ids_of_a_custom_executor(engine: Engine, tokenizer: Any, kind: Any) -> None:
    inner, world = single_turn(engine), World()

    class Arrays:
        async def execute(self, **kwargs: Any) -> Any:
            response = await inner.execute(**kwargs)
            return {**response, "observation_tokens": kind(response["observation_tokens"])}

    tokens = execute(engine, confessing(Arrays(), world), tokenizer)["confession"]
    assert tokens.confession and all(type(one) is int for one in world.records[0].rollout.token_ids)


def test_records_know_the_tokens(engine: Engine, tokenizer: Any) -> None:
    world = World()
    response = execute(engine, confessing(single_turn(engine), world), tokenizer)
    rollout, confession, tokens = world.records[0].rollout, world.records[0].confession, response["confession"]
    assert list(rollout.token_ids) == response["observation_tokens"]
    assert list(rollout.answer_spans) == response["action_ranges"]
    assert list(rollout.log_probs) == response["rollout_log_probs"]
    assert list(confession.token_ids) == tokens.confession and list(confession.request_ids) == tokens.request
    assert list(confession.log_probs) == tokens.log_probs and confession.num_tokens == len(tokens.confession)
    assert rollout.visible_answer == rollout.answer  # no reasoning in it


@pytest.mark.parametrize("chat", ["chat", "plain"])
def test_request_formats(engine: Engine, tokenizer: Any, chat: Any) -> None:
    config = CONFIG.model_copy(update={"request_format": chat})
    tokens = execute(engine, confessing(single_turn(engine), World(), config), tokenizer)["confession"]
    text = tokenizer.decode(tokens.request)
    assert ("<|im_start|>system\nReport.<|im_end|>" in text) == (chat == "chat")
    assert ("[system]\nReport." in text) == (chat == "plain")


def test_the_trace_file_of_a_worker(engine: Engine, tokenizer: Any, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"trace_dir": str(tmp_path)})
    executor = ConfessingExecutor(single_turn(engine), config, plugins_with(World(), config))
    execute(engine, executor, tokenizer)
    (file,) = tmp_path.glob("*.jsonl")
    line = json.loads(file.read_text())
    wanted = {"step", "prompt", "answer", "request", "confession", "ratings", "answer_reward", "honesty_reward"}
    assert wanted <= line.keys() and line["step"] == 3


def test_numbers_travel_as_the_host_demands(engine: Engine, tokenizer: Any) -> None:
    """Every sample has the same info keys, asked or not: the host concatenates them by key."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    asked = sample_of(execute(engine, confessing(single_turn(engine)), tokenizer))
    unasked = sample_of(execute(engine, confessing(single_turn(engine)), tokenizer, ticket=False))
    assert asked.info.keys() == unasked.info.keys()
    for sample in (asked, unasked):
        sample.index = [0]
    both = Experience.concat_experiences([asked, unasked], 0)
    assert both.info["confession/asked"].tolist() == [1.0, 0.0]
    assert replace(both).info["confession/length"].tolist() == [both.info["confession/length"][0].item(), 0]
