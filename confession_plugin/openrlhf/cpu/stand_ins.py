"""What OpenRLHF, DeepSpeed, transformers and vLLM assume of a GPU, and what stands in for it.

`STAND_INS` is the complete list; nothing else of another package is replaced.  Each entry takes effect when its module
is imported, so listing it here costs nothing in a process that never imports it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from confession_plugin.openrlhf.cpu import flash_attention
from confession_plugin.openrlhf.cpu.weight_sync import GlooGroup
from confession_plugin.patching import when_imported

HOST_WORKER_EXTENSION = "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"
CPU_WORKER_EXTENSION = "confession_plugin.openrlhf.cpu.vllm_worker.CpuWorkerWrap"


@dataclass(frozen=True)
class StandIn:
    """One replaced attribute."""

    module: str
    attribute: str
    """Dotted below the module: ``function`` or ``Class.method``."""
    make: Callable[[Any], Any]
    """Takes the original, gives the replacement."""
    why: str

    def put_in(self, module: ModuleType) -> None:
        """Replace the attribute in the freshly imported module."""
        *path, name = self.attribute.split(".")
        owner = functools.reduce(getattr, path, module)
        setattr(owner, name, self.make(getattr(owner, name)))


class _CpuDevice(str):
    """``tensor.to(current_device())`` reads "cpu", while ``torch.device(f"cuda:{current_device()}")`` stays valid."""

    def __format__(self, spec: str) -> str:
        return "0"


def _current_device(original: Any) -> Any:
    return lambda: _CpuDevice("cpu")


def _does_nothing(original: Any) -> Any:
    # A new function for each: torch._dynamo's tables refuse one object under two names.
    def does_nothing(*args: Any, **kwargs: Any) -> None:
        return None

    return does_nothing


def _never(original: Any) -> Any:
    def never(*args: Any, **kwargs: Any) -> bool:
        return False

    return never


def _moving_average(original: Any) -> Any:
    @functools.wraps(original)
    def moving_average(self: Any, model: Any, model_ema: Any, beta: float = 0.992, device: str = "cpu") -> Any:
        return original(self, model, model_ema, beta, "cpu")

    return moving_average


def _gloo_group(original: Any) -> Any:
    return GlooGroup


def _plain_adam(original: Any) -> Any:
    @functools.wraps(original)
    def get_train_ds_config(*args: Any, **kwargs: Any) -> Any:
        config = original(*args, **kwargs)
        optimizer = config.get("optimizer")
        if optimizer and optimizer["type"] == "AdamW":
            optimizer["params"]["torch_adam"] = True
        return config

    return get_train_ds_config


def _sdpa_for_flash_attention(original: Any) -> Any:
    @functools.wraps(original)
    def check(self: Any, attn_implementation: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(attn_implementation, str) and "flash" in attn_implementation:
            attn_implementation = "sdpa"
        return original(self, attn_implementation, *args, **kwargs)

    return check


def _cpu_worker_extension(original: Any) -> Any:
    @functools.wraps(original)
    def __post_init__(self: Any) -> None:
        original(self)
        if self.worker_extension_cls == HOST_WORKER_EXTENSION:
            self.worker_extension_cls = CPU_WORKER_EXTENSION

    return __post_init__


STAND_INS = (
    StandIn("torch.cuda", "current_device", _current_device, "OpenRLHF moves every batch to it"),
    StandIn("torch.cuda", "set_device", _does_nothing, "DeepspeedStrategy.setup_distributed"),
    StandIn("torch.cuda", "synchronize", _does_nothing, "OpenRLHF waits for the GPU after each phase"),
    StandIn("torch.cuda", "current_stream", _does_nothing, "passed to the weight sync's broadcast, which ignores it"),
    StandIn(
        "transformers.modeling_utils",
        "PreTrainedModel._check_and_adjust_attn_implementation",
        _sdpa_for_flash_attention,
        "packing insists on flash attention; sdpa masks packed rows by their position ids too",
    ),
    StandIn(
        "deepspeed.ops.op_builder.builder",
        "probe_is_compatible",
        _never,
        "DeepSpeed asks g++ what it could compile, and would compile its all-reduce: gloo has one",
    ),
    StandIn(
        "openrlhf.utils.deepspeed.deepspeed_utils",
        "get_train_ds_config",
        _plain_adam,
        "DeepSpeed would compile a fused Adam with g++ (a minute on two cores); torch has AdamW",
    ),
    StandIn(
        "openrlhf.utils.deepspeed.deepspeed",
        "DeepspeedStrategy.moving_average",
        _moving_average,
        'ActorPPOTrainer passes device="cuda"',
    ),
    StandIn(
        "openrlhf.utils.distributed_util",
        "stateless_init_process_group",
        _gloo_group,
        "vLLM's NCCL communicator carries the weights from the actor to the engines",
    ),
    StandIn(
        "vllm.engine.arg_utils",
        "EngineArgs.__post_init__",
        _cpu_worker_extension,
        'the engine\'s end of the weight sync allocates on device="cuda"',
    ),
)


def install() -> None:
    """Put every stand-in in its place, now or when its module is imported.  Repeating it changes nothing."""
    if flash_attention.NAME in sys.modules and flash_attention.is_stand_in(sys.modules[flash_attention.NAME]):
        return
    flash_attention.install()
    for stand_in in STAND_INS:
        when_imported(stand_in.module, stand_in.put_in)
