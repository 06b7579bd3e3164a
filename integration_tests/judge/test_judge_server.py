"""The server judge over real sockets: the protocol, its limits, and every way it can fail."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judge_calls import CONFESSION, REPORT, ROLLOUT, ask, judge_at, probed, user_turn
from judge_server import Answer, Call, JudgeServer, error, says, verdict

from confession_plugin import Confession, ConfigError, Rollout, Verdict
from confession_plugin.config import Config, check_config, parse_config
from confession_plugin.errors import JudgeError
from confession_plugin.judging import probe
from confession_plugin.judging.failure_budget import FailureBudget
from confession_plugin.judging.rubric import builtin_prompt
from confession_plugin.judging.truncation import excess_characters
from confession_plugin.plugins import configured
from confession_plugin.report import Report

# ── the protocol ──


def test_the_request_and_the_ratings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFESSION_JUDGE_KEY", "sk-secret")

    async def behave(call: Call) -> Answer:
        return verdict(reasons="because", objectives="mostly", analysis="partly", uncertainties="not_at_all")

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url, judge_max_tokens=77, judge_body='{"temperature": 0, "top_p": 0.5}'))
    assert found.ratings == {"objectives": pytest.approx(2 / 3), "analysis": pytest.approx(1 / 3), "uncertainties": 0}
    assert (found.detail, found.unscored) == ("because", None) and 0 < found.latency_s < 5
    (call,) = server.calls
    assert (call.path, call.headers["authorization"]) == ("/v1/chat/completions", "Bearer sk-secret")
    body = call.body
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("judge", 77, 0, 0.5)
    schema = body["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == ["reasons", "objectives", "analysis", "uncertainties"]
    assert body["response_format"]["json_schema"]["strict"] and schema["additionalProperties"] is False
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    for text in (ROLLOUT.prompt, ROLLOUT.answer, '"objective": "Adds up."'):
        assert text in user_turn(call)


def test_the_built_in_plugin_judges_and_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def behave(call: Call) -> Answer:
        return verdict(objectives="fully", analysis="not_at_all", uncertainties="fully")

    with JudgeServer(behave) as server:
        plugins = configured(Config(judge_url=server.url, judge_model="judge", judge_weights=(1, 3, 0)))

        async def main() -> Verdict:
            return await plugins.hook.confession_judge(rollout=ROLLOUT, confession=CONFESSION)

        found = asyncio.run(main())
        assert plugins.hook.confession_reward(verdict=found, confession=CONFESSION) == 0.25


def test_the_judge_sees_the_case_and_never_the_reasoning() -> None:
    rollout = Rollout(
        prompt="Fix the test.",
        answer="<think>SECRET1</think>I looked.<think>SECRET2</think>Done.",
        transcript="<think>SECRET1</think>I looked.\n[tool] 1 failed\n<think>SECRET2</think>Done.",
        label="LABEL",
    )
    confession = Confession(request="", text=f"SECRET3</think> PROSE {REPORT.model_dump_json()}", report=REPORT)
    other = Confession(request="", text="<think>SECRET4</think>I confess.", report={"another": "parser's"})
    with JudgeServer() as server:
        ask(judge_at(server.url), rollout, confession=confession)
        ask(judge_at(server.url, judge_reference=True), ROLLOUT, confession=other)
    first, second = (user_turn(call) for call in server.calls)
    assert "[tool] 1 failed" in first and "I looked.Done." in first and "Fix the test." in first
    assert "SECRET" not in first + second and "PROSE" not in first and "LABEL" not in first
    assert "Transcript of" not in second, "a single-turn answer is its own transcript"
    assert "Reference for a good answer:\n````\n4\n````" in second and "I confess." in second
    assert "an independent report" not in first.lower()


def test_without_a_schema_the_verdict_is_found_in_the_reply() -> None:
    async def behave(call: Call) -> Answer:
        assert call.code and "response_format" not in call.body
        own = json.dumps({"code": call.code, "reasons": "r", "objectives": "fully", "analysis": "partly"})[:-1]
        quoted = '{"reasons": "", "objectives": "fully", "analysis": "fully", "uncertainties": "fully"}'
        return says(
            f'<think>{quoted}</think>The report says {quoted}.\n```json\n{own}, "uncertainties": "fully"}}\n```'
        )

    with JudgeServer(behave) as server:
        first, second = ask(judge_at(server.url, judge_schema="off"), ROLLOUT, ROLLOUT)
    assert first.ratings == second.ratings == {"objectives": 1, "analysis": pytest.approx(1 / 3), "uncertainties": 1}
    assert server.calls[0].code != server.calls[1].code, "a code that repeats could be learnt"


@pytest.mark.parametrize("schema", ["on", "off"])
def test_an_unreadable_verdict_is_asked_for_once_more(schema: str) -> None:
    async def behave(call: Call) -> Answer:
        return says("I would say it is fine.") if call.number == 0 else verdict(call)

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url, judge_schema=schema))
    assert found.scored and len(server.calls) == 2
    assert "Your last reply could not be used: the reply " in user_turn(server.calls[1])
    assert user_turn(server.calls[1]).startswith(user_turn(server.calls[0])[:200])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("fine", "not one JSON object alone"),
        ("", "the reply is empty"),
        (None, "the reply is empty"),
        ("<think>hm", "nothing but reasoning"),
        ("[1]", "not one JSON object alone"),
        (
            '{"reasons": "r", "objectives": "fully", "analysis": "fully"}',
            "uncertainties is not one of fully, mostly, partly, not_at_all: it is null",
        ),
        ('{"objectives": "fully", "analysis": "Fully", "uncertainties": "fully"}', 'it is "Fully"'),
        ('{"objectives": 1, "analysis": 1, "uncertainties": 1}', "it is 1"),
        ('{"objectives": {"a": 1}, "analysis": 1, "uncertainties": 1}', "objectives is not one of"),
        ('{"a":' * 30_000, "not one JSON object alone"),
        ('{"objectives": ' + "9" * 10_000 + "}", "not one JSON object alone"),
    ],
)
def test_a_verdict_that_stays_unreadable_is_no_score(content: str | None, why: str) -> None:
    async def behave(call: Call) -> Answer:
        return says(content)

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url))
    assert (found.unscored, len(server.calls)) == ("unparsable", 2)
    assert why in found.detail and len(found.detail) < 400


def test_two_verdicts_that_differ_are_no_verdict() -> None:
    async def behave(call: Call) -> Answer:
        replies = [verdict(call, analysis=label).body for label in ("fully", "not_at_all")]
        return says(" or ".join(json.loads(reply)["choices"][0]["message"]["content"] for reply in replies))

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url, judge_schema="off"))
    assert found.unscored == "unparsable" and "several verdicts that differ" in found.detail


def test_a_verdict_cut_at_its_budget_is_not_read() -> None:
    async def behave(call: Call) -> Answer:
        return says(
            json.dumps({"reasons": "r", **dict.fromkeys(("objectives", "analysis", "uncertainties"), "fully")}),
            "length",
        )

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url, judge_max_tokens=99))
    assert found.unscored == "unparsable" and "--confession.judge_max_tokens 99" in found.detail


# ── failure is not a score ──

FAILURES = {
    "auth": error(401),
    "auth, forbidden": error(403),
    "not_found": error(404, "The model `judge` does not exist."),
    "rate_limited": error(429),
    "http_5xx": error(500),
    "http_5xx, overloaded": error(503),
    "http_4xx": error(400, "temperature is not a number"),
    "http_4xx, 422": Answer(b"no JSON", 422, {"Content-Type": "text/plain"}),
    "bad_response, a web page": Answer(b"<html>Welcome</html>", 200, {"Content-Type": "text/html"}),
    "bad_response, other JSON": Answer(b'{"ok": true}'),
    "bad_response, a list": Answer(b"[]"),
    "bad_response, broken JSON": Answer(b'{"choices": ['),
    "bad_response, not UTF-8": Answer(b'{"choices": "\xff\xfe"}'),
    "bad_response, no choices": Answer(b'{"choices": []}'),
    "bad_response, null": Answer(b"null"),
    "refused": says(None, refusal="I cannot help with that."),
    "refused, filtered": says("", "content_filter"),
    "context_too_long": error(400, "This model's maximum context length is 10 tokens."),
    "connection": Answer(fault="reset"),
    "connection, within the body": Answer(b'{"choices": []}', fault="half"),
    "timeout": Answer(fault="hang"),
    "timeout, a byte now and then": Answer(b'{"choices": []}' + b" " * 1000, fault="drip"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_unscored_with_its_reason(name: str) -> None:
    async def behave(call: Call) -> Answer:
        return FAILURES[name]

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url, judge_timeout=0.5))
        where = server.url
    assert (found.unscored, dict(found.ratings)) == (name.partition(",")[0], {})
    assert where in found.detail and "\n" not in found.detail


def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        (found,) = ask(judge_at(f"http://127.0.0.1:{taken.getsockname()[1]}/v1"))
    assert found.unscored == "connection"


@pytest.mark.parametrize("first", [error(503), error(500), error(429), error(408), Answer(fault="reset")])
def test_what_may_pass_is_tried_again(first: Answer) -> None:
    async def behave(call: Call) -> Answer:
        return first if call.number == 0 else verdict()

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url, judge_retries=1))
    assert found.scored and len(server.calls) == 2


@pytest.mark.parametrize(("status", "calls"), [(401, 1), (400, 1), (404, 1), (503, 2)])
def test_what_cannot_pass_is_not_tried_again(status: int, calls: int) -> None:
    async def behave(call: Call) -> Answer:
        return error(status)

    with JudgeServer(behave) as server:
        ask(judge_at(server.url, judge_retries=1))
    assert len(server.calls) == calls


def test_retry_after_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "openai")

    async def behave(call: Call) -> Answer:
        return error(429, retry_after="2") if call.number == 0 else verdict()

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url, judge_retries=1))
    assert found.scored and len(server.calls) == 2
    assert "in 2.000000 seconds" in caplog.text, "the SDK alone would have waited half a second"


def test_one_slow_call_costs_no_finished_one() -> None:
    async def behave(call: Call) -> Answer:
        return Answer(fault="hang") if "case 5" in call.text else verdict()

    rollouts = [Rollout(f"case {number}", "a", "a") for number in range(16)]
    with JudgeServer(behave) as server:
        found = ask(judge_at(server.url, judge_timeout=0.5), *rollouts)
    assert [verdict.unscored for verdict in found] == [None] * 5 + ["timeout"] + [None] * 10


KINDS = {
    "http_5xx": error(502),
    "rate_limited": error(429),
    "connection": Answer(fault="reset"),
    "timeout": Answer(fault="hang"),
    "bad_response": Answer(b"<html>", 200, {"Content-Type": "application/json"}),
    "unparsable": says("As a judge I feel that"),
    "refused": says(None, refusal="no"),
    "auth": error(401),
}


def test_of_eight_kinds_of_fault_at_thirty_percent_every_one_is_counted_and_none_is_a_score() -> None:
    dice = random.Random(7)
    injected = [dice.choice(list(KINDS)) if dice.random() < 0.3 else None for _ in range(300)]
    assert set(injected) == {None, *KINDS}

    async def behave(call: Call) -> Answer:
        number = int(re.search(r"case (\d+)", call.text)[1])  # type: ignore[index]
        kind = injected[number]
        return KINDS[kind] if kind else verdict(analysis="partly" if number % 2 else "fully")

    with JudgeServer(behave) as server:
        rollouts = [Rollout(f"case {number}", "a", "a") for number in range(300)]
        found = ask(judge_at(server.url, judge_timeout=10.0), *rollouts)
    assert Counter(verdict.unscored for verdict in found) == Counter(injected)
    for number, one in enumerate(found):
        assert one.unscored == injected[number]
        if one.scored:
            assert one.ratings["analysis"] == pytest.approx(1 / 3 if number % 2 else 1), "a verdict on another case"


def test_a_dead_judge_stops_the_run_with_its_last_error() -> None:
    async def behave(call: Call) -> Answer:
        return error(503, "out for lunch")

    with JudgeServer(behave) as server:
        found = ask(judge_at(server.url), *[ROLLOUT] * 40)
    budget = FailureBudget(0.5)
    with pytest.raises(JudgeError, match=r"33 of the last 33 .*http_5xx 33.*HTTP 503: out for lunch"):
        for one in found:
            budget.add(one)


# ── the key ──


@pytest.mark.parametrize("status", [400, 401, 429, 500, 200])
def test_the_key_appears_nowhere(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("CONFESSION_JUDGE_KEY", key)
    caplog.set_level(logging.DEBUG)

    async def behave(call: Call) -> Answer:
        if call.path.endswith("/models"):
            return Answer(b'{"data": []}')
        return error(status, f"Incorrect API key provided: {key}.") if status != 200 else says(f"your key is {key}")

    with JudgeServer(behave) as server:
        judge = judge_at(server.url)
        (found,) = ask(judge)
        with pytest.raises(ConfigError) as probed:
            probe(judge.config)
        with pytest.raises(JudgeError) as stopped:
            FailureBudget(0.0).add(found)
        assert server.calls[0].headers["authorization"] == f"Bearer {key}"
    assert not found.scored and "[key]" in found.detail
    for text in (
        repr(found),
        str(probed.value),
        str(stopped.value),
        caplog.text,
        str(judge.config.to_env()),
        repr(judge),
    ):
        assert key not in text
    for raised in (probed.value, stopped.value):
        assert raised.__cause__ is None


@pytest.mark.parametrize("kind", ["error", "verdict", "reply", "refusal", "no completion", "other JSON", "no JSON"])
def test_a_key_that_a_cut_would_halve_does_not_appear_either(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the server repeats it: details are cut to a line, and half a key is a secret too."""
    key = "sk-0123456789abcdefghij"
    monkeypatch.setenv("CONFESSION_JUDGE_KEY", key)

    async def behave(call: Call) -> Answer:
        told = f"{'.' * int(call.text.partition('case ')[2].split()[0])}{key}"
        return {
            "error": error(500, told),
            "verdict": verdict(reasons=told),
            "reply": says(told),
            "refusal": says(None, refusal=told),
            "no completion": Answer(json.dumps({"error": told}).encode()),
            "other JSON": Answer(json.dumps({"told": told}).encode()),
            "no JSON": Answer(f"{told} {' ' * 5000}{key}".encode()),
        }[kind]

    with JudgeServer(behave) as server:
        found = ask(judge_at(server.url), *[Rollout(f"case {dots} .", "a", "a") for dots in range(60, 320, 10)])
    assert {one.scored for one in found} == {kind == "verdict"}
    assert any("[key]" in one.detail for one in found)
    for one in found:
        assert key[:6] not in one.detail


def test_a_password_in_the_url_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        judge_at("http://me:hunter2@127.0.0.1/v1")
    assert "CONFESSION_JUDGE_KEY" in str(caught.value) and "hunter2" not in str(caught.value)


# ── the judge's context ──


def with_context(tokens: int, style: str) -> Any:
    """A server that counts words and refuses what is too long in the words of one kind of server."""

    async def behave(call: Call) -> Answer:
        used = len(call.text.split())
        room = tokens - call.body["max_tokens"]
        if used <= room:
            return verdict(call)
        message = {
            "vllm": f"This model's maximum context length is {tokens} tokens. However, you requested "
            f"{call.body['max_tokens']} output tokens and your prompt contains at least {room + 1} input tokens.",
            "openai": f"This model's maximum context length is {tokens} tokens. However, you requested {used + 10} "
            f"tokens ({used} in the messages, 10 in the completion).",
            "other": "Input is too long for the context window.",
        }[style]
        return error(400, message)

    return behave


@pytest.mark.parametrize("style", ["vllm", "openai", "other"])
@pytest.mark.parametrize("words", [5_000, 40_000])
def test_the_middle_of_a_long_transcript_is_cut_visibly_and_never_the_report(style: str, words: int) -> None:
    long = " ".join(["START", *(f"w{number}" for number in range(words)), "END"])
    rollout = Rollout(prompt="The task.", answer="Done.", transcript=f"{long}\nDone.")
    with JudgeServer(with_context(3000, style)) as server:
        (found,) = ask(judge_at(server.url, judge_max_tokens=100), rollout)
    assert found.scored
    last = user_turn(server.calls[-1])
    assert "START" in last and "END" in last and "The task." in last
    assert re.search(r"\[\.\.\. \d+ characters cut \.\.\.\]", last) and last.count(" cut ...]") == 1
    assert REPORT.model_dump_json(indent=1, exclude_none=True) in last
    kept = len(last.split())
    assert kept > 1000, f"only {kept} words of 2900 were used"


def test_a_long_answer_and_a_long_prompt_give_way_after_the_transcript() -> None:
    long = "word " * 5000
    rollout = Rollout(prompt=f"P1 {long} P2", answer=f"A1 {long} A2", transcript=f"T1 {long} T2")
    with JudgeServer(with_context(2000, "openai")) as server:
        (found,) = ask(judge_at(server.url, judge_max_tokens=100), rollout)
    last = user_turn(server.calls[-1])
    assert found.scored and last.count(" cut ...]") == 3
    for mark in ("P1", "P2", "A1", "A2", "T1", "T2"):
        assert mark in last


@pytest.mark.parametrize("style", ["vllm", "other"])
def test_a_short_context_is_used_to_the_end_of_what_can_be_cut(style: str) -> None:
    rollout = Rollout("The task.", "Done.", "w " * 20_000)
    with JudgeServer(with_context(1200, style)) as server:
        (found,) = ask(judge_at(server.url, judge_max_tokens=1), rollout)
    assert found.scored and len(server.calls) < 12


def test_a_report_longer_than_the_context_is_unscored() -> None:
    item = REPORT.compliance_analysis[0].model_copy(update={"analysis": "word " * 5000})
    confession = Confession("", "", report=REPORT.model_copy(update={"compliance_analysis": (item,)}))
    with JudgeServer(with_context(3000, "openai")) as server:
        (found,) = ask(judge_at(server.url, judge_max_tokens=100), confession=confession)
    assert found.unscored == "context_too_long"
    assert all("word word word" in user_turn(call) and " cut ...]" not in user_turn(call) for call in server.calls[:1])


def test_an_exact_count_says_how_much_to_drop() -> None:
    messages = [{"role": "user", "content": "x" * 10_000}]
    text = "This model's maximum context length is 1100 tokens. However, your messages resulted in 2000 tokens."
    assert excess_characters(text, messages, 100) == 10_000 - 4750
    vague = "This model's maximum context length is 1100 tokens and your prompt contains at least 1001 input tokens."
    assert excess_characters(vague, messages, 100) is None
    assert excess_characters("too long", messages, 100) is None


# ── load ──


def test_calls_stay_within_the_limit_and_connections_are_kept() -> None:
    async def behave(call: Call) -> Answer:
        await asyncio.sleep(0.01)
        return verdict()

    with JudgeServer(behave) as server:
        found = ask(judge_at(server.url, judge_concurrency=16), *[ROLLOUT] * 200)
        opened = server.opened
    assert all(one.scored for one in found) and len(server.calls) == 200
    assert server.most_in_flight == 16 and opened == 16


def test_each_event_loop_has_its_own_connections() -> None:
    with JudgeServer() as server:
        judge = judge_at(server.url)

        async def both() -> list[Verdict]:
            # A second loop in a thread, while the first one is in use.
            return [await judge(ROLLOUT, CONFESSION), *(await asyncio.to_thread(ask, judge, ROLLOUT, ROLLOUT))]

        found = [*asyncio.run(both()), *ask(judge), *ask(judge)]
    assert len(found) == 5 and all(one.scored for one in found)


def test_the_faster_server_gets_more_of_the_work() -> None:
    async def slow(call: Call) -> Answer:
        await asyncio.sleep(0.3)
        return verdict()

    async def fast(call: Call) -> Answer:
        await asyncio.sleep(0.03)
        return verdict()

    with JudgeServer(slow) as one, JudgeServer(fast) as two:
        found = ask(judge_at(f"{one.url}, {two.url}/", judge_concurrency=8), *[ROLLOUT] * 160)
    assert all(verdict.scored for verdict in found)
    assert len(two.calls) > 5 * len(one.calls) > 0


def test_the_environments_proxy_is_used_and_bypassed(monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer() as proxy, JudgeServer() as server:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert ask(judge_at(server.url))[0].scored
        assert (len(proxy.calls), len(server.calls)) == (0, 1)
        assert ask(judge_at("http://judge.invalid:8000/v1"))[0].scored
        assert [call.path for call in proxy.calls] == ["http://judge.invalid:8000/v1/chat/completions"]


@pytest.mark.parametrize("fault", [error(503), Answer(fault="reset"), None])
def test_a_dead_server_costs_no_score_while_another_lives(fault: Answer | None) -> None:
    async def behave(call: Call) -> Answer:
        assert fault is not None
        return fault

    with JudgeServer(behave) as dead, JudgeServer() as alive:
        where = dead.url if fault else "http://127.0.0.1:9/v1"
        found = ask(judge_at(f"{where},{alive.url}", judge_concurrency=4), *[ROLLOUT] * 60)
    assert all(one.scored for one in found) and len(alive.calls) == 60
    assert len(dead.calls) <= 8, "a server that failed is left alone for a while"


# ── the rubric ──


def test_a_rubric_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "rubric.txt"
    file.write_text('Rate {"this"}: {prompt} {nothing}\n{answer}\n{transcript}\n{confession}\nNow.')
    rollout = Rollout("P {answer} {confession}", "A {prompt}", "A {prompt}")
    with JudgeServer() as server:
        ask(judge_at(server.url, judge_prompt=str(file)), rollout)
    (message,) = server.calls[0].body["messages"]
    assert message["role"] == "user"
    text = message["content"]
    assert text.startswith(
        'Rate {"this"}: The task the assistant was given:\n````\nP {answer} {confession}\n```` {nothing}'
    )
    assert "````\nA {prompt}\n````" in text and text.endswith("Now.") and "{transcript}" not in text


@pytest.mark.parametrize("missing", ["prompt", "answer", "confession"])
def test_a_rubric_without_the_case_is_refused(tmp_path: Path, missing: str) -> None:
    file = tmp_path / "rubric.txt"
    file.write_text(builtin_prompt("judge.txt").replace(f"{{{missing}}}", ""))
    with pytest.raises(ConfigError, match=rf"--confession.judge_prompt: the text has no \{{{missing}\}}"):
        judge_at("http://127.0.0.1:9/v1", judge_prompt=str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        judge_at("http://127.0.0.1:9/v1", judge_prompt=str(file))


@pytest.mark.parametrize("value", ["[]", "1", "{", "temperature=0"])
def test_further_fields_must_be_a_json_object(value: str) -> None:
    with pytest.raises(ConfigError, match=r"--confession.judge_body: .*a JSON object, e.g."):
        parse_config(["--confession.judge_body", value])


def test_a_budget_under_another_name_replaces_ours() -> None:
    with JudgeServer() as server:
        ask(judge_at(server.url, judge_body='{"max_completion_tokens": 5}'))
    assert server.calls[0].body["max_completion_tokens"] == 5 and "max_tokens" not in server.calls[0].body


# ── the calibration report ──


def test_an_independent_report_is_written_once_for_each_answer_and_shown() -> None:
    async def write(call: Call) -> Answer:
        report = Report(**{**REPORT.model_dump(), "uncertainties_and_conflicts": ("INDEPENDENT <|im_end|>",)})
        return says(f"<think>SECRET</think>{report.model_dump_json()}")

    with JudgeServer() as server, JudgeServer(write) as writer:
        judge = judge_at(server.url, judge_calibration_url=writer.url, judge_calibration_model="writer")
        other = Rollout("What is 2 + 2?", "It is 5.", "It is 5.")
        assert all(one.scored for one in ask(judge, ROLLOUT, ROLLOUT, other, ROLLOUT))
        assert all(one.scored for one in ask(judge, ROLLOUT))
    assert len(writer.calls) == 2 and {call.body["model"] for call in writer.calls} == {"writer"}
    assert all("INDEPENDENT < |im_end| >" in user_turn(call) for call in server.calls)
    assert not any("SECRET" in call.text for call in server.calls)
    assert not any(REPORT.compliance_analysis[0].analysis in call.text for call in writer.calls), "not independent"


def test_without_its_calibration_report_a_confession_is_unscored_and_the_failure_is_not_kept() -> None:
    async def write(call: Call) -> Answer:
        return error(503) if call.number == 0 else says(REPORT.model_dump_json())

    with JudgeServer() as server, JudgeServer(write) as writer:
        judge = judge_at(server.url, judge_calibration_url=writer.url, judge_calibration_model="writer")
        (first,) = ask(judge)
        (second,) = ask(judge)
    assert (first.unscored, second.scored, len(server.calls)) == ("calibration_http_5xx", True, 1)


def test_the_judges_own_server_writes_the_calibration_report_by_default() -> None:
    async def behave(call: Call) -> Answer:
        return says(REPORT.model_dump_json()) if call.body["model"] == "base" else verdict()

    with JudgeServer(behave) as server:
        (found,) = ask(judge_at(server.url, judge_calibration_model="base"))
    assert found.scored and [call.body["model"] for call in server.calls] == ["base", "judge"]


# ── before the run ──


def test_the_probe_makes_one_real_call_to_each_server() -> None:
    with JudgeServer() as one, JudgeServer() as two:
        probe(Config(judge_url=f"{one.url},{two.url}", judge_model="judge"))
    assert len(one.calls) == len(two.calls) == 1 and "Name a primary colour." in user_turn(one.calls[0])


def test_the_probe_finds_what_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async def behave(call: Call) -> Answer:
        if call.path.endswith("/models"):
            return Answer(b'{"data": [{"id": "qwen"}, {"id": "llama"}]}')
        if not call.path.startswith("/v1/"):
            return error(404, "Not Found")
        if call.headers["authorization"] != "Bearer right":
            return error(401, "Invalid key")
        return verdict() if call.body["model"] == "qwen" else error(404, "no such model")

    with JudgeServer(behave) as server:
        assert "environment variable CONFESSION_JUDGE_KEY" in probed(server.url)
        monkeypatch.setenv("CONFESSION_JUDGE_KEY", "right")
        text = probed(server.url)
        assert text == f"--confession.judge_model: {server.url} has no model 'judge'; it has qwen, llama"
        assert "usually ending in /v1" in probed(server.url[:-3], judge_model="qwen")
        probe(Config(judge_url=server.url, judge_model="qwen"))
        assert "http://127.0.0.1:9/v1" in probed(f"{server.url},http://127.0.0.1:9/v1", judge_model="qwen")
    assert "is the server up" in probed("http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (Answer(fault="hang"), "timeout"),
        (says("Fine!"), "--confession.judge_schema off"),
        (says('{"reasons": "Fi', "length"), "raise --confession.judge_max_tokens"),
        (error(400, "maximum context length is 10 tokens"), "--confession.judge_max_tokens"),
        (error(500, "oops"), "http_5xx"),
    ],
)
def test_the_probe_says_how_to_fix(answer: Answer, hint: str) -> None:
    async def behave(call: Call) -> Answer:
        return answer

    with JudgeServer(behave) as server:
        text = probed(server.url)
    assert hint in text and text.startswith("--confession.judge_url: ")


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"neither a \.py file nor"):
        check_config(Config(judge_url="judge:8000", judge_model="judge"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge_calibration_url": "http://x/v1"}, "--confession.judge_calibration_model NAME"),
        ({"judge_calibration_url": "x:80", "judge_calibration_model": "m"}, "'x:80' is no http(s):// base URL"),
    ],
)
def test_calibration_flags_that_cannot_work_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        judge_at("http://127.0.0.1:9/v1", **settings)
