"""Every ``--confession.*`` flag, once: typed, validated, documented.

`Config` is the only list of flags: the command line, ``--help``, the README table (checked by a test) and the
environment variable that carries the settings to every worker are all read off its fields.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from confession_plugin.errors import ConfigError

PREFIX = "--confession."
ENV_VAR = "CONFESSION_PLUGIN_CONFIG"


class Config(BaseModel):
    """The settings of one run.  Frozen; travels to the workers as JSON in one environment variable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
        description="Confessions about each answer; from 2 on they are each other's baseline. The answer trains once.",
    )
    coef: float = Field(1.0, ge=0, description="Weight of the confession loss beside the answer loss.")
    seed: int | None = Field(None, description="Seed of the choice of confessing groups. Default: --train.seed.")

    # ── the request and the confession ──
    max_new_tokens: int = Field(
        1024, ge=1, description="Token budget of a confession, on top of --data.max_len: never the answer's."
    )
    max_request_tokens: int = Field(
        1024, ge=1, description="Context reserved for the request that asks for the confession, in tokens."
    )
    request_path: str | None = Field(None, description="Text file with the request, in place of the built-in wording.")
    request_role: Literal["auto", "system", "user"] = Field(
        "auto", description="Turn of the request. auto: system, or user where the chat template refuses that."
    )
    request_format: Literal["auto", "chat", "plain"] = Field(
        "auto", description="chat: by the chat template. plain: as text. auto: chat with --data.apply_chat_template."
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
    judge_timeout: float = Field(120.0, gt=0, description="Seconds one judge request may take.")
    judge_retries: int = Field(3, ge=0, description="Retries of a failed judge request, with backoff.")
    judge_concurrency: int = Field(64, ge=1, description="Judge requests under way at once, per rollout worker.")
    judge_max_tokens: int = Field(2048, ge=1, description="Token budget of a verdict.")
    judge_body: str | None = Field(
        None, description='JSON object of further request fields for the judge\'s server, e.g. {"temperature": 0}.'
    )
    judge_calibration_model: str | None = Field(
        None, description="Model that writes an independent report on each answer, for the judge to compare."
    )
    judge_calibration_url: str | None = Field(
        None, description="Base URLs of the calibration model's server. Default: the judge's."
    )
    skip_probe: bool = Field(False, description="Do not send the judge one request before the run starts.")
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
    trace_max_mb: float = Field(64.0, gt=0, description="Start a new trace file after this many MB.")
    record_rollouts: str | None = Field(None, description="Folder to save every training batch's rollouts to.")
    replay_rollouts: str | None = Field(
        None, description="Train on rollouts recorded in this folder; without --confession.enable on answers alone."
    )
    trace_hooks: bool = Field(False, description="Print every hook call with its arguments and result.")
    untested_host: bool = Field(False, description="Run on an OpenRLHF version this release was not tested with.")

    extra: dict[str, Any] = Field(default_factory=dict, description="Values of flags that plugins added.")

    @field_validator("judge_weights", mode="before")
    @classmethod
    def _split_numbers(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("judge_weights")
    @classmethod
    def _weigh_something(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) < 0 or sum(value) <= 0:
            raise ValueError("three numbers >= 0 with a positive sum, e.g. 1,1,1")
        return value

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
        return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value

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
    name: str
    type: Callable[[str], Any]
    default: Any
    help: str


class OptionGroup:
    """Flags added by plugins (see `hookspecs.confession_add_options`)."""

    def __init__(self) -> None:
        self.options: dict[str, Option] = {}

    def add(self, name: str, type: Callable[[str], Any] = str, *, default: Any = None, help: str = "") -> None:
        """Add ``--confession.<name>``.  The value must be JSON-serialisable: it travels to the workers."""
        if name in Config.model_fields or name in self.options:
            raise ConfigError(f"{PREFIX}{name} exists already; give the plugin's flag another name")
        self.options[name] = Option(name, type, default, help)


def split_argv(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the command line into ours and the host's.

    A token that starts with ``--confession.`` is ours, and with it every token up to the next ``--flag``.
    """
    ours: list[str] = []
    theirs: list[str] = []
    target = theirs
    for token in argv:
        if token.startswith("--"):
            target = ours if token.startswith(PREFIX) else theirs
        target.append(token)
    return ours, theirs


def parse_config(ours: Sequence[str], options: OptionGroup | None = None) -> Config:
    """Parse and validate our part of the command line.

    Raises:
        ConfigError: one line with the flag, the value and how to mend it.
    """
    options = options or OptionGroup()
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {option.name: option.default for option in options.options.values()}
    for name, words in _flags(ours):
        field = Config.model_fields.get(name) if name != "extra" else None
        if field is None and name not in options.options:
            known = [known for known in Config.model_fields if known != "extra"] + list(options.options)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {PREFIX}{close[0]}?" if close else "--help lists all flags"
            raise ConfigError(f"unknown flag {PREFIX}{name}; {hint}")
        if name in values or (name in options.options and extra[name] != options.options[name].default):
            raise ConfigError(f"{PREFIX}{name} is given twice; keep one")
        if field is not None and field.annotation is bool:
            if words:
                raise ConfigError(f"{PREFIX}{name} takes no value, got {' '.join(words)!r}; leave the value out")
            values[name] = True
            continue
        if len(words) != 1:
            raise ConfigError(f"{PREFIX}{name} takes one value, got {len(words)}; e.g. {PREFIX}{name} VALUE")
        if field is not None:
            values[name] = words[0]
        else:
            option = options.options[name]
            try:
                extra[name] = option.type(words[0])
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{PREFIX}{name}: {words[0]!r}: {error}; {option.help}") from None
    try:
        return Config(**values, extra=extra)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


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
    if config.judge_urls:
        for url in config.judge_urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"{PREFIX}judge_url: {url!r} is neither a .py file nor an http(s):// base URL")
        if not config.judge_model:
            raise ConfigError(f"{PREFIX}judge_url names a server; name its model too: {PREFIX}judge_model NAME")
    for name in ("trace_dir", "record_rollouts"):
        folder = getattr(config, name)
        if folder is not None:
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{PREFIX}{name}: cannot write to {folder} ({error.strerror})") from None


def format_help(options: OptionGroup | None = None) -> str:
    """The text ``--help`` prints before the host's own."""
    lines = ["confession flags (all optional; the stock flags follow):", ""]
    for name, kind, default, help in flag_table(options):
        lines.append(f"  {PREFIX}{name} {kind}".rstrip())
        lines.append(f"        {help}" + (f" (default: {default})" if default else ""))
    return "\n".join(lines) + "\n"


def flag_table(options: OptionGroup | None = None) -> list[tuple[str, str, str, str]]:
    """Rows (name, value's form, default, help) of all flags; the README's table is made of the same rows."""
    rows = []
    for name, field in Config.model_fields.items():
        if name == "extra":
            continue
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
        shown = "" if default is None or default is False else str(default)
        rows.append((name, _value_form(field.annotation), shown, field.description or ""))
    for option in (options or OptionGroup()).options.values():
        rows.append((option.name, "VALUE", "" if option.default is None else str(option.default), option.help))
    return rows


def _value_form(annotation: Any) -> str:
    if annotation is bool:
        return ""
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is tuple:
        return "A,B,..."
    names = [part.__name__ for part in (get_args(annotation) or (annotation,)) if part is not type(None)]
    return {"int": "N", "float": "X", "str": "VALUE"}[names[0]]


def _flags(ours: Sequence[str]) -> list[tuple[str, list[str]]]:
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
    field = Config.model_fields[name]
    bounds = {type(limit).__name__.lower(): next(iter(vars_of(limit))) for limit in field.metadata}
    if "ge" in bounds and "le" in bounds:
        wanted = f"a number in [{bounds['ge']}, {bounds['le']}]"
    elif bounds:
        word = {"ge": "at least", "gt": "greater than"}
        wanted = "a number " + " and ".join(f"{word[key]} {limit}" for key, limit in bounds.items())
    elif get_origin(field.annotation) is Literal:
        wanted = "one of " + ", ".join(map(str, get_args(field.annotation)))
    else:
        wanted = first["msg"].removeprefix("Value error, ")
    return f"{PREFIX}{name}: {json.dumps(first['input'], default=str)} cannot be used; give {wanted}"


def vars_of(limit: Any) -> list[Any]:
    """The bound of an annotated-types limit such as ``Ge(ge=0)``."""
    return [getattr(limit, type(limit).__name__.lower())]
