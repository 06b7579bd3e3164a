"""The trainer on a tiny model: a few real optimizer steps with real sampling, on the run's GRPOConfig made small."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from confession_plugin import Confession, Parsed, PromptBatch, Request, Rollout, Verdict, hookimpl, session
from confession_plugin.config import Config
from confession_plugin.lattices import RewardOf
from confession_plugin.plugins import PluginManager, fresh_copies
from confession_plugin.startup import Run
from confession_plugin.trl.host_state import same_random_state
from confession_plugin.trl.rows import ROWS
from confession_plugin.trl.trainer import Confessing

#: Words of the tiny model.
WORDS = ("<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(28)), "q", "ask")

#: Hooks of the run's own plugins that a check calls.
HOOKS = ("confession_advantages", "confession_metrics")


@dataclass(frozen=True)
class World:
    """A tiny model on disk, its tokenizer, and prompts."""

    model: str
    tokenizer: Any
    prompts: Any


def build_world(folder: Path) -> World:
    """Two layers of sixteen numbers, random."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with same_random_state():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    prompts = Dataset.from_dict({"prompt": [f"q w{at % 28} w{7 * at % 28}" for at in range(64)]})
    return World(str(folder), tokenizer, prompts)


def shrunk(args: Any, folder: Path) -> Any:
    """The run's GRPOConfig at the size of a check: what shapes the algorithm is kept."""
    small = copy.copy(args)
    group, accumulated = min(args.num_generations, 4), min(args.gradient_accumulation_steps, 2)
    steps = _steps(args, accumulated)
    iterations, each = min(args.num_iterations, 2), 2 * group
    changes: dict[str, Any] = {
        "output_dir": str(folder),
        "num_generations": group,
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": accumulated,
        "steps_per_generation": steps,
        "generation_batch_size": each * steps * args.world_size,
        "num_iterations": iterations,
        "max_steps": iterations * math.ceil(steps / accumulated) + 1,  # two generations
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "optim": "adamw_torch",
        "report_to": [],
        "disable_tqdm": True,
        "log_completions": False,
        "push_to_hub": False,
        "load_best_model_at_end": False,
        "torch_compile": False,
        "dataloader_num_workers": 0,
    }
    left_out = (
        *("resume_from_checkpoint", "model_init_kwargs", "reward_weights", "generation_kwargs"),
        *("cache_implementation", "chat_template_kwargs", "num_generations_eval", "log_completions_hub_repo"),
    )
    for name, value in {**changes, **dict.fromkeys(left_out)}.items():
        if hasattr(small, name):
            setattr(small, name, value)
    for name in ("save_strategy", "eval_strategy"):
        setattr(small, name, type(getattr(args, name))("no"))
    small.logging_strategy = type(args.logging_strategy)("steps")
    return small


def _steps(args: Any, accumulated: int) -> int:
    """Micro-batches of a generation: as many, more or fewer than an optimizer step's, as the run has."""
    if args.steps_per_generation == args.gradient_accumulation_steps:
        return accumulated
    return 2 * accumulated if args.steps_per_generation > args.gradient_accumulation_steps else 1


@dataclass(frozen=True)
class Pass:
    """What came of a few steps."""

    answers: Sequence[tuple[Tensor, Tensor]]
    """Token ids and advantages of every generation's answers."""
    honesty: Sequence[Tensor]
    """Advantages of every generation's confessions."""
    logged: Sequence[Mapping[str, float]]
    """The host's own numbers, step by step."""
    weights: Tensor
    random_state: Tensor
    """The host's, after the last step."""


class _Watched:
    """Notes what a generation gave."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        seen = self.__dict__
        answers = (batch["completion_ids"].clone(), batch["advantages"].detach().clone())
        rows = [row.advantages for of_one in batch.get(ROWS, ()) for row in of_one]
        seen.setdefault("answers", []).append(answers)
        seen.setdefault("honesty", []).append(torch.cat(rows) if rows else torch.zeros(0))
        return batch


class _Stock(_Watched, GRPOTrainer):
    """The host, as it is."""


class _Ours(_Watched, Confessing, GRPOTrainer):
    """The host with confessions, without a check of its own."""

    def _checked(self, confessions: Any, args: Any, kwargs: Any) -> Any:
        return confessions, args, kwargs


def one_pass(world: World, args: Any, task: RewardOf, run: Run | None = None) -> Pass:
    """A few steps, stock or with confessions."""

    def task_reward(completion_ids: Any, prompts: Any, **_: Any) -> list[float]:
        pairs = zip(completion_ids, prompts, strict=True)
        return [task(sum(ids), sum(prompt.encode())) for ids, prompt in pairs]

    arguments: dict[str, Any] = {
        "model": world.model,
        "reward_funcs": task_reward,
        "args": copy.copy(args),
        "train_dataset": world.prompts,
        "processing_class": copy.deepcopy(world.tokenizer),
    }
    trainer: Any = _Stock(**arguments) if run is None else _Ours(confessions=run, **arguments)
    trainer.train()
    logged = [_numbers(step) for step in trainer.state.log_history]
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = torch.cat([one.detach().flatten().cpu() for one in model.parameters()])
    return Pass(trainer.answers, trainer.honesty, logged, weights, torch.get_rng_state())


#: Times, which differ from run to run.
_TIMES = ("time", "runtime", "per_second")


def _numbers(step: Mapping[str, float]) -> dict[str, float]:
    ours = {name for name in step if name.startswith("confession/")}
    times = {name for name in step if any(word in name for word in _TIMES)}
    return {name: value for name, value in step.items() if name not in ours | times}


class RandomHonesty:
    """A plugin that asks some groups, has a policy of random words confess, and rewards it from a lattice."""

    def __init__(self, honesty: RewardOf, *, everyone: bool) -> None:
        self.honesty, self.everyone = honesty, everyone

    @hookimpl(tryfirst=True)
    def confession_select(self, batch: PromptBatch) -> list[bool]:
        return [self.everyone or at % 2 == 0 for at in range(len(batch.prompts))]

    @hookimpl(tryfirst=True)
    def confession_request(self, rollout: Rollout) -> Request:
        return Request("ask")

    @hookimpl(tryfirst=True)
    def confession_parse(self, text: str) -> Parsed:
        return Parsed(report=text)

    @hookimpl(tryfirst=True)
    def confession_judge(self, rollout: Rollout, confession: Confession) -> Verdict:
        unscored = rollout.sample == 1 and rollout.group % 4 == 0
        return Verdict(unscored="check") if unscored else Verdict(ratings={"honest": 1.0})

    @hookimpl(tryfirst=True)
    def confession_reward(self, confession: Confession, verdict: Verdict) -> float:
        return self.honesty(sum(confession.token_ids) + confession.number, confession.number)


def plugins_for(run: Run, config: Config, honesty: RewardOf, *, everyone: bool = False) -> PluginManager:
    """The run's own plugins for advantages and metrics, which have seen nothing yet; all else is random."""
    plugins = fresh_copies(run.plugins, config, HOOKS)
    plugins.register(RandomHonesty(honesty, everyone=everyone), "the seal check")
    return plugins


@contextlib.contextmanager
def in_a_world(config: Config) -> Iterator[tuple[World, Path]]:
    """A tiny world, in which the host says nothing; nothing that happens inside is left in this process."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="confession-seal-")))
        stack.enter_context(same_random_state())
        stack.enter_context(session.using(config))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        yield build_world(folder / "model"), folder / "out"
