"""The adapter to TRL's GRPOTrainer: `GRPOTrainerWithConfessions`, the same trainer with confessions.

from confession_plugin.trl import ConfessionConfig, GRPOTrainerWithConfessions
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confession_plugin.config import Config as ConfessionConfig

if TYPE_CHECKING:
    from confession_plugin.trl.trainer import Confessing, GRPOTrainerWithConfessions

__all__ = ["Confessing", "ConfessionConfig", "GRPOTrainerWithConfessions"]


def __getattr__(name: str) -> Any:
    """The classes that need TRL, loaded when somebody asks for them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from confession_plugin.trl import trainer

    return getattr(trainer, name)
