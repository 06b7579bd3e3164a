"""Whether a group is asked changes neither when nor where its answer trains: the host's samples generator over Ray.

The engine is a Ray actor of ours whose groups finish in an order that the test decides; everything between dispatch
and training batch is the host's own `SamplesGenerator`, with the seams in place or without them.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import in_process
import pytest
import ray
from harness import HERE, Tiny

from confession_plugin import PromptBatch, hookimpl, session
from confession_plugin.config import Config
from confession_plugin.errors import PluginError
from confession_plugin.openrlhf import recording, seams
from confession_plugin.openrlhf.rollout_actor import confessing_actor
from confession_plugin.openrlhf.samples import Progress
from confession_plugin.openrlhf.ticket import take_ticket
from confession_plugin.plugins import configured

SAMPLES = 2
CONFIG = Config(
    enable=True,
    probability=0.25,
    judge_url=str(HERE / "worlds" / "noting_judge.py"),
    plugins=(str(HERE / "worlds" / "any_report.py"),),
    max_new_tokens=8,
    max_request_tokens=600,
    request_format="plain",
    seed=3,
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """One actor for all tests: our subclass, which does nothing without tickets."""
    from ordered_engine import OrderedEngine

    folder = tempfile.mkdtemp(prefix="cp", dir="/tmp")  # a socket's path may have 107 characters
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    judged = tempfile.mkdtemp(dir=folder)
    environment = {**CONFIG.to_env(), "PYTHONPATH": path, "JUDGED": judged}
    ray.init("local", num_cpus=4, include_dashboard=False, _temp_dir=folder, runtime_env={"env_vars": environment})
    with session.using(CONFIG):
        handle = confessing_actor(OrderedEngine).remote()
    os.environ["JUDGED"] = judged
    yield handle
    del os.environ["JUDGED"]
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.model)


class Prompts(list[tuple[list[str], list[str], list[str], list[None]]]):
    """The host's prompt loader, as far as its samples generator looks at it."""

    def __init__(self, count: int) -> None:
        super().__init__((["default"], [f"prompt {number}"], [str(number)], [None]) for number in range(count))


def generator_of(
    engine: Any,
    tokenizer: Any,
    prompts: int,
    order: Sequence[int],
    scores: dict[int, float],
    *flags: str,
    until: str = "",
) -> Any:
    """The host's samples generator over an engine that finishes its groups in this order."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    args = in_process.host_args("--rollout.n_samples_per_prompt", str(SAMPLES), *flags)
    by_prompt = {f"prompt {number}": score for number, score in scores.items()}
    ray.get(engine.behave.remote([f"prompt {number}" for number in order], by_prompt, until))
    return SamplesGenerator(SimpleNamespace(args=args), Prompts(prompts), None, tokenizer, [engine])


def batches_of(generator: Any) -> list[list[Any]]:
    """One episode of training batches, each a list of samples."""
    batches = []
    while True:
        samples, _, _, exhausted = generator.generate_samples(max_len=64)
        if samples:
            batches.append(samples)
        if exhausted:
            return batches


def numbers(batch: Sequence[Any]) -> list[int]:
    """The prompts of a batch's groups, in order."""
    return [int(sample.labels[0]) for sample in batch[::SAMPLES]]


def asked(batch: Sequence[Any]) -> list[bool]:
    return [bool(sample.info["confession/asked"]) for sample in batch[::SAMPLES]]


OVERSAMPLED = ("--train.async_enable", "--rollout.batch_size", "4", "--rollout.vllm_generate_batch_size", "16")


def shuffled(count: int, at_once: int = 16) -> list[int]:
    """An order of completion: the groups that are sampled at once finish in any order."""
    draw = random.Random(1)
    waves = [range(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    return [number for wave in waves for number in draw.sample(wave, len(wave))]


def test_the_stock_order_is_the_order_of_completion(engine: Any, tokenizer: Any) -> None:
    """What the next test would show without the seam: this test's order reaches the host."""
    order = shuffled(16)
    batches = batches_of(generator_of(engine, tokenizer, 16, order, {}, *OVERSAMPLED))
    assert [number for batch in batches for number in numbers(batch)] == order


@pytest.mark.parametrize("probability", [0.0, 0.25])
def test_groups_train_in_the_order_of_their_dispatch(engine: Any, tokenizer: Any, probability: float) -> None:
    """Sixteen groups at once for batches of four, in two waves: asked or not, an answer trains at the same place."""
    config = CONFIG.model_copy(update={"probability": probability})
    with session.using(config, configured(config)), seams.in_this_process():
        generator = generator_of(engine, tokenizer, 32, shuffled(32), {}, *OVERSAMPLED)
        batches = batches_of(generator)
    assert [number for batch in batches for number in numbers(batch)] == list(range(32))
    assert [sum(asked(batch)) for batch in batches] == [4 * probability] * 8  # exact in every training batch
    for step, batch in enumerate(batches, 1):
        assert {int(sample.info["confession/step"]) for sample in batch} == {step}
        assert [int(sample.info["confession/group"]) for sample in batch[::SAMPLES]] == numbers(batch)
    assert Progress.of(generator).prompts == 32


def test_confessions_are_spread_over_data_parallel_ranks(engine: Any, tokenizer: Any) -> None:
    """The host deals contiguous stretches of a batch to its ranks: each gets the same number of confession tokens."""
    with session.using(CONFIG, configured(CONFIG)), seams.in_this_process():
        flags = ("--rollout.batch_size", "16", "--train.batch_size", "32")
        batches = batches_of(generator_of(engine, tokenizer, 48, shuffled(48), {}, *flags))
    for batch in batches:
        for ranks in (2, 4):
            share = len(batch) // ranks
            stretches = [batch[rank * share : (rank + 1) * share] for rank in range(ranks)]
            tokens = [sum(int(sample.info["confession/length"]) for sample in stretch) for stretch in stretches]
            assert len(set(tokens)) == 1 and tokens[0] > 0


def test_filtered_groups_are_replaced_in_their_places(engine: Any, tokenizer: Any) -> None:
    """Dynamic filtering with oversampling: the share stays exact as long as there are prompts to replace with."""
    dropped = dict.fromkeys((1, 3, 4, 5, 9, 14, 15, 17, 20, 21), 0.0)
    flags = (*OVERSAMPLED, "--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_range", "0", "1")
    with session.using(CONFIG, configured(CONFIG)), seams.in_this_process():
        generator = generator_of(engine, tokenizer, 60, shuffled(16), dropped, *flags)
        batches = [generator.generate_samples(max_len=64)[0] for _ in range(8)]
    trained = [number for batch in batches for number in numbers(batch)]
    assert not set(trained) & set(dropped) and len(set(trained)) == 32
    assert [sum(asked(batch)) for batch in batches] == [1] * 8
    # Groups that were not filtered stand where they were dispatched; replacements stand where the filtered ones did.
    kept = [number for number in range(16) if number not in dropped]
    assert [trained[place] for place in kept] == kept
    assert all(trained[place] >= 16 for place in range(16) if place in dropped)
    assert [int(sample.info["confession/group"]) for batch in batches for sample in batch[::SAMPLES]] == trained


def judged(since: Sequence[str] = ()) -> list[str]:
    """One ``group-sample-number`` for each call of the judge."""
    calls = sorted(set(os.listdir(os.environ["JUDGED"])) - set(since))
    return [call.partition(".")[0] for call in calls]


@pytest.mark.parametrize("prompts", [60, 20])
def test_filtered_groups_are_not_judged(engine: Any, tokenizer: Any, prompts: int, tmp_path: Path) -> None:
    """One call for each confession that trains, whose verdict is recorded; with 20 prompts, replacements run out."""
    dropped = dict.fromkeys((1, 3, 4, 5, 9, 14, 15, 17, 18, 19), 0.0)
    flags = (*OVERSAMPLED, "--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_range", "0", "1")
    config = CONFIG.model_copy(update={"probability": 1.0, "record_rollouts": str(tmp_path)})
    before = os.listdir(os.environ["JUDGED"])
    with session.using(config, configured(config)), seams.in_this_process():
        generator = generator_of(engine, tokenizer, prompts, shuffled(16), dropped, *flags)
        samples = [sample for batch in batches_of(generator) for sample in batch]
    trained = {int(sample.info["confession/group"]) for sample in samples}
    assert len(trained) == prompts - len(dropped) and not trained & set(dropped)
    assert judged(before) == sorted(f"{group}-{sample}-0" for group in trained for sample in range(SAMPLES))
    assert all(bool(sample.info["confession/scored"]) for sample in samples)
    assert {sample.info["confession/unscored"][0] for sample in samples} == {""}
    assert ray.get(engine.waiting.remote()) == 0
    recorded = [one for step in (1, 2) for one in recording.load(str(tmp_path), step) or ()]
    rewards = [one["confession"].numbers["reward"] for one in recorded]
    assert rewards == pytest.approx([float(sample.info["confession/reward"]) for sample in samples[: len(rewards)]])
    assert len(rewards) == 8 * SAMPLES and all(one["confession"].numbers["scored"] for one in recorded)


def test_accepted_groups_are_judged_while_others_are_generated(engine: Any, tokenizer: Any) -> None:
    """The last group finishes only after the first accepted one was judged: waiting for the end would never end."""
    config = CONFIG.model_copy(update={"probability": 1.0})
    for file in os.listdir(os.environ["JUDGED"]):
        os.unlink(os.path.join(os.environ["JUDGED"], file))
    flags = ("--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_range", "0", "1")
    with session.using(config, configured(config)), seams.in_this_process():
        generator = generator_of(
            engine, tokenizer, 4, [0, 1, 2, 3], {0: 0.0}, *flags, until=f"{os.environ['JUDGED']}/1-0-0.*"
        )
        samples, *_ = generator.generate_samples(max_len=64)
    assert numbers(samples) == [1, 2, 3] and all(sample.info["confession/scored"] for sample in samples)


def test_a_judge_that_fails_after_the_filter_stops_the_run(engine: Any, tokenizer: Any) -> None:
    config, broken = CONFIG.model_copy(update={"probability": 1.0}), Path(os.environ["JUDGED"]) / "broken"
    flags = ("--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_range", "0", "1")
    broken.touch()
    try:
        with session.using(config, configured(config)), seams.in_this_process():
            generator = generator_of(engine, tokenizer, 4, [], {}, *flags)
            with pytest.raises(PluginError, match=r"plugin 'judge' failed in confession_judge: .* out of order"):
                generator.generate_samples(max_len=64)
    finally:
        broken.unlink()


def test_a_plugin_that_chooses_by_prompt_is_asked_for_replacements_too(engine: Any, tokenizer: Any) -> None:
    seen: list[PromptBatch] = []

    class Odd:
        @hookimpl
        def confession_select(self, batch: PromptBatch) -> list[bool]:
            seen.append(batch)
            return [int(label) % 2 == 1 for label in batch.labels]

    plugins = configured(CONFIG)
    plugins.register(Odd(), "odd")
    flags = ("--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_range", "0", "1")
    with session.using(CONFIG, plugins), seams.in_this_process():
        samples, *_ = generator_of(engine, tokenizer, 8, [], {0: 1.0, 2: 1.0}, *flags).generate_samples(max_len=64)
    assert all(choice == (number % 2 == 1) for number, choice in zip(numbers(samples), asked(samples), strict=True))
    assert [len(batch.prompts) for batch in seen] == [4, 1, 1]
    assert seen[0].train_size == 4 and seen[0].replaced == () and seen[0].position == 0
    assert [batch.replaced for batch in seen[1:]] == [(False,), (False,)]
    assert sorted(batch.train_place for batch in seen[1:]) == [0, 2] and seen[2].position == 5


def test_the_last_batch_of_an_episode_may_be_short(engine: Any, tokenizer: Any) -> None:
    """22 prompts in batches of four: the next episode's first batch starts a training batch of its own."""
    with session.using(CONFIG, configured(CONFIG)), seams.in_this_process():
        generator = generator_of(engine, tokenizer, 22, shuffled(22), {}, *OVERSAMPLED)
        batches = batches_of(generator) + batches_of(generator)
    assert [len(batch) // SAMPLES for batch in batches] == [4, 4, 4, 4, 4, 2] * 2
    assert all(abs(sum(asked(batch)) - len(batch) / SAMPLES / 4) < 1 for batch in batches)
    assert sum(sum(asked(batch)) for batch in batches) == 11


def loader_of(tokenizer: Any, args: Any, rows: list[dict[str, Any]]) -> Any:
    """The host's prompt dataset behind a loader with a process of its own, as in a run."""
    from datasets import Dataset
    from openrlhf.datasets import PromptDataset
    from torch.utils.data import DataLoader

    strategy = SimpleNamespace(args=args, is_rank_0=lambda: False)
    dataset = PromptDataset(Dataset.from_list(rows), tokenizer, strategy)
    return DataLoader(dataset, batch_size=1, num_workers=1, collate_fn=dataset.collate_fn)


class Handle:
    """An engine handle that keeps what is dispatched to it."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.generate_responses = SimpleNamespace(remote=lambda **call: self.calls.append(call) or ray.put([]))
        self.get_num_unfinished_requests = SimpleNamespace(remote=lambda: ray.put(0))


@pytest.mark.slow
@pytest.mark.parametrize("chat", [True, False])
def test_an_asked_group_knows_its_row_of_the_dataset(engine: Any, tokenizer: Any, chat: bool) -> None:
    """Other columns and messages come with the ticket; the host's own arguments stay plain."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator, _collect_prompt_batch

    messages = [{"role": "user", "content": "What is 1 + 2?"}]
    rows = [
        {"input": messages if chat else "What is 1 + 2?", "label": str(number), "rubric": f"rule {number}"}
        for number in range(8)
    ]
    flags = ["--data.input_key", "input", "--data.label_key", "label", *(["--data.apply_chat_template"] * chat)]
    args, handle = in_process.host_args(*flags), Handle()
    with session.using(CONFIG, configured(CONFIG)), seams.in_this_process():
        loader = loader_of(tokenizer, args, rows)
        generator = SamplesGenerator(SimpleNamespace(args=args), loader, None, tokenizer, [handle])
        prompts, labels, images, _ = _collect_prompt_batch(iter(loader), 8)
        generator._dispatch_prompts_to_vllm(prompts, labels, images=images)
    tickets = [take_ticket(call["sampling_params"])[0] for call in handle.calls]
    assert [ticket.group for ticket in tickets if ticket] == list(range(8))
    assert sum(ticket.asked for ticket in tickets if ticket) == 2
    for call, ticket, row in zip(handle.calls, tickets, rows, strict=True):
        assert type(call["prompt"]) is str and call["label"] == row["label"]
        assert ticket is not None and ticket.columns == (row if ticket.asked else {})
        assert ticket.messages == (messages if chat and ticket.asked else None)
