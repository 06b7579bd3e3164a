"""The house rules that a reader relies on: documented records, import paths that stay, one place for the host, words.

Most of it reads the source, so a rule holds for files that are added later, too.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

import confession_plugin
from confession_plugin.records import BatchStats
from confession_plugin.sample_stats import STATS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "confession_plugin"
HOOKS = ROOT / "hooks"


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def short(file: Path) -> str:
    return str(file.relative_to(ROOT))


# ── Records: every field says what it is ──

#: Files whose records a plugin, an adapter or a command meets.
PUBLIC = ("records", "channels", "confess", "sample_stats", "startup", "report", "config", "hookspecs", "patching")


def is_record(node: ast.ClassDef) -> bool:
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    return decorated or any(ast.unparse(base) in ("NamedTuple", "BaseModel", "TypedDict") for base in node.bases)


def undocumented(source: str) -> list[str]:
    """``Class.field`` of every record's field that neither a text below it nor ``Field(description=...)`` explains."""
    found = []
    for record in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and is_record(node)):
        for node, below in zip(record.body, [*record.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign):
                continue
            text = below.value if isinstance(below, ast.Expr) else None
            explained = isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.strip()
            if isinstance(node.value, ast.Call):
                explained = explained or any(keyword.arg == "description" for keyword in node.value.keywords)
            if not explained:
                found.append(f"{record.name}.{ast.unparse(node.target)}")
    return found


@pytest.mark.parametrize("module", PUBLIC)
def test_every_field_of_a_public_record_is_documented(module: str) -> None:
    assert undocumented((PACKAGE / f"{module}.py").read_text()) == []


def test_an_undocumented_field_is_found() -> None:
    source = (
        '@dataclass\nclass A:\n    x: int\n    """What x is."""\n    y: int = 0\n\nclass B(NamedTuple):\n    z: str\n'
    )
    assert undocumented(source) == ["A.y", "B.z"]


# ── The numbers of a confession ──

#: Not read off a confession: the host's samples say it, of asked and other samples alike.
FROM_THE_HOST = {"answer_reward", "extra_confession", "label"}


def test_every_number_is_a_documented_field_or_declared_internal() -> None:
    shown = {name for name, stat in STATS.items() if not stat.internal}
    assert shown | FROM_THE_HOST == {field.name for field in fields(BatchStats)}
    assert {name for name, stat in STATS.items() if stat.internal} == {"suffix", "observer_failures"}


def test_every_number_has_the_type_its_field_says() -> None:
    hints = get_type_hints(BatchStats)
    for name, stat in STATS.items():
        if not stat.internal:
            entry = hints[name] if name == "step" else get_args(hints[name])[0]  # all others: a sequence of them
            assert stat.kind is (dict if get_origin(entry) is Mapping else entry), name


def test_no_number_takes_the_place_of_what_else_travels_with_a_sample() -> None:
    pytest.importorskip("openrlhf")
    import in_process  # noqa: F401  (before anything of the host)

    from confession_plugin.openrlhf.experiences import PREFIX
    from confession_plugin.openrlhf.extra_confessions import EXTRA

    assert EXTRA not in {PREFIX + name for name in STATS}


# ── Import paths that stay ──

OLD_PATHS = {
    "confession_plugin.hookspecs": ("hookimpl", "hookspec"),
    "confession_plugin.records": (
        *("PromptBatch", "Rollout", "Request", "Confession", "Parsed", "Verdict", "Judged", "BatchStats"),
    ),
    "confession_plugin.errors": (
        *("ConfessionError", "ConfigError", "PluginError", "HostError", "JudgeError", "Unscored"),
    ),
    "confession_plugin.config": ("Config", "OptionGroup", "parse_config", "check_config"),
    "confession_plugin.plugins": ("PluginManager", "load_plugins", "configured", "load_file"),
    "confession_plugin.channels": ("Spans", "TokenValues", "estimate_scored"),
    "confession_plugin.report": ("Report", "Objective", "extract_report"),
    "confession_plugin.chat": ("request_token_ids", "turn_change"),
    "confession_plugin.judging": ("Judge", "load_judge", "probe"),
    "confession_plugin.cpu": ("adapt_argv", "engaged", "gpus_wanted", "prepare_driver", "ray_init_options"),
    "confession_plugin.lazy": ("when_imported",),
    "confession_plugin.train_ppo_ray": ("main",),
    "confession_plugin.seal": ("main",),
    "confession_plugin.audit_judge": ("main",),
    "confession_hooks.inject": (),
    "confession_hooks.judge": (),
    "confession_hooks.separate": (),
    "confession_hooks.record": (),
}


@pytest.mark.parametrize("module", OLD_PATHS)
def test_a_public_import_path_keeps_working(module: str) -> None:
    found = importlib.import_module(module)
    missing = [name for name in OLD_PATHS[module] if not hasattr(found, name)]
    assert not missing


def test_the_package_exports_what_it_names() -> None:
    exported = {
        *("BatchStats", "Confession", "ConfessionError", "ConfigError", "Judged", "Parsed", "PromptBatch", "Request"),
        *("Rollout", "Unscored", "Verdict", "hookimpl"),
    }
    assert exported <= set(confession_plugin.__all__)  # 0.1's: names may be added
    assert all(hasattr(confession_plugin, name) for name in confession_plugin.__all__)


def test_every_package_is_installed() -> None:
    """The list in pyproject.toml has every folder with Python files: a wheel holds nothing else."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    names = {str(folder.relative_to(ROOT)).replace("/", ".") for folder in folders}
    assert set(settings["packages"]) == names | {"confession_hooks"}


# ── One place for the host ──

HOST_NAME = re.compile(r"\b(openrlhf|trl|deepspeed|ray)\b", re.IGNORECASE)
#: An entry point names the host it starts; `cpu` is the old path of a host's folder.
ENTRY_POINTS = ("train_ppo_ray.py", "train_trl.py", "seal.py", "audit_judge.py")
MAY_NAME_A_HOST = ("train_ppo_ray.py", "train_trl.py", "seal.py", "cpu.py")
HOST_FOLDERS = ("openrlhf", "trl")


def neutral_files() -> list[Path]:
    ours = [file for file in PACKAGE.rglob("*") if file.relative_to(PACKAGE).parts[0] not in HOST_FOLDERS]
    texts = [file for file in [*ours, *HOOKS.rglob("*")] if file.suffix in (".py", ".txt", ".md", ".html")]
    return [file for file in texts if file.name not in MAY_NAME_A_HOST]


def test_neutral_files_name_no_host() -> None:
    assert len(neutral_files()) > 25
    found = [
        f"{short(file)}:{number}: {line.strip()}"
        for file in neutral_files()
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if HOST_NAME.search(line)
    ]
    assert not found, "\n".join(found)


def imported_by(file: Path) -> Iterator[str]:
    """Dotted names of everything a file imports; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def entry_points() -> list[Path]:
    """Files of the package that are commands: they run when they are the main module."""
    files = sorted(PACKAGE.glob("*.py"))
    return [file for file in files if '__name__ == "__main__"' in file.read_text()]


def test_the_commands_are_entry_points() -> None:
    assert {file.name for file in entry_points()} >= set(ENTRY_POINTS)


@pytest.mark.parametrize("file", entry_points(), ids=lambda file: file.name)
def test_an_entry_point_is_short(file: Path) -> None:
    """At most 40 lines of code; its docstring is the command's manual and may be as long as it needs."""
    module = parsed(file)
    manual = module.body[0].end_lineno if ast.get_docstring(module) else 0
    assert len(file.read_text().splitlines()) - (manual or 0) <= 40


@pytest.mark.parametrize("file", entry_points(), ids=lambda file: file.name)
def test_no_entry_point_imports_another(file: Path) -> None:
    others = {f"confession_plugin.{other.stem}" for other in entry_points() if other != file}
    assert not others & set(imported_by(file))


def test_no_test_module_imports_another() -> None:
    tests = sorted((ROOT / "integration_tests").rglob("test_*.py"))
    names = {file.stem for file in tests}
    users = [*tests, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "integration_tests" / "support").rglob("*.py")]
    found = [f"{short(file)}: {name}" for file in users for name in imported_by(file) if name.split(".")[0] in names]
    assert not found, f"what tests share belongs in integration_tests/support: {found}"


def test_importing_the_contract_loads_neither_torch_nor_a_host() -> None:
    import subprocess

    code = "import sys, confession_plugin, confession_plugin.hookspecs, confession_plugin.config\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "ray", "vllm", "openrlhf", "trl", "transformers"} & set(done.stdout.split())


# ── Words ──

#: What the code used to call things, and what the field calls them.
PRIVATE = {
    "door": "entry point",
    "lab": "simulator",
    "sketch": "random rollouts",
    "tail": "suffix, or the last lines",
    "sibling": "extra confession, or the others",
    "silence": "missing scores",
    "mend": "fix",
    "nobody": "no one, nothing",
}
_PRIVATE = re.compile(rf"\b({'|'.join(PRIVATE)})(s|es|ed|ing)?\b", re.IGNORECASE)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
#: A shell command; texts that policies and judges read, which are data; and this list.
_COMMAND = re.compile(r"\btail -n\b")
DATA = ("audit_cases.jsonl", "judge.txt", "calibration.txt", "request.txt", "request_compact.txt")
PLACES = ("confession_plugin", "hooks", "docs", "integration_tests", "benchmarks", "examples")


def private_words(line: str) -> list[str]:
    """Private words of a line, parts of names included: ``silenced_door`` and ``TheLab``."""
    words = _HUMP.sub(" ", _COMMAND.sub("", line)).replace("_", " ")
    return [match[0] for match in _PRIVATE.finditer(words)]


def prose() -> list[Path]:
    files = [file for place in PLACES for file in (ROOT / place).rglob("*")]
    files += [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "requirements").glob("*.sh")]
    kinds = (".py", ".md", ".sh", ".txt", "")
    return [
        file
        for file in files
        if file.is_file()
        and file.suffix in kinds
        and file.name not in (*DATA, "CHANGELOG.md")  # which tells of old names
        and file != Path(__file__)
    ]


def test_the_fields_words_and_not_ours() -> None:
    found = [
        f"{short(file)}:{number}: {word} ({PRIVATE.get(word.lower().rstrip('s'), 'see PRIVATE')})"
        for file in prose()
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        for word in private_words(line)
    ]
    assert not found, "\n".join(found)


def test_private_words_are_told_from_others() -> None:
    assert private_words("a DOOR, the_door and TheDoor; siblings; mended") == [
        "DOOR",
        "door",
        "Door",
        "siblings",
        "mended",
    ]
    assert private_words("detail recommend available collab outdoors tailored silent label; tail -n 3") == []
