"""Live runs with every answer on record: a world whose answers visibly change while it trains.

The tiny model, warm-started for seconds to answer with random letters and digits and to stop after about nine; the
reward wants digits, and more of them.  So reward, length and log-probabilities all move, smoothly.

Every step asks all of the world's prompts: the host shuffles prompts with a generator it does not seed, so no two runs
meet them in the same order, whatever their --train.seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import HERE, Tiny, base_flags, build_tiny, run_cli
from whole_runs import confession_flags

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
STOPS = 0.1  # the warm start's chance of ending after a character
MAX_NEW_TOKENS = 24
PROMPTS, SAMPLES = 16, 8  # a step


@dataclass(frozen=True)
class Answer:
    """One answer as the engine gave it."""

    number: int
    """Its place in the run, in the order in which answers were begun."""
    prompt: str
    repetition: int
    """How many answers to this prompt came before it in the run."""
    tokens: list[int]
    log_probs: list[float]
    reward: float

    @property
    def step(self) -> int:
        return self.number // (PROMPTS * SAMPLES) + 1

    @property
    def request(self) -> tuple[str, int]:
        """What one step's request has in common with another's: the prompt, and the place in its group."""
        return self.prompt, self.repetition % SAMPLES


def build_world(folder: Path) -> Tiny:
    """The tiny world with a warm-started model in place of its `plain_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny = build_tiny(folder)
    rows = [{"input": f"What is {n % 4} + {n // 4}?", "label": str(n % 4 + n // 4)} for n in range(PROMPTS)]
    tiny.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _warm_start(tiny)
    return tiny


def _warm_start(tiny: Tiny, steps: int = 60) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
    tokenizer = AutoTokenizer.from_pretrained(tiny.plain_model)
    model = AutoModelForCausalLM.from_pretrained(tiny.plain_model, dtype=torch.float32)
    prompts = [json.loads(line)["input"] for line in tiny.prompts.read_text().splitlines()]
    characters = torch.tensor([tokenizer.convert_tokens_to_ids(character) for character in ALPHABET])
    wanted = torch.zeros(model.config.vocab_size)  # of every next token
    wanted[characters] = (1 - STOPS) / len(ALPHABET)
    wanted[tokenizer.eos_token_id] = STOPS
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        batch = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        length = max(map(len, batch))
        rows = [
            torch.cat([torch.tensor(ids), characters[torch.randint(36, (length - len(ids) + 48,), generator=draw)]])
            for ids in batch
        ]
        log_probs = model(input_ids=torch.stack(rows)).logits.log_softmax(-1)  # (B, T, V)
        answered = torch.arange(len(rows[0])) >= torch.tensor([len(ids) - 1 for ids in batch]).unsqueeze(-1)  # (B, T)
        loss = -(log_probs @ wanted)[answered].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"warm start: cross-entropy {float(loss.detach()):.3f}, of a possible {_entropy(wanted):.3f}")
    model.to(torch.bfloat16).save_pretrained(tiny.plain_model)
    torch.set_num_threads(threads)


def _entropy(shares: object) -> float:
    import torch

    assert isinstance(shares, torch.Tensor)
    return float(torch.special.entr(shares).sum())


def live_run(
    tiny: Tiny, folder: Path, *ours: str, steps: int, seed: int, seeded_steps: int = 1, lr: float = 1e-3
) -> list[Answer]:
    """One run of the real command line, and every answer of it.

    Args:
        ours: --confession.* flags; none for the stock run.
        seeded_steps: the requests of this many first steps carry seeds of their own.
    """
    folder.mkdir(parents=True)
    size = PROMPTS * SAMPLES
    flags = [*base_flags(tiny, folder, model=tiny.plain_model), "--train.agent_func_path"]
    flags += [str(HERE / "worlds" / "recorded_answers.py"), "--data.max_len", "64"]
    flags += ["--rollout.batch_size", str(PROMPTS), "--rollout.n_samples_per_prompt", str(SAMPLES)]
    flags += ["--rollout.micro_batch_size", "64", "--rollout.max_new_tokens", str(MAX_NEW_TOKENS)]
    flags += ["--train.batch_size", str(size), "--train.micro_batch_size", "64", "--train.seed", str(seed)]
    flags += ["--data.max_samples", str(PROMPTS), "--train.num_episodes", str(steps)]
    flags += ["--actor.adam.lr", str(lr), "--algo.kl.init_coef", "0"]
    log = folder / "answers.jsonl"
    environment = {
        "ANSWERS_REWARD": str(HERE / "rewards" / "long_digits.py"),
        "ANSWERS_LOG": str(log),
        "ANSWERS_SEEDED": str(seeded_steps * size),
        "ANSWERS_SEED": str(seed),
        "ANSWERS_SAMPLES": str(SAMPLES),
    }
    run_cli(folder, *flags, *ours, env=environment)
    return read_answers(log)


def read_answers(log: Path) -> list[Answer]:
    answers = [Answer(**json.loads(line)) for line in log.read_text().splitlines()]
    return sorted(answers, key=lambda answer: answer.number)


def confessing(folder: Path, *, coef: float) -> list[str]:
    """Half of the groups confess, about anything; the judge likes digits, too."""
    return [*confession_flags(folder), "--confession.coef", str(coef)]


@dataclass(frozen=True)
class Pairs:
    """Two sets of answers to the same requests, side by side."""

    identical: int
    different: list[tuple[Answer, Answer, int]]
    """Two answers, and the place of the first token in which they differ."""
    rounding: float
    """Largest difference of two log-probs of the same token after the same tokens, over all pairs."""


def side_by_side(one: Sequence[Answer], other: Sequence[Answer]) -> Pairs:
    """Pair two steps' answers by request."""
    theirs = {answer.request: answer for answer in other}
    assert theirs.keys() == {answer.request for answer in one}
    different, identical, rounding = [], 0, 0.0
    for answer in one:
        twin = theirs[answer.request]
        both = list(zip(answer.tokens, twin.tokens, strict=False))
        at = next((place for place, (a, b) in enumerate(both) if a != b), len(both))
        changes = zip(answer.log_probs[:at], twin.log_probs[:at], strict=True)
        rounding = max([rounding, *(abs(a - b) for a, b in changes)])
        if answer.tokens == twin.tokens:
            identical += 1
        else:
            different.append((answer, twin, at))
    return Pairs(identical, different, rounding)


def of_step(answers: Sequence[Answer], step: int) -> list[Answer]:
    return [answer for answer in answers if answer.step == step]
