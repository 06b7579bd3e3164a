"""The turn change on every published chat template, and on one template of each kind that broke it once.

The reference is always the template itself: the whole conversation, rendered and tokenized in one go.
"""

from __future__ import annotations

import pytest
from template_zoo import (
    WordsProcessor,
    byte_tokenizer,
    ids_of,
    merging_tokenizer,
    mistral_backend,
    published,
    render,
    sentencepiece_tokenizer,
)
from transformers import PreTrainedTokenizerFast

from confession_plugin import Request
from confession_plugin.chat import describe_turn_change, plain_turn_change, request_token_ids, turn_change
from confession_plugin.errors import ConfigError
from confession_plugin.reasoning import visible_span

REQUEST = Request(text="Report on your answer.\n\nBe honest <& exact>.")
TEMPLATES = published()
PARTS = {name for name in TEMPLATES if name.startswith(("idefics3", "smolvlm", "llava_next"))}
# Templates that refuse, hoist, drop or rewrite a late system message, or whose answers open the user's turn.
USER = ("cohere", "deepseek", "gemma_", "gemma3", "glm4moe", "gptoss", "llava_next", "muse_glimmer")
USER += ("qwen3_5", "qwen3_6", "qwen3_8", "qwen3_vl")
ANSWER = "Seven, and that is final."


def role_of(name: str) -> str:
    return "user" if f"{name}_".startswith(USER) else "system"


def reference(tokenizer: PreTrainedTokenizerFast, name: str, role: str, answer: str = ANSWER) -> str:
    """The template's own text from behind the answer to the first token of the confession."""
    turns = (("user", "What is 3 + 4?"), ("assistant", answer), (role, REQUEST.text))
    return render(tokenizer, *turns, parts=name in PARTS).rpartition(answer)[2]


def test_the_package_ships_its_templates() -> None:
    assert len(TEMPLATES) >= 36


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_truncated_answer(name: str) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[name])
    prompt = ids_of(tokenizer, render(tokenizer, ("user", "What is 3 + 4?"), parts=name in PARTS))
    answered = prompt + ids_of(tokenizer, ANSWER)
    ids = request_token_ids(tokenizer, REQUEST, answered, chat=True, answer_start=len(prompt))
    assert ids == ids_of(tokenizer, reference(tokenizer, name, role_of(name)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_finished_answer_has_its_end_token_once(name: str) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[name])
    prompt = ids_of(tokenizer, render(tokenizer, ("user", "What is 3 + 4?"), parts=name in PARTS))
    change = turn_change(tokenizer)
    # Each token that may end an answer: the template's own, the last message's, the tokenizer's.
    for end in change.end_ids:
        answered = prompt + ids_of(tokenizer, ANSWER) + [end]
        ids = request_token_ids(tokenizer, REQUEST, answered, chat=True, answer_start=len(prompt))
        rest = reference(tokenizer, name, role_of(name))
        shown = tokenizer.decode([end])
        if shown in change.closing:  # also the first of two
            rest = rest.partition(shown)[2]
        elif rest.startswith(shown):  # it has opened the user's turn
            rest = rest.removeprefix(shown)
        else:
            rest = rest.removeprefix(change.closing)
        assert ids == ids_of(tokenizer, rest), shown
        assert change.closing == "" or not rest.startswith(change.closing)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "</think>" in TEMPLATES[name]])
def test_an_answer_with_reasoning(name: str) -> None:
    """What was generated stays, whatever the template would have made of it."""
    tokenizer = byte_tokenizer(TEMPLATES[name])
    prompt = ids_of(tokenizer, render(tokenizer, ("user", "What is 3 + 4?")))
    answered = prompt + ids_of(tokenizer, f"<think>\nThree and four.\n</think>\n\n{ANSWER}")
    ids = request_token_ids(tokenizer, REQUEST, answered, chat=True, answer_start=len(prompt))
    assert ids == ids_of(tokenizer, reference(tokenizer, name, role_of(name)))


SWITCHED = [name for name in TEMPLATES if "enable_thinking" in TEMPLATES[name] and "<think>" in TEMPLATES[name]]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", SWITCHED)
def test_the_mode_of_thinking_of_the_prompt_is_carried_over(name: str, thinking: bool) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[name])
    prompt = ids_of(tokenizer, render(tokenizer, ("user", "What is 3 + 4?"), enable_thinking=thinking))
    turns = (("user", "What is 3 + 4?"), ("assistant", ANSWER), (role_of(name), REQUEST.text))
    whole = render(tokenizer, *turns, enable_thinking=thinking)
    answered = prompt + ids_of(tokenizer, ANSWER)
    ids = request_token_ids(tokenizer, REQUEST, answered, chat=True, answer_start=len(prompt))
    assert ids == ids_of(tokenizer, whole.rpartition(ANSWER)[2])


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("opening", "confession"),
    [
        ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n"),
        ("<think>\n", "<think>\n"),
        ("</think>", "</think>"),
        ("<think>\nOkay, let me see. ", ""),
        ("", ""),
    ],
    ids=["closed", "opened", "closed without an opening", "opened with words", "as it was"],
)
def test_a_prompt_that_was_opened_by_hand(opening: str, confession: str) -> None:
    tokenizer = byte_tokenizer(CHATML)
    prompt = ids_of(tokenizer, render(tokenizer, ("user", "3 + 4 /no_think")) + opening)
    ids = request_token_ids(tokenizer, REQUEST, prompt + ids_of(tokenizer, "7"), chat=True, answer_start=len(prompt))
    assert tokenizer.decode(ids).endswith("<|im_end|>\n<|im_start|>assistant\n" + confession)


def test_a_template_whose_mode_also_stands_before_the_request() -> None:
    template = (
        "{% set off = enable_thinking is defined and not enable_thinking %}{% for m in messages %}<|{{ m['role'] }}|>"
        "{% if off and m['role'] == 'user' %}/off {% endif %}{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% if off %}<think></think>{% endif %}{% endif %}"
    )
    tokenizer = byte_tokenizer(template + "{# <|user|> <|assistant|> #}")
    request = Request(text="Report.", role="user")
    for off, before in ((True, "/off "), (False, "")):
        prompt = ids_of(tokenizer, render(tokenizer, ("user", "3 + 4?"), enable_thinking=not off))
        answered = prompt + ids_of(tokenizer, "7<|end|>")
        ids = request_token_ids(tokenizer, request, answered, chat=True, answer_start=len(prompt))
        block = "<think></think>" if off else ""
        assert tokenizer.decode(ids) == f"<|user|>{before}Report.<|end|><|assistant|>{block}"


def test_without_the_answers_start_only_an_empty_block_is_carried_over() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["qwen3"])
    for written, opening in (("<think>\n\n</think>\n\n7", "<think>\n\n</think>\n\n"), ("<think>\n3 + 4</think>7", "")):
        answered = ids_of(tokenizer, render(tokenizer, ("user", "3 + 4")) + written)
        ids = request_token_ids(tokenizer, REQUEST, answered, chat=True)
        assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n" + opening)
    tokenizer = byte_tokenizer(TEMPLATES["qwen3_5_nothink"])
    answered = ids_of(tokenizer, "<|im_start|>user\n3 + 4<|im_end|>\n<|im_start|>assistant\n<think>\n3 + 4</think>7")
    ids = request_token_ids(tokenizer, REQUEST, answered, chat=True)
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")  # the template's own


def test_a_prompt_without_the_opening_that_the_template_writes() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["qwen3_5_think"])
    prompt = ids_of(tokenizer, "<|im_start|>user\n3 + 4<|im_end|>\n<|im_start|>assistant\n")
    ids = request_token_ids(tokenizer, REQUEST, prompt + ids_of(tokenizer, "7"), chat=True, answer_start=len(prompt))
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")


# ── one template of each kind ──

INST = "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
LOOP = "{% for m in messages %}"
DONE = "{% endif %}{% endfor %}"
KINDS = {
    # name: (template, the answer's last token or "", what follows)
    "blank before the end token": (
        f"<s>{LOOP}{INST}{{% elif m['role'] == 'assistant' %}} {{{{ m['content'] }}}} </s><s>{DONE}",
        "</s>",
        "<s>[INST] {} [/INST]",
    ),
    "the last answer ends with another token": (
        f"{LOOP}<|start|>{{{{ m['role'] }}}}<|message|>{{{{ m['content'] }}}}"
        "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|return|>",
        "<|start|>system<|message|>{}<|end|><|start|>assistant",
    ),
    "the last answer has no end token": (
        f"{LOOP}{INST}{{% else %}}{{{{ m['content'] }}}}{{% if not loop.last %}}</s>{{% endif %}}{DONE}",
        "</s>",
        "[INST] {} [/INST]",
    ),
    "a base model's end token": (CHATML, "</s>", "\n<|im_start|>system\n{}<|im_end|>\n<|im_start|>assistant\n"),
    "two end tokens, the second came alone": (
        f"{LOOP}{{% if m['role'] == 'user' %}}<|user|>{{{{ m['content'] }}}}<|eot|>"
        f"{{% else %}}<|bot|>{{{{ m['content'] }}}}<|END_ANSWER|><|eot|>{DONE}"
        "{% if add_generation_prompt %}<|bot|>{% endif %}",
        "<|eot|>",
        "<|user|>{}<|eot|><|bot|>",
    ),
    "a system turn printed with no opening after it": (
        f"{LOOP}{{% if m['role'] == 'system' %}}<|sys|>{{{{ m['content'] }}}}</s>"
        f"{{% elif m['role'] == 'user' %}}<|user|>{{{{ m['content'] }}}}</s><|bot|>"
        f"{{% else %}}{{{{ m['content'] }}}}</s>{DONE}",
        "</s>",
        "<|user|>{}</s><|bot|>",
    ),
    "a system turn with no marker": (
        f"{LOOP}{{% if m['role'] == 'user' %}}<|user|>{{{{ m['content'] }}}}</s>"
        f"{{% elif m['role'] == 'system' %}}{{{{ m['content'] }}}}</s>"
        f"{{% else %}}<|bot|>{{{{ m['content'] }}}}</s>{DONE}"
        "{% if add_generation_prompt %}<|bot|>{% endif %}",
        "</s>",
        "<|user|>{}</s><|bot|>",
    ),
    "a system turn that looks like an assistant's": (
        f"{LOOP}{{% if m['role'] == 'user' %}}<|user|>{{{{ m['content'] }}}}</s>"
        f"{{% else %}}<|bot|>{{{{ m['content'] }}}}</s>{DONE}{{% if add_generation_prompt %}}<|bot|>{{% endif %}}",
        "</s>",
        "<|user|>{}</s><|bot|>",
    ),
    "a system turn that repeats a default prompt": (
        f"{LOOP}<|{{{{ m['role'] }}}}|>"
        "{% if m['role'] == 'system' %}You are a helpful assistant, made by people who mean well.\n{% endif %}"
        "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "</s>",
        "<|user|>{}</s><|assistant|>",
    ),
    "a system turn that changes the front": (
        "{% if not messages | selectattr('role', 'equalto', 'system') | list %}<|system|>Be good.</s>{% endif %}"
        f"{LOOP}"
        "<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "</s>",
        "<|user|>{}</s><|assistant|>",
    ),
    "answers that open the user's turn": (
        f"{LOOP}<|{{{{ m['role'] }}}}|>{{{{ m['content'] }}}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|user|>",
        "{}<|assistant|>",
    ),
    "turns without special tokens": (
        f"{LOOP}{{{{ m['role'] | upper }}}}: {{{{ m['content'] }}}}\n{{% endfor %}}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
        "</s>",
        "\nUSER: {}\nASSISTANT: ",
    ),
    "an end token that is plain text": (
        f"{LOOP}### {{{{ m['role'] }}}}\n{{{{ m['content'] }}}}<END>\n{{% endfor %}}"
        "{% if add_generation_prompt %}### assistant\n{% endif %}",
        "</s>",
        "\n### system\n{}<END>\n### assistant\n",
    ),
    "squeezed blank lines": (
        CHATML.replace("m['content']", "m['content'].replace('\\n\\n', '\\n')"),
        "<|im_end|>",
        "\n<|im_start|>system\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "escaped text": (
        CHATML.replace("m['content']", "m['content'] | e"),
        "<|im_end|>",
        "\n<|im_start|>system\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "cut and trimmed text": (
        CHATML.replace("m['content']", "(m['content'] | trim)[:24]"),
        "<|im_end|>",
        "\n<|im_start|>system\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "messages in parts": (
        f"{LOOP}<|im_start|>{{{{ m['role'] }}}}\n"
        "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}<|im_end|>\n"
        "{% endfor %}" + CHATML_END,
        "<|im_end|>",
        "\n<|im_start|>system\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind(kind: str) -> None:
    template, end, follows = KINDS[kind]
    tokenizer = byte_tokenizer(template + "{# <|user|> <|system|> <|assistant|> #}")
    answered = ids_of(tokenizer, "What is 3 + 4? Seven" + end)
    ids = request_token_ids(tokenizer, REQUEST, answered, chat=True)
    assert tokenizer.decode(ids) == follows.format(REQUEST.text)


def test_an_end_token_in_words_that_the_model_wrote_itself() -> None:
    template, _, follows = KINDS["an end token that is plain text"]
    tokenizer = byte_tokenizer(template)
    for ending in ("<END>", "<END></s>"):
        ids = request_token_ids(tokenizer, REQUEST, ids_of(tokenizer, "Seven" + ending), chat=True)
        assert tokenizer.decode(ids) == follows.format(REQUEST.text)


def test_text_that_happens_to_end_like_the_template_is_text() -> None:
    template, _, follows = KINDS["turns without special tokens"]
    tokenizer = byte_tokenizer(template)
    ids = request_token_ids(tokenizer, REQUEST, ids_of(tokenizer, "Seven\n"), chat=True)
    assert tokenizer.decode(ids) == follows.format(REQUEST.text)


@pytest.mark.parametrize("legacy", [True, False])
def test_tokenizers_that_put_a_blank_before_a_text(legacy: bool) -> None:
    template = KINDS["blank before the end token"][0]
    tokenizer = sentencepiece_tokenizer(template, legacy=legacy)
    whole = ids_of(tokenizer, render(tokenizer, ("user", "Be"), ("assistant", "honest"), ("user", REQUEST.text)))
    prompt = ids_of(tokenizer, render(tokenizer, ("user", "Be")))
    answer = ids_of(tokenizer, render(tokenizer, ("user", "Be"), ("assistant", "honest")))[len(prompt) :]
    end = answer.index(tokenizer.eos_token_id)
    for answered in (prompt + answer[: end + 1], prompt + answer[: end - 1]):  # finished; cut before the blank
        ids = request_token_ids(tokenizer, REQUEST, answered, chat=True)
        assert answered + ids == whole
    plain = Request(text="Report on your answer.")
    both = ids_of(tokenizer, "honest" + plain_turn_change(plain))
    ids = request_token_ids(tokenizer, plain, ids_of(tokenizer, "honest"), chat=False)
    assert ids == both[len(ids_of(tokenizer, "honest")) :]
    assert not tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")


def test_a_plain_prompt_that_opened_a_block() -> None:
    tokenizer = byte_tokenizer(None)
    prompt = ids_of(tokenizer, "User: 3 + 4?\nAssistant: <think>\n")
    answered = prompt + ids_of(tokenizer, "3, 4</think>7</s>")
    ids = request_token_ids(tokenizer, REQUEST, answered, chat=False, answer_start=len(prompt))
    assert tokenizer.decode(ids) == plain_turn_change(REQUEST) + "<think>\n"


@pytest.fixture(scope="module")
def large_tokenizer() -> PreTrainedTokenizerFast:
    return merging_tokenizer("".join(TEMPLATES.values()))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_tokenizer_that_merges(name: str, large_tokenizer: PreTrainedTokenizerFast) -> None:
    """Conversation and turn change are the tokens of both in one, by a real vocabulary of 129,000."""
    large_tokenizer.chat_template = TEMPLATES[name]
    parts, role = name in PARTS, role_of(name)
    turns = (("user", "What is 3 + 4?"), ("assistant", ANSWER), (role, REQUEST.text))
    whole = render(large_tokenizer, *turns, parts=parts)
    head = whole[: whole.rindex(ANSWER) + len(ANSWER)]
    prompt = ids_of(large_tokenizer, render(large_tokenizer, turns[0], parts=parts))
    for ending in ("", turn_change(large_tokenizer).closing):
        answered = prompt + ids_of(large_tokenizer, ANSWER + ending)
        ids = request_token_ids(large_tokenizer, REQUEST, answered, chat=True, answer_start=len(prompt))
        assert ids_of(large_tokenizer, head + ending) + ids == ids_of(large_tokenizer, whole)


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "qwen3_vl"])
def test_the_processor_of_a_vision_language_model(name: str) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[name])
    processor = WordsProcessor(byte_tokenizer(TEMPLATES[name]), chat_template=TEMPLATES[name])
    answered = ids_of(tokenizer, ANSWER + turn_change(tokenizer).closing)
    ids = request_token_ids(processor, REQUEST, answered, chat=True)
    assert ids == request_token_ids(tokenizer, REQUEST, answered, chat=True)
    assert visible_span(processor, answered + ids + answered, len(answered + ids)) == ANSWER


# ── at start-up ──


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] }}",
        LOOP + "{{ m['content'] | length }}{% endfor %}",
        LOOP + "{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
    ids=["drops it", "changes it", "repeats it", "refuses it"],
)
def test_a_template_that_cannot_place_the_request(template: str) -> None:
    tokenizer = byte_tokenizer(template)
    with pytest.raises(ConfigError, match=r"--confession\.request_format plain") as caught:
        describe_turn_change(tokenizer, REQUEST, chat=True, budget=1024)
    assert "\n" not in str(caught.value)


def test_a_system_turn_that_was_asked_for_and_is_not_there() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["gemma"])
    with pytest.raises(ConfigError, match=r"--confession\.request_role user"):
        describe_turn_change(tokenizer, REQUEST, chat=True, budget=1024, role="system")
    assert turn_change(byte_tokenizer(CHATML), "system").role == "system"


def test_a_tokenizer_that_reads_its_own_control_tokens_as_text() -> None:
    with pytest.raises(ConfigError, match=r"reads </s> .* --confession\.request_format plain"):
        describe_turn_change(mistral_backend(), REQUEST, chat=True, budget=1024)
    assert describe_turn_change(mistral_backend(), REQUEST, chat=False, budget=1024).startswith("request: plain text")


def test_a_request_beyond_its_budget() -> None:
    tokenizer = byte_tokenizer(CHATML)
    with pytest.raises(ConfigError, match=r"takes \d\d tokens, not 20; .* --confession.request_path"):
        describe_turn_change(tokenizer, REQUEST, chat=True, budget=20)


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("qwen3", "opens without a mark of reasoning"),
        ("qwen3_5_think", "opens with <think>"),
        ("qwen3_5_nothink", "opens with <think></think>: no thinking"),
    ],
)
def test_the_start_up_line(name: str, opening: str) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[name])
    role, count = role_of(name), len(ids_of(tokenizer, reference(tokenizer, name, role_of(name))))
    line = describe_turn_change(tokenizer, REQUEST, chat=True, budget=1024)
    assert line == f"request: {role} turn, {count} of 1024 tokens; the confession {opening}"


def test_the_start_up_line_of_a_plain_run() -> None:
    line = describe_turn_change(byte_tokenizer(None), REQUEST, chat=False, budget=1024)
    assert line == f"request: plain text, {len(plain_turn_change(REQUEST))} of 1024 tokens"


def test_a_changed_template_is_read_anew() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["qwen3"])
    assert turn_change(tokenizer) is turn_change(tokenizer)
    assert turn_change(tokenizer).role == "system"
    tokenizer.chat_template = TEMPLATES["qwen3_vl"]
    assert turn_change(tokenizer).role == "user"
