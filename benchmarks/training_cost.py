"""What confessions cost a training step: the stock command line beside runs that ask a quarter and all of the groups.

    python3 benchmarks/training_cost.py

Three real runs on the loophole world's model and prompts.  Prints, by phase, seconds a step (median) and the ratio to
stock.  On a tiny model the fixed costs of a step weigh more than on a large one: read the ratios as an upper bound for
generation and as a measure of this package's own overhead, not as a forecast.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
WORLD = ROOT / "examples" / "loophole"
PHASES = ("generation", "make_experience", "ppo_train", "broadcast", "step_total")

sys.path.insert(0, str(ROOT / "integration_tests" / "support"))
from harness import read_scalars  # noqa: E402


def flags(out: Path, world: Path) -> list[str]:
    text = f"""
    --actor.model_name_or_path {world}/model --reward.remote_url {WORLD}/reward.py
    --data.prompt_dataset {world}/prompts.jsonl --data.input_key input --data.label_key label
    --data.apply_chat_template --data.max_len 32 --rollout.max_new_tokens 4
    --rollout.batch_size 52 --rollout.n_samples_per_prompt 8 --rollout.micro_batch_size 104
    --train.batch_size 416 --train.micro_batch_size 104 --train.num_episodes 3
    --actor.adam.lr 5e-4 --actor.lr_scheduler constant --algo.advantage.estimator group_norm --algo.kl.init_coef 0
    --train.colocate_all --actor.num_gpus_per_node 1 --vllm.num_engines 1 --vllm.gpu_memory_utilization 0.3
    --ckpt.output_dir {out}/model --ckpt.path {out}/checkpoints --logger.tensorboard_dir {out}/tensorboard"""
    return text.split()


def confessions(probability: float) -> list[str]:
    text = f"""--confession.enable --confession.probability {probability} --confession.plugins {WORLD}/world.py
    --confession.judge_url {WORLD}/judge.py --confession.max_request_tokens 32 --confession.max_new_tokens 6"""
    return text.split()


def seconds(out: Path, world: Path, ours: list[str]) -> dict[str, float]:
    """Median seconds a step, by phase; the first steps warm up and are left out."""
    out.mkdir(parents=True)
    with (out / "log").open("w") as log:
        command = [sys.executable, "-m", "confession_plugin.train_ppo_ray", *flags(out, world), *ours]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    scalars = read_scalars(out / "tensorboard")
    return {name: statistics.median(value for _, value in scalars[f"train/timing/{name}"][3:]) for name in PHASES}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        world = base / "world"
        subprocess.run([sys.executable, str(WORLD / "build.py"), str(world)], check=True)
        runs = {
            "stock": seconds(base / "stock", world, []),
            "a quarter": seconds(base / "quarter", world, confessions(0.25)),
            "all": seconds(base / "all", world, confessions(1.0)),
        }
    table = Table(title="Seconds a step, and the ratio to stock", title_justify="left")
    for name in ("phase", *runs):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase in PHASES:
        stock = runs["stock"][phase]
        cells = [
            f"{run[phase]:.3f}" + ("" if name == "stock" else f"  x{run[phase] / stock:.2f}")
            for name, run in runs.items()
        ]
        table.add_row(phase, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
