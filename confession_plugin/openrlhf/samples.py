"""Seam: OpenRLHF ``SamplesGenerator``: which groups confess, in which order they train, responses into samples.

The choice is made for a whole dispatched batch, before any answer exists.  The count of dispatched prompts is the
position of the choice in the run; a resumed run continues it (see `restore_position`).

The host collects groups in the order in which they finish.  A group that confesses finishes later, so the groups are
put back into the order of their dispatch: being asked changes neither when an answer trains nor on which rank.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from confession_plugin import session
from confession_plugin.config import PREFIX
from confession_plugin.errors import HostError, PluginError
from confession_plugin.openrlhf import experiences, recording
from confession_plugin.openrlhf.dataset import messages_in, row_of
from confession_plugin.openrlhf.executor import ConfessionTokens
from confession_plugin.openrlhf.experiences import complete_info, write_info
from confession_plugin.openrlhf.extra_confessions import EXTRA
from confession_plugin.openrlhf.judged_later import Unjudged
from confession_plugin.openrlhf.responses import action_ranges, answered_tokens, flatten, floats, require_numbers
from confession_plugin.openrlhf.ticket import STAMP, Ticket, TicketedDispatch
from confession_plugin.records import PromptBatch


class Progress:
    """How far a samples generator has come; kept on the generator itself, since the host makes one per run."""

    def __init__(self) -> None:
        self.prompts = 0  # dispatched for training, over the whole run
        self.steps = 0  # training batches asked for, over the whole run
        self.chosen = 0  # groups chosen to confess, since they were last compared with what came back
        self.confessed = 0  # samples that came back from them
        self.evaluating = False
        self.begin(0)

    def begin(self, waiting: int) -> None:
        """Start to sample groups; `waiting` groups of earlier calls are first in the next training batch."""
        self.waiting = waiting
        self.places: dict[int, int] = {}  # group -> its place among the groups of this call
        self.asked: list[bool] = []  # by place
        self.unjudged: Unjudged | None = None  # where the host filters groups
        self.latest: int | None = None  # the group whose responses were looked at last

    @staticmethod
    def of(generator: Any) -> Progress:
        if not hasattr(generator, "_confession_progress"):
            generator._confession_progress = Progress()
        progress: Progress = generator._confession_progress
        return progress


def generate_samples(host: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Count the training batches; save or replay them where the run says so (see `recording`)."""
    config, progress = session.config(), Progress.of(self)
    progress.steps += 1
    if config.replay_rollouts is not None:
        result = recording.replay(self, config.replay_rollouts, progress.steps, answers_only=False, **kwargs)
    else:
        result = host(self, *args, **kwargs)
        _require_confessions(progress, self.args.rollout.n_samples_per_prompt)
    samples = result[0]
    if not samples:
        progress.steps -= 1  # the end of an episode: the host asked once more and got nothing
    elif config.record_rollouts is not None:
        recording.save(config.record_rollouts, progress.steps, samples)
    for sample in samples:
        if hasattr(sample, "info"):
            # The batch it trains in; with dynamic filtering it may have been sampled for an earlier one.
            sample.info[experiences.PREFIX + "step"] = torch.tensor([progress.steps])
    return result


def _require_confessions(progress: Progress, samples_per_group: int) -> None:
    """Every sample of a chosen group came back with its confession, or with the reason why it has none.

    Raises:
        HostError: a rollout worker that is not ours answered: this run would train without confessions, unnoticed.
    """
    expected, found = progress.chosen * samples_per_group, progress.confessed
    progress.chosen = progress.confessed = 0
    if found < expected:
        raise HostError(
            f"{expected} samples were chosen to confess and {found} came back with a confession: some rollout worker "
            f"does not run this plugin; use the host's own rollout engines, or train without {PREFIX}enable"
        )


def generate_eval_samples(host: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Evaluation stays the host's: no confessions, no change of position."""
    progress = Progress.of(self)
    progress.evaluating = True
    try:
        return host(self, *args, **kwargs)
    finally:
        progress.evaluating = False


def generate_vllm(host: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """The accepted groups in the order of their dispatch, each replacement in the place of the group it replaces.

    Only then are the groups cut into training batches, so an answer's batch, rank and staleness are what they would be
    had its group not been asked.  (In a stock run the order is that of completion, which differs from run to run.)
    """
    progress = Progress.of(self)
    if progress.evaluating:
        return host(self, *args, **kwargs)
    waiting = getattr(self, "_sample_buffer", None)
    progress.begin(len(waiting) // self.args.rollout.n_samples_per_prompt if waiting else 0)
    call = inspect.signature(host).bind(self, *args, **kwargs)
    if call.arguments["dynamic_filtering"]:
        progress.unjudged = Unjudged()
        call.arguments["dataloader_iter"] = progress.unjudged.watched(call.arguments["dataloader_iter"])
    samples, *rest = host(*call.args, **call.kwargs)
    if progress.unjudged is not None:
        progress.unjudged.judge_rest(samples)
        progress.unjudged = None
    return (sorted(samples, key=lambda sample: _place(sample, progress.places)), *rest)


def _place(sample: Any, places: Mapping[int, int]) -> float:
    """Samples from elsewhere, which have no place, stay behind the others."""
    group = getattr(sample, "info", {}).get(experiences.PREFIX + "group")
    return math.inf if group is None else places.get(int(group), math.inf)


def dispatch_prompts(host: Any, self: Any, prompts: Sequence[str], labels: Sequence[Any], **kwargs: Any) -> Any:
    """Choose the confessing groups of this batch (hook `confession_select`) and give each group its ticket."""
    progress = Progress.of(self)
    texts = list(map(str, prompts))
    if progress.evaluating:
        return host(self, texts, labels, **kwargs)
    together = self.args.rollout.batch_size
    places = _places_of(progress, len(prompts))
    seed = session.config().seed
    batch = PromptBatch(
        prompts=tuple(texts),
        labels=tuple(labels),
        position=progress.prompts,
        step=progress.steps,
        seed=self.args.train.seed if seed is None else seed,
        train_size=together,
        train_place=(progress.waiting + places[0]) % together if places else 0,
        replaced=tuple(progress.asked[place] for place in places if place < len(progress.asked)),
    )
    chosen = session.plugins().hook.confession_select(batch=batch)
    if chosen is None or len(chosen) != len(prompts):
        raise PluginError(f"confession_select gave {chosen!r} for {len(prompts)} groups; give one bool a group")
    tickets = _tickets_of(self, batch, prompts, places, chosen)
    engines = self.vllm_engines
    dispatch = TicketedDispatch(batch, tickets)
    self.vllm_engines = dispatch.engines(engines)
    try:
        return host(self, texts, labels, **kwargs)
    finally:
        self.vllm_engines = engines
        if progress.unjudged is not None:
            progress.unjudged.workers.update(dispatch.workers)


def _tickets_of(
    generator: Any, batch: PromptBatch, prompts: Sequence[str], places: Sequence[int], chosen: Sequence[bool]
) -> list[Ticket]:
    """A ticket for every group, asked or not; the generator's progress counts them as dispatched."""
    progress, tickets = Progress.of(generator), []
    for number, (place, asked) in enumerate(zip(places, map(bool, chosen), strict=True)):
        group = batch.position + number
        progress.asked[place : place + 1] = [asked]
        progress.places[group] = place
        # The training batch it is sampled for: those that wait come first.
        step = max(progress.steps, 1) + (progress.waiting + place) // batch.train_size
        row = row_of(generator, prompts[number]) if asked else {}
        messages = messages_in(generator, row) if row else None
        tickets.append(Ticket(step, group, asked, row, messages, judged_later=progress.unjudged is not None))
    progress.prompts += len(prompts)
    progress.chosen += sum(map(bool, chosen))
    return tickets


def _places_of(progress: Progress, count: int) -> list[int]:
    """Places of the groups about to be dispatched.

    The host looks at a group's responses, drops them where its filter says so and then dispatches one replacement: a
    later dispatch of one group takes the place of the group looked at last.
    """
    if progress.places and count == 1 and progress.latest in progress.places:
        return [progress.places[progress.latest]]
    return list(range(len(progress.asked), len(progress.asked) + count))


def process_response(host: Any, self: Any, response: dict[str, Any], **kwargs: Any) -> Any:
    """One host sample with two spans, and the further confessions about its answer as its extra rows.

    The host's code runs on the answer alone, then on answer, request and confession together.  Lengths, truncation
    and clipping are the first run's: the answer's, to the last number what the stock run would report.
    """
    response = dict(response)
    tokens: ConfessionTokens = response.pop("confession", None) or ConfessionTokens()
    group, progress = response.pop(STAMP, None), Progress.of(self)
    progress.latest = group
    if progress.unjudged is not None:
        progress.unjudged.look_at(group, confessed=bool(tokens.numbers))
    progress.confessed += bool(tokens.numbers)
    experience = _sample_of(host, self, response, **kwargs)
    extra = []
    if tokens.request:
        max_len = kwargs.get("max_len", 2048)
        whole = _sample_of(host, self, _join(response, tokens, max_len), **{**kwargs, "max_len": 1 << 30})
        whole.response_length, whole.truncated = experience.response_length, experience.truncated
        whole.info["response_clip_ratio"] = experience.info["response_clip_ratio"]
        experience = whole
        for other in tokens.extra:
            joined = _join(response, other, max_len)
            joined["action_ranges"] = joined["action_ranges"][-1:]  # the answer trains once
            row = host(self, joined, **{**kwargs, "max_len": 1 << 30})
            row.info = {}
            write_info(row.info, other.numbers)
            extra.append(row)
            # Dynamic batching deals samples out by their tokens, and a sample's extra confessions come with it.
            experience.total_length += row.total_length
    write_info(experience.info, tokens.numbers if group is None else {**tokens.numbers, "group": group})
    if session.config().samples_per_answer > 1:
        experience.info[EXTRA] = [extra]
    if session.config().record_rollouts is not None:
        recording.remember(experience, {**response, "confession": tokens} if tokens.numbers else response)
    return experience


def _sample_of(host: Any, self: Any, response: dict[str, Any], **kwargs: Any) -> Any:
    """The host's sample with its numbers in one dimension."""
    try:
        sample = host(self, response, **kwargs)
    except Exception:
        require_numbers(response)  # a line that names the entry, where that is what is wrong
        raise
    flatten(sample)
    return sample


def make_experience_batch(host: Any, self: Any, rollout_samples: Any, *args: Any, **kwargs: Any) -> Any:
    """Seam: ``RemoteExperienceMaker.make_experience_batch``: samples from elsewhere count as not asked."""
    for sample in rollout_samples:
        complete_info(sample)
        if session.config().samples_per_answer > 1:
            sample.info.setdefault(EXTRA, [[]])
    return host(self, rollout_samples, *args, **kwargs)


def _join(response: dict[str, Any], tokens: ConfessionTokens, max_len: int) -> dict[str, Any]:
    answered = answered_tokens(response, max_len)
    start = len(answered) + len(tokens.request)
    log_probs = response["rollout_log_probs"]
    if log_probs is not None:
        # The request is not sampled: 0.0, as the host writes for prompt and environment tokens.
        log_probs = floats(log_probs[:max_len]) + [0.0] * len(tokens.request) + list(tokens.log_probs or [])
    return {
        **response,
        "observation_tokens": answered + tokens.request + tokens.confession,
        "action_ranges": [*action_ranges(response, len(answered)), (start, start + len(tokens.confession))],
        "rollout_log_probs": log_probs,
    }


#: In the dataloader's state on its way to the generator of an async run: the training batches so far.
_STEPS = "confession_steps"


def restore_position(host: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Seam: ``BasePPOTrainer.init_checkpoint_states``: a resumed run repeats the choices of the one it continues."""
    states = host(self, *args, **kwargs)
    if hasattr(self, "samples_generator"):
        progress = Progress.of(self.samples_generator)
        progress.prompts = states["total_consumed_prompts"]
        progress.steps = states["global_step"]
    elif states["global_step"]:
        # Async: the host tells its generator the consumed prompts, of which filtering makes any number of batches.
        states = {
            **states,
            "data_loader_state_dict": {**states["data_loader_state_dict"], _STEPS: states["global_step"]},
        }
    return states


def resuming_generator(actor: Any) -> Any:
    """Seam: ``GenerateSamplesActor`` (async training), which is told how far the run has come only as it starts."""
    import ray

    base: Any = actor.__ray_metadata__.modified_class

    class ResumingGenerator(base):
        def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
            state_dict = dict(state_dict)
            Progress.of(self.samples_generator).steps = state_dict.pop(_STEPS, 0)
            return super().load_state_dict(state_dict)

        def fit(self, episode: int, total_consumed_prompts: int, **kwargs: Any) -> Any:
            Progress.of(self.samples_generator).prompts = total_consumed_prompts
            return super().fit(episode=episode, total_consumed_prompts=total_consumed_prompts, **kwargs)

    return ray.remote(ResumingGenerator)
