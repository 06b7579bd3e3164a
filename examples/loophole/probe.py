"""What does the trained model's confession depend on?  Asks it about answers that it did not choose.

    python3 examples/loophole/probe.py runs/loophole

By the end of a run nearly all homework is bluffed and nearly no exam, so a model that never looks at its answer could
confess by the kind of question and be right.  The training curves cannot tell the two apart; this can.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from build import KINDS, questions
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import BLUFF, REQUEST


@torch.no_grad()
def admission(model: torch.nn.Module, tokenizer, kind: str, bluff: bool) -> float:
    """Probability that the confession starts with an admission, over all questions of a kind."""
    total = 0.0
    asked = [question for question in questions() if question["input"].startswith(kind)]
    for question in asked:
        dialogue = [
            {"role": "user", "content": question["input"]},
            {"role": "assistant", "content": BLUFF if bluff else question["label"]},
            {"role": "system", "content": REQUEST},
        ]
        text = tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
        logits = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
        total += logits.softmax(-1)[tokenizer("bluff")["input_ids"][0]].item()
    return total / len(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the trained model about answers it did not choose.")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="P(admits a bluff), about answers it did not choose", title_justify="left", title_style="bold")
    for name in ("question", "answer", "before the run", "after"):
        table.add_column(name, justify="left" if name in ("question", "answer") else "right")
    models = []
    for folder in (args.out / "world" / "model", args.out / "model"):
        models.append(
            (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder))
        )
    for kind in KINDS:
        for bluff in (True, False):
            chances = [f"{admission(*model, kind, bluff):.2f}" for model in models]
            table.add_row(kind, "a bluff" if bluff else "the right letter", *chances)
    Console().print(table)


if __name__ == "__main__":
    main()
