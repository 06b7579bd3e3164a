"""The few functions of flash-attn that OpenRLHF imports, without flash-attn.

``openrlhf.models.ring_attn_utils`` imports them at module level and uses them to pack samples: they move rows between
padded and packed batches and involve no attention.  flash-attn itself cannot be installed without CUDA's compiler.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType
from typing import Any

NAME = "flash_attn"


def index_first_axis(x: Any, indices: Any) -> Any:
    """Rows of ``x``."""
    return x[indices]


def unpad_input(x: Any, mask: Any) -> tuple[Any, Any, Any, int, Any]:
    """Pack the unmasked positions of a padded batch.

    Returns:
        the packed rows, their indices in the flattened batch, cumulative lengths, the longest length, all lengths.
    """
    import torch

    lengths = mask.sum(-1, dtype=torch.int32)
    indices = mask.flatten().nonzero().flatten()
    cumulative = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return x.flatten(0, 1)[indices], indices, cumulative, int(lengths.max()), lengths


def pad_input(x: Any, indices: Any, batch: int, seqlen: int) -> Any:
    """Undo `unpad_input`; positions that were masked are zero."""
    padded = x.new_zeros(batch * seqlen, *x.shape[1:]).index_copy(0, indices, x)
    return padded.unflatten(0, (batch, seqlen))


def rearrange(x: Any, pattern: str, **sizes: int) -> Any:
    """einops' function, which flash-attn re-exports."""
    import einops

    return einops.rearrange(x, pattern, **sizes)


def all_gather(*args: Any, **kwargs: Any) -> Any:
    """Part of ring attention, which exists only on GPUs."""
    raise NotImplementedError("ring attention needs flash-attn and a GPU")


def install() -> None:
    """Make ``import flash_attn`` find these, also where an installed flash-attn would fail to load its CUDA code."""
    contents: dict[str, dict[str, Any]] = {
        NAME: {"__version__": "0.0.0"},  # below every minimum: transformers does not take it for the real one
        f"{NAME}.bert_padding": {f.__name__: f for f in (index_first_axis, unpad_input, pad_input, rearrange)},
        f"{NAME}.utils": {},
        f"{NAME}.utils.distributed": {"all_gather": all_gather},
    }
    for name, attributes in contents.items():
        is_package = any(other.startswith(name + ".") for other in contents)
        module = ModuleType(name, f"Stand-in for {name} on a machine without a GPU.")
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=__name__, is_package=is_package)
        if is_package:
            module.__path__ = []
        module.__dict__.update(attributes)
        sys.modules[name] = module


def is_stand_in(module: ModuleType) -> bool:
    """Is this ``flash_attn`` ours?"""
    return module.__spec__ is not None and module.__spec__.origin == __name__
