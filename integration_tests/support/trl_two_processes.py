"""One process of a data-parallel run, or the only one; writes its weights.  Started by `test_trl_processes.py`.

python trl_two_processes.py FOLDER NAME COEF   (by torchrun for several)
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from trl_worlds import grpo_config, our_pass, run_with, settings, stock_pass

from confession_plugin.trl.check.simulator import World


def main(folder: Path, name: str, coef: str) -> None:
    from datasets import load_from_disk
    from transformers import AutoTokenizer

    model = str(folder / "model")
    world = World(model, AutoTokenizer.from_pretrained(model), load_from_disk(str(folder / "prompts")))
    args = grpo_config(folder / name, gradient_accumulation_steps=1)
    if coef == "stock":
        passed = stock_pass(world, args)
    else:
        passed = our_pass(world, args, run_with(settings(coef=float(coef))))
    if args.process_index == 0:
        torch.save({"weights": passed.weights, "honesty": list(passed.honesty)}, folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
