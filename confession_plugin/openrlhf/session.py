"""The settings and plugins of this process, loaded on first use.

Every process of a run (driver, trainer, rollout workers, model workers) finds its settings in one environment
variable and builds its own plugin manager from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from confession_plugin.config import Config
from confession_plugin.plugins import PluginManager, configured

_config: Config | None = None
_plugins: PluginManager | None = None


def config() -> Config:
    """The run's settings."""
    global _config
    if _config is None:
        _config = Config.from_env()
    return _config


def plugins() -> PluginManager:
    """The run's plugins, configured."""
    global _plugins
    if _plugins is None:
        _plugins = configured(config())
    return _plugins


@contextmanager
def using(config: Config, plugins: PluginManager | None = None) -> Iterator[None]:
    """Other settings for the length of a block: the seal check and tests run several in one process."""
    global _config, _plugins
    before = _config, _plugins
    _config, _plugins = config, plugins
    try:
        yield
    finally:
        _config, _plugins = before
