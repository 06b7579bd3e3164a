"""From the run's flags to a `ChatClient`, for the judge and for the calibration model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from confession_plugin.config import PREFIX, Config
from confession_plugin.errors import ConfigError
from confession_plugin.judging.client import ChatClient
from confession_plugin.judging.endpoints import check_fields, check_urls
from confession_plugin.judging.environment import expand, secrets_of


def client_for(config: Config, urls: Sequence[str], model: str, fields: str | None) -> ChatClient:
    """The client for these base URLs; `fields` is a JSON object of further request fields.

    Raises:
        ConfigError: an environment variable that a flag names is not set.
    """
    return ChatClient(
        urls,
        model,
        key=os.environ.get(config.judge_key_env, ""),
        timeout=config.judge_timeout,
        retries=config.judge_retries,
        concurrency=config.judge_concurrency,
        max_tokens=config.judge_max_tokens,
        body=expand(json.loads(fields), "judge_body") if fields else {},
        secrets=secrets_of(config),
    )


def check_server_flags(config: Config) -> None:
    """What the server judge's flags must not be.

    Raises:
        ConfigError: a URL that is none, a secret in a flag, a flag without the one it belongs to.
    """
    if config.judge_calibration_url and not config.judge_calibration_model:
        raise ConfigError(
            f"{PREFIX}judge_calibration_url needs the model's name: {PREFIX}judge_calibration_model NAME"
        )
    check_urls(config.judge_urls, config.judge_key_env)
    check_urls(
        config.judge_calibration_urls,
        config.judge_key_env,
        "judge_calibration_url" if config.judge_calibration_url else "judge_url",
    )
    if config.judge_body:
        check_fields(json.loads(config.judge_body))
