"""Seam: OpenRLHF ``SamplesGenerator``: which groups confess, and responses into samples.

The choice is made for a whole dispatched batch, before any answer exists.  The count of dispatched prompts is the
position of the choice in the run; a resumed run continues it (see `restore_position`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confession_plugin import session
from confession_plugin.config import PREFIX
from confession_plugin.errors import HostError, PluginError
from confession_plugin.openrlhf import recording
from confession_plugin.openrlhf.executor import ConfessionTokens
from confession_plugin.openrlhf.experiences import write_info
from confession_plugin.openrlhf.extra_confessions import EXTRA
from confession_plugin.openrlhf.ticket import TicketedDispatch
from confession_plugin.records import PromptBatch


class Progress:
    """How far a samples generator has come; kept on the generator itself, since the host makes one per run."""

    def __init__(self) -> None:
        self.prompts = 0  # dispatched for training, over the whole run
        self.steps = 0  # training batches asked for, over the whole run
        self.chosen = 0  # groups chosen to confess, since they were last compared with what came back
        self.confessed = 0  # samples that came back from them
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
    _require_confessions(progress, self.args.rollout.n_samples_per_prompt)
    if not result[0]:
        progress.steps -= 1  # the end of an episode: the host asked once more and got nothing
    elif config.record_rollouts is not None:
        recording.save(config.record_rollouts, progress.steps, result[0])
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
    progress.chosen += sum(map(bool, chosen))
    engines = self.vllm_engines
    self.vllm_engines = TicketedDispatch(batch, chosen).engines(engines)
    try:
        return host(self, prompts, labels, **kwargs)
    finally:
        self.vllm_engines = engines


def process_response(host: Any, self: Any, response: dict[str, Any], **kwargs: Any) -> Any:
    """One host sample with two spans, and the further confessions about its answer as its extra rows.

    The host's code runs on the answer alone, then on answer, request and confession together.  Lengths, truncation
    and clipping are the first run's: the answer's, to the last number what the stock run would report.
    """
    response = dict(response)
    tokens: ConfessionTokens | None = response.pop("confession", None)
    for name in ("reward", "scores"):  # reward servers send lists of one number
        while isinstance(response.get(name), list) and len(response[name]) == 1:
            response[name] = response[name][0]
    experience = host(self, response, **kwargs)
    Progress.of(self).confessed += tokens is not None
    extra = []
    if tokens is not None and tokens.request:
        max_len = kwargs.get("max_len", 2048)
        joined = _join(response, tokens, max_len)
        whole = host(self, joined, **{**kwargs, "max_len": 1 << 30})
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
    tokens = tokens or ConfessionTokens()
    write_info(experience.info, tokens.numbers)
    if session.config().samples_per_answer > 1:
        experience.info[EXTRA] = [extra]
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
