"""The judge's settings that live in environment variables: keys, proxies, certificates, ``${NAME}`` in a flag.

A secret is written into a flag by the name of its variable, so that the command line, the settings that travel to the
workers and the logs never hold it.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def expand(value: Any, flag: str) -> Any:
    """The value with every ``${NAME}`` in its texts replaced by that environment variable.

    Raises:
        ConfigError: the variable is not set.
    """
    if isinstance(value, dict):
        return {key: expand(part, flag) for key, part in value.items()}
    if isinstance(value, list):
        return [expand(part, flag) for part in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _value_of(match[1], flag), value)
    return value


def _value_of(name: str, flag: str) -> str:
    if not os.environ.get(name):
        raise ConfigError(f"{PREFIX}{flag}: the environment variable {name} is not set; export it before the run")
    return os.environ[name]


def named_in(*texts: str | None) -> set[str]:
    """The variables that these flags name."""
    return {name for text in texts for name in _VARIABLE.findall(text or "")}


def secrets_of(config: Config) -> set[str]:
    """Values that must never be printed or kept: the key, variables named in flags, proxies' passwords."""
    names = {config.judge_key_env, *named_in(config.judge_url, config.judge_calibration_url, config.judge_body)}
    return {os.environ[name] for name in names if os.environ.get(name)} | set(_proxy_passwords())


def _proxy_passwords() -> Iterator[str]:
    for name, value in os.environ.items():
        if name.lower().endswith("_proxy") and "@" in value:
            # By hand: a password may hold what no URL parser takes.
            account = value.partition("://")[2] if "://" in value else value
            user, _, password = account.rpartition("@")[0].partition(":")
            plain = f"{unquote(user)}:{unquote(password)}".encode("utf-8", "surrogateescape")
            yield from {password, unquote(password), b64encode(plain).decode()}


def variables(config: Config) -> list[str]:
    """Names of the environment variables that a judgment depends on, as far as they are set here."""
    names = {config.judge_key_env, *named_in(config.judge_url, config.judge_calibration_url, config.judge_body)}
    names |= {*_PROXIES, *(name.upper() for name in _PROXIES), *_CERTIFICATES}
    return sorted(name for name in names if os.environ.get(name))
