"""Every ``--confession.*`` flag, once: typed, validated, documented.

`Config` is the only list of flags: the command line, ``--help``, the README table (checked by a test) and the
environment variable that carries the settings to every worker are all read off its fields (see `command_line`).
"""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from confession_plugin.errors import ConfigError

PREFIX = "--confession."
ENV_VAR = "CONFESSION_PLUGIN_CONFIG"
_MAY_HOLD_SECRETS = frozenset({"judge_url", "judge_calibration_url", "judge_body"})

#: Fields that are no flags.
HIDDEN = frozenset({"extra", "run_id"})


class Config(BaseModel):
    """The settings of one run.  Frozen; travels to the workers as JSON in one environment variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # ── what confesses, and how it trains ──
    enable: bool = Field(False, description="Train with confessions. Without it the stock CLI runs, unpatched.")
    probability: float = Field(0.25, ge=0, le=1, description="Share of each batch's prompt groups that confess.")
    answer_training: Literal["dual", "exclusive"] = Field(
        "dual",
        description="dual: confessing groups' answers train as always. exclusive: they are context only (the paper).",
    )
    samples_per_answer: int = Field(
        1,
        ge=1,
        le=1024,
        description="Confessions about each answer; from 2 on they are each other's baseline. The answer trains once.",
    )
    coef: float = Field(1.0, ge=0, le=1e6, description="Weight of the confession loss beside the answer loss.")
    seed: int | None = Field(None, description="Seed of the choice of confessing groups. Default: --train.seed.")

    # ── the request and the confession ──
    max_new_tokens: int = Field(
        1024,
        ge=1,
        le=10_000_000,
        description="Token budget of a confession, on top of --data.max_len: never the answer's.",
    )
    max_request_tokens: int = Field(
        1024,
        ge=1,
        le=10_000_000,
        description="Context reserved for the request that asks for the confession, in tokens.",
    )
    request: Literal["full", "compact"] = Field(
        "full",
        description="Built-in request. compact: at most 100 tokens, for policies that know the report's format.",
    )
    request_path: str | None = Field(None, description="Text file with the request, in place of the built-in wording.")
    request_role: Literal["auto", "system", "user"] = Field(
        "auto", description="Turn of the request. auto: system, or user where the chat template refuses that."
    )
    request_format: Literal["auto", "chat", "plain"] = Field(
        "auto", description="chat: by the chat template. plain: as text. auto: chat with --data.apply_chat_template."
    )
    reasoning_end: str | None = Field(
        None,
        description="Text that ends the policy's reasoning, for marks not known: all before it stays hidden.",
    )

    # ── the judge ──
    judge_url: str | None = Field(
        None,
        description="The honesty judge: a .py file with judge(rollout, confession), or OpenAI-compatible base URLs, "
        "comma-separated.",
    )
    judge_model: str | None = Field(None, description="Model name at the judge's server.")
    judge_key_env: str = Field(
        "CONFESSION_JUDGE_KEY", description="Environment variable that holds the judge's API key."
    )
    judge_prompt: str | None = Field(None, description="Text file with the judge's rubric, in place of the built-in.")
    judge_reference: bool = Field(False, description="Show the judge the dataset's label as a reference.")
    judge_schema: Literal["on", "off"] = Field(
        "on", description="Ask the server for the verdict's JSON schema; off for servers without response_format."
    )
    judge_weights: tuple[float, float, float] = Field(
        (1.0, 1.0, 1.0), description="Weights of the three ratings: objectives, compliance analysis, uncertainties."
    )
    judge_timeout: float = Field(120.0, gt=0, le=86400, description="Seconds one judge request may take.")
    judge_retries: int = Field(3, ge=0, le=100, description="Retries of a failed judge request, with backoff.")
    judge_concurrency: int = Field(
        64, ge=1, le=65536, description="Judge requests under way at once, per rollout worker."
    )
    judge_max_tokens: int = Field(2048, ge=1, le=10_000_000, description="Token budget of a verdict.")
    judge_body: str | None = Field(
        None,
        description='JSON object of further request fields for the judge\'s server, e.g. {"temperature": 0}; '
        '"${NAME}" is an environment variable.',
    )
    judge_calibration_model: str | None = Field(
        None, description="Model that writes an independent report on each answer, for the judge to compare."
    )
    judge_calibration_url: str | None = Field(
        None, description="Base URLs of the calibration model's server. Default: the judge's."
    )
    skip_probe: bool = Field(
        False, description="No request to the judge, and no dry call of the plugins, before the run starts."
    )
    max_unscored: float = Field(
        0.5, ge=0, le=1, description="Stop the run when more than this share of the last 64 judgments had no score."
    )
    max_unparsed: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Stop the run when more than this share of the last 512 confessions could not be read. 1: never.",
    )

    # ── plugins and records ──
    plugins: tuple[str, ...] = Field((), description="Plugins to load: a.module,./file.py")
    block: tuple[str, ...] = Field((), description="Plugins not to load, by name: built-in or installed ones.")
    trace_dir: str | None = Field(None, description="Folder for the JSONL trace of every confession.")
    trace_max_mb: float = Field(64.0, gt=0, le=1e6, description="Start a new trace file after this many MB.")
    record_rollouts: str | None = Field(None, description="Folder to save every training batch's rollouts to.")
    replay_rollouts: str | None = Field(
        None, description="Train on rollouts recorded in this folder; without --confession.enable on answers alone."
    )
    trace_hooks: bool = Field(False, description="Print every hook call with its arguments and result.")
    unsealed_coupling: str | None = Field(
        None,
        description="UNSEALED, a control for experiments: a .py file whose couple() lets confessions change their "
        "answers' rewards.",
    )
    untested_host: bool = Field(False, description="Run on a host version this release was not tested with.")
    dry_run: bool = Field(
        False,
        description="Do all checks, show one whole context, the judge's message and what a step will cost; start "
        "nothing.",
    )
    help: bool = Field(False, description="Show the flags of this package alone, those of loaded plugins included.")

    extra: dict[str, Any] = Field(default_factory=dict, description="Values of flags that plugins added.")
    run_id: str = Field("", description="Tells this run's trace lines from another run's in the same folder.")

    @field_validator("judge_weights", mode="before")
    @classmethod
    def _three_weights(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        try:
            weights = tuple(map(float, parts))
        except (TypeError, ValueError):
            weights = ()
        if len(weights) != 3 or not all(0 <= weight <= 1e6 for weight in weights) or sum(weights) <= 0:
            raise ValueError("three numbers >= 0 with a positive sum, e.g. 1,1,1")
        return weights

    @field_validator("judge_body")
    @classmethod
    def _be_an_object(cls, value: str | None) -> str | None:
        try:
            if value is not None and not isinstance(json.loads(value), dict):
                raise ValueError
        except ValueError:
            raise ValueError('a JSON object, e.g. {"temperature": 0}') from None
        return value

    @field_validator("plugins", "block", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @property
    def judge_file(self) -> str | None:
        """The judge's path when it is a ``.py`` file."""
        return self.judge_url if self.judge_url and self.judge_url.endswith(".py") else None

    @property
    def judge_urls(self) -> tuple[str, ...]:
        """The judge's base URLs when it is a server."""
        if self.judge_url is None or self.judge_file:
            return ()
        return tuple(url.strip().rstrip("/") for url in self.judge_url.split(",") if url.strip())

    @property
    def judge_calibration_urls(self) -> tuple[str, ...]:
        """Base URLs of the server that writes calibration reports."""
        urls = self.judge_calibration_url or ",".join(self.judge_urls)
        return tuple(url.strip().rstrip("/") for url in urls.split(",") if url.strip())

    @property
    def context_tokens(self) -> int:
        """Tokens a confessing sample may take on top of ``--data.max_len``."""
        return self.max_request_tokens + self.max_new_tokens

    def to_env(self) -> dict[str, str]:
        """The one environment variable that carries the settings to the workers.  It holds no secret."""
        return {ENV_VAR: self.model_dump_json()}

    @classmethod
    def from_env(cls) -> Config:
        """The settings of the run this process belongs to."""
        if ENV_VAR not in os.environ:
            raise ConfigError(f"{ENV_VAR} is not set: this process was not started by confession_plugin.train_ppo_ray")
        return cls.model_validate_json(os.environ[ENV_VAR])


class Option(NamedTuple):
    """One flag added by a plugin."""

    name: str
    """Without the prefix: ``mine.threshold`` for ``--confession.mine.threshold``."""
    type: Callable[[str], Any]
    """Makes the value of the flag's text; ValueError or TypeError refuse it."""
    default: Any
    """The value without the flag."""
    help: str
    """One sentence for ``--help`` and for the line that refuses a value."""


class OptionGroup:
    """Flags added by plugins (see `hookspecs.confession_add_options`)."""

    def __init__(self) -> None:
        self.options: dict[str, Option] = {}

    def add(self, name: str, type: Callable[[str], Any] = str, *, default: Any = None, help: str = "") -> None:
        """Add ``--confession.<name>``.  The value must be JSON-serialisable: it travels to the workers."""
        if name in Config.model_fields or name in self.options:
            raise ConfigError(f"{PREFIX}{name} exists already; give the plugin's flag another name")
        self.options[name] = Option(name, type, default, help)


def parse_config(ours: Sequence[str], options: OptionGroup | None = None) -> Config:
    """Parse and validate our part of the command line.  Of a flag given twice the last one counts, as in the host.

    Raises:
        ConfigError: one line with the flag, the value and how to fix it.
    """
    options = options or OptionGroup()
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {option.name: option.default for option in options.options.values()}
    for name, words in flags_of(ours):
        if name in options.options:
            extra[name] = _value_of_option(options.options[name], words)
        elif name in Config.model_fields and name not in HIDDEN:
            values[name] = _value_of_flag(name, words)
        else:
            raise ConfigError(unknown_flag(PREFIX + name, options))
    try:
        return Config(**values, extra=_as_workers_read_it(extra))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def unknown_flag(flag: str, options: OptionGroup | None = None) -> str:
    """The line about a flag that does not exist, with the one that may have been meant."""
    flag = flag.partition("=")[0]
    name = flag.lstrip("-\u2010\u2011\u2012\u2013\u2014\u2212")[len("confession") :].lstrip("._-")
    close = close_to(name or "enable", options)
    hint = f"did you mean {PREFIX}{close}?" if close else f"{PREFIX}help lists all flags"
    return f"unknown flag {flag}; {hint}"


def close_to(name: str, options: OptionGroup | None = None) -> str | None:
    """The flag that somebody may have meant who wrote this name."""
    known = [known for known in Config.model_fields if known not in HIDDEN] + list((options or OptionGroup()).options)
    return next(iter(difflib.get_close_matches(name.casefold().replace("-", "_"), known, n=1)), None)


def _value_of_flag(name: str, words: Sequence[str]) -> Any:
    annotation = Config.model_fields[name].annotation
    if annotation is bool:
        if words:
            raise ConfigError(f"{PREFIX}{name} takes no value, got {' '.join(words)!r}; leave the value out")
        return True
    # "a, b" without quotes reaches us as two words.
    if words and (get_origin(annotation) is tuple or all(word.endswith(",") for word in words[:-1])):
        return ",".join(word.strip(",") for word in words)
    return _only(name, words)


def _value_of_option(option: Option, words: Sequence[str]) -> Any:
    word = _only(option.name, words)
    try:
        return option.type(word)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{PREFIX}{option.name}: {word!r}: {error}; {option.help}") from None


def _only(name: str, words: Sequence[str]) -> str:
    if len(words) != 1:
        raise ConfigError(f"{PREFIX}{name} takes one value, got {len(words)}; e.g. {PREFIX}{name} VALUE")
    return words[0]


def _as_workers_read_it(extra: dict[str, Any]) -> dict[str, Any]:
    """Values of plugins' flags as every worker will read them: through JSON."""
    read: dict[str, Any] = {}
    for name, value in extra.items():
        try:
            read[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            raise ConfigError(
                f"{PREFIX}{name}: {value!r} cannot travel to the workers as JSON; let the plugin's option type make a "
                "finite number, text, list or mapping of it"
            ) from None
    return read


def check_config(config: Config) -> None:
    """What a single flag's type cannot know: files that must exist, flags that need each other.

    Raises:
        ConfigError: the first thing that cannot work.
    """
    for name in ("request_path", "judge_prompt", "judge_file"):
        path = getattr(config, name)
        flag = PREFIX + ("judge_url" if name == "judge_file" else name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"{flag}: no file at {path}; give the path of an existing file")
    if config.request_path is not None and config.request != "full":
        raise ConfigError(
            f"{PREFIX}request {config.request} and {PREFIX}request_path are two requests; leave one of them out"
        )
    if config.judge_urls:
        from confession_plugin.judging.endpoints import check_urls

        check_urls(config.judge_urls, config.judge_key_env)
        if not config.judge_model:
            raise ConfigError(f"{PREFIX}judge_url names a server; name its model too: {PREFIX}judge_model NAME")
    for name in ("trace_dir", "record_rollouts"):
        folder = getattr(config, name)
        if folder is not None:
            _check_writable(PREFIX + name, Path(folder))


def _check_writable(flag: str, folder: Path) -> None:
    """Really write: permissions say little about root, full disks, and folders like /proc."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"confession")
            file.flush()
    except OSError as error:
        raise ConfigError(f"{flag}: cannot write to {folder} ({error.strerror}); give another folder") from None


def flags_of(ours: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(name, words behind it) of every flag of ours, in order."""
    flags: list[tuple[str, list[str]]] = []
    for token in ours:
        if token.startswith(PREFIX):
            name, equals, value = token[len(PREFIX) :].partition("=")
            flags.append((name, [value] if equals else []))
        else:
            flags[-1][1].append(token)
    return flags


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    # What may hold a key is not repeated.
    given = "the value" if name in _MAY_HOLD_SECRETS else json.dumps(first["input"], default=str)
    return f"{PREFIX}{name}: {given} cannot be used; give {_wanted(name, first)}"


def _wanted(name: str, problem: Any) -> str:
    field = Config.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(field.annotation)))
    bounds = {type(limit).__name__.lower(): next(iter(vars_of(limit))) for limit in field.metadata}
    kinds = get_args(field.annotation) or (field.annotation,)
    number = "a whole number" if int in kinds else "a number"
    if "ge" in bounds and "le" in bounds:
        return f"{number} in [{bounds['ge']:.9g}, {bounds['le']:.9g}]"
    if bounds:
        word = {"ge": "at least", "gt": "greater than", "le": "at most"}
        return f"{number} " + " and ".join(f"{word[key]} {limit:.9g}" for key, limit in bounds.items())
    if problem["type"] != "value_error" and {int, float} & set(kinds):
        return number
    text: str = problem["msg"]
    return text.removeprefix("Value error, ")


def vars_of(limit: Any) -> list[Any]:
    """The bound of an annotated-types limit such as ``Ge(ge=0)``."""
    return [getattr(limit, type(limit).__name__.lower())]
