"""``--confession.unsealed_coupling``: does what its function says, on the host's classes, and says UNSEALED."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from seal_support import CONFIG, estimator, host_args, in_place, run

from confession_plugin import Confession, Judged, Rollout, Verdict, session, startup, unsealed
from confession_plugin.config import Config
from confession_plugin.errors import ConfigError, PluginError
from confession_plugin.openrlhf.check import compare, passes, seal
from confession_plugin.openrlhf.check.passes import Pass, masks_of
from confession_plugin.openrlhf.check.random_rollouts import RandomRollouts, responses
from confession_plugin.plugins import configured

FLAG = "--confession.unsealed_coupling"
FLAGS = [*estimator("dr_grpo"), "--algo.kl.init_coef", "0"]  # reward - mean of the group
SUMMED = "def couple(answer, honesty, scored, admits):\n    return answer + honesty, answer + honesty\n"
IDENTITY = "def couple(answer, honesty, scored, admits):\n    return answer\n"
PUNISHED = "def couple(answer, honesty, scored, admits):\n    return answer - 5 * (admits == 1).float()\n"


@pytest.fixture(autouse=True)
def _own_session(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_config", "_plugins"):
        monkeypatch.setattr(session, name, getattr(session, name))


def with_coupling(folder: Path, code: str, name: str = "coupling") -> Config:
    path = folder / f"{name}.py"
    path.write_text(code)
    return CONFIG.model_copy(update={"unsealed_coupling": str(path)})


def admitting_pass(config: Config) -> Pass:
    """A pass in which every third sample's report admits, every third denies and every third cannot be read."""
    made = responses(RandomRollouts(asked=(True,)))
    for sample, response in enumerate(made):
        response["confession"].numbers["admits"] = (1.0, 0.0, math.nan)[sample % 3]
    with in_place(config):
        return passes.one_pass(host_args(*FLAGS), made)


# ── What it does ──


def test_a_coupling_that_changes_nothing_changes_nothing(tmp_path: Path) -> None:
    plain, coupled = run(FLAGS), run(FLAGS, with_coupling(tmp_path, IDENTITY))
    assert compare.gradients(plain, coupled) == 0.0
    assert compare.shaped(plain, coupled) == 0.0


def test_an_admission_costs_its_own_answer(tmp_path: Path) -> None:
    plain, punished = admitting_pass(CONFIG), admitting_pass(with_coupling(tmp_path, PUNISHED))
    admitting = torch.tensor([float(sample % 3 == 0) for sample in range(16)])
    assert torch.equal(punished.shaped["rewards"], plain.shaped["rewards"] - 5 * admitting)
    answers, confessions = masks_of(plain, CONFIG, answer=True), masks_of(plain, CONFIG)
    assert compare.on_masks(plain, punished, answers) > 1.0
    assert compare.on_masks(plain, punished, confessions) == 0.0  # which have rewards of their own


def test_both_rewards_in_one_scalar_for_both_spans(tmp_path: Path) -> None:
    """dr_grpo's advantage is a reward minus its group's mean: answer and confession of a sample get the same one."""
    summed = run(FLAGS, with_coupling(tmp_path, SUMMED), asked=(True,))
    for one, answers, confessions in zip(
        summed.experiences, masks_of(summed, CONFIG, answer=True), masks_of(summed, CONFIG), strict=True
    ):
        for row in range(len(one.advantages)):
            of_answer, of_confession = one.advantages[row][answers[row]], one.advantages[row][confessions[row]]
            assert torch.allclose(of_answer[:1].expand_as(of_confession), of_confession, atol=1e-6)


def test_unscored_confessions_stay_without_a_reward(tmp_path: Path) -> None:
    summed = run(FLAGS, with_coupling(tmp_path, SUMMED), unscored=(0, 5))
    assert not any(
        bool(one.info["confession/scored"][row])
        for one in summed.experiences
        for row, index in enumerate(one.index)
        if index in (0, 5)
    )


# ── What it says ──


def test_the_logged_numbers_say_it(tmp_path: Path) -> None:
    plain, coupled = run(FLAGS), run(FLAGS, with_coupling(tmp_path, SUMMED))
    assert not [name for name in plain.trained.status if unsealed.LABEL in name]
    said = {name.partition("/")[2] for name in coupled.trained.status if name.startswith("UNSEALED/")}
    assert {"answer_reward", "return", "group_reward_std"} <= said
    # A number of that name without the word is the sealed run's own: the task reward, whatever became of it.
    assert coupled.trained.status["reward"] == plain.trained.status["reward"]
    assert coupled.rollout_stats["rollout/reward_mean"] == plain.rollout_stats["rollout/reward_mean"]
    assert "return" in plain.trained.status
    assert not {"return", "group_reward_std"} & coupled.trained.status.keys()


def test_the_check_does_not_claim_to_hold(tmp_path: Path) -> None:
    config = with_coupling(tmp_path, SUMMED)
    report = seal.require_seal(host_args(*FLAGS), config)
    assert not report.holds and not report.violated
    assert str(report).startswith("seal UNSEALED") and "holds" not in str(report)
    assert str(config.unsealed_coupling) in str(report)


def test_a_line_stands_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    path = with_coupling(tmp_path, SUMMED).unsealed_coupling
    run_of = startup.prepare([FLAG, str(path)], confessions=True)
    assert run_of.said.startswith("UNSEALED") and str(path) in run_of.said
    assert startup.prepare([], confessions=True).said == ""


def test_every_line_of_the_trace_says_it(tmp_path: Path) -> None:
    config = with_coupling(tmp_path, SUMMED).model_copy(update={"trace_dir": str(tmp_path / "trace")})
    confession = Confession(request="Report.", text="{}")
    record = Judged(Rollout(prompt="p", answer="a", transcript="a"), confession, Verdict({"honesty": 1.0}), 1.0)
    for settings in (config, config.model_copy(update={"unsealed_coupling": None})):
        configured(settings).hook.confession_judged(record=record)
    lines = [json.loads(line) for file in sorted((tmp_path / "trace").iterdir()) for line in file.open()]
    assert sorted(line.get("UNSEALED", "") for line in lines) == ["", config.unsealed_coupling]


def test_the_seal_command_says_it_and_does_not_exit_with_0(tmp_path: Path) -> None:
    path = with_coupling(tmp_path, SUMMED).unsealed_coupling
    flags = ["--actor.model_name_or_path", "some/model", "--reward.remote_url", "http://rewards:5000/get_reward"]
    flags += ["--actor.num_gpus_per_node", "8", "--ref.num_gpus_per_node", "8", "--vllm.num_engines", "1"]
    flags += ["--rollout.n_samples_per_prompt", "8", "--algo.advantage.estimator", "group_norm"]
    flags += ["--confession.judge_url", "http://judge:8000/v1", "--confession.judge_model", "some/judge"]
    command = [sys.executable, "-m", "confession_plugin.seal", *flags, FLAG, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    assert done.stdout.strip().splitlines()[-1].startswith("seal UNSEALED")


# ── What is refused ──

REFUSED = {
    "no function": ("x = 1\n", "has no function `couple`"),
    "an error on import": ("raise ValueError('boom')\n", "boom"),
    "an error": ("def couple(*_):\n    raise KeyError('boom')\n", "KeyError"),
    "too few parameters": ("def couple(answer):\n    return answer\n", "couple failed"),
    "nothing": ("def couple(*_):\n    pass\n", "NoneType"),
    "a number": ("def couple(answer, *_):\n    return 1.0\n", "float"),
    "another shape": ("def couple(answer, *_):\n    return answer.mean()\n", "shape ()"),
    "three values": ("def couple(answer, *_):\n    return answer, answer, answer\n", "3 values"),
    "NaN of admits": ("def couple(answer, h, s, admits):\n    return answer - admits\n", "not finite"),
    "an infinite honesty": ("def couple(answer, *_):\n    return answer, answer / 0\n", "not finite"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_file_is_refused_before_the_run(what: str, tmp_path: Path) -> None:
    code, said = REFUSED[what]
    path = tmp_path / "bad.py"
    path.write_text(code)
    with pytest.raises((ConfigError, PluginError)) as caught:
        startup.prepare([FLAG, str(path)], confessions=True)
    line = str(caught.value)
    assert FLAG in line and said in line and "\n" not in line


def test_settings_it_cannot_go_with_are_refused(tmp_path: Path) -> None:
    path = str(with_coupling(tmp_path, SUMMED).unsealed_coupling)
    with pytest.raises(ConfigError, match="no file at"):
        startup.prepare([FLAG, str(tmp_path / "missing.py")], confessions=True)
    with pytest.raises(ConfigError, match="samples_per_answer"):
        startup.prepare([FLAG, path, "--confession.samples_per_answer", "2"], confessions=True)


def test_what_goes_wrong_later_stops_the_run(tmp_path: Path) -> None:
    # Fine with the batches that are tried before a run, whose first reward is 0.
    late = "def couple(answer, *_):\n    return answer / (answer[0] == 0)\n"
    with pytest.raises(PluginError, match=r"UNSEALED.*not finite"):
        run(FLAGS, with_coupling(tmp_path, late))
