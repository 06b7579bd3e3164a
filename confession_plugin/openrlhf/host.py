"""Is the installed OpenRLHF one this adapter fits?"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import HostError

TESTED_VERSIONS = ("0.11.0", "0.11.1", "0.11.2")


def check_version(config: Config) -> str:
    """The installed version, if this release was tested with it.

    Raises:
        HostError: OpenRLHF is missing, or its version is untested and ``--confession.untested_host`` is not given.
    """
    try:
        found = version("openrlhf")
    except PackageNotFoundError:
        raise HostError("OpenRLHF is not installed; pip install 'confession-plugin[openrlhf]'") from None
    if found.split("+")[0] not in TESTED_VERSIONS and not config.untested_host:
        raise HostError(
            f"OpenRLHF {found} is untested with this release (tested: {', '.join(TESTED_VERSIONS)}); install one of "
            f"these, or add {PREFIX}untested_host to try"
        )
    return found


def find(module: str, path: str) -> tuple[Any, str, Callable[..., Any]]:
    """The owner, attribute name and current value of ``module:path``.

    Raises:
        HostError: it is not there.
    """
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    try:
        for part in outer:
            owner = getattr(owner, part)
        return owner, name, getattr(owner, name)
    except AttributeError:
        raise HostError(f"this OpenRLHF has no {module}:{path}; the seal cannot be kept on it") from None


def check_parameters(module: str, path: str, needs: Iterable[str]) -> None:
    """The parameters a seam relies on exist under their names.

    Raises:
        HostError: one does not.
    """
    _, _, function = find(module, path)
    parameters = inspect.signature(function).parameters
    missing = [name for name in needs if name not in parameters]
    if missing:
        raise HostError(f"this OpenRLHF's {module}:{path} has no parameter {missing[0]!r}; the seal cannot be kept")
