"""What a check went through, and what of the run it did not, in a few words each."""

from __future__ import annotations

from typing import Any

from confession_plugin.config import Config


def describe(args: Any, config: Config) -> str:
    """The combination under check."""
    kl = args.algo.kl
    parts = [
        args.algo.advantage.estimator,
        f"{args.actor.policy_loss_type}/{getattr(args.actor, 'loss_agg_mode', 'token-mean')}",
        "no KL" if kl.init_coef <= 0 else f"KL {kl.estimator} " + ("as loss" if kl.use_loss else "in reward"),
        config.answer_training,
    ]
    correction = getattr(args.algo.advantage, "is_correction_level", "off")
    if correction != "off":
        parts.append(f"importance correction {correction}")
    if args.critic.model_name_or_path:
        parts.append("critic")
    if not args.reward.remote_url:
        parts.append("reward model")
    if args.train.dynamic_batch_enable:
        parts.append("dynamic batch")
    if config.samples_per_answer > 1:
        parts.append("several confessions an answer")
    return ", ".join(parts)


def not_exercised(args: Any, config: Config) -> tuple[str, ...]:
    """What these (whole, not shrunk) flags switch on and the check's one process and tiny model leave out."""
    ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
    sharded = args.ds.ring_attn_size * args.ds.tensor_parallel_size
    whole = {
        "ring attention": args.ds.ring_attn_size > 1,
        "tensor parallelism": args.ds.tensor_parallel_size > 1,
        "several data-parallel ranks": ranks // sharded > 1,
        "packed rows": args.ds.packing_samples,
        "images": getattr(args.data, "max_images_per_prompt", 0) > 0,
        "LoRA": args.ds.lora.rank > 0,
        "balancing loss of experts": args.actor.aux_loss_coef > 1e-8,
        "several epochs": args.train.max_epochs > 1,
        "frozen actor steps": args.critic.freezing_steps > 0,
        "asynchronous rollouts": args.train.async_enable,
        # Micro-batches are dealt by length, confessions included, and the host's means over them depend on the deal.
        "logged means (dynamic batch)": args.train.dynamic_batch_enable,
        "logged means (exclusive)": config.answer_training == "exclusive",
    }
    return tuple(name for name, on in whole.items() if on)
