"""Is the installed OpenRLHF one this adapter fits?"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

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
