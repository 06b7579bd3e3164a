"""Which of the host's flags need a GPU, and what a CPU run does about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from confession_plugin.errors import ConfigError


class _Value(NamedTuple):
    """A flag whose value must be another one here."""

    flag: str
    works: Callable[[str], bool]
    instead: str


#: Flags with a value.  The host's defaults do not work either, so these are always given.
VALUES = (
    _Value("--vllm.sync_backend", lambda value: value == "gloo", "gloo"),
    _Value("--ds.attn_implementation", lambda value: value in ("sdpa", "eager"), "sdpa"),
)

#: Switches that make a GPU run faster or smaller and change nothing else: they are dropped.
DROPPED = (
    "--vllm.enable_sleep",
    "--vllm.sync_with_ray",
    "--ds.enable_sleep",
    "--ds.adam_offload",
    "--ds.use_liger_kernel",
    "--ds.deepcompile",
)

#: Switches that are added: vLLM would compile the model with g++.
ADDED = ("--vllm.enforce_eager",)

#: Flags that cannot work here and change what is computed, so they are not dropped silently: the value that asks for
#: nothing (None for a switch), and what to do instead.
IMPOSSIBLE: dict[str, tuple[str | None, str]] = {
    "--vllm.tensor_parallel_size": (
        "1",
        "one vLLM engine is one process on the CPU; use --vllm.num_engines instead",
    ),
    "--ds.tensor_parallel_size": (
        "1",
        "DeepSpeed's tensor parallelism needs GPUs; use more data-parallel actors instead",
    ),
    "--ds.ring_attn_size": ("1", "ring attention needs flash-attn and GPUs; leave it out"),
    "--ds.lora.rank": (
        "0",
        "the first weight sync fails in vLLM here (it finds no module base_model), with confessions and without; "
        "leave it out",
    ),
    "--ds.load_in_4bit": (None, "4-bit loading needs bitsandbytes and a GPU; leave it out"),
}


def adapt_argv(argv: Sequence[str]) -> list[str]:
    """The host's command line with what cannot work on a CPU replaced.

    Raises:
        ConfigError: a flag asks for what cannot be done without a GPU.
    """
    return adapt(argv)[0]


def adapt(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """`adapt_argv`, and its changes in words."""
    words = [part for word in argv for part in _split_at_equals(word)]
    for flag, (harmless, advice) in IMPOSSIBLE.items():
        if flag in words and (harmless is None or _value(words, flag) != harmless):
            raise ConfigError(f"{flag} cannot work without a GPU: {advice}")
    changes = []
    for flag in DROPPED:
        if flag in words:
            words = [word for word in words if word != flag]
            changes.append(f"no {flag}")
    for flag, works, instead in VALUES:
        given = _value(words, flag)
        if given is not None and works(given):
            continue
        words += [flag, instead]  # the last one wins
        changes.append(f"{flag} {instead}")
    for flag in ADDED:
        if flag not in words:
            words.append(flag)
            changes.append(flag)
    return words, changes


def _split_at_equals(word: str) -> list[str]:
    """argparse reads --flag=value like --flag value; so do we, for the flags this module knows."""
    flag, equals, value = word.partition("=")
    known = flag in IMPOSSIBLE or flag in {known.flag for known in VALUES}
    return [flag, value] if equals and known else [word]


def _value(words: list[str], flag: str) -> str | None:
    """The value argparse will take for this flag: the last one given."""
    at = max((i for i, word in enumerate(words) if word == flag), default=None)
    return None if at is None or at + 1 == len(words) else words[at + 1]


def gpus_wanted(args: Any) -> int:
    """How many GPUs a run with these flags reserves at most: one too few and Ray waits for it forever.

    Args:
        args: the host's parsed and nested command line (``args.actor.num_nodes``).
    """
    groups = [args.actor]
    if args.algo.kl.init_coef > 0:
        groups.append(args.ref)
    if args.critic.model_name_or_path:
        groups.append(args.critic)
    if not args.reward.remote_url:
        groups.append(args.reward)
    trained = sum(group.num_nodes * group.num_gpus_per_node for group in groups)
    return trained + (args.vllm.num_engines or 0) * args.vllm.tensor_parallel_size
