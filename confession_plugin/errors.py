"""The few errors this package raises on purpose.

Each is also a standard-library error and survives pickling, because most of them are raised in a worker process
and read in the driver.  Their text is one line that says what is wrong, where, and how to fix it: the entry points
print it alone.
"""

from __future__ import annotations


class ConfessionError(Exception):
    """Base of every error a user can fix; the entry points print its one line and no traceback."""


class ConfigError(ConfessionError, ValueError):
    """A flag, file or combination of flags that cannot work; found before anything expensive starts."""


class PluginError(ConfessionError, RuntimeError):
    """A plugin could not be loaded, or one of its hooks failed where failing must stop the run."""


class HostError(ConfessionError, RuntimeError):
    """The installed host is not one this package knows how to keep the seal on."""


class JudgeError(ConfessionError, RuntimeError):
    """Too many confessions could not be scored: going on would train on missing scores."""


class Unscored(Exception):
    """Raised by a judge that has no verdict.  It is never turned into a number.

    Args:
        reason: a short label that is counted as is (``timeout``, ``refused``, ...).
        detail: free text for the log and for the error that ends a run with too many of them.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason
