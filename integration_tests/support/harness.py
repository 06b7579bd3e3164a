"""Run the real command line in a subprocess, and leave nothing running.

    result = run_cli(tmp_path, *base_flags(tiny, tmp_path), "--algo.kl.init_coef", "0")
    assert result.values("train/reward")[-1] > 0.5

Several runs, of several test sessions, may go on at once on one machine: each has a Ray of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

#: Every process of a run inherits this variable with a value of its own, which is how all of them are found again.
RUN_ENV_VAR = "CONFESSION_TEST_RUN"

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


# ── A world small enough for seconds ──


@dataclass(frozen=True)
class Tiny:
    """A 132k-parameter Qwen2, its tokenizer in three variants, prompts and a reward."""

    model: Path
    """With a plain chat template."""
    strict_model: Path
    """Its chat template refuses a system message that is not the first message, as many published ones do."""
    plain_model: Path
    """Without a chat template."""
    prompts: Path
    """64 rows of ``input`` and ``label``: "What is 3 + 4?", "7"."""
    eval_prompts: Path
    reward: Path
    """``reward_func``: the share of digits in the answer; a random model learns it in a few steps."""


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_STRICT_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}" + CHAT_TEMPLATE
)


def build_tiny(folder: Path) -> Tiny:
    """Write the tiny world to ``folder``; the same bytes every time."""
    rng = random.Random(0)
    sums = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(64)]
    rows = [{"input": f"What is {a} + {b}?", "label": str(a + b)} for a, b in sums]
    tiny = Tiny(
        model=folder / "tiny",
        strict_model=folder / "tiny-strict",
        plain_model=folder / "tiny-plain",
        prompts=folder / "prompts.jsonl",
        eval_prompts=folder / "eval.jsonl",
        reward=HERE / "rewards" / "digits.py",
    )
    tiny.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.eval_prompts.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    texts = [row["input"] + " " + row["label"] for row in rows]
    build_model(tiny.model, texts)
    build_model(tiny.strict_model, texts, chat_template=_STRICT_CHAT_TEMPLATE)
    build_model(tiny.plain_model, texts, chat_template=None)
    return tiny


def build_model(
    folder: Path,
    texts: Sequence[str],
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    vocab_size: int = 384,
    max_tokens: int = 4096,
) -> Any:
    """A random two-layer Qwen2 and a tokenizer trained on `texts`, written to ``folder``; the same every time.

    Args:
        vocab_size: of the tokenizer at most, and of the model exactly.
        max_tokens: the model's context.

    Returns:
        The tokenizer.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, "user\n", "assistant\n", "system\n"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=chat_template
    )
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=max_tokens,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    return tokenizer


def base_flags(tiny: Tiny, tmp_path: Path, *, steps: int = 4, model: Path | None = None) -> list[str]:
    """The flags of a small colocated group_norm run: 4 prompts x 4 samples of at most 32 tokens a step.

    argparse lets the last one win, so a test appends what it wants different.
    """
    model = model or tiny.model
    models = ["--actor.model_name_or_path", str(model), "--reward.remote_url", str(tiny.reward)]
    data = ["--data.prompt_dataset", str(tiny.prompts), "--data.input_key", "input", "--data.label_key", "label"]
    data += ["--data.max_len", "96", "--data.max_samples", str(4 * steps)]
    if model != tiny.plain_model:
        data += ["--data.apply_chat_template"]
    rollout = ["--rollout.batch_size", "4", "--rollout.n_samples_per_prompt", "4", "--rollout.micro_batch_size", "4"]
    rollout += ["--rollout.max_new_tokens", "32"]
    train = ["--train.batch_size", "16", "--train.micro_batch_size", "4", "--train.num_episodes", "1"]
    train += ["--train.max_epochs", "1", "--actor.adam.lr", "1e-3", "--actor.lr_scheduler", "constant"]
    placement = ["--train.colocate_all", "--actor.num_gpus_per_node", "1", "--ref.num_gpus_per_node", "1"]
    placement += ["--critic.num_gpus_per_node", "1", "--reward.num_gpus_per_node", "1", "--vllm.num_engines", "1"]
    algorithm = ["--algo.advantage.estimator", "group_norm", "--algo.kl.init_coef", "0.01"]
    output = ["--ckpt.output_dir", str(tmp_path / "out"), "--ckpt.path", str(tmp_path / "ckpt")]
    output += ["--logger.tensorboard_dir", str(tmp_path / "tb")]
    return [*models, *data, *rollout, *train, *placement, *algorithm, *output]


# ── Running it ──


@dataclass(frozen=True)
class CliResult:
    """One finished run."""

    returncode: int
    output: str
    """Everything it printed, its workers' lines included."""
    scalars: Mapping[str, list[tuple[int, float]]] = field(repr=False)
    """TensorBoard's scalars: name -> [(step, value)]."""
    seconds: float

    def values(self, name: str) -> list[float]:
        """The values of one scalar, in order."""
        if name not in self.scalars:
            raise AssertionError(f"no scalar {name!r}; there are: {', '.join(sorted(self.scalars))}")
        return [value for _, value in self.scalars[name]]

    def last_lines(self, lines: int = 60) -> str:
        """The end of the output."""
        return "\n".join(self.output.splitlines()[-lines:])


def run_cli(
    tmp_path: Path,
    *flags: str,
    module: str = "confession_plugin.train_ppo_ray",
    command: Sequence[str | Path] = (),
    timeout: float = 600,
    env: Mapping[str, str] | None = None,
    expect: int | None = 0,
) -> CliResult:
    """Run ``python -m module flags`` to its end, in ``tmp_path``.

    Args:
        command: instead of ``python -m module``.
        timeout: seconds; nearly all of a run is start-up, which takes several times as long on a busy machine.
        expect: the exit status the test is about; None accepts any.

    Raises:
        AssertionError: another exit status, or no end in time; with the end of the output.
    """
    run_id = uuid.uuid4().hex
    # Ray's and vLLM's sockets live here, and a socket's path may have 107 characters: pytest's folders are too deep.
    scratch = Path(tempfile.mkdtemp(prefix="cp", dir="/tmp"))
    environment = {**os.environ, **QUIET, "TMPDIR": str(scratch), "RAY_TMPDIR": str(scratch), RUN_ENV_VAR: run_id}
    environment.pop("RAY_ADDRESS", None)
    environment.update(env or {})
    log = tmp_path / f"output-{run_id[:6]}.log"
    started = time.monotonic()
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*map(str, command or (sys.executable, "-m", module)), *map(str, flags)],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            try:
                returncode: int | None = process.wait(timeout)
            except subprocess.TimeoutExpired:
                returncode = None
            finally:
                end_processes(run_id)
                process.wait()
    finally:
        end_processes(run_id)
        shutil.rmtree(scratch, ignore_errors=True)
    result = CliResult(
        returncode=process.returncode if returncode is None else returncode,
        output=log.read_text(errors="replace"),
        scalars=read_scalars(_tensorboard_dir(flags)),
        seconds=time.monotonic() - started,
    )
    if returncode is None:
        raise AssertionError(f"no end within {timeout:.0f} s\n{result.last_lines()}")
    if expect is not None and returncode != expect:
        raise AssertionError(f"exit status {returncode}, expected {expect}\n{result.last_lines()}")
    return result


def wait_until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    """Return as soon as the condition holds.  The limit is for what never comes, not for what is slow.

    Raises:
        AssertionError: it did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {condition}")
        time.sleep(0.05)


def end_processes(run_id: str) -> None:
    """End every process that belongs to one run, whatever session, group or parent it has by now."""
    while pids := processes_of(run_id):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes_of(run_id: str) -> list[int]:
    """The living processes of one run, told by the variable they inherited."""
    marker = f"{RUN_ENV_VAR}={run_id}".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if marker in (entry / "environ").read_bytes().split(b"\0") and not _is_zombie(entry):
                pids.append(int(entry.name))
    return pids


def _is_zombie(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def die_with_parent() -> None:
    """For ``preexec_fn``: the new process ends with the thread that started it."""
    # A test session killed outright cannot clean up; Ray's daemons follow their driver in the same way.
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _tensorboard_dir(flags: tuple[str, ...]) -> Path | None:
    flag = "--logger.tensorboard_dir"
    last = max((i for i, word in enumerate(flags) if word == flag), default=None)
    return None if last is None else Path(flags[last + 1])


def read_scalars(folder: Path | None) -> dict[str, list[tuple[int, float]]]:
    """All scalars under a TensorBoard folder, in step order."""
    scalars: dict[str, list[tuple[int, float]]] = {}
    if folder is None or not folder.exists():
        return scalars
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for file in sorted(folder.rglob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {name: sorted(points) for name, points in scalars.items()}
