"""The settings and plugins of this process: loaded once, used by everything in it.

The driver hands over what `startup` has made.  Every other process of a run (trainer, rollout workers, model workers)
finds the settings in one environment variable and builds its plugin manager from them on first use.
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


def begin(config: Config, plugins: PluginManager) -> None:
    """Make these the settings and plugins of this process."""
    global _config, _plugins
    _config, _plugins = config, plugins


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
