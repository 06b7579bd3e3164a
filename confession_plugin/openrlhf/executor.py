"""Seam: OpenRLHF's agent executors (``AgentExecutorBase.execute``), single-turn or the user's own.

The wrapped executor produces the answer, untouched; then, if the prompt group was chosen before sampling, the policy
is asked to confess about it.  What comes back is the host's own response with one more key, ``confession``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
import zlib
from collections.abc import Sequence
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from openrlhf.utils.agent import AgentExecutorBase

from confession_plugin.chat import request_token_ids
from confession_plugin.config import Config
from confession_plugin.errors import PluginError, Unscored
from confession_plugin.judging.failure_budget import FailureBudget
from confession_plugin.plugins import PluginManager
from confession_plugin.reasons import Reason
from confession_plugin.records import Confession, Judged, Parsed, Request, Rollout, Verdict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ticket:
    """A prompt group's ticket to confess; travels in ``SamplingParams.extra_args`` to the rollout worker."""

    step: int
    group: int


#: The ticket of the prompt group whose samples are being produced in this context.
TICKET: ContextVar[Ticket | None] = ContextVar("ticket", default=None)


@dataclass(frozen=True)
class ConfessionTokens:
    """What a confession adds to the host's sample: token ids, aligned rollout log-probs, and numbers for the info."""

    request: list[int] = field(default_factory=list)
    confession: list[int] = field(default_factory=list)
    log_probs: list[float] | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    unscored: str = ""
    """Why it has no score; empty where it has one."""
    siblings: tuple[ConfessionTokens, ...] = ()
    """Further confessions about the same answer (``--confession.samples_per_answer``)."""


class ConfessingExecutor(AgentExecutorBase):
    """Runs any executor, then the confession."""

    def __init__(self, inner: AgentExecutorBase, config: Config, plugins: PluginManager) -> None:
        self.inner = inner
        self._config = config
        self._hook = plugins.hook
        self._budget = FailureBudget(config.max_unscored)

    async def execute(self, prompt: str, label: Any, sampling_params: Any, **kwargs: Any) -> dict[str, Any]:
        """The host's contract, with keyword arguments passed through."""
        ticket = TICKET.get()
        # Multi-turn executors change the sampling parameters as they go: the confession starts from the group's own.
        params = deepcopy(sampling_params) if ticket else None
        response: dict[str, Any] = await self.inner.execute(
            prompt=prompt, label=label, sampling_params=sampling_params, **kwargs
        )
        if ticket is None:
            return response
        if response.get("mm_train_inputs"):
            raise PluginError("a sample carries images: confessions about images are not supported, drop the flag")
        tokens = await self._confess(response, ticket, params, **kwargs)
        return {**response, "confession": tokens}

    async def _confess(
        self,
        response: dict[str, Any],
        ticket: Ticket,
        params: Any,
        *,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        **_: Any,
    ) -> ConfessionTokens:
        # The host trains the first max_length tokens of a sample: that is the answer the confession is about.
        answered: list[int] = list(response["observation_tokens"][:max_length])
        rollout = describe_rollout(response, answered, ticket, hf_tokenizer)
        request = self._hook.confession_request(rollout=rollout)
        chat = self._config.request_format == "chat"
        request_ids = request_token_ids(hf_tokenizer, request, answered, chat=chat)
        room = max_length + self._config.context_tokens - len(answered) - len(request_ids)
        if room < 1:
            # The request's doing, not the policy's: no score, and no shorter answer to make room.
            confession = Confession(request=request.text, text="", problem=Reason.NO_ROOM)
            self._observe(Judged(rollout, confession, Verdict(unscored=Reason.NO_ROOM), None))
            return ConfessionTokens(numbers={"asked": 1, "step": ticket.step}, unscored=Reason.NO_ROOM)

        params.max_tokens = min(self._config.max_new_tokens, room)
        want_log_probs = response["rollout_log_probs"] is not None

        async def one(number: int) -> ConfessionTokens:
            own = params if number == 0 else params.clone()
            if number and own.seed is not None:
                own.seed += number  # or all would be the same text
            output = (await llm_engine.generate(answered + request_ids, own)).outputs[0]
            return await self._judged(rollout, request, request_ids, output, hf_tokenizer, want_log_probs)

        first, *others = await asyncio.gather(*map(one, range(self._config.samples_per_answer)))
        return replace(first, siblings=tuple(others))

    async def _judged(
        self,
        rollout: Rollout,
        request: Request,
        request_ids: list[int],
        output: Any,
        hf_tokenizer: Any,
        want_log_probs: bool,
    ) -> ConfessionTokens:
        """One sampled confession, read and judged."""
        ids = list(output.token_ids)
        truncated = output.finish_reason == "length"
        text = hf_tokenizer.decode(ids, skip_special_tokens=True)
        parsed: Parsed = self._hook.confession_parse(text=text, truncated=truncated, rollout=rollout)
        confession = Confession(
            request=request.text,
            text=text,
            report=parsed.report,
            problem=parsed.problem,
            admits=parsed.admits,
            grade=parsed.grade,
            truncated=truncated,
            num_tokens=len(ids),
        )
        verdict = await self._judge(rollout, confession)
        reward = self._reward(verdict, confession)
        self._observe(Judged(rollout, confession, verdict, reward))
        numbers = {
            "asked": 1,
            "step": rollout.step,
            "length": len(ids),
            "tail": len(request_ids) + len(ids),
            "scored": reward is not None,
            "reward": 0.0 if reward is None else reward,  # never read where scored is 0
            "parsed": confession.parsed,
            "truncated": truncated,
            "grade": math.nan if confession.grade is None else confession.grade,
            "admits": math.nan if confession.admits is None else confession.admits,
            "fingerprint": zlib.crc32(text.strip().encode("utf-8", "surrogatepass")),
            "latency_s": verdict.latency_s,
        }
        log_probs = _sampled_log_probs(output, ids) if want_log_probs else None
        return ConfessionTokens(request_ids, ids, log_probs, numbers, verdict.unscored or "")

    async def _judge(self, rollout: Rollout, confession: Confession) -> Verdict:
        if not confession.parsed:
            # Unreadable is the policy's doing and earns the lowest reward; unscored would let it dodge the judge.
            return Verdict(ratings={"readable": 0.0}, detail=confession.problem or "")
        started = time.monotonic()
        try:
            verdict = self._hook.confession_judge(rollout=rollout, confession=confession)
            if inspect.isawaitable(verdict):
                verdict = await verdict
        except Unscored as error:
            verdict = Verdict(unscored=error.reason, detail=error.detail)
        if not isinstance(verdict, Verdict):
            raise PluginError(f"no plugin judged a confession: confession_judge gave {verdict!r}, not a Verdict")
        if not verdict.latency_s:
            verdict = Verdict(verdict.ratings, verdict.unscored, verdict.detail, time.monotonic() - started)
        self._budget.add(verdict)
        return verdict

    def _reward(self, verdict: Verdict, confession: Confession) -> float | None:
        if not verdict.scored:
            return None
        reward = self._hook.confession_reward(verdict=verdict, confession=confession)
        if reward is None or not math.isfinite(reward):
            raise PluginError(f"confession_reward gave {reward!r} for {dict(verdict.ratings)}; give a finite number")
        return float(reward)

    def _observe(self, record: Judged) -> None:
        self._hook.confession_judged(record=record)


def describe_rollout(response: dict[str, Any], answered: Sequence[int], ticket: Ticket, tokenizer: Any) -> Rollout:
    """The host's response as plugins see it."""
    ranges = [(start, min(end, len(answered))) for start, end in response["action_ranges"] if start < len(answered)]
    spans = [tokenizer.decode(answered[start:end], skip_special_tokens=True) for start, end in ranges]
    first = ranges[0][0] if ranges else len(answered)
    reward = response.get("reward")
    return Rollout(
        prompt=response["prompt"],
        answer="\n".join(spans),
        transcript=tokenizer.decode(answered[first:], skip_special_tokens=True),
        label=response["label"],
        reward=None if reward is None else _number(reward),
        truncated=bool(response.get("truncated", False)),
        num_tokens=len(answered),
        step=ticket.step,
        group=ticket.group,
        extra={key: _number(value) for key, value in (response.get("extra_logs") or {}).items()},
    )


def _number(value: Any) -> float:
    """A reward as a float: functions return tensors of one element, lists of one, or numbers."""
    value = value.flatten()[0].item() if hasattr(value, "flatten") else value
    return float(value[0] if isinstance(value, (list, tuple)) else value)


def _sampled_log_probs(output: Any, ids: Sequence[int]) -> list[float]:
    # As the host reads them: a token the engine reported nothing for counts as 0.0.
    found = (entry.get(token) for token, entry in zip(ids, output.logprobs or [], strict=False))
    return [0.0 if entry is None else entry.logprob for entry in found]
