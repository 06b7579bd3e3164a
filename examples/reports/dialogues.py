"""Dialogues of the reports world as token ids, for the supervised warm start and for the probe."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from habits import make_answer
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast
from world import Task, make_task, task_text

from confession_hooks import inject

REQUEST = (Path(inject.__file__).parent / "prompts" / "request.txt").read_text(encoding="utf-8").strip()
END = "<|im_end|>"

Habit = Callable[[Task, list[str], random.Random], str]
"""Writes a report about an answer."""


def answer_text(answer: list[str]) -> str:
    return "".join(f" {word.upper()}" for word in answer)


class Dialogues:
    """Made-up dialogues: task, answer, request, report."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.tokenizer, self.rng = tokenizer, random.Random(seed)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def turn(self, role: str, text: str) -> str:
        message = [{"role": role, "content": text}]
        rendered: str = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return rendered

    def before_report(self, task: Task, answer: list[str], request: str = REQUEST, system: str = "") -> list[int]:
        """Everything up to the report's first token."""
        start = [{"role": "system", "content": system}] if system else []
        start.append({"role": "user", "content": task_text(task)})
        prompt = self.tokenizer.apply_chat_template(start, tokenize=False, add_generation_prompt=True)
        return self.ids(prompt) + self.ids(answer_text(answer) + END) + self.ids("\n" + self.turn("system", request))

    def batch(
        self, size: int, habit: Habit, *, asked: bool = True, answers: bool = True, one: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, S) and labels (B, S), -100 where nothing is to be learnt.

        Args:
            asked: with the request's words; without them a lesson costs half.
            answers: the answers are to be learnt too.
            one: tasks of a single instruction.
        """
        rows, labels = [], []
        for _ in range(size):
            task = make_task(self.rng)
            if one:
                kind = self.rng.choice(list(task))
                task = {kind: task[kind]}
            answer = make_answer(task, self.rng)
            parts = [
                (self.ids(self.turn("user", task_text(task))), False),
                (self.ids(answer_text(answer) + END), answers),
                (self.ids("\n" + self.turn("system", REQUEST if asked else "")), False),
                (self.ids(habit(task, answer, self.rng) + END), True),
            ]
            rows.append(torch.tensor([token for ids, _ in parts for token in ids]))
            labels.append(torch.tensor([token if own else -100 for ids, own in parts for token in ids]))
        pad = self.tokenizer.pad_token_id
        return pad_sequence(rows, True, pad), pad_sequence(labels, True, -100)
