"""Is the installed OpenRLHF one this adapter fits?"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from confession_plugin import startup
from confession_plugin.config import Config
from confession_plugin.errors import HostError

TESTED_VERSIONS = ("0.11.0", "0.11.1", "0.11.2")


def require_installed() -> str:
    """The version of OpenRLHF in this environment.

    Raises:
        HostError: it is not installed, or torch is not, without which nothing of it can be imported.
    """
    try:
        found = version("openrlhf")
    except PackageNotFoundError:
        raise HostError("OpenRLHF is not installed; pip install 'confession-plugin[openrlhf]'") from None
    if find_spec("torch") is None:
        raise HostError("torch is not installed; OpenRLHF needs it: pip install 'confession-plugin[openrlhf]'")
    return found


def check_version(config: Config) -> str:
    """The installed version, if this release was tested with it.

    Raises:
        HostError: OpenRLHF is missing, or its version is untested and ``--confession.untested_host`` is not given.
    """
    return startup.require_tested("OpenRLHF", require_installed(), TESTED_VERSIONS, config)
