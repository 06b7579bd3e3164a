"""Seam: OpenRLHF ``SamplesGenerator``: which groups confess, and responses into samples.

The choice is made for a whole dispatched batch, before any answer exists.  The count of dispatched prompts is the
position of the choice in the run; a resumed run continues it (see `restore_position`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confession_plugin.errors import PluginError
from confession_plugin.openrlhf import recording, session
from confession_plugin.openrlhf.executor import ConfessionTokens
from confession_plugin.openrlhf.experiences import write_info
from confession_plugin.openrlhf.rollout import with_ticket
from confession_plugin.openrlhf.siblings import SIBLINGS
from confession_plugin.records import PromptBatch


class Progress:
    """How far a samples generator has come; kept on the generator itself, since the host makes one per run."""

    def __init__(self) -> None:
        self.prompts = 0  # dispatched for training, over the whole run
        self.steps = 0  # training batches asked for, over the whole run
        self.evaluating = False

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
        return recording.replay(self, config.replay_rollouts, progress.steps, answers_only=False, **kwargs)
    result = host(self, *args, **kwargs)
    if not result[0]:
        progress.steps -= 1  # the end of an episode: the host asked once more and got nothing
    elif config.record_rollouts is not None:
        recording.save(config.record_rollouts, progress.steps, result[0])
    return result


def generate_eval_samples(host: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Evaluation stays the host's: no confessions, no change of position."""
    progress = Progress.of(self)
    progress.evaluating = True
    try:
        return host(self, *args, **kwargs)
    finally:
        progress.evaluating = False


def dispatch_prompts(host: Any, self: Any, prompts: Sequence[str], labels: Sequence[Any], **kwargs: Any) -> Any:
    """Choose the confessing groups of this batch (hook `confession_select`) and give each its ticket."""
    progress = Progress.of(self)
    if progress.evaluating:
        return host(self, prompts, labels, **kwargs)
    seed = session.config().seed
    batch = PromptBatch(
        prompts=tuple(prompts),
        labels=tuple(labels),
        position=progress.prompts,
        step=progress.steps,
        seed=self.args.train.seed if seed is None else seed,
    )
    chosen = session.plugins().hook.confession_select(batch=batch)
    if chosen is None or len(chosen) != len(prompts):
        raise PluginError(f"confession_select gave {chosen!r} for {len(prompts)} groups; give one bool a group")
    progress.prompts += len(prompts)
    engines = self.vllm_engines
    dispatch = TicketedDispatch(batch, chosen)
    self.vllm_engines = [TicketedEngine(engine, dispatch) for engine in engines]
    try:
        return host(self, prompts, labels, **kwargs)
    finally:
        self.vllm_engines = engines


class TicketedDispatch:
    """The tickets of one batch.  The host dispatches its prompts one call each, in order: call i is group i."""

    def __init__(self, batch: PromptBatch, chosen: Sequence[bool]) -> None:
        self._batch = batch
        self._chosen = chosen
        self._next = 0

    def ticket(self, prompt: str, sampling_params: Any) -> Any:
        index, self._next = self._next, self._next + 1
        if prompt != self._batch.prompts[index]:
            raise PluginError("OpenRLHF dispatched its prompts in another order than it was given them")
        if not self._chosen[index]:
            return sampling_params
        return with_ticket(sampling_params, step=self._batch.step, group=self._batch.position + index)


class TicketedEngine:
    """A vLLM engine handle whose ``generate_responses.remote`` adds the group's ticket; all else is the handle's."""

    def __init__(self, engine: Any, dispatch: TicketedDispatch) -> None:
        self._engine = engine
        self._dispatch = dispatch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def generate_responses(self) -> TicketedEngine:
        return self

    def remote(self, *, prompt: str, sampling_params: Any, **kwargs: Any) -> Any:
        params = self._dispatch.ticket(prompt, sampling_params)
        return self._engine.generate_responses.remote(prompt=prompt, sampling_params=params, **kwargs)


def process_response(host: Any, self: Any, response: dict[str, Any], **kwargs: Any) -> Any:
    """One host sample with two spans, and the further confessions about its answer as its siblings.

    The host's code runs on the answer alone, then on answer, request and confession together.  Lengths, truncation
    and clipping are the first run's: the answer's, to the last number what the stock run would report.
    """
    response = dict(response)
    tokens: ConfessionTokens | None = response.pop("confession", None)
    experience = host(self, response, **kwargs)
    siblings = []
    if tokens is not None and tokens.request:
        max_len = kwargs.get("max_len", 2048)
        joined = _join(response, tokens, max_len)
        whole = host(self, joined, **{**kwargs, "max_len": 1 << 30})
        whole.response_length, whole.truncated = experience.response_length, experience.truncated
        whole.info["response_clip_ratio"] = experience.info["response_clip_ratio"]
        experience = whole
        for other in tokens.siblings:
            joined = _join(response, other, max_len)
            joined["action_ranges"] = joined["action_ranges"][-1:]  # the answer trains once
            sibling = host(self, joined, **{**kwargs, "max_len": 1 << 30})
            sibling.info = {}
            write_info(sibling.info, other.numbers, other.unscored)
            siblings.append(sibling)
            # Dynamic batching deals samples out by their tokens, and a sample's siblings come with it.
            experience.total_length += sibling.total_length
    tokens = tokens or ConfessionTokens()
    write_info(experience.info, tokens.numbers, tokens.unscored)
    if session.config().samples_per_answer > 1:
        experience.info[SIBLINGS] = [siblings]
    if session.config().record_rollouts is not None:
        recording.remember(experience, {**response, "confession": tokens} if tokens.numbers else response)
    return experience


def _join(response: dict[str, Any], tokens: ConfessionTokens, max_len: int) -> dict[str, Any]:
    answered = list(response["observation_tokens"][:max_len])
    start = len(answered) + len(tokens.request)
    end = start + len(tokens.confession)
    ranges = [(first, min(last, len(answered))) for first, last in response["action_ranges"] if first < len(answered)]
    log_probs = response["rollout_log_probs"]
    if log_probs is not None:
        # The request is nobody's sample: 0.0, as the host writes for prompt and environment tokens.
        log_probs = list(log_probs[:max_len]) + [0.0] * len(tokens.request) + list(tokens.log_probs or [])
    return {
        **response,
        "observation_tokens": answered + tokens.request + tokens.confession,
        "action_ranges": [*ranges, (start, end)],
        "rollout_log_probs": log_probs,
    }


def restore_position(host: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Seam: ``BasePPOTrainer.init_checkpoint_states``: a resumed run repeats the choices of the one it continues."""
    states = host(self, *args, **kwargs)
    if hasattr(self, "samples_generator"):
        progress = Progress.of(self.samples_generator)
        progress.prompts = states["total_consumed_prompts"]
        progress.steps = states["global_step"]
    return states


def resuming_generator(actor: Any) -> Any:
    """Seam: ``GenerateSamplesActor`` (async training), which is told the consumed prompts only as it starts."""
    import ray

    base: Any = actor.__ray_metadata__.modified_class

    class ResumingGenerator(base):
        def fit(self, episode: int, total_consumed_prompts: int, **kwargs: Any) -> Any:
            progress = Progress.of(self.samples_generator)
            progress.prompts = total_consumed_prompts
            progress.steps = total_consumed_prompts // self.args.rollout.batch_size
            return super().fit(episode=episode, total_consumed_prompts=total_consumed_prompts, **kwargs)

    return ray.remote(ResumingGenerator)
