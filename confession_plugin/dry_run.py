"""``--confession.dry_run`` on any host: one whole context, the judge's message, and what a step will cost.

Starts nothing and needs no GPU: it runs where a run is written, on a laptop or a head node.  A host's own `dry_run`
checks its flags, finds tokenizer and first prompt, and says what its flags come to as a `forecast.Load`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from confession_plugin import dry_call
from confession_plugin.confess import Finished
from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError
from confession_plugin.forecast import Load, forecast
from confession_plugin.plugins import PluginManager

#: Judgments that measure the judge's latency, one after the other.
_JUDGMENTS = 3


@dataclass(frozen=True)
class Measured:
    """What a dry run finds out by doing it.  Lengths are in the policy's tokens."""

    prompt: int
    """The first prompt."""
    request: int
    """The request as the policy sees it, turn change included."""
    judge_message: int | None
    """None where the judge is no server."""
    judge_latency_s: float | None
    """None where the judge was not asked, or gave no verdict."""


def show(
    plugins: PluginManager, config: Config, tokenizer: Any, prompt: str, load_of: Callable[[Measured], Load]
) -> None:
    """Print one context, the judge's message and verdict, and the forecast.

    Args:
        prompt: a prompt of the run's own data as the policy sees it, chat markup included.

    Raises:
        ConfessionError: a decider fails on the built-in case, or the request cannot be placed.
    """
    spans = context_spans(tokenizer, prompt, plugins, config)
    finished = [] if config.skip_probe else dry_call.calls(plugins, _JUDGMENTS, config=config)
    message = judge_message(plugins)
    _print_context(tokenizer, spans)
    _print_judge(message, finished)
    _print_forecast(load_of(_measured(tokenizer, spans, message, finished)))
    print(f"\nThe flags work; nothing was started. Take {PREFIX}dry_run out to train.")


def _measured(
    tokenizer: Any,
    spans: Sequence[tuple[str, list[int]]],
    message: Sequence[Any] | None,
    finished: Sequence[Finished],
) -> Measured:
    latencies = [one.judged.verdict.latency_s for one in finished if one.judged.verdict.scored]
    text = None if message is None else "\n".join(str(part["content"]) for part in message)
    return Measured(
        prompt=len(spans[0][1]),
        request=len(spans[-1][1]),
        judge_message=None if text is None else len(_ids(tokenizer, text)),
        judge_latency_s=statistics.median(latencies) if latencies else None,
    )


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


def vocabulary(model: str, **how: Any) -> int | None:
    """Tokens of a model, by its configuration alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, **how)
    size: int | None = getattr(getattr(config, "text_config", config), "vocab_size", None)
    return size


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
