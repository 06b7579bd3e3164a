"""Seam: OpenRLHF's agent executors (``AgentExecutorBase.execute``), single-turn or the user's own.

The wrapped executor produces the answer, untouched; then, if the prompt group was chosen before sampling, the policy
is asked to confess about it.  What comes back is the host's own response with one more key, ``confession``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from openrlhf.utils.agent import AgentExecutorBase

from confession_plugin.chat import request_token_ids
from confession_plugin.confess import Confessor, Finished, Sampled, Written, first_sampled
from confession_plugin.config import Config
from confession_plugin.errors import PluginError, Unscored
from confession_plugin.judging.failure_budget import FailureBudget
from confession_plugin.openrlhf.responses import (
    action_ranges,
    answered_tokens,
    floats,
    integers,
    numbers_in,
    one_number,
    prompt_text,
)
from confession_plugin.openrlhf.ticket import GROUP, AskedGroup, Ticket
from confession_plugin.plugins import PluginManager
from confession_plugin.reasons import Reason
from confession_plugin.records import Judged, Request, Rollout, Verdict
from confession_plugin.sample_stats import Value, numbers_of
from confession_plugin.texts import texts_of_answer, texts_of_confession

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConfessionTokens:
    """What a confession adds to the host's sample: token ids, aligned rollout log-probs, and numbers for the info."""

    request: list[int] = field(default_factory=list)
    confession: list[int] = field(default_factory=list)
    log_probs: list[float] | None = None
    numbers: dict[str, Value] = field(default_factory=dict)
    """`sample_stats.numbers_of` the confession; empty where the sample was not asked."""
    extra: tuple[ConfessionTokens, ...] = ()
    """Further confessions about the same answer (``--confession.samples_per_answer``)."""


class ConfessingExecutor(AgentExecutorBase):
    """Runs any executor, then the confession."""

    def __init__(self, inner: AgentExecutorBase, config: Config, plugins: PluginManager) -> None:
        self.inner = inner
        self._config = config
        self._confessor = Confessor(
            plugins, samples_per_answer=config.samples_per_answer, budget=FailureBudget(config.max_unscored)
        )
        self._waiting: dict[int, dict[int, list[Written]]] = {}  # group -> sample -> its confessions, to be judged

    async def execute(self, prompt: str, label: Any, sampling_params: Any, **kwargs: Any) -> dict[str, Any]:
        """The host's contract, with keyword arguments passed through."""
        group = GROUP.get()
        number = 0 if group is None else group.next_sample()
        response: dict[str, Any] = await self.inner.execute(
            prompt=prompt, label=label, sampling_params=sampling_params, **kwargs
        )
        if group is None:
            return response
        if response.get("mm_train_inputs"):
            raise PluginError("a sample carries images: confessions about images are not supported, drop the flag")
        return {**response, "confession": await self._confess(response, group, number, **kwargs)}

    async def _confess(
        self,
        response: dict[str, Any],
        group: AskedGroup,
        number: int,
        *,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        **_: Any,
    ) -> ConfessionTokens:
        # The host trains the first max_length tokens of a sample: that is the answer the confession is about.
        answered = answered_tokens(response, max_length)
        engine = VllmEngine(
            llm_engine,
            hf_tokenizer,
            group.sampling_params(),
            answered,
            answer_start=max((start for start, _ in action_ranges(response, len(answered))), default=len(answered)),
            config=self._config,
            context=max_length + self._config.context_tokens,
            want_log_probs=response["rollout_log_probs"] is not None,
        )
        rollout = describe_rollout(response, answered, group.ticket, number, hf_tokenizer, self._config.reasoning_end)
        if not group.ticket.judged_later:
            return _with_extra(await self._confessor.confess(rollout, engine))
        written = await self._confessor.write(rollout, engine)
        self._waiting.setdefault(group.ticket.group, {})[number] = written
        return _with_extra([_unjudged(one) for one in written])

    async def judge(self, group: int) -> list[ConfessionTokens]:
        """Judge the confessions of a group that were kept, sample by sample."""
        samples = self._waiting.pop(group)
        finished = [asyncio.gather(*map(self._confessor.judge, samples[number])) for number in sorted(samples)]
        return [_with_extra(of_one) for of_one in await asyncio.gather(*finished)]

    def drop(self, group: int) -> None:
        """Forget them: the group does not train."""
        self._waiting.pop(group, None)


class VllmEngine:
    """The `confess.Engine` of a rollout worker: continues the answer's own tokens in vLLM.

    Args:
        params: sampling parameters of the answer's group; changed here.
        answered: token ids of prompt and answer.
        answer_start: where in them the last answer begins.
        context: tokens that answer, request and confession may have together.
    """

    def __init__(
        self,
        engine: Any,
        tokenizer: Any,
        params: Any,
        answered: list[int],
        *,
        answer_start: int,
        config: Config,
        context: int,
        want_log_probs: bool,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._params = params
        self._answered = answered
        self._answer_start = answer_start
        self._config = config
        self._context = context
        self._want_log_probs = want_log_probs
        self._request_ids: list[int] = []

    def prepare(self, request: Request) -> None:
        """Tokenise the request and see what room it leaves."""
        chat = self._config.request_format == "chat"
        self._request_ids = request_token_ids(
            self._tokenizer, request, self._answered, chat=chat, answer_start=self._answer_start
        )
        room = self._context - len(self._answered) - len(self._request_ids)
        if room < 1:
            raise Unscored(Reason.NO_ROOM)
        self._params.max_tokens = min(self._config.max_new_tokens, room)

    async def sample(self, number: int) -> Sampled:
        """Sample confession `number`: same prefix, and a seed of its own where the run sets seeds."""
        params = self._params if number == 0 else self._params.clone()
        if number and params.seed is not None:
            params.seed += number  # or all would be the same text
        output = (await self._engine.generate(self._answered + self._request_ids, params)).outputs[0]
        reason = str(output.finish_reason)
        if reason in INTERRUPTED:
            raise Unscored(Reason.ABORTED, f"the rollout engine ended the confession with finish_reason {reason!r}")
        ids = integers(output.token_ids)
        before = self._answered + self._request_ids
        return Sampled(
            **texts_of_confession(self._tokenizer, before, ids, reasoning_end=self._config.reasoning_end),
            token_ids=ids,
            request_ids=self._request_ids,
            log_probs=_sampled_log_probs(output, ids) if self._want_log_probs else None,
            truncated=reason == "length",
        )


#: The number of a sample that tells how many observers failed about it.
FAILURES = "observer_failures"

#: In place of a reason why there is no score: nothing has judged it yet.
UNJUDGED = "not judged yet"

#: vLLM's finish reasons for a request that it ended itself: not the policy's doing.
INTERRUPTED = ("abort", "error")


def _with_extra(finished: Sequence[Finished]) -> ConfessionTokens:
    """The confessions about one answer: one and its further ones."""
    first, *others = map(tokens_of, first_sampled(finished))
    for one in others:
        if not one.request:  # it gets no row of its own
            first.numbers[FAILURES] += one.numbers[FAILURES]
    return replace(first, extra=tuple(one for one in others if one.request))


def _unjudged(written: Written) -> Finished:
    """Stands for the confession until it is judged: all its numbers but those that the judge decides."""
    return Finished(Judged(written.rollout, written.confession, Verdict(unscored=UNJUDGED), None), written.sampled)


def tokens_of(finished: Finished) -> ConfessionTokens:
    """A finished confession as the host's sample takes it; without tokens where nothing was sampled."""
    numbers, sampled = {**numbers_of(finished.judged), FAILURES: finished.observer_failures}, finished.sampled
    if sampled is None:
        return ConfessionTokens(numbers=numbers)
    log_probs = None if sampled.log_probs is None else list(sampled.log_probs)
    return ConfessionTokens(list(sampled.request_ids), list(sampled.token_ids), log_probs, numbers)


def describe_rollout(
    response: dict[str, Any],
    answered: Sequence[int],
    ticket: Ticket,
    number: int,
    tokenizer: Any,
    reasoning_end: str | None = None,
) -> Rollout:
    """The host's response as plugins see it."""
    ranges = action_ranges(response, len(answered))
    first = ranges[0][0] if ranges else len(answered)
    log_probs = response["rollout_log_probs"]
    return Rollout(
        prompt=prompt_text(response["prompt"], answered[:first], tokenizer),
        **texts_of_answer(tokenizer, answered, ranges, reasoning_end=reasoning_end),
        label=deepcopy(response["label"]),  # samples share one object, which the next one's reward function reads
        reward=one_number(response.get("reward")),
        truncated=bool(response.get("truncated", False)),
        step=ticket.step,
        group=ticket.group,
        sample=number,
        extra=numbers_in(response.get("extra_logs")),
        log_probs=None if log_probs is None else tuple(floats(log_probs[: len(answered)])),
        columns=ticket.columns,
        messages=ticket.messages,
    )


def _sampled_log_probs(output: Any, ids: Sequence[int]) -> list[float]:
    # As the host reads them: a token the engine reported nothing for counts as 0.0.
    found = (entry.get(token) for token, entry in zip(ids, output.logprobs or [], strict=False))
    return [0.0 if entry is None else entry.logprob for entry in found]
