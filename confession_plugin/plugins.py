"""Which plugins are on: built-in, installed (entry points), named by flag; minus the blocked ones.

The manager adds two things to pluggy's: an exception carries the name of the plugin and hook it came from, and
observers cannot hurt a run (deciders fail loudly, observers fail quietly and are counted).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import sys
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from confession_plugin import hookspecs
from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfessionError, ConfigError, PluginError, Unscored

ENTRY_POINT_GROUP = "confession_plugin"

#: The built-in behaviours, in the order they are registered: named plugins come later and are asked first.
BUILTIN = {
    "inject": "confession_hooks.inject",
    "judge": "confession_hooks.judge",
    "separate": "confession_hooks.separate",
    "record": "confession_hooks.record",
}

logger = logging.getLogger(__name__)


class PluginManager(pluggy.PluginManager):
    """pluggy's manager with guarded hook implementations.

    Attributes:
        observer_failures: how often each (plugin, hook) observer failed.
    """

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)
        self.observer_failures: Counter[tuple[str, str]] = Counter()

    def register(self, plugin: object, name: str | None = None) -> str | None:
        registered = super().register(plugin, name)
        if registered is not None:
            for caller in self.get_hookcallers(plugin) or ():
                for impl in caller.get_hookimpls():
                    if impl.plugin is plugin and not (impl.hookwrapper or impl.wrapper):
                        # pluggy has no hook around one implementation; its call loop reads this attribute.
                        impl.function = self._guard(registered, caller.name, impl.function)  # type: ignore[misc]
        return registered

    def _guard(self, plugin: str, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                return self._failed(plugin, hook, error)
            return guarded_await(result) if inspect.isawaitable(result) else result

        async def guarded_await(pending: Awaitable[Any]) -> Any:
            try:
                return await pending
            except Exception as error:
                return self._failed(plugin, hook, error)

        return guarded

    def _failed(self, plugin: str, hook: str, error: Exception) -> None:
        if isinstance(error, (ConfessionError, Unscored)):
            raise error
        if hook in hookspecs.OBSERVERS:
            self.observer_failures[plugin, hook] += 1
            if self.observer_failures[plugin, hook] == 1:
                logger.warning("plugin %s: %s failed and is ignored from here on: %r", plugin, hook, error)
            return None
        message = f"plugin {plugin!r} failed in {hook}: {type(error).__name__}: {error}"
        raise PluginError(message) from error


def load_plugins(config: Config) -> PluginManager:
    """Import and register every plugin of this run and check that their hooks exist.

    Raises:
        PluginError: a plugin cannot be imported, or one of its hooks does not fit the specification.
    """
    manager = PluginManager()
    known: set[str] = set()
    for name, module in BUILTIN.items():
        known.add(name)
        if name not in config.block:
            _register(manager, importlib.import_module(module), name)
    for entry in _entry_points():
        known.add(entry.name)
        if entry.name not in config.block:
            _register(manager, _imported(entry.load, f"entry point {entry.name}"), entry.name)
    for spec in config.plugins:
        known.add(spec)
        if spec not in config.block:
            _register(manager, _load_named(spec), spec)
    for blocked in config.block:
        if blocked not in known:
            raise ConfigError(f"{PREFIX}block: no plugin named {blocked!r}; known: {', '.join(sorted(known))}")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{error}; hooks: {', '.join(hookspecs.hook_names())}".replace("\n", " ")) from None
    if config.trace_hooks:
        manager.trace.root.setwriter(lambda text: print(text, end="", file=sys.stderr, flush=True))
        manager.enable_tracing()
    return manager


def configured(config: Config) -> PluginManager:
    """The plugins of this process, loaded and configured."""
    manager = load_plugins(config)
    manager.hook.confession_configure(config=config)
    return manager


def load_file(path: str | Path, flag: str) -> ModuleType:
    """Import a Python file by path, once per process.

    Raises:
        PluginError: no such file, or an error while importing it.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise PluginError(f"{flag}: no file at {path}; give the path of an existing .py file")
    # A file is one module per process however often it is named: a world's plugin and judge may share their state.
    name = f"confession_file_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginError(f"{flag}: {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module

    def execute() -> ModuleType:
        try:
            spec.loader.exec_module(module)  # type: ignore[union-attr]
        except BaseException:
            del sys.modules[name]
            raise
        return module

    return _imported(execute, f"{flag}: {path}")


def _load_named(spec: str) -> ModuleType:
    if spec.endswith(".py") or "/" in spec:
        return load_file(spec, f"{PREFIX}plugins")
    return _imported(lambda: importlib.import_module(spec), f"{PREFIX}plugins: {spec}")


def _imported(load: Callable[[], Any], what: str) -> Any:
    try:
        return load()
    except ConfessionError:
        raise
    except Exception as error:
        raise PluginError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error


def _register(manager: PluginManager, plugin: Any, name: str) -> None:
    try:
        registered = manager.register(plugin, name)
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(" ".join(str(error).split())) from None
    if registered is not None and not manager.get_hookcallers(plugin):
        raise PluginError(
            f"plugin {name!r} has no hooks: mark its functions with @hookimpl (from confession_plugin import hookimpl)"
        )


def _entry_points() -> Iterable[Any]:
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINT_GROUP)
