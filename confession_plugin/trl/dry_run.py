"""``--confession.dry_run`` under TRL: all its checks, then what `confession_plugin.dry_run` shows."""

from __future__ import annotations

from typing import Any

from confession_plugin import dry_call, dry_run
from confession_plugin.config import Config
from confession_plugin.errors import ConfigError
from confession_plugin.forecast import Load
from confession_plugin.startup import Run
from confession_plugin.trl import limits, settings
from confession_plugin.trl.check import seal


def show(script: Any, args: Any, model: Any, run: Run) -> None:
    """Check everything and print what a run with these flags would do.

    Args:
        script, args, model: the host's ScriptArguments, GRPOConfig and ModelConfig.

    Raises:
        ConfessionError: it would not start.
    """
    limits.check(run.config, args, {})
    seal.require_for(args, run)
    tokenizer = _tokenizer(model)
    row = _first_row(script)
    config = settings.finished(run.config, args, tokenizer, [row])
    run.plugins.hook.confession_configure(config=config)
    prompt = _rendered(tokenizer, row["prompt"], args)
    name, how = model.model_name_or_path, _trust(model)
    dry_run.show(
        run.plugins,
        config,
        tokenizer,
        prompt,
        lambda measured: load_of(args, config, measured, dry_run.vocabulary(name, **how)),
    )


def _tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    name = model.model_name_or_path
    if name is None:
        raise ConfigError("--model_name_or_path: none is given; a dry run shows its context")
    try:
        return AutoTokenizer.from_pretrained(name, revision=model.model_revision, **_trust(model))
    except Exception as error:
        raise ConfigError(f"--model_name_or_path: no tokenizer of {name} can be loaded: {error}") from error


def _trust(model: Any) -> dict[str, bool]:
    """Older versions of the host have no such argument here."""
    return {"trust_remote_code": getattr(model, "trust_remote_code", False)}


def _first_row(script: Any) -> dict[str, Any]:
    """The first row of the run's own data; a built-in one where that cannot be read here."""
    from datasets import load_dataset

    try:
        rows = load_dataset(
            script.dataset_name, name=script.dataset_config, split=script.dataset_train_split, streaming=True
        )
        row = next(iter(rows))
        return {"prompt": row["prompt"]}
    except Exception as error:
        print(f"(a built-in prompt, as --dataset_name cannot be read here: {type(error).__name__}: {error})")
    return {"prompt": [{"role": "user", "content": dry_call.CASE.prompt}]}


def _rendered(tokenizer: Any, prompt: Any, args: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    if getattr(tokenizer, "chat_template", None) is None:
        return "\n".join(str(message["content"]) for message in prompt)
    how = getattr(args, "chat_template_kwargs", None) or {}
    return str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, **how))


def load_of(args: Any, config: Config, measured: dry_run.Measured, vocabulary: int | None) -> Load:
    """The load of one generation, as the flags and the measurements say.  The host sets no limit to its prompts."""
    return Load(
        groups=args.generation_batch_size // args.num_generations,
        samples=args.num_generations,
        probability=config.probability,
        samples_per_answer=config.samples_per_answer,
        max_length=measured.prompt + args.max_completion_length,
        max_answer=args.max_completion_length,
        request=measured.request,
        max_confession=config.max_new_tokens,
        micro_batch=args.per_device_train_batch_size,
        own_rows=True,
        vocabulary=vocabulary,
        judge_message=measured.judge_message,
        judge_reply=config.judge_max_tokens,
        judge_connections=config.judge_concurrency,
        judge_latency_s=measured.judge_latency_s,
    )
