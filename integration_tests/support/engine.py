"""The host's rollout actor with a real vLLM engine, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import in_process  # noqa: F401  (before anything of the host)
from harness import Tiny
from openrlhf.utils.agent import SingleTurnAgentExecutor

from confession_plugin.config import Config

MAX_LEN = 96
CONFIG = Config(enable=True, max_new_tokens=12, max_request_tokens=80, request_format="chat")


class Engine:
    """The host's rollout actor (its class, outside Ray) with its vLLM engine, and the loop both live on."""

    def __init__(self, tiny: Tiny) -> None:
        from openrlhf.trainer.ray.vllm_engine import RolloutRayActor

        self.loop = asyncio.new_event_loop()
        self.tiny = tiny
        host_class = RolloutRayActor.__ray_metadata__.modified_class
        self.actor = host_class.__new__(host_class)
        self.run(
            self.actor.__init__(
                model=str(tiny.model),
                num_gpus=1,
                enforce_eager=True,
                worker_extension_cls="openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap",
                distributed_executor_backend="uni",
                max_model_len=MAX_LEN + CONFIG.context_tokens,
                dtype="bfloat16",
                gpu_memory_utilization=0.1,
                logprobs_mode="processed_logprobs",
                max_logprobs=1,
                seed=1,
            )
        )

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.actor.llm.shutdown()
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


def params(**changes: Any) -> Any:
    """Sampling parameters of an answer."""
    from vllm import SamplingParams

    return SamplingParams(
        **{"max_tokens": 16, "min_tokens": 1, "logprobs": 1, "skip_special_tokens": False, **changes}
    )


def single_turn(engine: Engine) -> Any:
    """The host's executor for answers of one turn, with the tiny world's reward."""
    return SingleTurnAgentExecutor(str(engine.tiny.reward))
