"""The turn change between an answer and its confession, on real tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import Tiny
from transformers import AutoTokenizer

from confession_plugin import Request
from confession_plugin.chat import request_token_ids, turn_change

REQUEST = Request(text="Report on your answer.\nBe honest.")


def load(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.fixture
def tokenizer(tiny: Tiny) -> Any:
    return load(tiny.model)


def test_a_finished_answer_keeps_its_one_end_of_turn_token(tokenizer: Any) -> None:
    answered = ids_of(tokenizer, "<|im_start|>assistant\n7<|im_end|>")
    ids = request_token_ids(tokenizer, REQUEST, answered, chat=True)
    joined = tokenizer.decode(answered + ids)
    assert joined == (
        "<|im_start|>assistant\n7<|im_end|>\n<|im_start|>system\nReport on your answer.\nBe honest.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert (answered + ids).count(tokenizer.eos_token_id) == 2  # the answer's and the request's


def test_a_truncated_answer_gets_its_turn_ending(tokenizer: Any) -> None:
    answered = ids_of(tokenizer, "<|im_start|>assistant\n1234")
    ids = request_token_ids(tokenizer, REQUEST, answered, chat=True)
    assert tokenizer.decode(answered + ids).startswith("<|im_start|>assistant\n1234<|im_end|>\n<|im_start|>system\n")


def test_a_base_models_end_token_ends_the_turn(tokenizer: Any) -> None:
    answered = ids_of(tokenizer, "<|im_start|>assistant\n7<|endoftext|>")
    ids = request_token_ids(tokenizer, REQUEST, answered, chat=True)
    assert tokenizer.decode(answered + ids).startswith("<|im_start|>assistant\n7<|endoftext|>\n<|im_start|>system\n")


def test_the_models_own_end_tokens_are_known(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.model, folder)
    written = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    written["eos_token_id"] = [written["eos_token_id"], ord("!")]
    (folder / "generation_config.json").write_text(json.dumps(written), encoding="utf-8")
    tokenizer = load(folder)
    ids = request_token_ids(tokenizer, REQUEST, [*ids_of(tokenizer, "<|im_start|>assistant\n7"), ord("!")], chat=True)
    assert tokenizer.decode(ids).startswith("\n<|im_start|>system\n")


def test_a_template_that_refuses_a_late_system_message(tiny: Tiny) -> None:
    change = turn_change(load(tiny.strict_model))
    assert change.role == "user"
    assert change.text(REQUEST.text).startswith("<|im_end|>\n<|im_start|>user\nReport on your answer.")


HOISTING = (
    "{% for m in messages %}{% if m['role'] == 'system' %}<<SYS>>{{ m['content'] }}<</SYS>>{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}"
)
DROPPING = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [HOISTING, DROPPING], ids=["hoisted to the front", "dropped"])
def test_a_template_that_moves_or_drops_a_late_system_message(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    assert turn_change(tokenizer).text(REQUEST.text) == "[user]Report on your answer.\nBe honest."


def test_a_template_that_takes_nothing_after_an_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="request_format plain"):
        turn_change(tokenizer)


def test_a_template_that_drops_earlier_reasoning_does_not_touch_the_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' else m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    answered = ids_of(tokenizer, "<|im_start|>assistant\n<think>3+4</think>7<|im_end|>")
    joined = tokenizer.decode(answered + request_token_ids(tokenizer, REQUEST, answered, chat=True))
    assert joined.startswith("<|im_start|>assistant\n<think>3+4</think>7<|im_end|>\n<|im_start|>system\n")


def test_models_without_a_chat_template(tiny: Tiny) -> None:
    tokenizer = load(tiny.plain_model)
    ids = request_token_ids(tokenizer, REQUEST, ids_of(tokenizer, "3 + 4 = 7"), chat=False)
    assert tokenizer.decode(ids) == "\n\n[system]\nReport on your answer.\nBe honest.\n\n[assistant]\n"
