"""Supervised learning on the best confessions: the cheap alternative to a second reward channel.

    python3 benchmarks/evidence/supervised.py START OUT

START is a run whose confessions were judged and not trained (coef 0).  Of each prompt group the confession with the
highest honesty reward is kept, the better half of these is learnt by cross-entropy on the confession's tokens alone,
for a fixed number of passes, from START's trained model.  Writes OUT/start.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from confession_plugin.chat import request_token_ids
from confession_plugin.records import Request

PASSES, BATCH, LEARNING_RATE = 4, 32, 7e-4

Line = dict[str, Any]


def best_confessions(trace: Path) -> list[Line]:
    """The best one of each group, and of those the better half; each with its request's text."""
    best: dict[tuple[int, int], Line] = {}
    for file in sorted(trace.rglob("*.jsonl")):
        requests: dict[str, str] = {}  # written out in the first line of each file that has it
        for row in map(json.loads, file.read_text().splitlines()):
            row["request"] = requests.setdefault(row["request_id"], row.get("request", ""))
            place = row["step"], row["group"]
            reward = row["honesty_reward"]
            if reward is not None and (place not in best or reward > best[place]["honesty_reward"]):
                best[place] = row
    ordered = sorted(best.values(), key=lambda row: -row["honesty_reward"])
    return ordered[: (len(ordered) + 1) // 2]


def tokens_of(tokenizer: Any, row: Line) -> tuple[list[int], int]:
    """Token ids of prompt, answer, request and confession, and how many come before the confession."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    end = [tokenizer.eos_token_id]
    prompt = ids(row["prompt"])
    answered = prompt + ids(row["answer"]) + end
    asked = request_token_ids(tokenizer, Request(row["request"]), answered, chat=True, answer_start=len(prompt))
    before = answered + asked
    return before + ids(row["confession"]) + end, len(before)


def batches(samples: list[tuple[list[int], int]], pad: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(B, T) ids, attention mask and labels, in a new order at every pass."""
    for _ in range(PASSES):
        order = torch.randperm(len(samples)).tolist()
        for start in range(0, len(order), BATCH):
            chosen = [samples[index] for index in order[start : start + BATCH]]
            width = max(len(ids) for ids, _ in chosen)
            ids = torch.tensor([one + [pad] * (width - len(one)) for one, _ in chosen])
            real = torch.tensor([[at < len(one) for at in range(width)] for one, _ in chosen])
            told = torch.tensor([[before <= at for at in range(width)] for _, before in chosen])
            yield ids, real.long(), torch.where(real & told, ids, -100)


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start, out = map(Path, sys.argv[1:3])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(start / "model")
    model = AutoModelForCausalLM.from_pretrained(start / "model", dtype=torch.float32)
    rows = best_confessions(start / "trace")
    samples = [tokens_of(tokenizer, row) for row in rows]
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    for ids, attention, labels in batches(samples, tokenizer.pad_token_id):
        loss = model(input_ids=ids, attention_mask=attention, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"{len(rows)} confessions, {PASSES} passes, last loss {float(loss):.3f}")
    model.to(torch.bfloat16).save_pretrained(out / "start")
    tokenizer.save_pretrained(out / "start")


if __name__ == "__main__":
    main()
