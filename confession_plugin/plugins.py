"""Which plugins are on: built-in, installed (entry points), named by flag; minus the blocked ones.

The manager adds to pluggy's: an exception carries the name of the plugin and hook it came from, what a decider returns
is checked where its plugin is known, and observers cannot hurt a run (deciders fail loudly, observers fail quietly and
are counted).
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import importlib.util
import inspect
import logging
import sys
import sysconfig
import traceback
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator
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
    "inject": "confession_hooks.inject:Inject",
    "judge": "confession_hooks.judge:JudgePlugin",
    "separate": "confession_hooks.separate:Separate",
    "record": "confession_hooks.record:Record",
}

logger = logging.getLogger(__name__)


class PluginManager(pluggy.PluginManager):
    """pluggy's manager with guarded hook implementations.

    Attributes:
        observer_failures: how often each (plugin, hook) observer failed.
        decided_by: the plugin whose word counted last, by hook.
        origin: where each plugin that is not built in comes from, in words.
    """

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT)
        self.add_hookspecs(hookspecs)
        self.observer_failures: Counter[tuple[str, str]] = Counter()
        self.decided_by: dict[str, str] = {}
        self.origin: dict[str, str] = {}

    def register(self, plugin: object, name: str | None = None) -> str | None:
        registered = super().register(plugin, name)
        if registered is not None:
            for caller in self.get_hookcallers(plugin) or ():
                for impl in caller.get_hookimpls():
                    if impl.plugin is plugin:
                        # pluggy has no hook around one implementation; its call loop reads this attribute.
                        guard = self._guard_wrapper if impl.hookwrapper or impl.wrapper else self._guard
                        impl.function = guard(registered, caller.name, impl.function)  # type: ignore[misc]
        return registered

    def _guard(self, plugin: str, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
        _refuse_async(plugin, hook, function)

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                return self._failed(plugin, hook, error)
            return self._finished(plugin, hook, function, result)

        return guarded

    def _guard_wrapper(self, plugin: str, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a wrapper, which runs up to its ``yield``, and on with what the hooks inside gave."""
        _refuse_async(plugin, hook, function)

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
            try:
                wrapper = function(*args, **kwargs)
                next(wrapper)
            except Exception as error:
                self._failed(plugin, hook, _started(error))
                return (yield)
            try:
                inside, go_on = (yield), wrapper.send
            except Exception as error:
                inside, go_on = error, wrapper.throw
            try:
                go_on(inside)
            except StopIteration as end:
                return end.value if end.value is inside else self._finished(plugin, hook, function, end.value)
            except Exception as error:
                if error is not inside:
                    self._failed(plugin, hook, error)
            else:
                self._failed(plugin, hook, RuntimeError("a wrapper has one yield, this one has a second"))
            if isinstance(inside, Exception):
                raise inside
            return inside

        return guarded

    def _finished(self, plugin: str, hook: str, function: Callable[..., Any], result: Any) -> Any:
        """What an implementation gave, checked; a pending verdict is checked when it is there."""
        if not inspect.isawaitable(result):
            return self._checked(plugin, hook, function, result)
        if hook != "confession_judge":
            raise PluginError(_only_the_judge(plugin, hook, function))

        async def guarded(pending: Awaitable[Any]) -> Any:
            try:
                verdict = await pending
            except Exception as error:
                return self._failed(plugin, hook, error)
            return self._checked(plugin, hook, function, verdict)

        return guarded(result)

    def _checked(self, plugin: str, hook: str, function: Callable[..., Any], result: Any) -> Any:
        if result is not None and hook in hookspecs.DECIDERS:
            self.decided_by[hook] = plugin
            wanted = hookspecs.wanted_instead_of(hook, result)
            if wanted is not None:
                raise PluginError(
                    f"plugin {plugin!r}: {hook} gave {_shown(result)}; give {wanted} ({place_of(function)})"
                )
        return result

    def _failed(self, plugin: str, hook: str, error: Exception) -> None:
        if isinstance(error, ConfessionError) or (isinstance(error, Unscored) and hook == "confession_judge"):
            raise error
        if hook in hookspecs.OBSERVERS:
            self.observer_failures[plugin, hook] += 1
            if self.observer_failures[plugin, hook] == 1:
                logger.warning("plugin %s: %s failed and is ignored from here on: %r", plugin, hook, error)
            return None
        message = f"plugin {plugin!r} failed in {hook}: {type(error).__name__}: {error}{_raised_at(error)}"
        raise PluginError(message) from error


def load_plugins(config: Config) -> PluginManager:
    """Import and register every plugin of this run and check that their hooks exist.

    Raises:
        PluginError: a plugin cannot be imported, or one of its hooks does not fit the specification.
    """
    manager = PluginManager()
    known: set[str] = set()
    for name, origin, load in _sources(config):
        known.add(name)
        if name not in config.block:
            _register(manager, load(), name)
            if origin:
                manager.origin[name] = origin
    for blocked in config.block:
        if blocked not in known:
            raise ConfigError(f"{PREFIX}block: no plugin named {blocked!r}; known: {', '.join(sorted(known))}")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(" ".join(f"{error}; {_meant(str(error))}".split())) from None
    if config.trace_hooks:
        manager.trace.root.setwriter(lambda text: print(text, end="", file=sys.stderr, flush=True))
        manager.enable_tracing()
    return manager


def configured(config: Config) -> PluginManager:
    """The plugins of this process, loaded and configured."""
    manager = load_plugins(config)
    manager.hook.confession_configure(config=config)
    return manager


def describe_plugins(manager: PluginManager, config: Config) -> str:
    """Which plugins beside the built-in ones are on, where they come from and what they decide; empty without any."""
    parts = []
    for name, plugin in manager.list_name_plugin():
        if name in manager.origin and plugin is not None:
            hooks = sorted(caller.name for caller in manager.get_hookcallers(plugin) or ())
            over = config.judge_url and "confession_judge" in hooks
            before = f", asked before {PREFIX}judge_url" if over else ""
            parts.append(f"{name} ({manager.origin[name]}: {', '.join(hooks)}{before})")
    return f"plugins: {'; '.join(parts)}" if parts else ""


def fresh_copies(manager: PluginManager, config: Config, hooks: Collection[str]) -> PluginManager:
    """New plugin objects in the order of `manager`, configured, without anything the old ones have seen.

    Only plugins that implement one of `hooks`: a plugin that loads a model when it is configured need not do it again
    for a check that never calls it.  A module is executed anew, under a name of its own.

    Raises:
        PluginError: a plugin cannot be loaded a second time.
    """
    copies = PluginManager()
    for name, plugin in manager.list_name_plugin():
        if plugin is not None and {caller.name for caller in manager.get_hookcallers(plugin) or ()} & set(hooks):
            _register(copies, _fresh_copy(plugin, name), name)
    copies.hook.confession_configure(config=config)
    return copies


def _fresh_copy(plugin: object, name: str) -> object:
    if not isinstance(plugin, ModuleType):
        try:
            return copy.deepcopy(plugin)
        except Exception as error:
            raise PluginError(
                f"plugin {name!r}: the seal check needs a copy of this {type(plugin).__name__} object, and it cannot "
                f"be copied ({type(error).__name__}: {' '.join(str(error).split())}); make locks, files and "
                "connections on first use, or give the class a __deepcopy__"
            ) from error
    spec = plugin.__spec__
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin {name!r} has no file to load it from again; give it by a file or a.module")
    return _imported(
        lambda: _executed(importlib.util.module_from_spec(spec), spec.loader), f"plugin {name}, a second time,"
    )


def _executed(module: ModuleType, loader: Any) -> ModuleType:
    loader.exec_module(module)
    return module


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
            return _executed(module, spec.loader)
        except BaseException:
            del sys.modules[name]
            raise

    return _imported(execute, f"{flag}: {path}")


def _sources(config: Config) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Name, origin (empty for built-in) and loader of every plugin there is, in the order of registration."""
    for name, place in BUILTIN.items():
        yield name, "", functools.partial(_load_builtin, place)
    for entry in _entry_points():
        package = entry.dist.name if entry.dist is not None else "an unknown package"
        what = f"plugin {entry.name}, installed with {package},"
        block = f"; repair it, or leave it out with {PREFIX}block {entry.name}"
        yield entry.name, f"installed with {package}", functools.partial(_imported, entry.load, what, block)
    for spec in config.plugins:
        yield spec, f"by {PREFIX}plugins", functools.partial(_load_named, spec)


def _load_builtin(place: str) -> object:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)()


def _load_named(spec: str) -> ModuleType:
    if spec.endswith(".py") or "/" in spec:
        return load_file(spec, f"{PREFIX}plugins")
    return _imported(lambda: importlib.import_module(spec), f"{PREFIX}plugins: {spec}")


def _imported(load: Callable[[], Any], what: str, way_out: str = "") -> Any:
    try:
        return load()
    except ConfessionError:
        raise
    except Exception as error:
        text = f"{what} cannot be imported: {type(error).__name__}: {error}{_raised_at(error)}{way_out}"
        raise PluginError(" ".join(text.split())) from error


#: Code that is not where a user's mistake is: ours, then also libraries'.
_OURS = (str(Path(__file__).parent), str(Path(pluggy.__file__).parent), "<frozen")
_LIBRARIES = tuple(str(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


def _raised_at(error: BaseException) -> str:
    """`` (file:line)`` of the innermost line that a user may have written; empty where there is none."""
    if isinstance(error, SyntaxError):
        return ""  # its text names file and line
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    theirs = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)] or frames
    return f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""


def _meant(error: str) -> str:
    """The hook that an unknown hook's name comes closest to, or all of them."""
    short = {name.removeprefix("confession_"): name for name in hookspecs.hook_names()}
    name = error.partition("'")[2].partition("'")[0].removeprefix("confession_")
    close = [short[found] for found in difflib.get_close_matches(name, short, n=1)]
    return f"did you mean {close[0]}?" if close else f"hooks: {', '.join(hookspecs.hook_names())}"


def _register(manager: PluginManager, plugin: Any, name: str) -> None:
    if isinstance(plugin, type):
        raise PluginError(f"plugin {name!r} is the class {plugin.__name__}; give an object of it, or a module")
    try:
        registered = manager.register(plugin, name)
    except (pluggy.PluginValidationError, ValueError) as error:
        _refuse_old_form(plugin, name)
        raise PluginError(" ".join(str(error).split())) from None
    if registered is not None and not manager.get_hookcallers(plugin):
        raise PluginError(
            f"plugin {name!r} has no hooks: mark its functions with @hookimpl (from confession_plugin import hookimpl)"
        )


def _refuse_old_form(plugin: Any, name: str) -> None:
    function = getattr(plugin, "confession_advantages", None)
    if callable(function) and "batch" in inspect.signature(function).parameters:
        raise PluginError(
            f"plugin {name!r}: confession_advantages(batch) is the form of 0.1; write confession_advantages(honesty), "
            "use honesty.rewards and honesty.estimate(rewards, rows, group_size), and return the honesty channel's "
            "TokenValues: the answer channel is no longer a plugin's (docs/hooks.md)"
        )


def _refuse_async(plugin: str, hook: str, function: Callable[..., Any]) -> None:
    asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if asynchronous and hook != "confession_judge":
        raise PluginError(_only_the_judge(plugin, hook, function))


def _only_the_judge(plugin: str, hook: str, function: Callable[..., Any]) -> str:
    return f"plugin {plugin!r}: {hook} cannot be async; only confession_judge can ({place_of(function)})"


def _started(error: Exception) -> Exception:
    return RuntimeError("a wrapper has one yield, this one has none") if isinstance(error, StopIteration) else error


def _shown(value: Any, width: int = 80) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def place_of(function: Callable[..., Any]) -> str:
    """``file:line`` of a function, or what it prints as."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)


def _entry_points() -> Iterable[Any]:
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINT_GROUP)
