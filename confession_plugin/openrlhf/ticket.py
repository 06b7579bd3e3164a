"""A prompt group's ticket to confess, from the choice in the trainer to the executor in a rollout worker.

    choice -> `TicketedDispatch` -> ``SamplingParams.extra_args`` -> `take_ticket` -> `TICKET` -> the executor

The host dispatches its prompts one call each to vLLM engine handles; for the time of a dispatch the handles add each
group's ticket to its sampling parameters.  In the rollout worker it is taken out again before the host sees them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

from confession_plugin.errors import PluginError
from confession_plugin.records import PromptBatch

#: Key in ``SamplingParams.extra_args``, a dictionary vLLM keeps for plugins and does not read.
EXTRA_ARG = "confession"


@dataclass(frozen=True)
class Ticket:
    """This group confesses: step and group as in `records.Rollout`."""

    step: int
    group: int


#: The ticket of the prompt group whose samples are being produced in this context.
TICKET: ContextVar[Ticket | None] = ContextVar("ticket", default=None)


# ── In the trainer ──


class TicketedDispatch:
    """The tickets of one batch.  The host dispatches its prompts one call each, in order: call i is group i."""

    def __init__(self, batch: PromptBatch, chosen: Sequence[bool]) -> None:
        self._batch = batch
        self._chosen = chosen
        self._next = 0

    def engines(self, handles: Sequence[Any]) -> list[TicketedEngine]:
        """The engine handles, which add the tickets."""
        return [TicketedEngine(handle, self) for handle in handles]

    def with_ticket(self, prompt: str, sampling_params: Any) -> Any:
        """The next group's sampling parameters: the host's own, or a copy with a ticket."""
        index, self._next = self._next, self._next + 1
        if prompt != self._batch.prompts[index]:
            raise PluginError("OpenRLHF dispatched its prompts in another order than it was given them")
        if not self._chosen[index]:
            return sampling_params
        return with_ticket(sampling_params, Ticket(self._batch.step, self._batch.position + index))


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
        params = self._dispatch.with_ticket(prompt, sampling_params)
        return self._engine.generate_responses.remote(prompt=prompt, sampling_params=params, **kwargs)


def with_ticket(sampling_params: Any, ticket: Ticket) -> Any:
    """A copy of the sampling parameters that asks the group to confess."""
    params = sampling_params.clone()
    params.extra_args = {**(params.extra_args or {}), EXTRA_ARG: asdict(ticket)}
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
def asking(ticket: Ticket | None) -> Iterator[None]:
    """Inside, executors started for this prompt group know its ticket (their tasks copy the context)."""
    token = TICKET.set(ticket)
    try:
        yield
    finally:
        TICKET.reset(token)
