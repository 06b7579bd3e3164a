"""Change a module when somebody else imports it, instead of importing it to change it.

A Ray cluster starts more worker processes than a run ends up using, and each kind of actor needs only part of the
host.  Importing OpenRLHF, vLLM and DeepSpeed in every one of them just to patch them costs seconds of start-up apiece.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

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
