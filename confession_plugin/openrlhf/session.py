"""The settings and plugins of this process, loaded on first use.

Every process of a run (driver, trainer, rollout workers, model workers) finds its settings in one environment
variable and builds its own plugin manager from them.
"""

from __future__ import annotations

from functools import cache

from confession_plugin.config import Config
from confession_plugin.plugins import PluginManager, configured


@cache
def config() -> Config:
    """The run's settings."""
    return Config.from_env()


@cache
def plugins() -> PluginManager:
    """The run's plugins, configured."""
    return configured(config())


def reset() -> None:
    """Forget both, for tests that run several configurations in one process."""
    config.cache_clear()
    plugins.cache_clear()
