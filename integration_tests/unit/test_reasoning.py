"""Reasoning: found in every dialect, on token ids, and never shown."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from template_zoo import byte_tokenizer, ids_of, published, render, sentencepiece_tokenizer

from confession_plugin import Request
from confession_plugin.chat import request_token_ids
from confession_plugin.reasoning import (
    open_mark,
    opened_block,
    reasoning_spans,
    strip_reasoning,
    trailing_marks,
    visible_span,
    visible_text,
    visible_transcript,
)

HARMONY = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")
#: What opens and what ends the reasoning.
DIALECTS = {
    "think": ("<think>", "</think>"),
    "Think": ("<Think>", "</Think>"),
    "thinking": ("<thinking>", "</thinking>"),
    "thought": ("<thought>", "</thought>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
    "with a namespace": ("<seed:think>", "</seed:think>"),
    "with a suffix": ("<think:k7>", "</think:k7>"),
    "brackets": ("[THINK]", "[/THINK]"),
    "triangles": ("◁think▷", "◁/think▷"),
    "bars": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "bars in lower case": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "bars with a slash": ("<|think|>", "<|/think|>"),
    "bars, named behind": ("<|thought_start|>", "<|thought_end|>"),
    "wide bars": ("<｜begin_of_thinking｜>", "<｜end_of_thinking｜>"),
    "prefix and suffix": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "unused": ("<unused94>", "<unused95>"),
    "open and close": ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    "half a channel": ("<|channel>thought\n", "<channel|>"),
    "channels": HARMONY,
    "channels with a start": ("<|start|>assistant" + HARMONY[0], HARMONY[1]),
    "a call in between": (
        HARMONY[0],
        "<|end|><|start|>assistant<|channel|>analysis<|message|>more<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    ),
    "addressees": (" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
}
SPECIALS = sorted(
    {"<think>", "</think>", "[THINK]", "[/THINK]", "◁think▷", "◁/think▷", "<|START_THINKING|>", "<|END_THINKING|>"}
    | {"<|begin_of_thought|>", "<|end_of_thought|>", "<|inner_prefix|>", "<|inner_suffix|>", "<|open|>", "<|close|>"}
    | {"<|sep|>", "<|channel>", "<channel|>", "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>"}
    | {"<|eom|>", "<unused94>", "<unused95>", "<｜begin_of_thinking｜>", "<｜end_of_thinking｜>", "<seed:think>"}
    | {"</seed:think>"}
)
BARE = byte_tokenizer(None)
SPECIAL = byte_tokenizer(None, specials=SPECIALS)
each_dialect = pytest.mark.parametrize(("opening", "ending"), DIALECTS.values(), ids=DIALECTS)
each_tokenizer = pytest.mark.parametrize("tokenizer", [BARE, SPECIAL], ids=["words", "special tokens"])


@each_dialect
@each_tokenizer
def test_finished_reasoning_is_hidden(tokenizer: object, opening: str, ending: str) -> None:
    ids = ids_of(tokenizer, f"{opening}Three and four.{ending}It is 7.</s>")
    assert visible_text(tokenizer, ids) == "It is 7."
    assert strip_reasoning(f"{opening}Three and four.{ending}It is 7.") == "It is 7."


@each_dialect
@each_tokenizer
def test_unfinished_reasoning_is_hidden(tokenizer: object, opening: str, ending: str) -> None:
    assert visible_text(tokenizer, ids_of(tokenizer, f"{opening}Three and four: 7 {{}}")) == ""
    assert strip_reasoning(f"{opening}Three and four: 7 {{}}") == ""


@each_dialect
@each_tokenizer
def test_reasoning_that_the_prompt_opened(tokenizer: object, opening: str, ending: str) -> None:
    prompt = ids_of(tokenizer, f"3 + 4?</s>{opening}")
    assert opened_block(tokenizer, prompt) == opening.strip()
    for written, visible in ((f"Three and four.{ending}It is 7.</s>", "It is 7."), ("Three and four: 7 {}", "")):
        ids = ids_of(tokenizer, written)
        assert visible_text(tokenizer, ids, opened=True) == visible
        assert visible_span(tokenizer, prompt + ids, len(prompt)) == visible


@each_dialect
@each_tokenizer
def test_reasoning_that_the_prompt_closed(tokenizer: object, opening: str, ending: str) -> None:
    prompt = ids_of(tokenizer, f"3 + 4?</s>{opening}\n\n{ending}")
    assert opened_block(tokenizer, prompt) is None
    assert visible_span(tokenizer, prompt + ids_of(tokenizer, "It is 7.</s>"), len(prompt)) == "It is 7."


OTHERS = ("</seed:think>", "[/THINK]", "<|end_of_reasoning|>", "<channel|>", "<unused95>", "<think>", "[THINK]")


@each_dialect
def test_only_its_own_mark_ends_a_block(opening: str, ending: str) -> None:
    others = "a".join(other for other in OTHERS if other != ending)
    assert strip_reasoning(f"{opening}a{others}b{ending}c") == "c"
    assert strip_reasoning(f"{opening}a{others}b") == ""
    ids = ids_of(SPECIAL, f"3 + 4?</s>{opening}")
    if not opening.startswith(" "):  # an addressee alone is not known as the mark that it is
        assert visible_span(SPECIAL, ids + ids_of(SPECIAL, f"a{others}b{ending}c"), len(ids)) == "c"


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain", "plain"),
        ("  kept as it is\n", "  kept as it is\n"),
        ("a</think>b", "b"),
        ("a</think>b</think>c", "bc"),
        ("one <think>a</think> two <think>b</think> three", "one  two  three"),
        ("Here is my thought process: a Here is my response: b", "b"),
        ("Here's my thought process: a, without an end", ""),
        ("analysisWe have 3 and 4.assistantfinalIt is 7.", "It is 7."),
        ("analysisWe have 3 and 4.", ""),
        ("analysis of the poem", "analysis of the poem"),
        ("<|channel|>commentary to=f <|constrain|>json<|message|>{}<|call|>", "{}<|call|>"),
        ("<|channel|>final<|message|>7", "7"),
        ("<|start|>assistant", ""),
        ("<|im_start|>assistant", "<|im_start|>assistant"),
        ("i < 3 and [THINKING] and <b>think</b>", "i < 3 and [THINKING] and <b>think</b>"),
        ("<analysis>kept</analysis>", "<analysis>kept</analysis>"),
    ],
)
def test_texts_without_ids(text: str, visible: str) -> None:
    assert strip_reasoning(text) == visible


@given(st.lists(st.sampled_from(["<think>", "</think>", "[THINK]", "[/THINK]", "<|end|>", *HARMONY, "a", " "])))
def test_stripping_twice_changes_nothing_more(parts: list[str]) -> None:
    once = strip_reasoning("".join(parts))
    assert strip_reasoning(once) == once


@given(st.text())
def test_spans_are_in_order_and_inside_the_text(text: str) -> None:
    position = 0
    for start, end in reasoning_spans("<think>" + text + "</think>" + text):
        assert position <= start <= end <= 2 * len(text) + 15
        position = end


@given(st.text(alphabet=st.characters(exclude_characters="<[◁", exclude_categories=["Cs"])))
def test_a_text_without_marks_is_what_decoding_gives(text: str) -> None:
    if not text.startswith("analysis"):
        ids = [*ids_of(SPECIAL, text), SPECIAL.eos_token_id]
        assert visible_text(SPECIAL, ids) == SPECIAL.decode(ids, skip_special_tokens=True) == text


def test_the_end_of_an_unknown_dialect() -> None:
    ids = ids_of(BARE, "Three and four. ### Answer: 7</s>")
    assert visible_text(BARE, ids, end="### Answer:") == "7"
    assert visible_text(BARE, ids, end="### Reply:") == ""
    assert visible_text(BARE, ids_of(BARE, "x ### Answer: <think>y</think>7"), end="### Answer:") == "7"
    special = byte_tokenizer(None, specials=["<|reply|>"])
    assert visible_text(special, ids_of(special, "Three and four.<|reply|>7</s>"), end="<|reply|>") == "7"
    prompt = ids_of(special, "3 + 4?</s><|reply|>")
    assert visible_span(special, prompt + ids_of(special, "7"), len(prompt), end="<|reply|>") == "7"


def test_a_prompt_may_speak_of_marks() -> None:
    for prompt in (
        "Think between <think> and </think>.</s>",
        "Think in a <think> block.</s>assistant\n",
        "Open with <think>. 3 + 4? Answer: ",
    ):
        ids = ids_of(BARE, prompt)
        assert opened_block(BARE, ids) is None
        assert visible_span(BARE, ids + ids_of(BARE, "7"), len(ids)) == "7"
    assert opened_block(BARE, ids_of(BARE, "</s>assistant\n<think>\nOkay, ")) == "<think>"  # with a few words put in


def test_a_transcript_keeps_what_came_between() -> None:
    first, feedback, second = "<think>3, 4</think>7</s>", " No, <think> again.</s><think>\n", "12, 4?</think>16</s>"
    prompt = ids_of(SPECIAL, "3 + 4?</s>")
    parts = [ids_of(SPECIAL, part) for part in (first, feedback, second)]
    ids = prompt + parts[0] + parts[1] + parts[2]
    starts = [len(prompt), len(prompt) + len(parts[0]) + len(parts[1])]
    ranges = [(starts[0], starts[0] + len(parts[0])), (starts[1], len(ids))]
    assert visible_transcript(SPECIAL, ids, ranges) == "7 No,  again.\n16"
    assert visible_transcript(SPECIAL, ids, []) == ""


@pytest.mark.parametrize("legacy", [True, False])
def test_words_keep_their_blanks(legacy: bool) -> None:
    tokenizer = sentencepiece_tokenizer(None, legacy=legacy)
    ids = ids_of(tokenizer, "It was seven, I think.")
    assert visible_text(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True) == "It was seven, I think."


@pytest.mark.parametrize("name", [name for name, text in published().items() if "think" in text])
def test_a_confession_after_a_published_template(name: str) -> None:
    """The turn change and the reader agree on whether the confession starts inside a block."""
    tokenizer = byte_tokenizer(published()[name])
    answered = ids_of(tokenizer, render(tokenizer, ("user", "3 + 4?")) + "7")
    before = answered + request_token_ids(tokenizer, Request(text="Report."), answered, chat=True)
    opened = render(tokenizer, ("user", "3 + 4?")).endswith("<think>\n")
    assert (opened_block(tokenizer, before) is not None) == opened
    draft = ids_of(tokenizer, "First a draft: {} Hmm, that is false, let me")
    assert (visible_span(tokenizer, before + draft, len(before)) == "") == opened


BOMBS = {
    "openings": "<think>" * 30_000,
    "closings": "</think>" * 25_000,
    "pairs": "<think></think>" * 14_000,
    "brackets": "<" * 200_000,
    "square brackets": "[" * 200_000,
    "half tags": "<thinkthinkthinkthinkthinkthink" * 6_500,
    "bars": "<|" * 100_000,
    "starts": "<|start|>" * 22_000,
    "starts with words": ("<|start|>" + "a" * 199) * 1_000,
    "channels": "<|channel|>" * 18_000,
    "channels with blanks": ("<|channel|>" + " " * 199) * 950,
    "messages": "<|message|>" * 18_000,
    "opens": "<|open|>         " * 12_000,
    "phrases": "Here is my thought process:" * 7_500,
    "analyses": "analysisA" + "assistantfina" * 15_000,
    "blanks": " " * 200_000,
    "colons": "<a:" * 66_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_time_grows_with_the_text_and_not_with_its_square(bomb: str) -> None:
    """An eighth of 200 kB against the whole: a quadratic pattern takes 64 times as long, a linear one 8 times."""

    def seconds(text: str) -> float:
        started = time.process_time()
        strip_reasoning(text), open_mark(text), trailing_marks(text)
        return time.process_time() - started

    small = min(seconds(bomb[: len(bomb) // 8]) for _ in range(3))
    assert min(seconds(bomb) for _ in range(3)) < 30 * max(small, 1e-3)
