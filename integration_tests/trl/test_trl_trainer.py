"""The trainer as users build it: settings, plugins, rows, denominators, what is refused, the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
import numpy
import torch
from trl import GRPOTrainer
from trl_worlds import LOSS_TYPES, grpo_config, run_with, settings, world_of

from confession_plugin import Confession, PromptBatch, Rollout, Unscored, Verdict, hookimpl, train_trl
from confession_plugin.config import Config
from confession_plugin.errors import ConfigError, HostError, JudgeError, PluginError
from confession_plugin.trl import ConfessionConfig, GRPOTrainerWithConfessions, limits, losses, version
from confession_plugin.trl.check import seal, simulator
from confession_plugin.trl.check.simulator import World
from confession_plugin.trl.host_state import same_random_state
from confession_plugin.trl.rows import ROWS, Row

JUDGE = """
def judge(rollout, confession):
    return {"honest": len(confession.text) % 2}
"""
PLUGIN = """
from confession_plugin import Parsed, Request, hookimpl

@hookimpl
def confession_request(rollout):
    return Request("ask")

@hookimpl
def confession_parse(text):
    return Parsed(report=text, admits=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_of(tmp_path_factory.mktemp("trl")) as world:
        yield world


def reward(completion_ids: Any, log_extra: Any, **_: Any) -> list[float]:
    log_extra("violation", [float(len(ids) > 3) for ids in completion_ids])
    return [len(set(ids)) / 9 for ids in completion_ids]


def trainer_of(world: World, args: Any, run: Any = None, **changes: Any) -> Any:
    """A trainer without a check of its own, unless settings are given in place of a run."""
    kind = simulator._Ours if not isinstance(run, Config) else GRPOTrainerWithConfessions
    arguments = {"model": world.model, "reward_funcs": reward, "args": args, "train_dataset": world.prompts}
    return kind(**{**arguments, "processing_class": world.tokenizer, "confessions": run, **changes})


def test_a_users_trainer(world: World, tmp_path: Path) -> None:
    """Settings in Python, a judge and a plugin in files, the check, the log, the table, the trace."""
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    config = ConfessionConfig(
        judge_url=str(tmp_path / "judge.py"),
        plugins=(str(tmp_path / "plugin.py"),),
        probability=0.5,
        max_new_tokens=5,
        max_request_tokens=64,
        trace_dir=str(tmp_path / "trace"),
    )
    trainer = trainer_of(world, grpo_config(tmp_path / "out", log_completions=True), config)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["confession/request_rate"] == 0.5 and logged["confession/parsed_rate"] == 1
    assert {"confession/honesty_mean", "confession/loss", "confession/entropy", "confession/violation_rate"} <= set(
        logged
    )
    lines = [json.loads(line) for file in (tmp_path / "trace").iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == 8 and {line["step"] for line in lines} == {1, 2}
    assert all(line["extra"].keys() == {"violation"} and line["prompt"].startswith("q ") for line in lines)
    import pandas

    table = pandas.read_parquet(tmp_path / "out" / "completions" / "completions_00001.parquet")
    assert table["confession/confession"].notna().sum() == 4 and len(table) == 8


def test_without_confessions_it_is_the_stock_trainer(world: World, tmp_path: Path) -> None:
    args = grpo_config(tmp_path, max_steps=1)
    weights = []
    for kind in (GRPOTrainer, GRPOTrainerWithConfessions):
        trainer = kind(world.model, reward, args, train_dataset=world.prompts, processing_class=world.tokenizer)
        trainer.train()
        weights.append(torch.cat([one.detach().flatten() for one in trainer.model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"use_vllm": True}, "use_vllm is not supported"),
        ({"loss_type": "novel"}, "loss_type novel is unknown"),
        ({"use_liger_kernel": True}, "use_liger_kernel is not supported"),
        ({"use_transformers_continuous_batching": True}, "untested"),
    ],
)
def test_what_cannot_be_kept_exact_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    args = grpo_config(tmp_path)
    vars(args).update(changes)
    with pytest.raises(ConfigError, match=said) as refused:
        limits.check(settings(), args, {})
    assert "\n" not in str(refused.value)


def test_several_turns_and_uneven_bonuses_are_refused(tmp_path: Path) -> None:
    for name in ("tools", "environment_factory", "rollout_func"):
        with pytest.raises(ConfigError, match=f"^{name}: answers of several turns"):
            limits.check(settings(), grpo_config(tmp_path), {name: [print]})
    with pytest.raises(ConfigError, match="exclusive would weigh"):
        limits.check(settings(answer_training="exclusive"), grpo_config(tmp_path, entropy_coef=0.1), {})


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version.check_version(Config()) in version.TESTED_VERSIONS
    version.check_signatures(GRPOTrainer)
    monkeypatch.setattr(version, "version", lambda _: "9.9")
    with pytest.raises(HostError, match=r"TRL 9.9 is untested.*untested_host"):
        version.check_version(Config())
    version.check_version(Config(untested_host=True))

    class Renamed(GRPOTrainer):
        def _generate(self, texts: Any) -> Any: ...

    with pytest.raises(HostError, match=r"Renamed\._generate takes \(self, texts\)"):
        version.check_signatures(Renamed)


# ── What the second pass costs and touches ──


def test_only_asked_answers_cost_anything(world: World, tmp_path: Path) -> None:
    trainer = trainer_of(world, grpo_config(tmp_path, max_steps=2), run_with(settings()))
    generated, forwarded = [], []
    generate, forward = trainer._generate_single_turn, trainer._get_per_token_logps_and_entropies

    def generating(ids: Any, *rest: Any, **more: Any) -> Any:
        generated.append(len(ids))
        return generate(ids, *rest, **more)

    def forwarding(model: Any, ids: Any, *rest: Any, **more: Any) -> Any:
        forwarded.append(len(ids))
        return forward(model, ids, *rest, **more)

    trainer._generate_single_turn = generating
    trainer._get_per_token_logps_and_entropies = forwarding
    trainer.train()
    assert generated == [8, 4, 8, 4]  # one of two groups is asked
    # Two batches of eight answers; of the four confessions of group 0 one has no score, and costs no pass.
    assert sum(forwarded) == 2 * 8 + 2 * 4 - 1


def test_a_second_pass_leaves_the_trainer_as_it_was(world: World, tmp_path: Path) -> None:
    """Metrics, entropy window, settings and every random state, after a loss with confessions and without."""
    args = grpo_config(tmp_path, use_adaptive_entropy=True, entropy_coef=0.02, entropy_target=2.0, loss_type="grpo")
    trainer = trainer_of(world, args, run_with(settings()))
    trainer.current_gradient_accumulation_steps = 2
    trainer.model.train()
    batch = trainer._generate_and_score_completions([world.prompts[at // 4] for at in range(8)])
    assert any(batch[ROWS])

    def state_after(inputs: Any) -> Any:
        with same_random_state():
            for name in ("entropy_coef", "_last_world_entropy", "_entropy_window_stats"):
                setattr(trainer, name, {"entropy_coef": 0.02, "_last_world_entropy": 1.0}.get(name))
            trainer._metrics["train"].clear()
            trainer._compute_loss(trainer.model, inputs)
            seen = {name: list(values) for name, values in trainer._metrics["train"].items()}
            return (
                {name: values for name, values in seen.items() if not name.startswith("confession/")},
                (trainer.entropy_coef, trainer._last_world_entropy, str(trainer._entropy_window_stats)),
                (trainer.aux_loss_enabled, trainer.max_completion_length, trainer.generation_config.max_new_tokens),
                torch.get_rng_state().tolist(),
                str(numpy.random.get_state()),
            )

    assert state_after(batch) == state_after({name: value for name, value in batch.items() if name != ROWS})


# ── Denominators ──


def rows_of(batch: Any) -> list[Row]:
    return [row for of_one in batch[ROWS] for row in of_one]


def confession_gradient(trainer: Any, batch: Any, deal: list[list[int]]) -> Any:
    """The confessions' gradient with the batch's rows dealt out to micro-batches like this."""
    trainer.current_gradient_accumulation_steps = len(deal)
    trainer.args.steps_per_generation = len(deal)
    rows = rows_of(batch)
    trainer.model.zero_grad()
    for numbers in deal:
        inputs = {**batch, ROWS: [tuple(rows[number] for number in numbers)]}
        loss = losses._confessions(
            lambda model, given: GRPOTrainer._compute_loss(trainer, model, given),
            trainer,
            trainer._confession_run.config,
            trainer.model,
            [rows[number] for number in numbers],
            [],
            inputs,
        )
        loss.backward()
    return torch.cat([one.grad.flatten() for one in trainer.model.parameters() if one.grad is not None])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_confession_weighs_the_same_wherever_it_lands(loss_type: str, world: World, tmp_path: Path) -> None:
    args = grpo_config(tmp_path, loss_type=loss_type, max_steps=1)
    trainer = trainer_of(world, args, run_with(settings(), everyone=True))
    trainer.model.train()
    batch = trainer._generate_and_score_completions([world.prompts[at // 4] for at in range(8)])
    count = len(rows_of(batch))
    assert count == 7
    uneven = confession_gradient(trainer, batch, [[0], list(range(1, count))])
    even = confession_gradient(trainer, batch, [[0, 2, 4, 6], [1, 3, 5]])
    assert float(even.abs().max()) > 0
    torch.testing.assert_close(uneven, even, rtol=1e-4, atol=1e-7)


# ── Plugins, position, failures ──


class Chooser:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.batches: list[PromptBatch] = []

    @hookimpl(tryfirst=True)
    def confession_select(self, batch: PromptBatch) -> list[bool]:
        self.batches.append(batch)
        return [True, False]


def test_a_resumed_run_repeats_the_choices(world: World, tmp_path: Path) -> None:
    whole, resumed = Chooser(), Chooser()
    more = {"save_strategy": "steps", "save_steps": 2}
    args = grpo_config(tmp_path / "run", **{"max_steps": 4, **more})
    trainer_of(world, args, run_with(settings(), plugins=[whole])).train()
    again = trainer_of(world, args, run_with(settings(), plugins=[resumed]))
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert [batch.position for batch in whole.batches] == [0, 2, 4, 6]
    assert resumed.batches == whole.batches[2:]


def test_a_failing_judge_stops_the_run(world: World, tmp_path: Path) -> None:
    class Down:
        @hookimpl(tryfirst=True)
        def confession_judge(self, rollout: Rollout, confession: Confession) -> Verdict:
            raise Unscored("timeout", "no answer")

    run = run_with(settings(max_unscored=0.1), everyone=True, plugins=[Down()])
    with pytest.raises(JudgeError, match="could not be scored"):
        trainer_of(world, grpo_config(tmp_path), run).train()


def test_a_wrong_decision_stops_the_run(world: World, tmp_path: Path) -> None:
    class Wrong:
        @hookimpl(tryfirst=True)
        def confession_reward(self, verdict: Verdict) -> float:
            return float("nan")

    with pytest.raises(PluginError, match="confession_reward"):
        trainer_of(world, grpo_config(tmp_path), run_with(settings(), plugins=[Wrong()])).train()


# ── The command line ──


def test_the_command_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL's own grpo command, on a model and a dataset on disk."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps({"prompt": f"q w{at}"}) + "\n" for at in range(16)))
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "my_rewards.py").write_text(
        "def length(completions, **_):\n    return [float(len(c)) for c in completions]\n"
    )
    world.tokenizer.save_pretrained(world.model)
    monkeypatch.chdir(tmp_path)
    theirs = {
        **{"model_name_or_path": world.model, "dataset_name": str(data), "reward_funcs": "my_rewards.length"},
        **{"output_dir": str(tmp_path / "out"), "use_cpu": "true", "bf16": "false", "max_steps": "1"},
        **{"per_device_train_batch_size": "4", "num_generations": "4", "max_completion_length": "6"},
        **{"gradient_accumulation_steps": "1", "report_to": "none", "save_strategy": "no", "dtype": "float32"},
    }
    ours = {
        **{"judge_url": "judge.py", "plugins": "./plugin.py", "probability": "1", "max_new_tokens": "4"},
        **{"max_request_tokens": "32", "trace_dir": str(tmp_path / "trace")},
    }
    argv = [word for name, value in theirs.items() for word in (f"--{name}", value)]
    argv += [word for name, value in ours.items() for word in (f"--confession.{name}", value)]
    train_trl.main([*argv, "--confession.dry_run"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "[prompt: 1 tokens] q" in printed and "[here the confession begins]" in printed  # its model knows one word
    assert "4 a step (1 groups x 4 answers x 1 x 1)" in printed and "nothing was started" in printed
    assert not (tmp_path / "out").exists()
    train_trl.main([*argv, "--confession.enable"])
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert sum(len(file.read_text().splitlines()) for file in (tmp_path / "trace").iterdir()) == 4


def test_the_command_line_refuses_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(JUDGE)
    argv = ["--use_cpu", "true", "--bf16", "false", "--nonsense", "1", "--confession.enable"]
    with pytest.raises(SystemExit) as ended:
        train_trl.main([*argv, "--confession.judge_url", str(tmp_path / "judge.py")])
    assert ended.value.code == 2 and "--nonsense" in capsys.readouterr().err.splitlines()[-1]


# ── Leaks ──


LEAKS = ["advantages", "random state", "metrics", "entropy window", "loss mask"]


@pytest.mark.parametrize("leak", LEAKS)
def test_the_check_catches_a_leak(leak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliberate breaks of the product, each found by the check that every trainer makes."""
    ours = simulator._Ours
    generate, loss = ours._generate_and_score_completions, ours._compute_loss

    def generated(self: Any, inputs: Any) -> Any:
        batch = generate(self, inputs)
        honesty = sum(float(row.advantages[0]) for row in rows_of(batch)) if ROWS in batch else 0.0
        if leak == "advantages":
            batch["advantages"] = batch["advantages"] + 1e-3 * abs(honesty)
            self.answers[-1] = (self.answers[-1][0], batch["advantages"].clone())
        if leak == "random state":
            torch.rand(1)
        if leak == "metrics":
            self._metrics["train"]["entropy"].append(1.0)
        if leak == "loss mask" and ROWS in batch:
            batch["completion_mask"] = batch["completion_mask"].clone()
            batch["completion_mask"][0] = 0
        return batch

    def computed(self: Any, model: Any, inputs: Any) -> Any:
        found = loss(self, model, inputs)
        if leak == "entropy window" and inputs.get(ROWS):
            self.entropy_coef = 0.5
        return found

    monkeypatch.setattr(ours, "_generate_and_score_completions", generated)
    monkeypatch.setattr(ours, "_compute_loss", computed)
    report = seal.check_seal(grpo_config(tmp_path, entropy_coef=0.01), run_with(settings()))
    assert not report.holds and str(report).startswith("seal VIOLATED: ")
