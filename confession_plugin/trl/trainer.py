"""`GRPOTrainerWithConfessions`: TRL's trainer, and beside its answers a second generation and a second loss.

The host's methods are called, never copied: `_generate_and_score_completions` for the answers as they are in a stock
run, then the confessions; `_compute_loss` on the host's inputs, then on the confessions' rows.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from confession_plugin.channels import HonestyChannel
from confession_plugin.confess import Confessor, Finished
from confession_plugin.config import Config
from confession_plugin.honesty import honesty_values
from confession_plugin.judging.failure_budget import FailureBudget
from confession_plugin.readable import ReadableWatch
from confession_plugin.startup import Run
from confession_plugin.trl import host_state, limits, losses, metrics, rollouts, settings, version
from confession_plugin.trl.estimators import HostEstimator, estimator_of
from confession_plugin.trl.generation import Answer, Loop, TrainerEngine, Wave, confess_all
from confession_plugin.trl.position import Position
from confession_plugin.trl.reference import with_log_probs
from confession_plugin.trl.rollouts import Place, Seen
from confession_plugin.trl.rows import ASKED, ROWS, Row

Found = Mapping[int, Sequence[Finished]]
"""The confessions about each asked sample of this process."""


class Confessing:
    """Trains confessions beside the answers of a GRPO trainer; stands before the trainer among a class's bases.

    Args:
        confessions: the settings; None: the stock trainer, with nothing added.
    """

    def __init__(self, *args: Any, confessions: Config | Run | None = None, **kwargs: Any) -> None:
        self._confession_run: Run | None = None
        self._confession_seen: Seen | None = None
        if confessions is None:
            super().__init__(*args, **kwargs)
            return
        run, args, kwargs = self._checked(confessions, args, kwargs)
        super().__init__(*args, **kwargs)
        self._begin(run)

    def _checked(
        self, confessions: Config | Run, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Run, tuple[Any, ...], dict[str, Any]]:
        """Everything that can be known before the host builds its trainer.

        Raises:
            ConfessionError: one line that says what, where and how to fix it.
        """
        host = super().__init__
        bound = inspect.signature(host).bind(*args, **kwargs)
        given = bound.arguments
        if given.get("args") is None:
            given["args"] = GRPOConfig("confessions-GRPO")
        run = confessions if isinstance(confessions, Run) else None
        config = run.config if run is not None else confessions
        assert isinstance(config, Config)
        version.check_version(config)
        version.check_signatures(GRPOTrainer)
        limits.check(config, given["args"], given)
        if run is None:
            run = settings.ready(config, main=given["args"].process_index == 0)
        from confession_plugin.trl.check import seal

        seal.require_for(given["args"], run)
        return run, bound.args, bound.kwargs

    def _begin(self, run: Run) -> None:
        trainer: Any = self
        config = settings.finished(run.config, trainer.args, trainer.processing_class, trainer.train_dataset)
        main = trainer.accelerator.is_main_process
        settings.check_context(run, config, trainer.args, trainer.model, trainer.processing_class, say=main)
        self._confession_run = run = settings.begin(run, config)
        self._confession_position = Position()
        self._confession_position.watch(trainer)
        self._confession_loop = Loop()
        self._confession_watch = ReadableWatch(config.max_unparsed)
        self._confessor = Confessor(
            run.plugins, samples_per_answer=config.samples_per_answer, budget=FailureBudget(config.max_unscored)
        )

    # ── The host's methods ──

    def _generate_and_score_completions(self, inputs: Sequence[Any]) -> dict[str, Any]:
        trainer: Any = self
        host = super()._generate_and_score_completions  # type: ignore[misc]
        run = self._confession_run
        if run is None:
            return dict(host(inputs))
        if not trainer.model.training:
            batch = host(inputs)
            self._log_table({}, len(inputs))
            return dict(batch)
        with host_state.same_random_state():
            generation = self._confession_position.generation
            place = rollouts.choose(trainer, run.plugins, run.config, inputs, generation)
        self._confession_seen = seen = Seen()
        try:
            batch = dict(host(inputs))
        finally:
            self._confession_seen = None
        rollouts.refuse_images(batch)
        with host_state.same_random_state():
            return batch | self._confessions_of(run, inputs, seen, place, batch)

    def _generate(self, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._generate(prompts, *args, **kwargs)  # type: ignore[misc]
        if self._confession_seen is not None:
            self._confession_seen.prompt_ids, self._confession_seen.completion_ids = result[:2]
        return result

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        rewards = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        if self._confession_seen is not None:
            self._confession_seen.rewards = rewards.detach().clone()
        return rewards

    def _log_completion_extra(self, column: str, values: Any) -> Any:
        if self._confession_seen is not None:
            self._confession_seen.extra.setdefault(column, []).extend(values)
        return super()._log_completion_extra(column, values)  # type: ignore[misc]

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        host = super()._compute_loss  # type: ignore[misc]
        if self._confession_run is None:
            loss: Tensor = host(model, inputs)
            return loss
        return losses.compute_loss(host, self, self._confession_run.config, model, inputs)

    # ── The confessions of a batch ──

    def _confessions_of(
        self, run: Run, inputs: Sequence[Any], seen: Seen, place: Place, batch: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What rides with the host's batch: rows, who was asked, totals.  Logs the batch's numbers."""
        trainer: Any = self
        answers = rollouts.answers_of(trainer, run.config, inputs, seen, place)
        found = self._confess(run, answers, place)
        mine = range(place.first_sample, place.first_sample + len(inputs))
        rewards = rollouts.rewards_of(trainer, seen)
        stats = metrics.batch_stats(
            found,
            groups=[place.first_group + place.group(sample) for sample in range(len(inputs))],
            labels=[rollouts.label_of(row) for row in inputs],
            rewards=[rewards[sample] for sample in mine],
        )
        metrics.log(trainer, run.plugins, self._confession_watch, stats)
        self._log_table(found, len(inputs))
        rows = self._rows(run, found, answers, len(inputs), batch)
        asked = torch.tensor([place.asked(sample) for sample in range(len(inputs))])
        mask = batch["completion_mask"].cpu()
        flat = [row for of_one in rows for row in of_one]
        return {
            ROWS: rows,
            ASKED: asked,
            **losses.carried("rows", self._totals(len(flat), sum(len(row.ids) for row in flat))),
            **losses.carried("answers", self._totals(int((~asked).sum()), int(mask[~asked].sum()))),
        }

    def _confess(self, run: Run, answers: Mapping[int, Answer], place: Place) -> dict[int, list[Finished]]:
        trainer: Any = self
        seeds = (run.config.seed, place.first_group, trainer.accelerator.process_index)
        calls = iter(range(1 << 30))

        def sample(contexts: list[list[int]], budget: int) -> list[list[int]]:
            seed = zlib.crc32(":".join(map(str, (*seeds, next(calls)))).encode())
            with host_state.second_generation(trainer, budget, seed):
                return list(self._single_turn(contexts))

        found = confess_all(
            self._confession_loop,
            self._confessor,
            list(answers.values()),
            functools.partial(self._engine, run),
            sample,
            run.config.samples_per_answer,
            at_most=trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation,
        )
        return dict(zip(answers, found, strict=True))

    def _engine(self, run: Run, wave: Wave, answer: Answer) -> TrainerEngine:
        trainer: Any = self
        return TrainerEngine(
            wave,
            trainer.processing_class,
            list(answer.rollout.token_ids),
            answer.start,
            config=run.config,
            context=settings.positions(trainer.model),
            end_ids=rollouts.end_ids(trainer),
        )

    def _single_turn(self, contexts: list[list[int]]) -> Any:
        """The trainer's own generation, one completion a context."""
        generate = self._generate_single_turn  # type: ignore[attr-defined]
        known = inspect.signature(inspect.unwrap(GRPOTrainer._generate_single_turn)).parameters
        one = {"num_generations": 1} if "num_generations" in known else {}
        return generate(contexts, None, {}, **one)[0]

    def _rows(
        self,
        run: Run,
        found: Found,
        answers: Mapping[int, Answer],
        samples: int,
        batch: Mapping[str, Any],
    ) -> list[tuple[Row, ...]]:
        """The scored confessions with their advantages, as rows: a tuple for each sample of this process."""
        trainer: Any = self
        advantages = self._advantages(run, found, samples)
        rows: list[list[Row]] = [[] for _ in range(samples)]
        for sample, confessions in found.items():
            for number, one in enumerate(confessions):
                if one.sampled is None or one.judged.reward is None:
                    continue
                ids = tuple(one.sampled.token_ids)
                context = (*answers[sample].rollout.token_ids, *one.sampled.request_ids)
                rows[sample].append(Row(context, ids, advantages[sample, number, : len(ids)].clone()))
        return with_log_probs(trainer, rows, batch)

    def _advantages(self, run: Run, found: Found, samples: int) -> Tensor:
        """(samples of this process, confessions an answer, tokens) float32."""
        trainer: Any = self
        nested = run.config.samples_per_answer
        rewards, scored, length = (torch.zeros(samples, nested, dtype=torch.float32) for _ in range(3))
        for sample, confessions in found.items():
            for number, one in enumerate(confessions):
                if one.sampled is not None and one.judged.reward is not None:
                    rewards[sample, number] = one.judged.reward
                    scored[sample, number], length[sample, number] = 1, len(one.sampled.token_ids)
        packed = torch.stack([rewards, scored, length], dim=-1).to(trainer.accelerator.device)
        every = trainer.accelerator.gather(packed).cpu().reshape(-1, 3)  # (N, 3), every process's in order
        mask = torch.arange(max(int(every[:, 2].max()), 1)) < every[:, 2:]  # (N, A)
        values = self._honesty(run, every[:, 0].clone(), every[:, 1].bool(), mask)
        first = trainer.accelerator.process_index * samples
        return values.reshape(-1, nested, mask.shape[-1])[first : first + samples]

    def _honesty(self, run: Run, rewards: Tensor, scored: Tensor, mask: Tensor) -> Tensor:
        """(N, A) advantages of the honesty channel (hook `confession_advantages`)."""
        trainer: Any = self
        nested = run.config.samples_per_answer

        def host(on: Any, inputs: Sequence[Any]) -> dict[str, Any]:
            return dict(super()._generate_and_score_completions(inputs))  # type: ignore[misc]

        estimator = HostEstimator(host, trainer, scored, mask)
        channel = HonestyChannel(
            rewards=rewards,
            scored=scored,
            masks=[mask],
            group_size=trainer.num_generations if nested == 1 else nested,
            estimator=estimator_of(trainer),
            estimate=estimator.estimate,
        )
        return torch.where(mask, honesty_values(run.plugins, channel).advantages[0], torch.zeros(()))

    def _totals(self, rows: int, tokens: int) -> losses.Totals:
        """Over all processes."""
        trainer: Any = self
        counts = torch.tensor([[rows, tokens]], device=trainer.accelerator.device)
        return losses.Totals(*trainer.accelerator.gather(counts).sum(0).tolist())

    def _log_table(self, found: Found, samples: int) -> None:
        trainer: Any = self
        if trainer.log_completions:
            metrics.log_table(trainer, found, samples)


class GRPOTrainerWithConfessions(Confessing, GRPOTrainer):
    """TRL's GRPOTrainer with confessions: the same arguments, and ``confessions=ConfessionConfig(...)``."""
