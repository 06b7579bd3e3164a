"""Base URLs of the judge's servers: checked, split from their query, shown without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from confession_plugin.config import PREFIX
from confession_plugin.errors import ConfigError
from confession_plugin.judging.environment import expand

_COMPLETIONS = "/chat/completions"
#: Names of query parameters and request fields whose values are secret.
_SECRET_NAME = re.compile(
    r"(?:^|[-_.])(?:api[-_]?key|apikey|(?:subscription|access|secret|private|account)[-_]?key|"
    r"(?:access|auth|bearer|id|refresh)[-_]?token|secret|password|passwd|pwd|authorization|credentials?|signature)$|"
    r"^(?:key|token|sig|code|auth)$",
    re.IGNORECASE,
)

_SECRET_VALUE = re.compile(r"(?:sk-|sk_|hf_|gsk_|ghp_|AIza|xai-|nvapi-|Bearer )\S{8}")


@dataclass(frozen=True)
class Endpoint:
    """One server: where its requests go, and how it is called in messages."""

    base: str
    """The base URL without its query, e.g. ``http://judge:8000/v1``."""
    query: str = ""

    @classmethod
    def of(cls, url: str, flag: str = "judge_url") -> Endpoint:
        """The endpoint that a flag's URL names; ``${NAME}`` in it is an environment variable."""
        base, _, query = expand(url, flag).partition("#")[0].partition("?")
        return cls(base.rstrip("/").removesuffix(_COMPLETIONS), query)

    @property
    def completions(self) -> str:
        return self._at(_COMPLETIONS)

    @property
    def models(self) -> str:
        return self._at("/models")

    @property
    def secrets(self) -> set[str]:
        """Values in the query, but for short ones and versions, which help to read a server's error."""
        pairs = (pair.partition("=") for pair in self.query.split("&"))
        found = {value for name, _, value in pairs if len(value) >= 6 and "version" not in name.lower()}
        return found | {unquote(value) for value in found}

    def _at(self, path: str) -> str:
        return f"{self.base}{path}" + (f"?{self.query}" if self.query else "")


def check_urls(urls: Iterable[str], key_env: str, flag: str = "judge_url") -> None:
    """Refuse what is no base URL, and URLs that hold a secret.

    Raises:
        ConfigError: one line, without the secret.
    """
    for url in urls:
        if "@" in url:  # anywhere: a password may hold a slash or a question mark
            raise ConfigError(
                f"{PREFIX}{flag}: a URL with a password in it would end up in logs; put the key in the environment "
                f"variable {key_env}"
            )
        full = expand(url, flag)
        try:
            parts = urlsplit(full)
            usable = parts.scheme.lower() in ("http", "https") and parts.hostname and (parts.port or 1)
        except ValueError:
            usable = False
        if not usable:
            shown = url.partition("?")[0]
            no = "neither a .py file nor an" if flag == "judge_url" else "no"
            raise ConfigError(f"{PREFIX}{flag}: {shown!r} is {no} http(s):// base URL")
        for name, value in parse_qsl(urlsplit(url).query):
            _refuse_secret(name, value, flag, f"{name}=${{NAME}}")


def check_fields(fields: Any, flag: str = "judge_body") -> None:
    """Refuse request fields that hold a secret as text, at any depth.

    Raises:
        ConfigError: names the field and not its value.
    """
    if isinstance(fields, list):
        for part in fields:
            check_fields(part, flag)
    elif isinstance(fields, dict):
        for name, value in fields.items():
            if isinstance(value, str):
                _refuse_secret(name, value, flag, f'"{name}": "${{NAME}}"')
            check_fields(value, flag)


def _refuse_secret(name: str, value: str, flag: str, instead: str) -> None:
    secret = _SECRET_NAME.search(name) or _SECRET_VALUE.match(value)
    if value and secret and "${" not in value:
        raise ConfigError(
            f"{PREFIX}{flag}: {name} looks like a secret, which would end up in logs; export it as an environment "
            f"variable NAME and write {instead}"
        )
