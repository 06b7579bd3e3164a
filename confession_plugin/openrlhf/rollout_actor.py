"""Seam: OpenRLHF ``RolloutRayActor`` and the size of its engine's context.

The actor class is subclassed (its own methods travel by value from the driver): the executor it holds, stock or from
``--train.agent_func_path``, is wrapped, and a group's ticket is taken out of the sampling parameters before the host
sees them.
"""

from __future__ import annotations

import inspect
from typing import Any

import ray

from confession_plugin import session
from confession_plugin.config import Config
from confession_plugin.openrlhf.cluster import judge_environment, restore_environment
from confession_plugin.openrlhf.ticket import asking, stamped, take_ticket


def confessing_actor(actor: Any) -> Any:
    """The rollout actor (a Ray actor class) with confessions."""
    base: Any = actor.__ray_metadata__.modified_class
    carried = judge_environment(session.config())  # travels with the class, not in a log

    class ConfessingRolloutActor(base):
        async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
            restore_environment(carried)
            await super().__init__(*args, **kwargs)
            self.executor: Any = wrap_executor(self.executor)

        async def generate_responses(self, *args: Any, **kwargs: Any) -> Any:
            ticket, kwargs["sampling_params"] = take_ticket(kwargs["sampling_params"])
            with asking(ticket, kwargs["sampling_params"]):
                return stamped(await super().generate_responses(*args, **kwargs), ticket)

        async def judge_confessions(self, group: int) -> Any:
            return await self.executor.judge(group)

        def drop_confessions(self, group: int) -> None:
            self.executor.drop(group)

    return ray.remote(ConfessingRolloutActor)


def wrap_executor(executor: Any) -> Any:
    """The executor, confessing; in the worker, where its module may be imported."""
    from confession_plugin.openrlhf.executor import ConfessingExecutor

    return ConfessingExecutor(executor, session.config(), session.plugins())


def create_vllm_engines(host: Any, *args: Any, **kwargs: Any) -> Any:
    """Seam: the engine's context holds the request and the confession on top of ``--data.max_len``."""
    call = inspect.signature(host).bind(*args, **kwargs)
    call.arguments["max_model_len"] += Config.from_env().context_tokens
    return host(*call.args, **call.kwargs)
