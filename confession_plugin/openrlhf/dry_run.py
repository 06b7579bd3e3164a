"""``--confession.dry_run``: all checks, one whole context, the judge's message, and what a step will cost.

Starts nothing and needs no GPU: it runs where a run is written, on a laptop or a head node.
"""

from __future__ import annotations

import contextlib
import io
import statistics
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from confession_plugin import dry_call
from confession_plugin.confess import Finished
from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError
from confession_plugin.forecast import Load, forecast
from confession_plugin.openrlhf import launch
from confession_plugin.plugins import PluginManager
from confession_plugin.startup import Run

#: Judgments that measure the judge's latency, one after the other.
_JUDGMENTS = 3


def show(run: Run) -> None:
    """Check everything and print what a run with these flags would do.

    Raises:
        ConfessionError: it would not start.
    """
    args, config = launch.check_alone(run)
    launch.require_seal(config, args, run.plugins)
    tokenizer = _tokenizer(args)
    prompt = _first_prompt(args, tokenizer)
    spans = context_spans(tokenizer, prompt, run.plugins, config)
    finished = [] if config.skip_probe else dry_call.calls(run.plugins, _JUDGMENTS, config=config)
    message = judge_message(run.plugins)
    _print_context(tokenizer, spans)
    _print_judge(message, finished)
    _print_forecast(load_of(args, config, tokenizer, spans, message, finished))
    print(f"\nThe flags work; nothing was started. Take {PREFIX}dry_run out to train.")


# ── The context ──


def context_spans(tokenizer: Any, prompt: str, plugins: PluginManager, config: Config) -> list[tuple[str, list[int]]]:
    """(what, token ids) of one asked sample, from the prompt to where the confession begins."""
    from confession_plugin.chat import request_token_ids

    request = plugins.hook.confession_request(rollout=dry_call.CASE)
    prompt_ids = _ids(tokenizer, prompt)
    end = getattr(tokenizer, "eos_token_id", None)
    answer_ids = _ids(tokenizer, dry_call.CASE.answer) + ([] if end is None else [end])
    try:
        ids = request_token_ids(
            tokenizer,
            request,
            prompt_ids + answer_ids,
            chat=config.request_format == "chat",
            answer_start=len(prompt_ids),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return [("prompt", prompt_ids), ("answer (a stand-in)", answer_ids), ("request", list(ids))]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: Any = tokenizer(text=text, add_special_tokens=False)["input_ids"]
    return list(ids[0] if ids and isinstance(ids[0], list) else ids)


def _tokenizer(args: Any) -> Any:
    from openrlhf.utils.utils import get_tokenizer

    name = args.actor.model_name_or_path
    try:
        return get_tokenizer(name, None, use_fast=not getattr(args.data, "disable_fast_tokenizer", False))
    except Exception as error:
        raise ConfigError(f"--actor.model_name_or_path: no tokenizer of {name} can be loaded: {error}") from error


def _first_prompt(args: Any, tokenizer: Any) -> str:
    """The first prompt of the run's own data as the host makes it; a built-in one where that cannot be read here."""
    from openrlhf.datasets import PromptDataset
    from openrlhf.datasets.utils import blending_datasets

    strategy = SimpleNamespace(args=args, print=lambda *_: None, is_rank_0=lambda: False)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            rows = blending_datasets(
                args.data.prompt_dataset,
                args.data.prompt_probs,
                strategy,
                args.train.seed,
                max_count=1,
                dataset_split=args.data.prompt_split,
            )
            dataset = PromptDataset(rows.select([0]), tokenizer, strategy, input_template=args.data.input_template)
        return str(dataset[0][1])
    except Exception as error:
        print(f"(a built-in prompt, as --data.prompt_dataset cannot be read here: {type(error).__name__}: {error})")
    messages = [{"role": "user", "content": dry_call.CASE.prompt}]
    if not args.data.apply_chat_template:
        return dry_call.CASE.prompt
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


# ── The judge ──


def judge_message(plugins: PluginManager) -> Sequence[Any] | None:
    """What a server judge is sent about the built-in case; None for any other judge."""
    judge = getattr(plugins.get_plugin("judge"), "judge", None)
    rubric = getattr(judge, "rubric", None)
    if judge is None or rubric is None:
        return None
    from confession_plugin.judging.rubric import sections_of

    record = dry_call.call(plugins, config=judge.config, ask_server=False).judged
    sections = sections_of(record.rollout, record.confession, judge.config.judge_reference)
    messages: Sequence[Any] = rubric.messages(sections)
    return messages


# ── The forecast ──


def load_of(
    args: Any,
    config: Config,
    tokenizer: Any,
    spans: Sequence[tuple[str, list[int]]],
    message: Sequence[Any] | None,
    finished: Sequence[Finished],
) -> Load:
    """The run's load, as its flags and the measurements say."""
    latencies = [one.judged.verdict.latency_s for one in finished if one.judged.verdict.scored]
    text = None if message is None else "\n".join(str(part["content"]) for part in message)
    longest_answer = args.rollout.max_new_tokens or args.data.max_len
    return Load(
        groups=args.rollout.batch_size,
        samples=args.rollout.n_samples_per_prompt,
        probability=config.probability,
        samples_per_answer=config.samples_per_answer,
        max_length=args.data.max_len,
        max_answer=min(longest_answer, args.data.max_len),
        request=len(spans[-1][1]),
        max_confession=config.max_new_tokens,
        micro_batch=args.train.micro_batch_size,
        max_micro_batch=args.train.max_tokens_per_gpu if args.train.dynamic_batch_enable else None,
        vocabulary=_vocabulary(args),
        judge_message=None if text is None else len(_ids(tokenizer, text)),
        judge_reply=config.judge_max_tokens,
        judge_connections=config.judge_concurrency * args.vllm.num_engines,
        judge_latency_s=statistics.median(latencies) if latencies else None,
    )


def _vocabulary(args: Any) -> int | None:
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(args.actor.model_name_or_path, trust_remote_code=True)
    size: int | None = getattr(getattr(model, "text_config", model), "vocab_size", None)
    return size


# ── On the terminal ──


def _print_context(tokenizer: Any, spans: Sequence[tuple[str, list[int]]]) -> None:
    print("\n── One context, as the policy will see it ──")
    for what, ids in spans:
        print(f"\n[{what}: {len(ids)} tokens]\n{printable(tokenizer.decode(ids, skip_special_tokens=False))}")
    print("\n[here the confession begins]")


def _print_judge(message: Sequence[Any] | None, finished: Sequence[Finished]) -> None:
    if message is not None:
        print("\n── The judge's message about a built-in case ──")
        for part in message:
            print(f"\n[{part['role']}]\n{printable(str(part['content']))}")
    for one in finished[:1]:
        verdict = one.judged.verdict
        ratings = ", ".join(f"{name} {rating:.2g}" for name, rating in verdict.ratings.items())
        reward = f"; reward {one.judged.reward:.3g}" if one.judged.reward is not None else ""
        print(f"\n── The judge on it ──\n\n{ratings or f'no verdict: {verdict.unscored}'}{reward}")
        if verdict.detail:
            print(printable(verdict.detail))


def _print_forecast(load: Load) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for what, how_much in forecast(load):
        table.add_row(Text(what), Text(how_much))
    print("\n── What a step will cost ──\n")
    Console(highlight=False).print(table)


def printable(text: str) -> str:
    """The text without anything that a terminal would obey."""
    return "".join(one if one == "\n" or one.isprintable() else repr(one)[1:-1] for one in text)
