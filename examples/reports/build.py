"""Build the reports world: a small chat model, its tokenizer and its tasks.  Nothing is downloaded.

    python3 examples/reports/build.py FOLDER [--seed 0]

The supervised warm start has two parts.  Lessons show honest reports only, so the model learns to see what an answer
broke; how well it does then is the most that training can reach (FOLDER/ceiling).  Habits show answers that often
break an instruction, and reports that are true only by chance (FOLDER/model): there training starts.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from dialogues import END, REQUEST, Dialogues, Habit, answer_text
from habits import LABELS, habitual_report, make_answer
from probe import measure
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from world import KINDS, WORDS, Task, honest_report, make_task, task_text

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DECIDING = 4.0
"""Weight of the tokens that say something about this very answer; most of a report is the same every time."""


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """BPE over the world's own text.  Whatever decides something is a token of its own; the rest merges freely."""
    rng = random.Random(0)
    words = [space + word for word in (*WORDS, *(word.upper() for word in WORDS)) for space in ("", " ")]
    own = (
        rf" ?(?:{'|'.join(word for word in words if word[0] != ' ')})\b| ?\d| [<>]|{'|'.join(LABELS)}"
        rf'|(?<=")ends in\b| (?:found|missing)\b|\b(?:{"|".join(KINDS)}):| (?:up|down)\b'
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(own), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [REQUEST + "\n"] * 3
    for _ in range(400):
        task = make_task(rng)
        answer = make_answer(task, rng)
        texts += [task_text(task), answer_text(answer), habitual_report(task, answer, rng)]
        texts += ["user\n", "assistant\n", "system\n"]
    texts += words * 3 + [f"{space}{n}" for n in range(8) for space in ("", " ")] + list(LABELS) * 3
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlamaForCausalLM:
    # Llama: of a Qwen2 model transformers 5 loads the tokenizer with Qwen2's own pre-tokenizer, whatever was saved.
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=2048,  # room for a request in words that the tokenizer does not know
        attention_bias=True,
        tie_word_embeddings=False,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def token_weights(dialogues: Dialogues, vocab_size: int) -> torch.Tensor:
    """The weight (V,) of each token in the lessons' loss."""
    words = [space + word.upper() for word in WORDS for space in ("", " ")]
    texts = [*LABELS, " found", " missing", " <", " >", *map(str, range(6)), *words]
    weights = torch.ones(vocab_size)
    weights[[ids[0] for ids in map(dialogues.ids, texts) if len(ids) == 1]] = DECIDING
    return weights


def warm_start(
    model: LlamaForCausalLM, dialogues: Dialogues, habit: Habit, steps: int, size: int, lr: float, **how: Any
) -> None:
    """Supervised steps on made-up dialogues; `how`: see `Dialogues.batch`."""
    weights = token_weights(dialogues, model.config.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2), pct_start=0.1)
    started = time.time()
    for step in range(steps):
        ids, labels = dialogues.batch(size, habit, **how)
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        own = labels[:, 1:] != -100  # the head is a third of the work: only where it counts
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[own]), labels[:, 1:][own], weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(
                f"  {habit.__name__}, step {step + 1}: loss {loss.item():.3f}, {time.time() - started:.0f} s",
                flush=True,
            )


def honest(task: Task, answer: list[str], rng: random.Random) -> str:
    return honest_report(task, answer)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Model in bfloat16 and tokenizer, which must load as it was."""
    tokenizer.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    model.to(torch.float32)
    text = task_text(make_task(random.Random(0))) + honest_report({"use": "fig"}, ["fig"])
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == tokenizer(text)["input_ids"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the reports world.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=1536)
    parser.add_argument("--lessons", type=int, default=500)
    parser.add_argument("--habits", type=int, default=100)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()

    started = time.time()
    torch.set_num_threads(1)  # the tensors are tiny: more threads mostly wait for each other
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(args.vocabulary)
    model = build_model(tokenizer, args.width, args.layers)
    dialogues = Dialogues(tokenizer, args.seed)
    size = sum(parameter.numel() for parameter in model.parameters())
    report = honest_report(task := make_task(random.Random(3)), make_answer(task, random.Random(3)))
    request = len(dialogues.ids(dialogues.turn("system", REQUEST)))
    print(
        f"{size:,} parameters, {len(tokenizer)} tokens; "
        f"the request takes {request} of them, a report {len(dialogues.ids(report))}"
    )

    # One instruction first, then whole tasks without the request's words, then the real thing: each learns from the
    # one before, and costs more.
    lesson = {"habit": honest, "answers": False}
    warm_start(model, dialogues, steps=args.lessons, size=2 * args.batch, lr=args.lr, asked=False, one=True, **lesson)
    warm_start(model, dialogues, steps=args.lessons, size=args.batch, lr=args.lr, asked=False, **lesson)
    warm_start(model, dialogues, steps=args.lessons // 3, size=args.batch, lr=args.lr / 2, **lesson)
    tell("ceiling", measure(model, dialogues), started)
    save(model, tokenizer, args.folder / "ceiling")
    warm_start(model, dialogues, habitual_report, args.habits, args.batch, args.lr / 3)
    tell("start", measure(model, dialogues), started)
    save(model, tokenizer, args.folder / "model")
    rng = random.Random(args.seed)
    for name, count in (("prompts", 8192), ("heldout", 512)):
        rows = [json.dumps({"input": task_text(make_task(rng)), "label": ""}) + "\n" for _ in range(count)]
        (args.folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    print(f"built in {time.time() - started:.0f} s")


def tell(name: str, found: dict[str, Any], started: float) -> None:
    shares = ", ".join(f"{key} {value:.2f}" for key, value in found.items() if isinstance(value, float))
    print(f"{name} ({time.time() - started:.0f} s): {shares}", flush=True)


if __name__ == "__main__":
    main()
