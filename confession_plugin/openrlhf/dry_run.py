"""``--confession.dry_run`` under OpenRLHF: all its checks, then what `confession_plugin.dry_run` shows."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace
from typing import Any

from confession_plugin import dry_call, dry_run
from confession_plugin.config import Config
from confession_plugin.errors import ConfigError
from confession_plugin.forecast import Load
from confession_plugin.openrlhf import launch
from confession_plugin.startup import Run


def show(run: Run) -> None:
    """Check everything and print what a run with these flags would do.

    Raises:
        ConfessionError: it would not start.
    """
    args, config = launch.check_alone(run)
    launch.require_seal(config, args, run.plugins)
    tokenizer = _tokenizer(args)
    prompt = _first_prompt(args, tokenizer)
    dry_run.show(run.plugins, config, tokenizer, prompt, lambda measured: load_of(args, config, measured))


def _tokenizer(args: Any) -> Any:
    from openrlhf.utils.utils import get_tokenizer

    name = args.actor.model_name_or_path
    try:
        return get_tokenizer(name, None, use_fast=not getattr(args.data, "disable_fast_tokenizer", False))
    except Exception as error:
        raise ConfigError(f"--actor.model_name_or_path: no tokenizer of {name} can be loaded: {error}") from error


def _first_prompt(args: Any, tokenizer: Any) -> str:
    """The first prompt of the run's own data as the host makes it; a built-in one where that cannot be read here."""
    from openrlhf.datasets import PromptDataset
    from openrlhf.datasets.utils import blending_datasets

    strategy = SimpleNamespace(args=args, print=lambda *_: None, is_rank_0=lambda: False)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            rows = blending_datasets(
                args.data.prompt_dataset,
                args.data.prompt_probs,
                strategy,
                args.train.seed,
                max_count=1,
                dataset_split=args.data.prompt_split,
            )
            dataset = PromptDataset(rows.select([0]), tokenizer, strategy, input_template=args.data.input_template)
        return str(dataset[0][1])
    except Exception as error:
        print(f"(a built-in prompt, as --data.prompt_dataset cannot be read here: {type(error).__name__}: {error})")
    messages = [{"role": "user", "content": dry_call.CASE.prompt}]
    if not args.data.apply_chat_template:
        return dry_call.CASE.prompt
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def load_of(args: Any, config: Config, measured: dry_run.Measured) -> Load:
    """The run's load, as its flags and the measurements say."""
    longest_answer = args.rollout.max_new_tokens or args.data.max_len
    return Load(
        groups=args.rollout.batch_size,
        samples=args.rollout.n_samples_per_prompt,
        probability=config.probability,
        samples_per_answer=config.samples_per_answer,
        max_length=args.data.max_len,
        max_answer=min(longest_answer, args.data.max_len),
        request=measured.request,
        max_confession=config.max_new_tokens,
        micro_batch=args.train.micro_batch_size,
        max_micro_batch=args.train.max_tokens_per_gpu if args.train.dynamic_batch_enable else None,
        vocabulary=dry_run.vocabulary(args.actor.model_name_or_path, trust_remote_code=True),
        judge_message=measured.judge_message,
        judge_reply=config.judge_max_tokens,
        judge_connections=config.judge_concurrency * args.vllm.num_engines,
        judge_latency_s=measured.judge_latency_s,
    )
