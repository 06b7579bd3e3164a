"""Replace attributes of a host: the mechanism, for any host.  Which attributes: each adapter's own list of seams.

A seam names one attribute of the host and the function of ours that takes its place and is handed the original:
``replacement(original, *args, **kwargs)``.  The original's body is never copied, and its name and the parameters that
the replacement relies on are checked before a run starts.

A module is changed when somebody else imports it, instead of importing it to change it: a cluster starts more worker
processes than a run ends up using, each needs only part of the host, and importing all of it costs seconds apiece.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from confession_plugin.errors import HostError

#: Set on everything that is put in place of something of the host's.
MARK = "__confession_seam__"


@dataclass(frozen=True)
class Seam:
    """One replaced attribute of the host: ``replacement(host_function, *args, **kwargs)``."""

    module: str
    """Dotted; somebody else imports it."""
    path: str
    """Dotted below the module: ``function`` or ``Class.method``."""
    replacement: str
    """``module:function`` of ours, imported only where it is used."""
    needs: tuple[str, ...] = ()
    """Parameters of the host's function that the replacement relies on."""


def find(module: str, path: str) -> tuple[Any, str, Callable[..., Any]]:
    """The owner, attribute name and current value of ``module:path``.

    Raises:
        HostError: it is not there.
    """
    owner: Any = import_module(module)
    *outer, name = path.split(".")
    try:
        for part in outer:
            owner = getattr(owner, part)
        return owner, name, getattr(owner, name)
    except AttributeError:
        raise HostError(f"the installed host has no {module}:{path}; the seal cannot be kept on it") from None


def check_seams(seams: Iterable[Seam]) -> None:
    """Every seam exists, with the parameters it relies on.

    Raises:
        HostError: the first one that does not.
    """
    for seam in seams:
        _, _, function = find(seam.module, seam.path)
        parameters = inspect.signature(function).parameters if seam.needs else {}
        missing = [name for name in seam.needs if name not in parameters]
        if missing:
            raise HostError(
                f"the installed host's {seam.module}:{seam.path} has no parameter {missing[0]!r}; the seal cannot be "
                "kept on it"
            )


def put_in(seam: Seam, module: ModuleType) -> None:
    """Put the seam's replacement in place in its (imported) module.  Repeating it changes nothing."""
    owner, name, original = find(module.__name__, seam.path)
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return replacement_of(seam)(original, *args, **kwargs)

    setattr(wrapper, MARK, f"{seam.module}:{seam.path}")
    setattr(owner, name, wrapper)


def put_in_when_imported(seams: Iterable[Seam]) -> None:
    """Put seams in place as somebody imports their modules."""
    for seam in seams:
        when_imported(seam.module, functools.partial(put_in, seam))


@functools.cache
def replacement_of(seam: Seam) -> Callable[..., Any]:
    """The function of ours that the seam names."""
    module, name = seam.replacement.split(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


@contextlib.contextmanager
def in_this_process(seams: Iterable[Seam]) -> Iterator[None]:
    """Seams in place in this process, and out again.  Nested uses keep the outer one's seams."""
    placed: list[tuple[Any, str, Any]] = []
    for seam in seams:
        owner, name, original = find(seam.module, seam.path)
        if not hasattr(original, MARK):
            put_in(seam, import_module(seam.module))
            placed.append((owner, name, original))
    try:
        yield
    finally:
        for owner, name, original in placed:
            setattr(owner, name, original)


def replaced(seams: Iterable[Seam]) -> list[str]:
    """Which of these seams are in place in this process, as ``module:path``."""
    return [
        f"{seam.module}:{seam.path}"
        for seam in seams
        if seam.module in sys.modules and hasattr(find(seam.module, seam.path)[2], MARK)
    ]


# ── Changing a module as it is imported ──

_waiting: dict[str, list[Callable[[ModuleType], None]]] = {}


def when_imported(module_name: str, callback: Callable[[ModuleType], None]) -> None:
    """Call ``callback(module)`` once that module has been imported: at once if it is, else right after its import.

    The callback runs before the importer gets the module, so ``from module import name`` sees what it put there.
    Callbacks of one module run in the order they were registered; an exception in one fails the import.
    """
    module = sys.modules.get(module_name)
    if module is not None:
        if getattr(module.__spec__, "_initializing", False):
            # Too late to be told and too early to be changed: better loud than a change that never happens.
            raise ImportError(f"{module_name} is being imported right now: call when_imported before that")
        callback(module)
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _waiting.setdefault(module_name, []).append(callback)


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find the module and puts our loader around theirs."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads as the real loader does, then calls back.  The module keeps the real loader and never sees this one."""

    def __init__(self, real: importlib.abc.Loader) -> None:
        self.real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.real
        self.real.exec_module(module)
        for callback in _waiting.pop(module.__name__, []):
            callback(module)

    def __getattr__(self, name: str) -> object:
        # importlib.util.find_spec hands this loader to people who ask for get_source, get_code, is_package, ...
        return getattr(self.real, name)
