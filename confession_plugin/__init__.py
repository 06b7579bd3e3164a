"""Training with confessions, as a plugin for RLHF frameworks.

Plugin authors need `hookimpl`, the records and, to give no verdict, `Unscored`; `confession_plugin.hookspecs` is the
contract.  Importing this package loads neither torch nor the host.
"""

from confession_plugin.errors import ConfessionError, ConfigError, Unscored
from confession_plugin.hookspecs import hookimpl
from confession_plugin.records import (
    BatchStats,
    Confession,
    Judged,
    Parsed,
    PromptBatch,
    Request,
    Rollout,
    Verdict,
)

__version__ = "0.1.0"

__all__ = [
    "BatchStats",
    "Confession",
    "ConfessionError",
    "ConfigError",
    "Judged",
    "Parsed",
    "PromptBatch",
    "Request",
    "Rollout",
    "Unscored",
    "Verdict",
    "hookimpl",
]
