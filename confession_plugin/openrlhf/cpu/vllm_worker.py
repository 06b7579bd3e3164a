"""The engine's end of the weight sync; stands in for ``openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap``.

vLLM imports this module by name in its worker process, before it builds the model.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm.model_executor.layers.utils as layer_utils

from confession_plugin.openrlhf.cpu.weight_sync import GlooGroup


def _keep_plain_weight(layer: Any, remove_weight: bool) -> None:
    """Leave a linear layer as loaded.

    vLLM's CPU build repacks linear weights into its kernels' layout and drops ``layer.weight``.  A later load_weights
    then fails, or, for lm_head, succeeds and changes nothing: the engine would go on sampling from old weights.
    """
    layer.cpu_linear = torch.nn.functional.linear


layer_utils.dispatch_cpu_unquantized_gemm = _keep_plain_weight


class CpuWorkerWrap:
    """Mixed into vLLM's worker, so ``self`` is that worker; the methods are called by OpenRLHF's collective_rpc."""

    model_config: Any
    model_runner: Any

    def init_process_group(
        self,
        master_address: str,
        master_port: int,
        rank_offset: int,
        world_size: int,
        group_name: str,
        backend: str = "gloo",
        use_ray: bool = False,
    ) -> None:
        """Join the actor's group."""
        rank = torch.distributed.get_rank() + rank_offset
        self._weight_sync = GlooGroup(master_address, master_port, rank, world_size)

    def update_weight(self, name: str, dtype: torch.dtype, shape: torch.Size, empty_cache: bool = False) -> None:
        """Receive one parameter and load it into the live model."""
        if dtype != self.model_config.dtype:
            raise TypeError(f"{name} arrives as {dtype}, but the engine holds {self.model_config.dtype}")
        weight = torch.empty(shape, dtype=dtype)
        self._weight_sync.broadcast(weight, src=0)
        self.model_runner.model.load_weights(weights=[(name, weight)])
