"""docs/architecture.md, docs/hooks.md and CONTRIBUTING.md: what they name exists, and the tree is complete."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from confession_plugin import __version__
from confession_plugin.config import Config
from confession_plugin.hookspecs import hook_names

ROOT = Path(__file__).parents[2]

CHECKED_PAGES = ("docs/architecture.md", "docs/hooks.md", "CONTRIBUTING.md")
LINKED_PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in ROOT.glob("docs/*.md")))


def tree_of(page: str) -> dict[str, str]:
    """Path -> its line's text, of the page's tree: names indented by two spaces a level, folders ending in a slash."""
    block = re.search(r"^```\n(confession_plugin/\n.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    folders: list[str] = []
    listed = {}
    for line in block.group(1).splitlines():
        indent, name, text = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()  # type: ignore[union-attr]
        del folders[len(indent) // 2 :]
        listed["".join(folders) + name] = text
        if name.endswith("/"):
            folders.append(name)
    return listed


def files_of(package: str) -> set[str]:
    """Every file of a package and every folder in it, with a slash behind."""
    paths = [path for path in (ROOT / package).rglob("*") if "__pycache__" not in path.parts]
    return {f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in paths} | {f"{package}/"}


def test_the_tree_lists_each_file_of_the_packages_and_nothing_else() -> None:
    listed = tree_of("docs/architecture.md")
    there = files_of("confession_plugin") | files_of("hooks")
    assert sorted(listed) == sorted(there)
    assert not [
        path for path, text in listed.items() if not text and path not in ("confession_plugin/", "hooks/prompts/")
    ]


def names_in(page: str) -> list[tuple[str, bool]]:
    """What stands in backticks outside of code blocks, and whether the page says that it is still to come."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [(name, bool(new)) for name, new in re.findall(r"`([^`\n]+)`( \(new\))?", text)]


def place_of(path: str) -> Path | None:
    """A path below the root or below the main package."""
    return next((found for base in (ROOT, ROOT / "confession_plugin") if (found := base / path).exists()), None)


def defines(file: Path, dotted: str) -> bool:
    """Does the file define this name at its top level, or this class this method or attribute?"""
    body: list[ast.stmt] = ast.parse(file.read_text()).body
    for name in dotted.split("."):
        found = next((node for node in body if name in _defined_by(node)), None)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def _defined_by(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = (
        node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    )
    return {target.id for target in targets if isinstance(target, ast.Name)}


PATH = re.compile(r"(?P<path>[\w./-]+(?:/|\.(?:py|md|txt|jsonl|toml|sh|typed)))(?::(?P<name>[\w.]+))?")


def problem_with(name: str, new: bool) -> str | None:
    """Why a name on a page is wrong; None where it is right, or is no name of ours."""
    if flag := re.fullmatch(r"--confession\.(\w+)(?: \S+)?", name):
        return None if flag.group(1) in Config.model_fields else "no such flag"
    if hook := re.fullmatch(r"(confession_\w+)(?:\(\w+\))?", name):
        return None if hook.group(1) in (*hook_names(), "confession_plugin", "confession_hooks") else "no such hook"
    if target := re.fullmatch(r"make ([\w-]+)", name):
        return None if re.search(rf"^{target.group(1)}:", (ROOT / "Makefile").read_text(), re.M) else "no such target"
    if (found := PATH.fullmatch(name)) is None:
        return None
    place = place_of(found["path"])
    if new:
        return None if place is None else "is not new any more"
    if place is None:
        return "no such file"
    return None if not found["name"] or defines(place, found["name"]) else "the file defines no such name"


@pytest.mark.parametrize("page", CHECKED_PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    names = names_in(page)
    assert len([name for name, _ in names if PATH.fullmatch(name)]) > 5
    assert not {name: problem for name, new in names if (problem := problem_with(name, new)) is not None}


def test_wrong_names_are_found() -> None:
    assert problem_with("confess.py:Confessor.confess", False) is problem_with("config.py:ENV_VAR", False) is None
    for wrong in (
        "confess.py:Nothing",
        "confess.py:Confessor.nothing",
        "nothing.py",
        "openrlhf/nothing/",
        "make noise",
    ):
        assert problem_with(wrong, False), wrong
    assert problem_with("--confession.nothing", False) and problem_with("confession_nothing", False)
    assert problem_with("seal.py", True) and problem_with("nothing.py", True) is None


@pytest.mark.parametrize("page", LINKED_PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), f"{page}: [{label}]({target})"
        headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, f"{page}: [{label}]({target})"


@pytest.mark.parametrize(
    "wanted",
    ["a second host", "a report page", "evaluation kit", "exporter", "a flag", "a hook", "a metric", "a tripwire"],
)
def test_a_reader_finds_where_to_change_it(wanted: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text().lower()
    changes = page[page.index("## where do i change x?") :]
    (line, *_) = [line for line in changes.splitlines() if wanted in line]
    assert "`" in line or line.startswith("#")


def test_the_version_is_one() -> None:
    project = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None and project.group(1) == __version__
    assert re.search(rf"^## \[{re.escape(__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
