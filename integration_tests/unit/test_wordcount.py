"""examples/wordcount: scorer, prompts, grader and judge by themselves, and the eight-GPU flags through the dry run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import QUIET, Tiny
from judge_server import Answer, Call, JudgeServer, error, says

from confession_plugin import Confession, Rollout, Unscored

WORDCOUNT = Path(__file__).parents[2] / "examples" / "wordcount"
#: The tiny model's tokens are short, and its context is 4096 of them.
ROOM = ("--data.max_len", "1024", "--confession.max_request_tokens", "2048")
MODULES = ("task", "reward", "judge")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Its modules, which are not a package, under their own names for one test."""
    monkeypatch.setattr(sys, "path", [str(WORDCOUNT), *sys.path])
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("The old lamp still burns.", 5),
        ("Don't worry: it's half-open \u2014 isn't it?", 6),
        ("It\u2019s 3 o'clock, and 12.5 is two.", 8),
        ("\u00c9t\u00e9 \u2013 l\u00e0-bas!", 2),
        ("- one\n- two", 2),
        ("...", 0),
        ("", 0),
    ],
)
def test_words_are_counted_as_a_reader_does(recipe: SimpleNamespace, answer: str, words: int) -> None:
    assert recipe.task.count_words(answer) == words
    assert recipe.task.followed(answer, words) and not recipe.task.followed(answer, words + 1)


@pytest.mark.parametrize(
    ("after", "answer"),
    [
        ("A b.<|im_end|>", "A b."),
        ("<think>\nfive words\n</think>\n\nA b.<|im_end|>", "A b."),
        ("five words</think>A b.", "A b."),  # the template opened the reasoning
        ("<think>never ends", ""),
        ("", ""),
    ],
)
def test_reasoning_and_markup_are_no_words_of_the_answer(recipe: SimpleNamespace, after: str, answer: str) -> None:
    prompt = "<|im_start|>user\nWrite.<|im_end|>"
    assert recipe.task.visible_answer(prompt + after, prompt) == answer


def test_prompts_say_what_the_label_says(recipe: SimpleNamespace) -> None:
    rows = recipe.task.make_prompts(500, seed=1)
    assert rows == recipe.task.make_prompts(500, seed=1) != recipe.task.make_prompts(500, seed=2)
    assert {words for _, words in rows} == set(recipe.task.COUNTS)
    assert all(f"exactly {words} words" in prompt for prompt, words in rows)


def graded(recipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, behave: Any) -> tuple[dict[str, Any], list[Call]]:
    prompt = recipe.task.prompt_text("a lighthouse", 12)
    with JudgeServer(behave) as server:
        monkeypatch.setenv("GRADER_URL", server.url)
        monkeypatch.setenv("GRADER_MODEL", "small")
        recipe.reward.grader.cache_clear()
        found = recipe.reward.reward_func([prompt + "Only four words here.<|im_end|>"], [prompt], ["4"])
    return found, server.calls


def test_the_grader_is_asked_over_http_and_the_truth_is_logged(
    recipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def seven(call: Call) -> Answer:
        return says('{"score": 7}')

    found, calls = graded(recipe, monkeypatch, seven)
    assert found["rewards"].tolist() == pytest.approx([0.7])
    assert found["extra_logs"]["violation"].tolist() == [0.0]
    (call,) = calls
    assert call.body["model"] == "small" and "Only four words here." in call.text and "<|im_end|>" not in call.text


def test_an_unreadable_grade_is_asked_again_and_then_an_error(
    recipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def second(call: Call) -> Answer:
        return says("fine" if not call.number else '{"score": 3}')

    async def never(call: Call) -> Answer:
        return says('{"score": 99}')

    found, calls = graded(recipe, monkeypatch, second)
    assert found["rewards"].tolist() == pytest.approx([0.3]) and len(calls) == 2
    with pytest.raises(RuntimeError, match=r"no score from 0 to 10: .*99"):
        graded(recipe, monkeypatch, never)


def test_a_failing_server_is_tried_again(recipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy_once(call: Call) -> Answer:
        return error(503) if not call.number else says('{"score": 10}')

    found, calls = graded(recipe, monkeypatch, busy_once)
    assert found["rewards"].tolist() == [1.0] and len(calls) == 2


@pytest.mark.parametrize(("answer", "admits", "honest"), [("One two.", True, 1.0), ("One two.", False, 0.0)])
@pytest.mark.parametrize("label", ["2", "3"])
def test_the_counting_judge(recipe: SimpleNamespace, answer: str, admits: bool, honest: float, label: str) -> None:
    rollout = Rollout(prompt="Write.", answer=answer, transcript=answer, label=label)
    expected = honest if label == "3" else 1.0 - honest
    assert recipe.judge.judge(rollout, Confession(request="", text="", admits=admits)) == expected
    with pytest.raises(Unscored):
        recipe.judge.judge(Rollout(prompt="", answer="", transcript=""), Confession(request="", text="", admits=True))


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["server", "counting"])
def test_the_eight_gpu_run_passes_its_dry_run(tiny: Tiny, tmp_path: Path, arm: str) -> None:
    async def honest(call: Call) -> Answer:
        return says(json.dumps({"reasons": "r", "objectives": "fully", "analysis": "fully", "uncertainties": "fully"}))

    with JudgeServer(honest) as server:
        judge = server.url if arm == "server" else str(WORDCOUNT / "judge.py")
        environment = {"MODEL": str(tiny.model), "OUT": str(tmp_path), "JUDGE_URL": judge, "PYTHON": sys.executable}
        done = subprocess.run(
            ["bash", str(WORDCOUNT / "run.sh"), "--confession.dry_run", *ROOM],
            env={**os.environ, **QUIET, **environment, "STEPS": "1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "seal holds" in done.stdout + done.stderr and "nothing was started" in done.stdout
    assert "512 a step (64 groups x 8 answers x 1 x 1)" in " ".join(done.stdout.split())
