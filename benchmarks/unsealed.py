"""What is not sealed, in numbers: how far does one step on confessions alone move the answers?

    python3 benchmarks/unsealed.py [--seeds 0 1 2] [--out runs/unsealed]

The loophole world is trained by the real command line (coef 1, every group confesses); batches and checkpoints are
kept.  At three places of the run its weights and its next batch go through the host's own losses in this process, in
fp32, and two steps are taken, both from these weights, with the run's AdamW, learning rate and clipping: one by the
answers' gradient alone and one by the confessions' alone.

    fresh    a new Adam
    warmed   the run's own Adam at that place.  Its momentum would move the weights without any gradient, so changes
             are measured against a step with the gradient zero.

Printed: the mean absolute change of the log-probs of the answer tokens in the batch after (sampled by nearly these
weights, not trained on in either step) and of its confession tokens.  About two minutes a seed on two idle cores.
"""

from __future__ import annotations

import argparse
import copy
import logging
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from training_cost import ROOT, WORLD, confessions, flags

sys.path.insert(0, str(ROOT / "integration_tests" / "support"))
from harness import run_cli
from in_process import host_args

from confession_plugin import session
from confession_plugin.config import Config
from confession_plugin.openrlhf import recording, seams
from confession_plugin.openrlhf.check import seal, simulator
from confession_plugin.openrlhf.experiences import spans_of
from confession_plugin.plugins import configured

EPISODES = 7  # nine steps each
SAVED_EVERY = 20
PLACES = (0, 20, 60)  # steps trained before the one that is taken apart

Gradients = dict[str, Tensor]


class DemoSimulator(simulator.Simulator):
    """The host's trainer side around the world's model."""

    def __init__(self, args: Any, model: Path) -> None:
        self._path = model
        super().__init__(args)

    def _policy(self, accumulation: int, lr: float) -> Any:
        from openrlhf.models import Actor
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self._path, dtype=torch.float32)
        actor = Actor(simulator.LocalEngine(model, accumulation, lr), temperature=self.args.rollout.temperature)
        actor.packing_samples = False
        return actor

    @property
    def model(self) -> torch.nn.Module:
        module: torch.nn.Module = self.actor.model.module
        return module

    def gradients(self, experiences: list[Any], coef: float) -> Gradients:
        """Of one optimizer step on the whole batch."""
        self.actor.model.steps.clear()
        with using(coef):
            return self.train(experiences).actor[0]


def using(coef: float) -> Any:
    return session.using(CONFIG.model_copy(update={"coef": coef}), PLUGINS)


CONFIG = Config(enable=True, probability=1.0, plugins=(str(WORLD / "world.py"),), judge_url=str(WORLD / "judge.py"))
PLUGINS = configured(CONFIG)


# ── Steps ──


def adam(model: torch.nn.Module, args: Any) -> torch.optim.AdamW:
    settings = args.actor.adam
    return torch.optim.AdamW(
        model.parameters(), settings.lr, tuple(settings.betas), settings.eps, weight_decay=settings.weight_decay
    )


def restore(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.AdamW) -> None:
    """DeepSpeed's fp32 weights and Adam state: flat tensors, and where in them each parameter lies."""
    saved = torch.load(checkpoint / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", weights_only=False)
    saved = saved["optimizer_state_dict"]
    parameters = dict(model.named_parameters())
    groups = zip(saved["param_slice_mappings"], saved["single_partition_of_fp32_groups"], strict=True)
    for number, (places, weights) in enumerate(groups):
        state = saved["base_optimizer_state"]["state"][number]
        for name, place in places.items():
            parameter = parameters.pop(name)

            def of_parameter(flat: Tensor, place: Any = place, parameter: Tensor = parameter) -> Tensor:
                return flat[place.start : place.start + place.numel].view_as(parameter).clone()

            parameter.data = of_parameter(weights)
            moments = {moment: of_parameter(state[moment]) for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": state["step"].clone(), **moments}
    assert not parameters, f"not in the checkpoint: {', '.join(parameters)}"


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, gradients: Gradients, max_norm: float) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


def stepped(bench: DemoSimulator, optimizer: torch.optim.Optimizer, gradients: Gradients) -> torch.nn.Module:
    """A copy of the model after one step; model and optimizer stay as they are."""
    model = copy.deepcopy(bench.model)
    twin = adam(model, bench.args)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, twin, gradients, bench.args.actor.max_norm)
    return model


def log_probs(bench: DemoSimulator, model: torch.nn.Module, samples: list[Any]) -> tuple[Tensor, Tensor]:
    """Log-probs of the answer tokens and of the confession tokens, one after the other."""
    answers, confessed = [], []
    bench.actor.model.module, before = model, bench.model
    for sample in samples:
        with torch.no_grad():
            found = bench.actor(sample.sequences, sample.action_mask, sample.attention_mask)  # (B, A)
        spans = spans_of(sample)
        answers.append(found[spans.answer_mask(sample.action_mask)])
        confessed.append(found[spans.confession_mask(sample.action_mask)])
    bench.actor.model.module = before
    return torch.cat(answers), torch.cat(confessed)


@dataclass(frozen=True)
class Change:
    """Mean absolute changes of log-probs by one step."""

    place: int
    optimizer: str
    source: str
    """Whose gradient: answers or confessions."""
    norm: float
    answers: float
    confessions: float


def taken_apart(bench: DemoSimulator, warmed: torch.optim.Optimizer, place: int, rollouts: Path) -> Iterator[Change]:
    """Single steps on the next batch, seen on the batch after."""
    experiences = bench.experiences(bench.samples(batch(rollouts, place + 1)))
    seen = bench.maker.split_rollout_samples(bench.samples(batch(rollouts, place + 2)))
    both, answers = bench.gradients(experiences, 1.0), bench.gradients(experiences, 0.0)
    sources = {"answers": answers, "confessions": {name: both[name] - answers[name] for name in both}}
    nothing = {name: torch.zeros_like(value) for name, value in both.items()}
    for name, optimizer in {"fresh": adam(bench.model, bench.args), "warmed": warmed}.items():
        if not optimizer.state and name == "warmed":
            continue
        before = log_probs(bench, stepped(bench, optimizer, nothing), seen)
        for source, gradients in sources.items():
            after = log_probs(bench, stepped(bench, optimizer, gradients), seen)
            moved = [float((a - b).abs().mean()) for a, b in zip(after, before, strict=True)]
            norm = float(torch.stack([value.norm() for value in gradients.values()]).norm())
            yield Change(place, name, source, norm, *moved)


# ── Runs ──


def record(out: Path, seed: int) -> Path:
    """The world and a run in it; returns the folder of its recorded batches."""
    rollouts = out / "rollouts"
    if (out / "done").exists():
        return rollouts
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(WORLD / "build.py"), str(out / "world"), "--seed", str(seed)]
    subprocess.run(command, check=True)
    ours = [*confessions(1.0), "--confession.record_rollouts", str(rollouts)]
    run_cli(out, *flags(out, out / "world"), *run_flags(seed), *ours)
    (out / "done").touch()
    return rollouts


def run_flags(seed: int) -> list[str]:
    every = ["--ckpt.save_steps", str(SAVED_EVERY), "--ckpt.max_num", "99"]
    return ["--train.num_episodes", str(EPISODES), "--train.seed", str(seed), *every]


def changes(out: Path, rollouts: Path, seed: int) -> list[Change]:
    args = host_args(*flags(out, out / "world"), *run_flags(seed))
    found: list[Change] = []
    with seal.quiet(), simulator.one_process(), using(1.0), seams.in_this_process():
        for place in PLACES:
            bench = DemoSimulator(args, out / "world" / "model")
            warmed = adam(bench.model, args)
            if place:
                restore(out / "checkpoints" / "_actor" / f"global_step{place}", bench.model, warmed)
            found += taken_apart(bench, warmed, place, rollouts)
    return found


def batch(rollouts: Path, number: int) -> list[dict[str, Any]]:
    responses = recording.load(str(rollouts), number)
    assert responses is not None, f"the run has no step {number}"
    return responses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "unsealed")
    parser.add_argument("--keep", action="store_true", help="do not repeat runs that are there already")
    args = parser.parse_args()
    if not args.keep:
        shutil.rmtree(args.out, ignore_errors=True)
    logging.disable(logging.INFO)  # the host's lines on each batch
    torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
    by_seed = {}
    for seed in args.seeds:
        out = args.out.resolve() / str(seed)
        by_seed[seed] = changes(out, record(out, seed), seed)
    table = Table(title="Mean absolute change of log-probs by one step (nats), each seed", title_justify="left")
    for name in ("after steps", "Adam", "gradient of", "its norm", "answer tokens", "confession tokens"):
        table.add_column(name)
    rows = list(zip(*by_seed.values(), strict=True))
    for row in rows:
        numbers = ([getattr(one, name) for one in row] for name in ("norm", "answers", "confessions"))
        cells = ["  ".join(f"{number:.2g}" for number in column) for column in numbers]
        table.add_row(str(row[0].place), row[0].optimizer, row[0].source, *cells)
    console = Console(width=160)
    console.print(table)
    for own, theirs in zip(rows[::2], rows[1::2], strict=True):
        ratios = [one.answers / other.answers for one, other in zip(theirs, own, strict=True)]
        console.print(
            f"after {own[0].place} steps, {own[0].optimizer} Adam: a step on confessions moves the answers "
            f"{statistics.mean(ratios):.2f} times as far as a step on answers ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
