"""From a command line to a checked run: what is loaded, what is tried before anything starts, what is said."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Tiny, base_flags
from judge_server import JudgeServer

from confession_plugin import audit_judge, dry_call, seal, session, startup, train_ppo_ray
from confession_plugin.config import Config, OptionGroup, parse_config
from confession_plugin.errors import ConfessionError, ConfigError, PluginError
from confession_plugin.forecast import Load, forecast
from confession_plugin.plugins import configured

HOOK = "from confession_plugin import *\n"

#: The tiny tokenizer makes some 1200 tokens of the built-in request.
ROOM = ["--confession.max_request_tokens", "1500"]

#: Notes each import and each configuration of itself, with the process's id.
COUNTING = """
import os
from confession_plugin import hookimpl
NOTES = {notes!r}
def note(what):
    with open(NOTES, "a") as file:
        file.write(f"{{what}} {{os.getpid()}}\\n")
note("import")
@hookimpl
def confession_configure(config):
    note("configure")
@hookimpl
def confession_add_options(options):
    note("options")
    options.add("counting.size", int, default=1, help="A size.")
"""


@pytest.fixture(autouse=True)
def own_session(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command leaves behind in this process is taken back."""
    for name in [*os.environ, "CONFESSION_PLUGIN_CPU"]:
        if name.startswith(("CONFESSION_", "RAY_")):
            monkeypatch.setenv(name, "")  # so that one which a command sets is taken back, too
            monkeypatch.delenv(name)
    with session.using(Config()):
        yield


@pytest.fixture
def judge(tmp_path: Path) -> str:
    (tmp_path / "judge.py").write_text("def judge(rollout, confession):\n    return 1.0\n")
    return str(tmp_path / "judge.py")


def exit_of(main: Any, *argv: str) -> int:
    """A command's exit status."""
    try:
        status = main([*argv])
    except SystemExit as stopped:
        status = stopped.code
    return int(status or 0)


def our_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line about what cannot work."""
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith("confession: ")]
    assert len(lines) == 1 and "Traceback" not in printed, printed
    return lines[0]


def command(module: str, *flags: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own that sees no Ray of this machine."""
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": str(cwd)}
    return subprocess.run(
        [sys.executable, "-m", module, *flags],
        cwd=cwd,
        env=alone | env,
        capture_output=True,
        text=True,
        timeout=400,
    )


# ── Once per process ──


def counted(folder: Path) -> dict[str, int]:
    """How often the counting plugin did what, where only one process did anything."""
    lines = [line.split() for line in (folder / "notes").read_text().splitlines()]
    assert len({process for _, process in lines}) == 1
    return {what: sum(one == what for one, _ in lines) for what in ("import", "options", "configure")}


@pytest.fixture
def counting(tmp_path: Path) -> str:
    (tmp_path / "counting.py").write_text(COUNTING.format(notes=str(tmp_path / "notes")))
    return str(tmp_path / "counting.py")


def test_audit_loads_and_configures_plugins_once(tmp_path: Path, judge: str, counting: str) -> None:
    exit_of(audit_judge.main, "--confession.judge_url", judge, "--confession.plugins", counting)
    assert counted(tmp_path) == {"import": 1, "options": 1, "configure": 1}


@pytest.mark.slow
def test_seal_loads_and_configures_plugins_once(tmp_path: Path, tiny: Tiny, judge: str, counting: str) -> None:
    flags = [*base_flags(tiny, tmp_path), *ROOM, "--confession.judge_url", judge, "--confession.plugins", counting]
    result = command("confession_plugin.seal", *flags, cwd=tmp_path)
    assert result.returncode == 0 and "seal holds" in result.stdout, result.stderr
    assert counted(tmp_path) == {"import": 1, "options": 1, "configure": 1}


@pytest.mark.slow
def test_train_loads_and_configures_plugins_once_until_ray_starts(
    tmp_path: Path, tiny: Tiny, judge: str, counting: str
) -> None:
    """Ray cannot start: its sockets' paths are too long.  All that comes before has been done."""
    flags = [*base_flags(tiny, tmp_path), *ROOM, "--confession.judge_url", judge, "--confession.plugins", counting]
    flags += ["--confession.enable", "--confession.max_new_tokens", "8"]
    too_long = tmp_path / ("x" * 120)
    too_long.mkdir()
    result = command("confession_plugin.train_ppo_ray", *flags, cwd=tmp_path, RAY_TMPDIR=str(too_long))
    assert "seal holds" in result.stdout and "AF_UNIX path" in result.stderr, result.stdout + result.stderr
    assert f"plugins: {counting} (by --confession.plugins: " in result.stderr
    assert counted(tmp_path) == {"import": 1, "options": 1, "configure": 1}


def test_what_configure_sees_in_the_driver(tmp_path: Path, judge: str) -> None:
    """Our own settings, absolute paths and the plugin's own flag; the host's flags are not parsed yet."""
    (tmp_path / "seeing.py").write_text(
        HOOK + "seen = []\n@hookimpl\ndef confession_configure(config):\n    seen.append(config)\n"
        "@hookimpl\ndef confession_add_options(options):\n    options.add('size', int, default=1, help='A size.')\n"
    )
    plugin = str(tmp_path / "seeing.py")
    flags = ["--confession.enable", "--confession.judge_url", judge, "--confession.plugins", plugin]
    run = startup.prepare([*flags, "--confession.size", "3", "--train.seed", "7"])
    [config] = run.plugins.get_plugin(plugin).seen
    assert config == run.config and config.extra == {"size": 3} and config.judge_file == judge
    assert config.seed is None and config.request_format == "auto" and run.host_argv == ("--train.seed", "7")


# ── Off means off; which plugins are on is said ──


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a plugin under the name ``wheel``: `install(source)`."""

    def install(source: str) -> None:
        (tmp_path / f"from_a_wheel_{tmp_path.name}.py").write_text(source)
        info = tmp_path / "from_a_wheel-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: from-a-wheel\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[confession_plugin]\nwheel = from_a_wheel_{tmp_path.name}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()

    return install


def test_an_installed_plugin_that_is_broken_stops_no_run_without_confessions(
    installed: Any, judge: str, capsys: pytest.CaptureFixture[str]
) -> None:
    installed("raise RuntimeError('half uninstalled')")
    run = startup.prepare(["--confession.judge_url", judge, "--train.seed", "7"])
    assert not run.config.enable and run.plugins.get_plugins() == set()
    assert exit_of(train_ppo_ray.main, "--confession.enable", "--confession.judge_url", judge) == 2
    line = our_line(capsys)
    assert "plugin wheel, installed with from-a-wheel, cannot be imported" in line and "half uninstalled" in line
    assert "from_a_wheel" in line and line.endswith("leave it out with --confession.block wheel")
    blocked = startup.prepare(["--confession.enable", "--confession.judge_url", judge, "--confession.block", "wheel"])
    assert blocked.plugins.get_plugin("wheel") is None


def test_installed_plugins_are_said_with_what_they_decide(
    installed: Any, judge: str, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(
        HOOK + "@hookimpl\ndef confession_judge(rollout): pass\n@hookimpl\ndef confession_judged(record): pass\n"
    )
    startup.prepare(["--confession.enable", "--confession.judge_url", judge])
    said = "plugins: wheel (installed with from-a-wheel: confession_judge, confession_judged, asked before "
    assert f"[confession_plugin] {said}--confession.judge_url)" in capsys.readouterr().err
    startup.prepare(["--confession.enable", "--confession.judge_url", judge, "--confession.block", "wheel"])
    assert "plugins:" not in capsys.readouterr().err


def test_flags_without_enable_are_said_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    run = startup.prepare(["--confession.coef", "2", "--confession.some_plugins.flag", "x", "--train.seed", "7"])
    with startup.said_at_both_ends(run.said):
        print("a long run", file=sys.stderr)
    first, between, last = capsys.readouterr().err.splitlines()
    assert first == last and between == "a long run"
    assert first.startswith("confession: OFF: --confession.coef, --confession.some_plugins.flag without --confession.")
    assert startup.prepare(["--train.seed", "7"]).said == ""
    with pytest.raises(ConfigError, match=r"unknown flag --confession.enabel; did you mean --confession.enable\?"):
        startup.prepare(["--confession.enabel"])


# ── The command line ──


def test_of_a_repeated_flag_the_last_one_counts() -> None:
    options = OptionGroup()
    options.add("mine", int, default=1)
    flags = "--confession.coef 1 --confession.enable --confession.mine 2 --confession.coef=3 --confession.mine 4"
    config = parse_config([*flags.split(), "--confession.enable"], options)
    assert (config.coef, config.enable, config.extra) == (3.0, True, {"mine": 4})


@pytest.mark.parametrize("words", [["a, b.py"], ["a,", "b.py"], ["a", "b.py"], ["a,b.py"], [" a ,b.py,"]])
def test_lists_with_spaces(words: list[str]) -> None:
    assert parse_config(["--confession.plugins", *words]).plugins == ("a", "b.py")


def test_servers_with_spaces() -> None:
    config = parse_config(["--confession.judge_url", "http://a/v1,", "http://b/v1"])
    assert config.judge_urls == ("http://a/v1", "http://b/v1")
    assert parse_config(["--confession.judge_weights", "1,", "0,", "2"]).judge_weights == (1.0, 0.0, 2.0)
    with pytest.raises(ConfigError, match="judge_url takes one value, got 2"):
        parse_config(["--confession.judge_url", "http://a/v1", "http://b/v1"])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_plugins_flag_must_reach_the_workers(value: str) -> None:
    """JSON has no NaN: a worker would read None."""
    options = OptionGroup()
    options.add("mine", float, default=1.0)
    with pytest.raises(ConfigError, match=r"--confession.mine: .* cannot travel to the workers as JSON"):
        parse_config(["--confession.mine", value], options)
    options.add("path", Path)
    with pytest.raises(ConfigError, match=r"--confession.path: .* cannot travel"):
        parse_config(["--confession.path", "x"], options)
    pair = OptionGroup()
    pair.add("pair", lambda text: tuple(text.split(":")))
    config = parse_config(["--confession.pair", "a:b"], pair)
    assert Config.model_validate_json(config.model_dump_json()) == config  # the driver sees what a worker sees


@pytest.mark.parametrize("module", [seal, audit_judge])
def test_each_command_has_its_own_help(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(module.main, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(module.__doc__) and "--confession.judge_url VALUE" in printed
    assert "--algo.advantage.estimator" not in printed


def test_our_help_alone(tmp_path: Path, counting: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the flags of named plugins, and also where one of them is broken."""
    assert exit_of(train_ppo_ray.main, "--confession.help", "--confession.plugins", counting) == 0
    printed = capsys.readouterr().out
    assert "--confession.probability X" in printed and "--confession.counting.size VALUE" in printed
    assert "--algo.advantage.estimator" not in printed
    assert exit_of(train_ppo_ray.main, "--confession.help", "--confession.plugins", "no.such") == 0
    printed = capsys.readouterr().out
    assert "--confession.probability X" in printed and "(the plugins' own flags are missing: " in printed


# ── The dry call ──

RECORDS = "rollout, confession"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"def judge({RECORDS}):\n    return rollout.nothing", r"AttributeError: .*nothing.*judge.py:2\)"),
        (f"def judge({RECORDS}):\n    return 1.7", r"returned 1.7: .*not in \[0, 1\]"),
        (f"def judge({RECORDS}):\n    return 'yes'", r"returned 'yes': text is no rating"),
        (f"def judge({RECORDS}):\n    return []", r"returned \[\]"),
        (f"async def judge({RECORDS}):\n    return rollout['x']", r"TypeError: .*judge.py:2\)"),
        ("def judge(confession, rollout):\n    return 1.0", r"judge.py:1\) is called as judge\(rollout, confession\)"),
        ("def judge(a, b):\n    return float(a.report is not None)", r"AttributeError: .*Rollout.*judge.py:2\)"),
    ],
)
def test_a_judge_that_cannot_work_is_found_before_anything_starts(
    tmp_path: Path, source: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text(source)
    flags = ["--confession.enable", "--confession.judge_url", str(tmp_path / "judge.py")]
    for main in (train_ppo_ray.main, seal.main):
        assert exit_of(main, *flags) == 2
        assert re.search(message, our_line(capsys))


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (
            "def confession_request(rollout):\n    return 'Report.'",
            r"confession_request gave 'Report.'; give a Request",
        ),
        ("def confession_parse(text):\n    return {'report': text}", r"confession_parse gave .*; give Parsed"),
        ("def confession_reward(verdict):\n    return True", r"confession_reward gave True; give a number"),
        ("def confession_reward(verdict):\n    return verdict['x']", r"failed in confession_reward: TypeError"),
        ("def confession_select(batch):\n    return [True]", r"confession_select gave 1 bools for 4 groups"),
        ("def confession_select(batch):\n    return 'yes!'", r"confession_select gave 'yes!'; give one bool a group"),
        ("def confession_judge(rollout):\n    return 0.5", r"confession_judge gave 0.5; give a Verdict"),
        ("def confession_judge(rollout):\n    return {'honest': 1}", r"confession_judge gave .*; give a Verdict"),
        ("async def confession_request(rollout):\n    return Request('x')", r"confession_request cannot be async"),
        ("async def confession_reward(verdict):\n    return 1.0", r"confession_reward cannot be async"),
    ],
)
def test_a_decider_that_decides_wrongly_is_found_before_anything_starts(
    tmp_path: Path, judge: str, hooks: str, message: str
) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(f"{HOOK}\n@hookimpl\n{hooks}\n")
    flags = ["--confession.enable", "--confession.judge_url", judge, "--confession.plugins", str(file)]
    with pytest.raises(PluginError, match=message) as caught:
        run = startup.prepare(flags)
        dry_call.require(run.plugins, run.config)
    assert re.search(r"plugin.py'.*[(/]plugin.py:\d+\)|for 4 groups", str(caught.value))
    assert "\n" not in str(caught.value)


def test_the_dry_call_is_seen_by_no_observer_and_asks_no_server(tmp_path: Path) -> None:
    """The built-in case is in no trace, and a server has its own preflight."""
    (tmp_path / "plugin.py").write_text(
        f"{HOOK}seen = []\n@hookimpl\ndef confession_judged(record):\n    seen.append(record)\n"
        "@hookimpl\ndef confession_reward(verdict):\n    seen.append(dict(verdict.ratings))\n"
    )
    plugin = str(tmp_path / "plugin.py")
    with JudgeServer() as server:
        config = Config(
            judge_url=server.url,
            judge_model="judge",
            plugins=(plugin,),
            trace_dir=str(tmp_path / "trace"),
        )
        plugins = configured(config)
        dry_call.require(plugins, config)
        assert server.calls == []
        assert dry_call.call(plugins, config=config).judged.reward == 1.0
        assert len(server.calls) == 1
    assert plugins.get_plugin(plugin).seen == [dict.fromkeys(("objectives", "analysis", "uncertainties"), 1.0)] * 2
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "body",
    ["pass", "raise Unscored('no_idea', 'not my task')"],
)
def test_a_judge_without_a_verdict_is_warned_about(
    tmp_path: Path, body: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text(f"{HOOK}def judge(rollout, confession):\n    {body}\n")
    config = Config(judge_url=str(tmp_path / "judge.py"))
    dry_call.require(configured(config), config)
    assert "warning: the judge gave no verdict on a built-in case (no_" in capsys.readouterr().err


def test_a_judge_may_know_the_tasks_own_logs_and_be_left_out_of_the_dry_call(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "def judge(rollout, confession):\n    return float(confession.admits == (rollout.extra['violation'] == 1))\n"
    )
    config = Config(judge_url=str(tmp_path / "judge.py"))
    assert dry_call.call(configured(config), config=config).judged.reward == 1.0
    (tmp_path / "own.py").write_text("import json\ndef judge(r, c):\n    return json.loads(r.label)['score']\n")
    own = Config(judge_url=str(tmp_path / "own.py"))
    with pytest.raises(ConfessionError, match=r"own.py:3.*--confession.skip_probe"):
        dry_call.require(configured(own), own)
    skipping = own.model_copy(update={"skip_probe": True})
    dry_call.require(configured(skipping), skipping)


# ── The seal command and the dry run: all that needs no GPU, on any machine ──

EIGHT_GPUS = [
    *("--vllm.tensor_parallel_size", "8", "--actor.num_gpus_per_node", "8", "--ref.num_gpus_per_node", "8"),
    *("--rollout.micro_batch_size", "1", "--ds.attn_implementation", "flash_attention_2", "--ds.adam_offload"),
    *("--vllm.sync_backend", "nccl"),
]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.max_len", "4000"], r"= 6048 tokens, but the model has 4096 positions"),
        (["--vllm.num_engines", "0"], r"--vllm.num_engines: --confession.enable needs at least one vLLM engine"),
        (["--data.max_images_per_prompt", "2"], r"images are not supported"),
        (["--data.max_len", "many"], r"argument --data.max_len: invalid int value: 'many'"),
        (["--no.such.flag"], r"unrecognized arguments: --no.such.flag"),
        (
            ["--rollout.n_samples_per_prompt", "1"],
            r"refuses these flags: group_norm requires n_samples",
        ),
        (["--confession.judge_url", "http://127.0.0.1:9/v1"], r"name its model too"),
        (["--confession.coef", "inf"], r"--confession.coef"),
    ],
)
def test_the_seal_command_says_in_one_line_what_cannot_work(
    tiny: Tiny, tmp_path: Path, judge: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*base_flags(tiny, tmp_path), "--confession.judge_url", judge]
    assert exit_of(seal.main, *own, *flags) == 2
    assert re.search(message, our_line(capsys))


def test_the_seal_command_wants_a_judge_and_asks_no_server(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(seal.main, *base_flags(tiny, tmp_path)) == 2
    assert "no honesty judge" in our_line(capsys)
    nowhere = ["--confession.judge_url", "http://127.0.0.1:9/v1", "--confession.judge_model", "m"]
    assert exit_of(seal.main, *base_flags(tiny, tmp_path), *EIGHT_GPUS, *ROOM, *nowhere) == 0
    assert "seal holds: group_norm" in capsys.readouterr().out


def test_a_dry_run_shows_context_message_and_forecast(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with JudgeServer() as server:
        ours = ["--confession.dry_run", "--confession.judge_url", server.url, "--confession.judge_model", "judge"]
        ours += ["--confession.trace_dir", str(tmp_path / "trace"), "--confession.samples_per_answer", "2"]
        assert exit_of(train_ppo_ray.main, *base_flags(tiny, tmp_path), *EIGHT_GPUS, *ROOM, *ours) == 0
    both = capsys.readouterr()
    printed = both.out
    assert "seal holds" in printed and "Unclosed" not in both.err
    first_prompt = json.loads(tiny.prompts.read_text().splitlines()[0])["input"]
    assert f"<|im_start|>user\n{first_prompt}<|im_end|>" in printed
    assert "I think it is 8.<|im_end|>" in printed and "<|im_start|>system" in printed
    assert "The assistant's report, which you judge:" in printed and "objectives 1, analysis 1" in printed
    assert "8 a step (4 groups x 4 answers x 0.25 x 2)" in " ".join(printed.split())
    assert "up to 1600% more tokens written" in printed  # 0.25 x 2 x 1024 of 32
    assert "nothing was started" in printed
    assert list((tmp_path / "trace").iterdir()) == []


def test_a_dry_run_ends_with_the_same_line_as_the_run(
    tiny: Tiny, tmp_path: Path, judge: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = ["--confession.dry_run", "--confession.judge_url", judge]
    assert exit_of(train_ppo_ray.main, *base_flags(tiny, tmp_path), *ours, "--data.max_len", "4000") == 2
    assert "but the model has 4096 positions" in our_line(capsys)


def test_what_a_terminal_would_obey_is_shown_as_text() -> None:
    from confession_plugin.dry_run import printable

    assert printable("a\x1b[2Jb\r\x07\u202e\n\u00e4") == "a\\x1b[2Jb\\r\\x07\\u202e\n\u00e4"


LOAD = Load(
    groups=128,
    samples=8,
    probability=0.25,
    samples_per_answer=1,
    max_length=4096,
    max_answer=2048,
    request=400,
    max_confession=1024,
    micro_batch=2,
    vocabulary=262144,
    judge_message=1500,
    judge_reply=2048,
    judge_connections=64,
    judge_latency_s=2.0,
)


def test_a_row_of_its_own_reads_prompt_and_answer_again() -> None:
    """0.25 x (400 + 1024) of 4096 behind the answer; 0.25 x (4096 + 400 + 1024) of 4096 as another row."""
    assert "up to 9% more tokens through the model" in dict(forecast(LOAD))["training"]
    assert (
        "up to 34% more tokens through the model"
        in dict(forecast(dataclasses.replace(LOAD, own_rows=True)))["training"]
    )


def test_the_forecast() -> None:
    rows = dict(forecast(LOAD))
    assert rows["judge calls"] == "256 a step (128 groups x 8 answers x 0.25 x 1)"
    assert "384 k read a step, at most 1.69 M read and 524 k written" in rows["judge tokens"]
    assert "8 s a step if it is as fast under load" in rows["judge time"]  # 256 calls, 64 at once, 2 s each
    assert rows["generation"].startswith("up to 12% more tokens written, and 400 read")  # 0.25 x 1024 of 2048
    assert rows["training"].startswith("up to 9% more tokens")  # 0.25 x 1424 of 4096
    assert rows["longest sample"] == "5520 tokens, 1.35 times the stock run's 4096"
    assert "up to 11040 tokens, whose logits in fp32 take 10.8 GiB (8 GiB in the stock run)" in rows["micro-batches"]


def test_the_forecast_of_micro_batches_by_length() -> None:
    fits = dict(forecast(dataclasses.replace(LOAD, max_micro_batch=8192)))["micro-batches"]
    assert fits.endswith("the longest sample fits")
    assert "LONGER" in dict(forecast(dataclasses.replace(LOAD, max_micro_batch=5000)))["micro-batches"]


# ── Without the host, without torch ──

#: What this package itself needs; neither torch nor a host.
LIGHT = ("pluggy", "pydantic", "pydantic_core", "typing_extensions.py", "annotated_types", "typing_inspection")


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    """An environment that holds this package and what it needs, and nothing else."""
    import pydantic

    import confession_hooks
    import confession_plugin

    site = Path(pydantic.__file__).parents[1]
    folder = tmp_path / "light"
    folder.mkdir()
    for name in LIGHT:
        (folder / name).symlink_to(site / name)
    for package in (confession_plugin, confession_hooks):
        (folder / package.__name__).symlink_to(Path(str(package.__file__)).parent)
    return {"PYTHONPATH": str(folder)}


def bare(module: str, *flags: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command without the packages of this environment (-S)."""
    return subprocess.run(
        [sys.executable, "-S", "-m", module, *flags],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_the_host_there_is_one_line(tmp_path: Path, judge: str, light: dict[str, str]) -> None:
    for flags in (["--train.seed", "1"], ["--confession.enable", "--confession.judge_url", judge]):
        result = bare("confession_plugin.train_ppo_ray", *flags, env=light, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr.strip().splitlines()[-1].startswith("confession: OpenRLHF is not installed; pip install")
        assert "Traceback" not in result.stderr
    result = bare("confession_plugin.seal", "--confession.judge_url", judge, env=light, cwd=tmp_path)
    assert result.returncode == 2 and "OpenRLHF is not installed" in result.stderr
    result = bare("confession_plugin.train_ppo_ray", "--help", env=light, cwd=tmp_path)
    assert result.returncode == 0 and "--confession.probability X" in result.stdout


def test_the_audit_needs_neither_host_nor_torch(tmp_path: Path, judge: str, light: dict[str, str]) -> None:
    result = bare("confession_plugin.audit_judge", "--confession.judge_url", judge, env=light, cwd=tmp_path)
    assert result.returncode == 1 and "Is honesty the best policy?  NO" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bad_share", "2"], "argument --bad_share: 2 is no share; give a number in \\[0, 1\\]"),
        (["--bad_share", "nan"], "argument --bad_share: nan is no share"),
        (["--cases", "nowhere.jsonl"], "confession: --cases: cannot read nowhere.jsonl"),
        (["--train.seed", "1"], "unrecognized arguments: --train.seed 1"),
        (["--confession.judge_url", "nowhere.py"], "confession: --confession.judge_url: no file at .*nowhere.py"),
    ],
)
def test_audit_flags_that_cannot_work_exit_with_2(
    judge: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(audit_judge.main, "--confession.judge_url", judge, *flags) == 2
    assert re.search(message, capsys.readouterr().err)
