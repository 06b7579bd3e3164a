"""What a server's failure means: a reason, the server's own words, and the flag that helps.

Servers say the same thing in many ways.  Facts are read in this order: the status, the error's code and type, the
token counts, the wording.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from confession_plugin.config import PREFIX
from confession_plugin.errors import Unscored
from confession_plugin.judging.transport import OversizedReply
from confession_plugin.reasons import Reason

Redact = Callable[[str], str]

_LONGEST_MESSAGE = 4000
"""Characters of a server's message that are looked at."""


class TooLong(Unscored):
    """The messages do not fit the model's context; `refusal` is the server's whole message, with its counts."""

    def __init__(self, detail: str, refusal: str) -> None:
        super().__init__(Reason.CONTEXT_TOO_LONG, detail)
        self.refusal = refusal


def failure_of(error: Exception, redact: Redact) -> Unscored:
    """Anything that a request can raise, as a judgment without a score.

    `redact` takes secrets out of what the server said before any of it is cut: half a key is not recognised.
    """
    if isinstance(error, Unscored):
        return error
    if isinstance(error, openai.APITimeoutError):
        return Unscored(Reason.TIMEOUT, str(error.__cause__ or error))
    if isinstance(error, openai.APIStatusError):
        # Not error.body, which is what stands within "error": a type or a code may stand beside it.
        return status_failure(error.status_code, _json(error.response.content), redact)
    oversized = next((one for one in (error, error.__cause__) if isinstance(one, OversizedReply)), None)
    if oversized is not None:
        return Unscored(Reason.BAD_RESPONSE, str(oversized))
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        by = "the proxy that the environment names: " if isinstance(cause, httpx2.ProxyError) else ""
        return Unscored(Reason.CONNECTION, by + (str(cause) or type(cause).__name__))
    # Nothing of a server's, a proxy's or a redirect's making ends a run.
    return Unscored(Reason.CONNECTION, f"{type(error).__name__}: {error}")


def status_failure(status: int, body: Any, redact: Redact = str) -> Unscored:
    """The failure that an HTTP status and an error's body stand for; gateways put both into a reply of status 200."""
    try:
        text, codes = _words(body)
    except RecursionError:
        text, codes = "an error nested too deeply", set()
    text = redact(text)[:_LONGEST_MESSAGE]
    detail = f"HTTP {status}: {text}"
    if status in (400, 413, 422, 500, 200) and (codes & _TOO_LONG_CODES or _TOO_LONG.search(text) or status == 413):
        return TooLong(detail, text)
    if codes & _FILTER_CODES:
        return Unscored(Reason.REFUSED, detail)
    return Unscored(_BY_STATUS.get(status, _by_class(status)), detail)


def is_too_long(status: int, content: bytes) -> bool:
    """Does this error say that the messages do not fit?  Some servers say so with a status that means: try again."""
    return isinstance(status_failure(status, _json(content)), TooLong)


_BY_STATUS = {
    401: Reason.AUTH,
    403: Reason.AUTH,
    404: Reason.NOT_FOUND,
    408: Reason.TIMEOUT,
    429: Reason.RATE_LIMITED,
}


def _by_class(status: int) -> Reason:
    if status >= 500:
        return Reason.HTTP_5XX
    return Reason.HTTP_4XX if status >= 400 else Reason.BAD_RESPONSE


def _json(content: bytes) -> Any:
    """The body as JSON, or as text where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")


# ── a reply of status 200 ──


@dataclass(frozen=True)
class Completion:
    """What a chat completion says."""

    text: str
    finish_reason: str
    reasoning: str = ""
    """Text that the server gives beside the reply as its model's reasoning."""
    prompt_tokens: int = 0
    """How long the server says the messages were; 0 when it does not."""
    completion_tokens: int = 0
    """The same of its reply."""


def read_completion(content: bytes, redact: Redact = str) -> Completion:
    """The chat completion in a reply's body.

    Raises:
        Unscored: none, a refusal, or an error in place of one.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Unscored(Reason.BAD_RESPONSE, f"not JSON: {problem[:200]}: {_head(content, redact)}") from None
    choices = _get(body, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _get(choice, "message")
    finish_reason = _get(choice, "finish_reason")
    upstream = _get(choice, "error") or _get(body, "error")
    if upstream is not None and (message is None or finish_reason == "error" or not _get(message, "content")):
        code = _get(upstream, "code")
        said = upstream if isinstance(upstream, (dict, str)) else "an error without words"
        raise status_failure(code if isinstance(code, int) and 400 <= code < 600 else 200, said, redact)
    if not isinstance(message, dict):
        raise Unscored(Reason.BAD_RESPONSE, f"not a chat completion: {_head(content, redact)}")
    refusal = message.get("refusal")
    if refusal or finish_reason == "content_filter":
        raise Unscored(Reason.REFUSED, refusal if refusal and isinstance(refusal, str) else "content filter")
    return Completion(
        text=_text_of(message.get("content")),
        finish_reason=finish_reason if isinstance(finish_reason, str) else "",
        reasoning=_text_of(message.get("reasoning_content") or message.get("reasoning")),
        prompt_tokens=_prompt_tokens(_get(body, "usage")),
        completion_tokens=_most(_get(_get(body, "usage"), "completion_tokens")),
    )


def _head(content: bytes, redact: Redact) -> str:
    return redact(content.decode("utf-8", "replace"))[:300]


def _get(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else None


def _text_of(content: Any) -> str:
    if isinstance(content, list):  # content parts
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _prompt_tokens(usage: Any) -> int:
    found = _get(usage, "prompt_tokens")
    cached = _get(_get(usage, "prompt_tokens_details"), "cached_tokens")
    # Some count what they had in their cache apart.
    return _most(found, cached)


def _most(*counts: Any) -> int:
    return max((count for count in counts if isinstance(count, int) and not isinstance(count, bool)), default=0)


# ── an error's words ──


def _words(body: Any) -> tuple[str, set[str]]:
    """An error body's message, with the counts beside it, and its codes and types."""
    inner = _get(body, "error") if _get(body, "error") is not None else body
    if not isinstance(inner, dict):
        inner = {**(body if isinstance(body, dict) else {}), "message": inner}
    parts = [_said(inner.get(name)) for name in ("message", "detail", "msg", "error_message") if inner.get(name)]
    raw = _get(inner.get("metadata"), "raw")  # what the server behind a gateway said
    parts += [_said(raw)] if raw else []
    parts += [f"{name} {inner[name]}" for name in ("n_prompt_tokens", "n_ctx") if isinstance(inner.get(name), int)]
    holders = [holder for holder in (inner, body) if isinstance(holder, dict)]
    codes = {str(holder.get(name)) for holder in holders for name in ("code", "type", "error_type", "innererror")}
    text = "; ".join(parts) or (_said(body) if body else "no message")
    return text, codes | set(re.findall(r"'code': '(\w+)'", " ".join(codes)))


def _said(value: Any) -> str:
    if isinstance(value, list):  # FastAPI's: one entry for each field, which repeats the whole request as "input"
        return "; ".join(
            f"{_place(entry.get('loc'))}: {entry.get('msg')}" if isinstance(entry, dict) else str(entry)
            for entry in value[:8]
        )
    if isinstance(value, dict):
        return str(value.get("message") or json.dumps(value))
    return str(value)


def _place(loc: Any) -> str:
    return ".".join(map(str, loc)) if isinstance(loc, list) else str(loc)


_TOO_LONG_CODES = {
    "context_length_exceeded",
    "context_window_exceeded",
    "exceed_context_size_error",
    "string_above_max_length",
    "tokens_limit_reached",
    "request_too_large",
    "content_length_exceeded",
    "context_exceeded",
    "prompt_too_long",
}
_FILTER_CODES = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}
_TOO_LONG = re.compile(
    r"context[ _-]?length|context[ _-]?size|context[ _-]?window|maximum context|max_model_len|maximum model length|"
    r"prompt (?:is )?too long|too many (?:input |prompt )?tokens|longer than the (?:maximum|model)|"
    r"(?:input|prompt|inputs?`?).{0,60}(?:too long|exceed|must have less than)|max_new_tokens`? must be <=|"
    r"input token count|tokens? limit exceeded|reduce the length|too large for model|"
    r"max_tokens must be at least 1, got -",
    re.IGNORECASE,
)

_LIMIT = re.compile(
    r"(?:maximum context length (?:is|of)|n_ctx\W{0,3}|must be <=|must have less than|maximum model length of|"
    r"configured limit of|tokens allowed \(|context (?:size|length|window)(?: of)?(?: only)?(?: \(| is)?|model with|"
    r"tokens >) ?(\d+)",
    re.IGNORECASE,
)
_USED = re.compile(
    r"(?:prompt contains|messages resulted in|request has|n_prompt_tokens\W{0,3}|request \(|input \(|length |"
    r"prompt is too long:|token count \(|keep the first|n_keep\W{0,3}|Given:|tokens \(|tokens:) ?(\d+)"
    r"(?! ?(?:output|tokens from the completion|in the completion))",
    re.IGNORECASE,
)


def token_counts(refusal: str) -> tuple[int, int] | None:
    """The limit, and how many tokens the messages have, as far as a server's refusal says both exactly."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", refusal[:_LONGEST_MESSAGE])
    limits = [int(number) for number in _LIMIT.findall(plain) if len(number) < 10]
    used = [int(number) for number in _USED.findall(plain) if len(number) < 10]
    limit = limits[0] if limits else None
    above = [number for number in used if number != limit]
    return (limit, above[0]) if limit and above else None


# ── the flag that helps ──


@dataclass(frozen=True)
class Sent:
    """What the advice depends on: how a request was made."""

    max_tokens: int
    fields: Mapping[str, Any]
    """The request's own fields, without the messages."""
    schema: bool


def advice(failure: Unscored, sent: Sent, base: str, redirected_to: str = "") -> str:
    """The flag or setting that helps against this failure; empty when nothing is known to."""
    text = failure.detail
    if redirected_to:
        return f"it redirects to {redirected_to}: give that base URL"
    if failure.reason == Reason.CONNECTION:
        return next((help for pattern, help in _NETWORK if re.search(pattern, text, re.IGNORECASE)), "")
    if failure.reason in (Reason.HTTP_4XX, Reason.HTTP_5XX, Reason.BAD_RESPONSE):
        found = _request_advice(text, sent)
        if found:
            return found
    if failure.reason in (Reason.BAD_RESPONSE, Reason.NOT_FOUND) and not re.search(r"/v\d+\w*(/|$)", base):
        return "give the base URL, usually ending in /v1"
    return ""


def _request_advice(text: str, sent: Sent) -> str:
    if re.search(r"plain HTTP request|HTTPS port|TLS|client sent an HTTP request", text, re.IGNORECASE):
        return "the server speaks https://"
    if sent.schema and re.search(_SCHEMA_WORDS, text, re.IGNORECASE):
        return f"set {PREFIX}judge_schema off"
    about_budget = re.search(r"max_completion_tokens|max_tokens", text)
    if "max_tokens" in sent.fields and about_budget and re.search(_UNSUPPORTED, text, re.IGNORECASE):
        return f"""add {PREFIX}judge_body '{{"max_completion_tokens": {sent.max_tokens}}}'"""
    if re.search(r"max_(?:completion_|new_)?tokens|completion tokens|output tokens", text):
        return f"lower {PREFIX}judge_max_tokens (now {sent.max_tokens})"
    if re.search(_SYSTEM_WORDS, text, re.IGNORECASE):
        return f"give {PREFIX}judge_prompt a rubric without its [user] line: all of it goes in one user turn"
    named = [name for name in sent.fields if name not in ("model", "max_tokens") and re.search(rf"\b{name}\b", text)]
    return f"change or drop {', '.join(named)} in {PREFIX}judge_body" if named else ""


_SCHEMA_WORDS = (
    r"response[_ ]format|json[_ ]?schema|structured[_ ]output|guided|grammar|xgrammar|outlines|llguidance|json mode"
)
_UNSUPPORTED = (
    r"not supported|unsupported|does not support|not permitted|not allowed|unrecogni[sz]ed|unknown|unexpected|extra|"
    r"instead|deprecated"
)
_SYSTEM_WORDS = (
    r"system (?:role|message|prompt|instruction|turn)|developer instruction|role.{0,30}system|"
    r"roles must alternate|only user and (?:assistant|model) roles|first message must be"
)
_NETWORK = (
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|self[- ]signed",
        "put the certificate of the authority that signed it in a file, and that file's path in the environment "
        "variable SSL_CERT_FILE",
    ),
    (
        r"WRONG_VERSION_NUMBER|record layer failure|PACKET_LENGTH_TOO_LONG|UNKNOWN_PROTOCOL|HTTP_REQUEST",
        "does the server speak http:// and not https://?",
    ),
    (
        r"the proxy that the environment names|proxy URL|Invalid port",
        "correct http_proxy, https_proxy or ALL_PROXY (http://host:port), or add the judge's host to NO_PROXY",
    ),
    (r"No such file|PEM|X509|NO_CERTIFICATE_OR_CRL", "correct SSL_CERT_FILE or SSL_CERT_DIR"),
)
