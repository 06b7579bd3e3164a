"""Seam: OpenRLHF ``RolloutRayActor`` and the size of its engine's context.

The actor class is subclassed (its own methods travel by value from the driver): the executor it holds, stock or from
``--train.agent_func_path``, is wrapped, and a group's ticket is taken out of the sampling parameters before the host
sees them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from confession_plugin.config import Config

#: Key in ``SamplingParams.extra_args``, a dictionary vLLM keeps for plugins and does not read.
EXTRA_ARG = "confession"


def confessing_actor(actor: Any) -> Any:
    """The rollout actor (a Ray actor class) with confessions."""
    base: Any = actor.__ray_metadata__.modified_class

    class ConfessingRolloutActor(base):
        async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
            await super().__init__(*args, **kwargs)
            self.executor: Any = wrap_executor(self.executor)

        async def generate_responses(self, *args: Any, **kwargs: Any) -> Any:
            ticket, kwargs["sampling_params"] = take_ticket(kwargs["sampling_params"])
            with asking(ticket):
                return await super().generate_responses(*args, **kwargs)

    return ray.remote(ConfessingRolloutActor)


def wrap_executor(executor: Any) -> Any:
    """The executor with confessions, under this process's settings."""
    from confession_plugin.openrlhf import session
    from confession_plugin.openrlhf.executor import ConfessingExecutor

    return ConfessingExecutor(executor, session.config(), session.plugins())


def take_ticket(sampling_params: Any) -> tuple[Any, Any]:
    """Part the sampling parameters from the ticket in them: what is left equals the stock run's."""
    from confession_plugin.openrlhf.executor import Ticket

    extra = dict(sampling_params.extra_args or {})
    ticket = extra.pop(EXTRA_ARG, None)
    if ticket is None:
        return None, sampling_params
    stock = sampling_params.clone()
    stock.extra_args = extra or None
    return Ticket(**ticket), stock


def with_ticket(sampling_params: Any, *, step: int, group: int) -> Any:
    """A copy of the sampling parameters that asks the group to confess."""
    params = sampling_params.clone()
    params.extra_args = {**(params.extra_args or {}), EXTRA_ARG: {"step": step, "group": group}}
    return params


@contextmanager
def asking(ticket: Any) -> Iterator[None]:
    """Inside, executors started for this prompt group know its ticket (their tasks copy the context)."""
    from confession_plugin.openrlhf import executor

    token = executor.TICKET.set(ticket)
    try:
        yield
    finally:
        executor.TICKET.reset(token)


def create_vllm_engines(host: Any, *args: Any, **kwargs: Any) -> Any:
    """Seam: the engine's context holds the request and the confession on top of ``--data.max_len``."""
    call = inspect.signature(host).bind(*args, **kwargs)
    call.arguments["max_model_len"] += Config.from_env().context_tokens
    return host(*call.args, **call.kwargs)
