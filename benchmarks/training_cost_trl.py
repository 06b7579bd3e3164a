"""What confessions cost a training step in TRL: stock beside runs that ask a quarter and all of the groups.

    python3 benchmarks/training_cost_trl.py

Three runs of the loophole world's script in one process each.  Prints seconds a step (median), tokens through the
model a step, and both as ratios to stock.  A confession is a row of its own here, so its prompt and answer are read
again: the token ratio shows that.  On a tiny model the fixed costs of a step weigh more than on a large one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
WORLD = ROOT / "examples" / "loophole"
STEPS, FIRST = 14, 3  # the first steps are warm-up

RUN = """
import json, sys, time
sys.path.insert(0, {world!r})
import train_trl
import transformers

tokens, steps = [0], []
forward = transformers.Qwen2ForCausalLM.forward

def counted(self, input_ids=None, *args, **kwargs):
    tokens[0] += input_ids.numel()
    return forward(self, input_ids, *args, **kwargs)

transformers.Qwen2ForCausalLM.forward = counted
Trainer, probability = train_trl.GRPOTrainerWithConfessions, {probability}

class Counting(Trainer):
    def __init__(self, *args, confessions, **kwargs):
        asked = None if probability == 0 else confessions.model_copy(update={{"probability": probability}})
        super().__init__(*args, confessions=asked, **kwargs)

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            steps.append((time.perf_counter(), tokens[0]))
        return super().log(logs, *args, **kwargs)

train_trl.GRPOTrainerWithConfessions = Counting
sys.argv = ["train_trl.py", {out!r}, "--steps", "{steps}"]
train_trl.main()
json.dump(steps, open({out!r} + "/steps.json", "w"))
"""


def measured(out: Path, probability: float) -> tuple[float, float]:
    """Seconds and tokens of a step, medians."""
    text = RUN.format(world=str(WORLD), probability=probability, out=str(out), steps=STEPS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with (out / "train.log").open("w") as log:
        subprocess.run([sys.executable, "-c", text], check=True, env=environment, stdout=log, stderr=log)
    steps = json.loads((out / "steps.json").read_text())
    pairs = list(zip(steps[FIRST - 1 :], steps[FIRST:], strict=False))
    seconds, tokens = ([later[at] - before[at] for before, later in pairs] for at in (0, 1))
    return statistics.median(seconds), statistics.median(tokens)


def main() -> None:
    table = Table(title="A step of the loophole world in TRL", title_justify="left")
    for name in ("", "seconds", "ratio", "tokens through the model", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        build = [sys.executable, str(WORLD / "build.py"), str(out / "world")]
        subprocess.run(build, check=True, capture_output=True)
        stock = (0.0, 0.0)
        for name, probability in (("stock", 0.0), ("p = 0.25", 0.25), ("p = 1", 1.0)):
            seconds, tokens = measured(out, probability)
            stock = (seconds, tokens) if not probability else stock
            ratios = f"{seconds / stock[0]:.2f}", f"{tokens / stock[1]:.2f}"
            table.add_row(name, f"{seconds:.2f}", ratios[0], f"{tokens:,.0f}", ratios[1])
    Console().print(table)


if __name__ == "__main__":
    main()
