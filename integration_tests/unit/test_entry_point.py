"""The entry points: flags, errors before anything starts, ``--help``, and the stock run untouched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Tiny, base_flags, run_cli

from confession_plugin.command_line import flag_table, format_help, split_argv
from confession_plugin.config import ENV_VAR, HIDDEN, Config, parse_config
from confession_plugin.errors import ConfigError

ROOT = Path(__file__).parents[2]
MODULE = "confession_plugin.train_ppo_ray"


def command(
    *flags: str, cwd: Path, env: dict[str, str] | None = None, module: str = MODULE
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which sees no Ray cluster of this machine."""
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": str(cwd)}
    return subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=cwd,
        env={**alone, **(env or {})},
        capture_output=True,
        text=True,
        timeout=240,
    )


# ── Errors: one line, exit 2, before Ray ──


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files the flags below name."""
    (tmp_path / "judge.py").write_text("def judge(rollout, confession): return 1.0")
    (tmp_path / "no_function.py").write_text("x = 1")
    (tmp_path / "one_argument.py").write_text("def judge(rollout): return 1.0")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--confession.probability 1.5", r"--confession.probability: \"1.5\" .*give a number in \[0, 1\]"),
        ("--confession.probability -0.1", r"--confession.probability: \"-0.1\" .*\[0, 1\]"),
        (
            "--confession.probabilty 0.5",
            r"unknown flag --confession.probabilty; did you mean --confession.probability",
        ),
        ("--confession.xyz", r"unknown flag --confession.xyz; --confession.help lists all flags"),
        ("--confession.answer_training both", r"answer_training: \"both\" .*give one of dual, exclusive"),
        ("--confession.max_new_tokens 0", r"max_new_tokens: \"0\" .*a whole number in \[1, 10000000\]"),
        ("--confession.max_new_tokens", r"max_new_tokens takes one value, got 0"),
        ("--confession.skip_probe yes", r"--confession.skip_probe takes no value, got 'yes'"),
        ("--confession.max_new_tokens 1e3", r"max_new_tokens: \"1e3\" .*give a whole number in"),
        ("--confession.seed 1.5", r"--confession.seed: \"1.5\" .*give a whole number"),
        ("--confession.coef inf", r"--confession.coef: \"inf\" .*give a number in \[0, 1000000\]"),
        ("--confession.coef nan", r"--confession.coef: \"nan\" .*give a number in"),
        ("--confession.judge_timeout inf", r"judge_timeout: \"inf\" .*greater than 0 and at most 86400"),
        ("--confession.trace_max_mb inf", r"trace_max_mb: \"inf\" .*greater than 0"),
        ("--confession.judge_retries 99999999", r"judge_retries: \"99999999\" .*a whole number in \[0, 100\]"),
        ("--confession.judge_concurrency 9999999999", r"judge_concurrency: .*a whole number in \[1, 65536\]"),
        ("--confession.judge_weights 1,1", r"judge_weights: \"1,1\" .*three numbers >= 0 with a positive sum"),
        ("--confession.judge_weights 1,1,nan", r"judge_weights: .*three numbers >= 0 with a positive sum"),
        ("--confession.judge_weights 1,1,inf", r"judge_weights: .*three numbers >= 0 with a positive sum"),
        ("--confession.judge_weights 1,1,x", r"judge_weights: .*three numbers >= 0 with a positive sum"),
        ("--confession_enable", r"unknown flag --confession_enable; did you mean --confession.enable\?"),
        ("--confession.judge-url judge.py", r"unknown flag --confession.judge-url; did you mean .*judge_url\?"),
        ("--confession-judge-url=judge.py", r"unknown flag --confession-judge-url; did you mean .*judge_url\?"),
        ("\u2013confession.coef 2", r"unknown flag \u2013confession.coef; did you mean --confession.coef\?"),
        ("--Confession.Coef 2", r"unknown flag --Confession.Coef; did you mean --confession.coef\?"),
        ("--confession coef 2", r"unknown flag --confession; did you mean --confession.enable\?"),
        (
            "--confession.block judge --confession.judge_url judge.py",
            r"block judge, beside .*judge_url, leaves no",
        ),
        ("--confession.block inject,separate", r"block inject,separate leaves nothing that decides"),
        ("--confession.judge_weights 0,0,0", r"three numbers >= 0 with a positive sum"),
        ("", r"no honesty judge; give --confession.judge_url"),
        ("--confession.judge_url missing.py", r"judge_url: no file at .*missing.py"),
        ("--confession.judge_url no_function.py", r"no_function.py has no function `judge`"),
        ("--confession.judge_url one_argument.py", r"one_argument.py: judge\(rollout\) cannot be called"),
        ("--confession.judge_url http://localhost:1/v1", r"name its model too: --confession.judge_model"),
        ("--confession.judge_url localhost:1", r"neither a .py file nor an http\(s\):// base URL"),
        (
            "--confession.judge_url http://127.0.0.1:9/v1 --confession.judge_model m --confession.judge_retries 0",
            r"judge_url.*127.0.0.1:9",
        ),
        ("--confession.judge_url judge.py --confession.request brief", r'request: "brief" .* one of full, compact'),
        (
            "--confession.judge_url judge.py --confession.request compact --confession.request_path judge.py",
            r"request compact and --confession.request_path are two requests; leave one of them out",
        ),
        ("--confession.judge_url judge.py --confession.request_path no.txt", r"request_path: no file at .*no.txt"),
        (
            "--confession.judge_url judge.py --confession.plugins broken.py",
            r"broken.py cannot be imported.*nothing_of",
        ),
        ("--confession.judge_url judge.py --confession.plugins no.such.module", r"no.such.module cannot be imported"),
        ("--confession.judge_url judge.py --confession.block injekt", r"block: no plugin named 'injekt'"),
        ("--confession.judge_url judge.py --confession.trace_dir judge.py/x", r"trace_dir: cannot write to"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(
    folder: Path, flags: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from confession_plugin.train_ppo_ray import main

    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stopped:
        main(["--confession.enable", *flags.split(), "--data.max_len", "64"])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    # Libraries imported by earlier tests may add warnings of their own; ours is one line.
    lines = [line for line in printed.splitlines() if line.startswith("confession: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), printed
    assert "Traceback" not in printed
    import ray

    assert not ray.is_initialized()


def test_a_bad_flag_is_found_at_once(tmp_path: Path) -> None:
    result = command("--confession.enable", "--confession.probability", "2", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("confession: --confession.probability")
    assert "Traceback" not in result.stderr + result.stdout


def fake_host(folder: Path, version: str) -> dict[str, str]:
    """An environment in which the installed OpenRLHF says it has another version (its code is the real one)."""
    info = folder / f"openrlhf-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: openrlhf\nVersion: {version}\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.slow
def test_an_untested_host_version(folder: Path) -> None:
    env = fake_host(folder, "0.99.0")
    flags = ("--confession.enable", "--confession.judge_url", "judge.py")
    result = command(*flags, cwd=folder, env=env)
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert "OpenRLHF 0.99.0 is untested" in line and "--confession.untested_host" in line
    # With the flag it goes on to the host's own parser, which misses its flags.
    result = command(*flags, "--confession.untested_host", "--no.such.host.flag", cwd=folder, env=env)
    assert result.returncode == 2 and "unrecognized arguments: --no.such.host.flag" in result.stderr


@pytest.mark.slow
def test_the_hosts_own_errors_stay_the_hosts(folder: Path) -> None:
    result = command("--data.max_len", "many", cwd=folder)
    assert result.returncode == 2
    assert "argument --data.max_len: invalid int value: 'many'" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.max_images_per_prompt", "2"], r"--data.max_images_per_prompt: .*images are not supported"),
        (["--data.max_len", "4000"], r"= 5224 tokens, but the model has 4096 positions; lower one"),
        (["--vllm.num_engines", "0"], r"--vllm.num_engines"),
    ],
    ids=["images", "context", "no engine"],
)
def test_combinations_with_the_hosts_flags(folder: Path, tiny: Tiny, flags: list[str], message: str) -> None:
    ours = ["--confession.enable", "--confession.judge_url", "judge.py", "--confession.max_new_tokens", "200"]
    result = command(*base_flags(tiny, folder), *flags, *ours, cwd=folder)
    assert result.returncode == 2, result.stdout + result.stderr
    assert re.search(message, result.stderr.strip().splitlines()[-1])
    assert "Started a local Ray instance" not in result.stderr


# ── Help, and one typed place for all flags ──


@pytest.mark.slow
def test_help_shows_theirs_then_ours(tmp_path: Path) -> None:
    result = command("--help", cwd=tmp_path)
    assert result.returncode == 0
    ours, theirs = result.stdout.find("--confession.probability X"), result.stdout.find("--algo.advantage.estimator")
    assert 0 <= theirs < ours
    for name in Config.model_fields:
        assert name in HIDDEN or f"--confession.{name}" in result.stdout


def test_every_flag_has_help() -> None:
    for name, _, _, text in flag_table():
        assert len(text) > 20, name
    assert "(default: 0.25)" in format_help()


def test_the_readme_table_is_the_flag_table() -> None:
    rows = [
        f"| `--confession.{name}{' ' + form if form else ''}` | {default} | {text} |"
        for name, form, default, text in flag_table()
    ]
    readme = (ROOT / "README.md").read_text()
    missing = [row for row in rows if row not in readme]
    assert not missing, "update the README's flag table:\n" + "\n".join(rows)
    assert readme.count("| `--confession.") == len(rows)


def test_split_argv_takes_our_flags_with_their_values() -> None:
    argv = ["--a.b", "1", "2", "--confession.enable", "--confession.seed", "-3", "--c", "--confession.coef=0.5"]
    assert split_argv(argv) == (
        ["--confession.enable", "--confession.seed", "-3", "--confession.coef=0.5"],
        ["--a.b", "1", "2", "--c"],
    )
    config = parse_config(split_argv(argv)[0])
    assert (config.enable, config.seed, config.coef) == (True, -3, 0.5)


def test_the_settings_travel_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config(["--confession.plugins", "a,b.py", "--confession.judge_weights=1,2,3"])
    monkeypatch.setenv(ENV_VAR, config.to_env()[ENV_VAR])
    assert Config.from_env() == config
    assert config.plugins == ("a", "b.py") and config.judge_weights == (1.0, 2.0, 3.0)
    monkeypatch.delenv(ENV_VAR)
    with pytest.raises(ConfigError, match=r"not started by confession_plugin\.train_ppo_ray"):
        Config.from_env()


# ── Off means off ──

SPY = """
import json, os, sys
import torch

def reward_func(queries, prompts, labels):
    # Runs in the rollout worker: what of ours is in this process?
    from confession_plugin.openrlhf import seams
    import openrlhf.trainer.ppo_trainer, openrlhf.trainer.ray.ppo_actor, openrlhf.trainer.ray.vllm_engine
    actor = type(sys._getframe())  # keeps the import above used
    # In one piece: several threads print here.
    print("SPY " + json.dumps({"replaced": seams.replaced()}) + "\\n", end="", flush=True)
    return {"rewards": torch.ones(len(queries)), "scores": torch.ones(len(queries)), "extra_logs": {}}
"""


@pytest.mark.e2e
def test_without_enable_nothing_is_replaced(tiny: Tiny, tmp_path: Path) -> None:
    """A stock run: no seam in the driver or in a worker, no subclassed actor, no metric of ours."""
    spy = tmp_path / "spy.py"
    spy.write_text(SPY)
    result = run_cli(tmp_path, *base_flags(tiny, tmp_path, steps=1), "--reward.remote_url", str(spy))
    found = re.findall(r"SPY (\{.*?\})", result.output)
    assert found and set(found) == {'{"replaced": []}'}
    assert "(RolloutRayActor pid=" in result.output and "Confessing" not in result.output
    assert not [name for name in result.scalars if "confession" in name]


@pytest.mark.e2e
def test_with_enable_the_spy_does_see_the_seams(tiny: Tiny, tmp_path: Path) -> None:
    """The counter-check: the same spy finds every worker seam when confessions are on, though nothing confesses."""
    spy = tmp_path / "spy.py"
    spy.write_text(SPY)
    (tmp_path / "judge.py").write_text("def judge(rollout, confession): return 1.0")
    ours = ["--confession.enable", "--confession.judge_url", "judge.py", "--confession.max_new_tokens", "8"]
    ours += ["--confession.max_request_tokens", "1500", "--confession.probability", "0"]
    ours += ["--confession.trace_dir", "trace"]
    result = run_cli(tmp_path, *base_flags(tiny, tmp_path, steps=2), "--reward.remote_url", str(spy), *ours)
    seen: Any = re.findall(r"SPY (\{.*?\})", result.output)
    assert seen and '"openrlhf.trainer.ray.ppo_actor:ActorPPOTrainer.training_step"' in seen[0]
    assert "(ConfessingRolloutActor pid=" in result.output
    assert "seal holds: group_norm" in result.output
    assert result.values("train/confession/request_rate") == [0.0, 0.0]
    assert result.values("train/confession/policy_loss") == [0.0, 0.0]
    assert not list((tmp_path / "trace").glob("*.jsonl"))
