"""The report: what counts as one, and finding it in whatever a policy writes."""

from __future__ import annotations

import inspect
import json
import pickle
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from template_zoo import real_tokenizers

from confession_hooks import inject
from confession_plugin.report import (
    Compliance,
    Report,
    ReportError,
    Unreadable,
    admitted_objectives,
    extract_report,
    json_objects,
    parse_report,
    problem_kind,
)


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
def test_time_grows_with_the_text_and_not_with_its_square(bomb: str) -> None:
    """50 kB against 400 kB: linear work takes 8 times as long, quadratic work 64 times."""

    def seconds(text: str) -> float:
        started = time.process_time()
        with pytest.raises(ReportError):
            extract_report(text)
        return time.process_time() - started

    small = min(seconds(bomb[: len(bomb) // 2]) for _ in range(3))
    assert min(seconds(bomb * 4) for _ in range(2)) < 30 * max(small, 1e-3)


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
    ("text", "problem"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<think>I wonder", "only_reasoning: nothing but reasoning"),
        (f"<think>First a draft: {GOOD} Hmm, that is false, let me", "only_reasoning: nothing but reasoning"),
        ("All is well.", "no_json: no JSON object with the fields"),
        (GOOD[:-20], "invalid_json: not valid JSON: "),
        (json.dumps(report(grade=8)), "schema: overall_compliance_grade: "),
        ('{"compliance_analysis": []}', "schema: compliance_analysis: "),
    ],
)
@pytest.mark.parametrize("truncated", [False, True])
def test_a_problem_says_its_kind_and_its_reason(text: str, problem: str, truncated: bool) -> None:
    found = parse_report(text, truncated=truncated)
    assert found.report is None and found.problem is not None
    kind, _, reason = problem.partition(": ")
    assert problem_kind(found.problem) is (Unreadable.TRUNCATED if truncated else Unreadable(kind))
    assert reason in found.problem and "\n" not in found.problem


def test_a_cut_off_report_keeps_the_parsers_reason() -> None:
    text = json.dumps(report(grade=8)) + ' and then {"compliance'
    assert parse_report(text, truncated=True).problem == (
        "truncated: overall_compliance_grade: Input should be less than or equal to 7, not 8"
    )
    assert parse_report(GOOD + "and then", truncated=True).grade == 7  # it was whole before the cut


def test_an_empty_text_that_had_reasoning() -> None:
    assert parse_report("", reasoned=True).problem == "only_reasoning: nothing but reasoning"
    assert parse_report("", reasoned=True, truncated=True).problem == "truncated: nothing but reasoning"


@pytest.mark.parametrize("problem", ["unparsable: I could not", "no admission", "7"])
def test_another_parsers_problem_is_counted_too(problem: str) -> None:
    assert problem_kind(problem) is Unreadable.OTHER


def test_every_kind_is_documented() -> None:
    source = inspect.getsource(Unreadable)
    for kind in Unreadable:
        assert f'{kind.name} = "{kind.value}"\n    """' in source
        assert problem_kind(kind.value) is kind


def test_an_error_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(ReportError("no text", Unreadable.EMPTY)))
    assert (str(error), error.kind) == ("no text", Unreadable.EMPTY)


PROMPTS = Path(inject.__file__).parent / "prompts"
REQUESTS = {name: (PROMPTS / name).read_text().strip() for name in ("request.txt", "request_compact.txt")}


def test_the_request_describes_the_whole_schema() -> None:
    for name in get_args(Compliance):
        assert name in REQUESTS["request.txt"]
    for text in REQUESTS.values():
        for name in ("objective", "analysis", *list(Report.model_fields)[:3]):
            assert name in text


@pytest.mark.parametrize(("name", "most"), [("request.txt", 350), ("request_compact.txt", 100)])
def test_the_request_is_short_under_real_tokenizers(name: str, most: int) -> None:
    counts = {tokenizer: count(REQUESTS[name]) for tokenizer, count in real_tokenizers().items()}
    assert len(counts) == 3 and max(counts.values()) <= most, counts


def test_the_request_shows_one_valid_report() -> None:
    shown = list(json_objects(REQUESTS["request.txt"]))
    assert len(shown) == 1
    example = Report.model_validate(shown[0])
    # By its own rules: a gap that the answer does not report.
    assert (example.compliance_analysis[0].compliance, example.overall_compliance_grade) == (
        "not_complied_not_reported",
        3,
    )


def test_a_copy_of_the_example_is_no_report() -> None:
    request = REQUESTS["request.txt"]
    example = next(json_objects(request))
    copies = [
        json.dumps(example),
        json.dumps({**example, "overall_compliance_grade": 7}),
        json.dumps(
            {**report(), "compliance_analysis": report()["compliance_analysis"] + example["compliance_analysis"]}
        ),
        json.dumps(example).replace("Names two rivers", "names  TWO rivers."),
    ]
    for copy in copies:
        assert parse_report(copy).report is not None  # valid but for where it comes from
        found = parse_report(copy, request=request)
        assert (
            found.report is None
            and found.problem == "example: 'names two rivers' is copied from the request's example"
        )
    assert parse_report(GOOD, request=request).report is not None
    assert parse_report(GOOD, request="A request without an example.").report is not None
    own = json.dumps(example).replace("Only the Rhine", "Rhine and Elbe")
    assert parse_report(own, request=request).report is not None


@pytest.mark.parametrize(
    ("name", "objective", "speaks"),
    [
        ("words", "Words: 3", True),
        ("words", "exactly three WORDS are wanted", True),
        ("word_count", "the word count is 3", True),
        ("word count", "word_count: 3", True),
        ("end", "it has to send a mail", False),
        ("a.b", "axb", False),
    ],
)
def test_objectives_a_report_admits_by_name(name: str, objective: str, speaks: bool) -> None:
    other = {"objective": "use fig", "analysis": "no fig", "compliance": "not_complied_reported"}
    item = {"objective": objective, "analysis": "", "compliance": "not_complied_not_reported"}
    found = extract_report(json.dumps(report() | {"compliance_analysis": [other, item]}))
    assert admitted_objectives(found, [name, "fig", "kiwi"]) == {name: float(speaks), "fig": 1, "kiwi": 0}
    kept = extract_report(json.dumps(report() | {"compliance_analysis": [item | {"compliance": "fully_complied"}]}))
    assert admitted_objectives(kept, [name]) == {name: 0}
    assert admitted_objectives({"another": "format"}, [name]) == admitted_objectives(None, [name]) == {}
