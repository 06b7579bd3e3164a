"""How new weights get from the actor to the vLLM engines without NCCL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

TIMEOUT = timedelta(minutes=10)


class GlooGroup:
    """Stands in for vLLM's ``PyNcclCommunicator`` at both ends of the weight sync.

    Like it, this is a group apart from torch.distributed's default one, which the two ends do not share.
    """

    def __init__(self, host: str, port: int | str, rank: int, world_size: int, device: Any = None) -> None:
        import torch.distributed as dist

        self._store = dist.TCPStore(host, int(port), world_size, is_master=rank == 0, timeout=TIMEOUT)
        self._group = dist.ProcessGroupGloo(dist.PrefixStore("weight_sync", self._store), rank, world_size, TIMEOUT)

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None:
        """Send the tensor from rank ``src`` to all; ``stream`` is CUDA's."""
        import torch.distributed as dist

        options = dist.BroadcastOptions()
        options.rootRank = src
        options.rootTensor = 0
        self._group.broadcast([tensor], options).wait()  # type: ignore[attr-defined]
