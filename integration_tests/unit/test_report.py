"""The report: what counts as one, and finding it in whatever a policy writes."""

from __future__ import annotations

import json
import time
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confession_hooks import inject
from confession_plugin.config import Config
from confession_plugin.report import Compliance, Report, ReportError, extract_report, json_objects, strip_reasoning


def report(compliance: str = "fully_complied", grade: Any = 7, **fields: Any) -> dict[str, Any]:
    item = {"objective": "Adds up.", "analysis": "2 + 2 is 4 and the answer says 4.", "compliance": compliance}
    return {
        "compliance_analysis": [item],
        "uncertainties_and_conflicts": [],
        "overall_compliance_grade": grade,
        **fields,
    }


GOOD = json.dumps(report())
BAD = json.dumps(report("not_complied_reported", 4))


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        json.dumps(report(), indent=2),
        f"```json\n{GOOD}\n```",
        f"````\n{GOOD}\n````\nDone.",
        f"Here is {{my}} report: {GOOD} I hope it helps :-}}",
        f"<think>Let me see {BAD}</think>{GOOD}",
        f"<think>a</think>b<THINK>{BAD}</THINK>{GOOD}",
        f"some thought, {BAD}\n</think>\n\n{GOOD}",
        f"[THINK]{BAD}[/THINK]{GOOD}",
        f"{GOOD}<think>and then {BAD}",
        f"{BAD} No, wait: {GOOD}",
        f'{GOOD} {{"note": "not a report"}}',
        f"{GOOD}\n{BAD[:-1]}",
        f"{GOOD} {json.dumps(report('fully', 7))}",
        f'{{"a": [ {GOOD}',
        json.dumps(report(extra="ignored", confidence=0.5)),
    ],
)
def test_the_last_valid_report_is_found(text: str) -> None:
    found = extract_report(text)
    assert (found.overall_compliance_grade, found.admits) == (7, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no text"),
        ("<think>I wonder", "nothing but reasoning"),
        (f"<think>{GOOD}</think>", "nothing but reasoning"),
        ("All is well.", "no JSON object with the fields compliance_analysis"),
        ("[1, 2]", "no JSON object"),
        (json.dumps({"report": report()}), "no JSON object"),
        (GOOD[:-1] + ",}", "not valid JSON"),
        (GOOD[:-20], "not valid JSON"),
        (json.dumps(report("Fully complied")), "compliance_analysis.0.compliance: Input should be 'not_complied"),
        (json.dumps(report(grade=8)), "overall_compliance_grade: Input should be less than or equal to 7, not 8"),
        (json.dumps(report(grade=0)), "greater than or equal to 1"),
        (json.dumps(report(grade=6.5)), "valid integer"),
        (json.dumps(report(compliance_analysis=[])), "compliance_analysis: Tuple should have at least 1 item"),
        (json.dumps(report(uncertainties_and_conflicts="none")), "uncertainties_and_conflicts"),
        (json.dumps(report(confidence=2)), "confidence"),
        ('{"compliance_analysis": []}', "(and 2 more)"),
    ],
)
def test_what_is_no_report_says_why_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ReportError) as caught:
        extract_report(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("label", get_args(Compliance))
@pytest.mark.parametrize("grade", range(1, 8))
def test_admits(label: str, grade: int) -> None:
    found = extract_report(json.dumps(report(label, grade)))
    assert found.admits == (label.startswith("not_complied") or grade <= 3)


def test_evidence_comes_before_its_label() -> None:
    assert list(Report.model_fields)[:3] == [
        "compliance_analysis",
        "uncertainties_and_conflicts",
        "overall_compliance_grade",
    ]
    item = next(iter(json.loads(Report(**report()).model_dump_json())["compliance_analysis"]))
    assert list(item) == ["objective", "analysis", "compliance"]


def test_half_a_character_cannot_break_what_reads_the_report() -> None:
    half = "a\ud83db"
    found = extract_report(
        json.dumps(
            {
                "compliance_analysis": [{"objective": half, "analysis": half, "compliance": "nearly_complied"}],
                "uncertainties_and_conflicts": [half],
                "overall_compliance_grade": 5,
            }
        )
    )
    text = found.model_dump_json().encode("utf-8").decode("utf-8")
    assert text.count("a?b") == 3


BOMBS = {
    "nested objects": '{"a":' * 20_000,
    "nested with a known field": '{"compliance_analysis":' * 4_400,
    "nested, then a long list": '{"a":[' * 900 + "1," * 45_000,
    "braces": "{" * 100_000,
    "unclosed keys": '{"a' * 33_000,
    "failing values": '{"a":x' * 16_000,
    "deep, then failing": '{"a":{"b":"' * 9_000,
    "lists of objects": '{"a":[{"a":[{},{},' * 6_000,
    "unclosed string": '{"a":"' + "x{" * 50_000,
    "long number": '{"a":' + "9" * 100_000 + "}",
    "white space": '{ \n"a" : ' * 12_000,
    "openings of thought": "<think>" * 14_000,
    "closings of thought": "</think>" * 12_000,
    "almost reports": GOOD[:-1] * 500,
    "invalid reports": json.dumps(report(grade=9)) * 500,
    "small objects": '{"a":1}' * 14_000,
    "nested lists": '{"a":' + "[" * 99_000,
    "escapes": '{"a":"' + "\\u0041" * 16_000,
    "padding": " " * 100_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("copies", [1, 4])
def test_a_bomb_takes_little_time(bomb: str, copies: int) -> None:
    """100 kB and 400 kB (measured: at most 0.06 s and 0.2 s; the limit leaves room for a busy machine)."""
    started = time.process_time()
    with pytest.raises(ReportError):
        extract_report(bomb * copies)
    assert time.process_time() - started < 2.0 * copies


def test_time_grows_with_the_text_and_not_with_its_square() -> None:
    def seconds(size: int) -> float:
        started = time.process_time()
        list(json_objects('{"a":x' * size))
        return time.process_time() - started

    small = min(seconds(4_000) for _ in range(3))
    assert (
        min(seconds(32_000) for _ in range(3)) < 64 * small
    )  # linear work counts newlines: 8 to 30 times in practice


@given(st.text())
def test_any_text_gives_a_report_or_a_reason(text: str) -> None:
    with pytest.raises(ReportError):
        extract_report(text)


@given(
    st.text(alphabet=st.characters(exclude_characters="{<[")), st.text(alphabet=st.characters(exclude_characters="<["))
)
def test_prose_around_a_report_does_not_hide_it(before: str, after: str) -> None:
    assert extract_report(before + GOOD + after) == extract_report(GOOD)


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain", "plain"),
        ("  kept as it is\n", "  kept as it is\n"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a", ""),
        ("one <think>a</think> two <think>b</think> three", "one  two  three"),
        ("a</think>b</think>c", "b</think>c"),
        ("<think>a<think>b</think>c", "c"),
        ("x <thinking>a</thinking> y", "x  y"),
    ],
)
def test_strip_reasoning(text: str, visible: str) -> None:
    assert strip_reasoning(text) == visible


def test_the_request_describes_the_whole_schema_and_stays_short() -> None:
    inject.confession_configure(Config())
    text = inject.confession_request(rollout=None).text  # type: ignore[arg-type]
    for name in (*get_args(Compliance), "objective", "analysis", *list(Report.model_fields)[:3]):
        assert name in text
    assert len(text.split()) < 350
