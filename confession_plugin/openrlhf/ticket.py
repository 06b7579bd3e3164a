"""A prompt group's ticket, from the choice in the trainer to the executor in a rollout worker and back.

    choice -> `TicketedDispatch` -> ``SamplingParams.extra_args`` -> `take_ticket` -> `GROUP` -> the executor
    responses -> `stamped` -> the trainer, which puts the groups back into the order of their dispatch

The host dispatches its prompts one call each to vLLM engine handles; for the time of a dispatch the handles add each
group's ticket to its sampling parameters.  In the rollout worker it is taken out again before the host sees them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from confession_plugin.errors import PluginError
from confession_plugin.records import PromptBatch

#: Key in ``SamplingParams.extra_args``, a dictionary vLLM keeps for plugins and does not read.
EXTRA_ARG = "confession"


#: Key of a response: the position of the prompt group it belongs to.
STAMP = "confession_group"


@dataclass(frozen=True)
class Ticket:
    """Which group this is, and whether it confesses; fields as in `records.Rollout`."""

    step: int
    group: int
    asked: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] | None = None
    judged_later: bool = False
    """The trainer says when its confessions are to be judged, if ever (see `judged_later`)."""


class AskedGroup:
    """A group that confesses, while its samples are being produced.

    Args:
        sampling_params: the group's own, before anything has happened to them.
    """

    def __init__(self, ticket: Ticket, sampling_params: Any) -> None:
        self.ticket = ticket
        # Agents change what they are handed, and the host hands all samples of a group one object.
        self._sampling_params = deepcopy(sampling_params)
        self._samples = itertools.count()

    def next_sample(self) -> int:
        """Number of the sample whose executor starts now: the host starts them in the order of its responses."""
        return next(self._samples)

    def sampling_params(self) -> Any:
        """A copy of the group's sampling parameters, to be changed."""
        return deepcopy(self._sampling_params)


#: The group that confesses and whose samples are being produced in this context.
GROUP: ContextVar[AskedGroup | None] = ContextVar("group", default=None)


# ── In the trainer ──


class TicketedDispatch:
    """The tickets of one batch.  The host dispatches its prompts one call each, in order: call i is group i."""

    def __init__(self, batch: PromptBatch, tickets: Sequence[Ticket]) -> None:
        self._batch = batch
        self._tickets = tickets
        self._next = 0
        self.workers: dict[int, Any] = {}
        """The engine handle that each group was sent to."""

    def engines(self, handles: Sequence[Any]) -> list[TicketedEngine]:
        """The engine handles, which add the tickets."""
        return [TicketedEngine(handle, self) for handle in handles]

    def with_ticket(self, prompt: str, sampling_params: Any, engine: Any) -> Any:
        """A copy of the next group's sampling parameters, with its ticket; they go to this engine."""
        index, self._next = self._next, self._next + 1
        if prompt != self._batch.prompts[index]:
            raise PluginError("OpenRLHF dispatched its prompts in another order than it was given them")
        self.workers[self._tickets[index].group] = engine
        return with_ticket(sampling_params, self._tickets[index])


class TicketedEngine:
    """A vLLM engine handle whose ``generate_responses.remote`` adds the group's ticket; all else is the handle's."""

    def __init__(self, engine: Any, dispatch: TicketedDispatch) -> None:
        self._engine = engine
        self._dispatch = dispatch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def generate_responses(self) -> TicketedEngine:
        return self

    def remote(self, *, prompt: str, sampling_params: Any, **kwargs: Any) -> Any:
        params = self._dispatch.with_ticket(prompt, sampling_params, self._engine)
        return self._engine.generate_responses.remote(prompt=prompt, sampling_params=params, **kwargs)


def with_ticket(sampling_params: Any, ticket: Ticket) -> Any:
    """A copy of the sampling parameters that says which group they are for."""
    params = sampling_params.clone()
    params.extra_args = {**(params.extra_args or {}), EXTRA_ARG: dict(vars(ticket))}
    return params


# ── In the rollout worker ──


def take_ticket(sampling_params: Any) -> tuple[Ticket | None, Any]:
    """Part the sampling parameters from the ticket in them: what is left equals the stock run's."""
    extra = dict(sampling_params.extra_args or {})
    ticket = extra.pop(EXTRA_ARG, None)
    if ticket is None:
        return None, sampling_params
    stock = sampling_params.clone()
    stock.extra_args = extra or None
    return Ticket(**ticket), stock


@contextmanager
def asking(ticket: Ticket | None, sampling_params: Any) -> Iterator[None]:
    """Inside, executors started for this prompt group know that it confesses (their tasks copy the context)."""
    asked = ticket is not None and ticket.asked
    token = GROUP.set(AskedGroup(ticket, sampling_params) if ticket is not None and asked else None)
    try:
        yield
    finally:
        GROUP.reset(token)


def stamped(responses: Sequence[dict[str, Any]], ticket: Ticket | None) -> list[dict[str, Any]]:
    """The group's responses, each saying which group it belongs to."""
    return [response if ticket is None else {**response, STAMP: ticket.group} for response in responses]
