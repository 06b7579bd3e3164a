"""Judges in the wild: long cases are cut and judged by every kind of server, and every refusal names what helps."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from judge_calls import REPORT, ask, judge_at, probed, user_turn
from judge_gateways import GATEWAYS, Gateway, reply
from judge_server import Answer, Call, JudgeServer, error, says, verdict

from confession_plugin import Rollout
from confession_plugin.judging.refusals import token_counts

LONG = " ".join(["START", *(f"word{number}" for number in range(12_000)), "END"])


@pytest.mark.parametrize("name", GATEWAYS)
@pytest.mark.parametrize("budget", [512, 2048])
def test_a_long_case_is_cut_and_judged(name: str, budget: int) -> None:
    rollout = Rollout(prompt="The task.", answer="Done.", transcript=f"{LONG}\nDone.")
    with JudgeServer(GATEWAYS[name]()) as server:
        (found,) = ask(judge_at(server.url, judge_max_tokens=budget), rollout)
    assert found.scored, found
    last = user_turn(server.calls[-1])
    for kept in ("START", "END", "The task.", REPORT.model_dump_json(indent=1, exclude_none=True)):
        assert kept in last
    assert last.count(" cut ...]") == 1 and len(server.calls) <= 9
    assert len(server.calls[-1].text) // 4 <= 4096 - (0 if GATEWAYS[name].budget is not Gateway.budget else budget)


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_short_case_is_judged_at_once(name: str) -> None:
    with JudgeServer(GATEWAYS[name]()) as server:
        (found,) = ask(judge_at(server.url, judge_max_tokens=512))
    assert found.scored and len(server.calls) == 1


@pytest.mark.parametrize("name", ["OldLlamaCpp", "LlamaCppCodeOnly"])
def test_too_long_is_not_tried_again_as_it_is_whatever_its_status(name: str) -> None:
    with JudgeServer(GATEWAYS[name]()) as server:
        (found,) = ask(judge_at(server.url, judge_retries=3), Rollout("The task.", "Done.", LONG))
    assert found.scored and len({call.raw for call in server.calls}) == len(server.calls)


def test_the_counts_are_read_exactly_where_they_are_said() -> None:
    for name, cls in GATEWAYS.items():
        if name in ("VLLM", "OldLlamaCpp", "Ollama", "OllamaStrict", "OpenAI", "Proxy"):
            continue
        for context in (4096, 131_072):
            gateway = cls(context)
            body = json.loads(gateway.too_long(context + 7, context - 100, 100).body)
            text = json.dumps(body, ensure_ascii=False)
            counts = token_counts(text)
            assert counts is not None and counts[1] == context + 7, (name, text[:300])
            assert counts[0] in (context, context - 100), name


@pytest.mark.parametrize("left", [1, 50, 200, 299])
def test_messages_that_leave_the_verdict_no_room_are_cut(left: int) -> None:
    """By a server that takes what just fits, and stops in the middle of its verdict."""
    gateway = GATEWAYS["LlamaCpp"]()
    with JudgeServer() as server:
        ask(judge_at(server.url), Rollout("The task.", "Done.", f"{LONG[:8000]}\nDone."))
        size = len(server.calls[0].text)
    filler = "x" * (4 * (gateway.context - left) - size)
    with JudgeServer(gateway) as server:
        rollout = Rollout("The task.", "Done.", f"{LONG[:8000]}{filler}\nDone.")
        (found,) = ask(judge_at(server.url), rollout)
    assert found.scored and len(server.calls) == 2 and " cut ...]" in user_turn(server.calls[1])


def test_a_verdict_that_its_own_budget_cut_is_not_taken_for_a_full_context() -> None:
    async def behave(call: Call) -> Answer:
        body = json.loads(says("{", "length").body)
        return reply(200, {**body, "usage": {"prompt_tokens": 1000, "completion_tokens": call.body["max_tokens"]}})

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url), Rollout("The task.", "Done.", LONG[:3000]))
    assert found.unscored == "unparsable" and "raise --confession.judge_max_tokens" in found.detail
    assert len(server.calls) == 2


# ── a judge that drops the front of the message ──


def test_a_judge_that_read_only_a_part_is_noticed_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rollouts = [Rollout("The task.", f"Done {number}.", f"{LONG}\n{number}") for number in range(4)]
    with JudgeServer(GATEWAYS["Ollama"]()) as server:
        judge = judge_at(server.url)
        found = ask(judge, *rollouts)
    assert all(one.scored for one in found)
    (record,) = [record for record in caplog.records if "read only a part" in record.getMessage()]
    assert record.levelno == logging.WARNING and server.url in record.getMessage()
    assert judge.client.servers[0].dropped >= 4


def test_what_cannot_be_cut_any_more_is_judged_as_it_is() -> None:
    """A count of tokens is no refusal: it must not make a case unscored."""

    async def behave(call: Call) -> Answer:
        body = json.loads(verdict(call).body)
        return reply(200, {**body, "usage": {"prompt_tokens": 10}})

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url), Rollout("The task.", "Done.", LONG))
    assert found.scored and len(server.calls) < 13


@pytest.mark.parametrize(
    "usage", [None, {}, [], "x", {"prompt_tokens": None}, {"prompt_tokens": True}, {"prompt_tokens": "12"}]
)
def test_a_server_that_counts_nothing_is_believed(usage: Any) -> None:
    async def behave(call: Call) -> Answer:
        return reply(200, {**json.loads(verdict(call).body), "usage": usage})

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url), Rollout("The task.", "Done.", LONG))
    assert found.scored and len(server.calls) == 1


# ── refusals name the flag that helps ──

SCHEMA_OFF = "set --confession.judge_schema off"
COMPLETION = """add --confession.judge_body '{"max_completion_tokens": 2048}'"""
NO_SYSTEM = "without its [user] line"
LOWER = "lower --confession.judge_max_tokens (now 2048)"
EXTRA_FIELD = {"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}
PLAIN_HTTP = b"<html><center>The plain HTTP request was sent to HTTPS port</center></html>"
BODY_FIELD = "change or drop temperature in --confession.judge_body"
REFUSALS: list[tuple[str, Answer, str]] = [
    ("DeepSeek", error(400, "This response_format type is unavailable now"), SCHEMA_OFF),
    ("DeepSeek, 422", error(422, "Failed to deserialize: response_format.type is unavailable"), SCHEMA_OFF),
    ("llama.cpp", error(400, "Failed to initialize samplers: failed to parse grammar"), SCHEMA_OFF),
    ("LM Studio", reply(400, {"error": "'response_format.type' must be 'json_schema' or 'text'"}), SCHEMA_OFF),
    ("vLLM", error(400, "The request enabled structured outputs, but no backend is available"), SCHEMA_OFF),
    ("SGLang", error(500, "Grammar backend xgrammar is not enabled"), SCHEMA_OFF),
    ("Azure", error(400, "'max_tokens' is not supported. Use 'max_completion_tokens' instead."), COMPLETION),
    ("FastAPI", reply(422, {"detail": [{**EXTRA_FIELD, "input": 5}]}), COMPLETION),
    ("OpenAI", error(400, "max_tokens is too large: 2048. It supports at most 1024 completion tokens."), LOWER),
    ("Gemma", reply(400, {"object": "error", "message": "System role not supported", "code": 400}), NO_SYSTEM),
    ("a template", error(500, "jinja2 raise_exception: Conversation roles must alternate user/assistant"), NO_SYSTEM),
    ("Gemini", error(400, "Developer instruction is not enabled for models/gemma-3"), NO_SYSTEM),
    ("OpenAI", error(400, "Unsupported value: 'temperature' does not support 0. Only 1 is supported."), BODY_FIELD),
    ("nginx", Answer(PLAIN_HTTP, 400), "the server speaks https://"),
]


@pytest.mark.parametrize(("name", "answer", "helps"), REFUSALS, ids=[f"{row[0]}: {row[2][:30]}" for row in REFUSALS])
def test_a_refusal_names_the_flag_that_helps(name: str, answer: Answer, helps: str) -> None:
    async def behave(call: Call) -> Answer:
        return answer

    with JudgeServer(behave) as server:
        settings = {"judge_body": '{"temperature": 0}'}
        (found,) = ask(judge_at(server.url, **settings))
        assert not found.scored and found.detail.endswith(helps if helps != NO_SYSTEM else "goes in one user turn")
        assert helps in found.detail
        assert helps in probed(server.url, **settings) and "fix the judge" not in probed(server.url, **settings)


def test_the_flags_that_are_named_do_help() -> None:
    """A server that refuses all three takes a request made by the advice."""

    async def behave(call: Call) -> Answer:
        body = call.body
        if "response_format" in body:
            return error(400, "This response_format type is unavailable now")
        if "max_tokens" in body:
            return error(400, "'max_tokens' is not supported. Use 'max_completion_tokens' instead.")
        return verdict(call)

    with JudgeServer(behave) as server:
        settings = {"judge_schema": "off", "judge_body": '{"max_completion_tokens": 99}'}
        (found,) = ask(judge_at(server.url, **settings))
    assert found.scored and server.calls[0].body["max_completion_tokens"] == 99


def test_a_verdict_that_stands_in_the_reasoning_is_no_verdict_and_says_so() -> None:
    async def behave(call: Call) -> Answer:
        own = json.loads(json.loads(verdict(call).body)["choices"][0]["message"]["content"])
        return says(None, reasoning_content=json.dumps(own))

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url))
    assert found.unscored == "unparsable" and "reasoning_content" in found.detail
    assert """--confession.judge_body '{"chat_template_kwargs": {"enable_thinking": false}}'""" in found.detail


@pytest.mark.parametrize(
    ("code", "reason"), [(502, "http_5xx"), (429, "rate_limited"), (403, "auth"), ("server_error", "bad_response")]
)
@pytest.mark.parametrize("place", ["choice", "top", "beside"])
def test_an_upstream_error_in_a_200_is_told_in_its_own_words(code: Any, reason: str, place: str) -> None:
    told = {"code": code, "message": "Upstream is out of GPUs"}
    choice = {"index": 0, "finish_reason": "error", "message": {"role": "assistant", "content": ""}, "error": told}
    body = {
        "choice": {"choices": [choice]},
        "top": {"error": told, "user_id": "x"},
        "beside": {"choices": [], "error": told},
    }[place]

    async def behave(call: Call) -> Answer:
        return reply(200, body)

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url))
    assert found.unscored == reason and "Upstream is out of GPUs" in found.detail


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_names_the_base_url_to_give(status: int) -> None:
    """A POST that becomes a GET reaches a page; one that is kept works, or fails there by name."""

    async def elsewhere(call: Call) -> Answer:
        return Answer(b"<html>Sign in</html>", 200, {"Content-Type": "text/html"})

    with JudgeServer(elsewhere) as target:

        async def behave(call: Call) -> Answer:
            return Answer(b"", status, {"Location": f"{target.url}/chat/completions?session=abc"})

        with JudgeServer(behave) as server:
            (found,) = ask(judge_at(server.url))
    assert found.unscored == "bad_response" and f"it redirects to {target.url}: give that base URL" in found.detail
    assert "session" not in found.detail


@pytest.mark.parametrize("location", ["http://[", "ftp://x/", "http://a b/", "", "http://127.0.0.1:99999/", "/same"])
def test_no_redirect_ends_a_run(location: str) -> None:
    async def behave(call: Call) -> Answer:
        return Answer(b"", 307, {"Location": location})

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url))
    assert found.unscored in ("connection", "bad_response") and "\n" not in found.detail


@pytest.mark.parametrize("answer", [b"<html>It works!</html>", b'{"error": "Unexpected endpoint or method."}', b"ok"])
def test_a_base_url_without_v1_that_answers_200_is_named(answer: bytes) -> None:
    async def behave(call: Call) -> Answer:
        return verdict(call) if call.path.startswith("/v1/") else Answer(answer)

    with JudgeServer(behave) as server:
        text = probed(server.url.removesuffix("/v1"))
        assert "usually ending in /v1" in text
        assert ask(judge_at(f"{server.url}/chat/completions"))[0].scored, "the whole path is taken for the base URL"


# ── nothing escapes ──

MALFORMED = {
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "a long integer": b'{"choices": ' + b"9" * 6000 + b"}",
    "a long float": b'{"choices": 1e' + b"9" * 6000 + b"}",
    "deep error": b'{"error": ' + b"[" * 200_000,
    "deep within limits": b'{"error": ' + b"[" * 700 + b"]" * 700 + b"}",
    "deep refusal": b'{"choices": [{"message": {"refusal": ' + b"[" * 700 + b"]" * 700 + b"}}]}",
    "deep detail": b'{"detail": [{"loc": ' + b"[" * 900 + b"]" * 900 + b', "msg": {"a": 1}}]}',
    "an integer": b"7",
    "a string": b'"ok"',
    "choices of strings": b'{"choices": ["x"]}',
    "choices as object": b'{"choices": {"0": 1}}',
    "message as list": b'{"choices": [{"message": []}]}',
    "content as object": b'{"choices": [{"message": {"content": {"a": 1}}}]}',
    "content parts": b'{"choices": [{"message": {"content": [1, {"text": 5}, {"text": null}]}}]}',
    "error of all kinds": b'{"error": [[1], {"a": 1}]}',
    "error true": b'{"error": true}',
    "usage as text": b'{"choices": [{"message": {"content": "x"}}], "usage": "none"}',
    "finish reason": b'{"choices": [{"message": {"content": "x"}, "finish_reason": {"a": []}}]}',
    "half a character": b'{"choices": [{"message": {"content": "\\ud800"}}]}',
    "detail of FastAPI": b'{"detail": [{"loc": null}, {"loc": 5}, "x", null]}',
    "NaN": b'{"choices": NaN}',
    "a byte order mark": b'\xef\xbb\xbf{"choices": []}',
    "UTF-16": '{"choices": []}'.encode("utf-16"),
    "nothing": b"",
}


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("name", MALFORMED)
def test_no_malformed_reply_ends_a_run(name: str, status: int) -> None:
    async def behave(call: Call) -> Answer:
        return Answer(MALFORMED[name], status)

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url))
    expected = {200: ("bad_response", "unparsable", "refused"), 400: ("http_4xx",), 500: ("http_5xx",)}[status]
    assert found.unscored in expected
    assert re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,900}", found.detail)


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "nan"},
        {"Retry-After": "-5"},
        {"Retry-After": "1e999"},
        {"Retry-After": "Thu, 99 Foo 2030"},
        {"Retry-After-Ms": "x"},
        {"Content-Type": "text/html; charset=klingon"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "klingon"},
        {"X-Odd": "\xff\xfe"},
    ],
)
@pytest.mark.parametrize("status", [200, 429, 500])
def test_no_odd_header_ends_a_run(headers: dict[str, str], status: int) -> None:
    async def behave(call: Call) -> Answer:
        return Answer(b"not what it says", status, headers)

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url, judge_timeout=3.0))
    assert not found.scored
