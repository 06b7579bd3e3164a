"""What a batch of answers looks like to plugins: the choice before it, and each answer after it.

Shapes: B samples of this process, in the order of the host's inputs; members of a group stand side by side over all
processes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from confession_plugin.config import Config
from confession_plugin.errors import ConfigError, PluginError
from confession_plugin.plugins import PluginManager
from confession_plugin.records import PromptBatch, Rollout
from confession_plugin.texts import texts_of_answer
from confession_plugin.trl.generation import Answer

#: Columns of a dataset that hold the label, in the order of preference.
LABELS = ("label", "solution", "answer", "ground_truth", "target")


@dataclass
class Seen:
    """What the host did on its way from prompts to scored completions, caught on the trainer's methods."""

    prompt_ids: Sequence[Sequence[int]] = ()
    completion_ids: Sequence[Sequence[int]] = ()
    """As sampled: the host's own batch drops them where it masks truncated completions."""
    rewards: Tensor | None = None
    """(all samples, reward functions)."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """What the reward functions logged by ``log_extra``, a value a sample."""


@dataclass(frozen=True)
class Place:
    """Where a batch stands in the run, and which of its groups confess."""

    step: int
    first_group: int
    """Position of its first group in the run."""
    chosen: Sequence[bool]
    """One a group, over all processes."""
    first_sample: int
    """Of this process's samples, their first one's place in the whole batch."""
    group_size: int

    def group(self, sample: int) -> int:
        """The group, within the batch, of a sample of this process."""
        return (self.first_sample + sample) // self.group_size

    def asked(self, sample: int) -> bool:
        """Does this sample of this process confess?"""
        return self.chosen[self.group(sample)]


def choose(
    trainer: Any, plugins: PluginManager, config: Config, inputs: Sequence[Mapping[str, Any]], generation: int
) -> Place:
    """Choose the groups that confess, before any answer exists.

    Raises:
        PluginError: the choice has another length than the groups.
    """
    size = trainer.num_generations
    rows = gather_object([(prompt_text(trainer, row["prompt"]), label_of(row)) for row in inputs])
    prompts, labels = zip(*rows[::size], strict=True)
    batch = PromptBatch(
        prompts=prompts,
        labels=labels,
        position=generation * len(prompts),
        step=generation + 1,
        seed=config.seed if config.seed is not None else trainer.args.seed,
    )
    chosen = plugins.hook.confession_select(batch=batch)
    if chosen is None or len(chosen) != len(prompts):
        raise PluginError(f"confession_select gave {chosen!r} for {len(prompts)} groups; give one bool a group")
    first = trainer.accelerator.process_index * len(inputs)
    return Place(batch.step, batch.position, tuple(map(bool, chosen)), first, size)


def prompt_text(trainer: Any, prompt: Any) -> str:
    """The prompt as text, chat markup included, as the host will tokenise it."""
    if isinstance(prompt, str):
        return prompt
    try:
        return str(
            trainer.processing_class.apply_chat_template(
                prompt,
                chat_template=trainer.chat_template,
                add_generation_prompt=True,
                tokenize=False,
                **trainer.chat_template_kwargs,
            )
        )
    except Exception:  # the host reports a prompt that it cannot render better than we could
        return json.dumps(prompt, default=str)


def label_of(row: Mapping[str, Any]) -> Any:
    """The dataset's label of a row: the first of `LABELS` that it has."""
    return copy.deepcopy(next((row[name] for name in LABELS if name in row), None))


def answers_of(
    trainer: Any, config: Config, inputs: Sequence[Mapping[str, Any]], seen: Seen, place: Place
) -> dict[int, Answer]:
    """The answers that are to be confessed, by sample of this process."""
    return {
        sample: _answer(trainer, config, inputs[sample], seen, place, sample)
        for sample in range(len(inputs))
        if place.asked(sample)
    }


def _answer(trainer: Any, config: Config, row: Mapping[str, Any], seen: Seen, place: Place, sample: int) -> Answer:
    prompt, completion = list(seen.prompt_ids[sample]), list(seen.completion_ids[sample])
    answered = prompt + completion
    tokenizer, source = trainer.processing_class, row["prompt"]
    rollout = Rollout(
        prompt=source if isinstance(source, str) else tokenizer.decode(prompt, skip_special_tokens=False),
        **texts_of_answer(tokenizer, answered, [(len(prompt), len(answered))], reasoning_end=config.reasoning_end),
        label=label_of(row),
        reward=rewards_of(trainer, seen)[place.first_sample + sample],
        truncated=completion[-1] not in end_ids(trainer),
        step=place.step,
        group=place.first_group + place.group(sample),
        sample=(place.first_sample + sample) % place.group_size,
        extra=_numbers(seen.extra, sample),
        columns=copy.deepcopy({name: value for name, value in row.items() if name != "prompt"}),
        messages=None if isinstance(source, str) else copy.deepcopy(source),
    )
    return Answer(rollout, len(prompt))


def end_ids(trainer: Any) -> tuple[int, ...]:
    """Tokens that end a completion by itself, as the host counts truncation."""
    tokenizer = trainer._tokenizer
    ends = getattr(trainer, "eos_token_ids", (tokenizer.eos_token_id,))  # older versions know one
    return (*ends, tokenizer.pad_token_id)


def rewards_of(trainer: Any, seen: Seen) -> list[float | None]:
    """The task reward of every sample over all processes: the weighed sum, as the host logs it; None for none."""
    assert seen.rewards is not None
    weighed = (seen.rewards * trainer.reward_weights.to(seen.rewards.device).unsqueeze(0)).nansum(dim=1)
    known = ~torch.isnan(seen.rewards).all(dim=1)
    return [value if is_known else None for value, is_known in zip(weighed.tolist(), known.tolist(), strict=True)]


def _numbers(extra: Mapping[str, Sequence[Any]], sample: int) -> dict[str, float]:
    """What the reward functions logged about a sample, where it is a number."""
    found = {name: values[sample] for name, values in extra.items() if sample < len(values)}
    return {
        name: float(value) for name, value in found.items() if isinstance(value, (bool, int, float)) and value == value
    }


def refuse_images(batch: Mapping[str, Any]) -> None:
    """Raises:
    ConfigError: the prompts hold images.
    """
    if "num_images" in batch or "pixel_values" in batch:
        raise ConfigError("a prompt holds images: confessions about images are not supported; train without them")
