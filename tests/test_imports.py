"""Imports run one way, those inside functions and for type checkers among them; flags belong to the command line."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import iai_hf

ROOT = Path(iai_hf.__file__).parent
FACE = "iai_hf"  # it names what stands above all others; from below only `__version__` is asked of it
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
WINGS = ("features", "tables", "language_model")


def imported(path: Path, name: str) -> set[str]:
    """Files of the package that the file of that name imports from, anywhere in it, and the packages they are in."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & set(FILES)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found |= {inner if inner in FILES else str(node.module)} & set(FILES)
    packages = {
        ".".join(parts[:count]) for parts in (file.split(".") for file in found) for count in range(2, len(parts))
    }
    return found | {package for package in packages if not name.startswith(f"{package}.") and package != name}


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return {name: imported(path, name) for name, path in FILES.items()}


def test_there_is_no_circle(imports: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter({name: read - {FACE} for name, read in imports.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' <- '.join(error.args[1])}")


def test_only_the_version_is_asked_of_the_package() -> None:
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == FACE:
                asked = {alias.name for alias in node.names if f"{FACE}.{alias.name}" not in FILES}
                assert asked <= {"__version__"}, f"{name} imports {asked} from {FACE}"


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_no_other(imports: dict[str, set[str]], wing: str) -> None:
    others = tuple(f"{FACE}.{other}" for other in WINGS if other != wing)
    for name, read in imports.items():
        if name.startswith(f"{FACE}.{wing}"):
            assert not [other for other in read if other.startswith(others)], name


def test_the_spine_and_what_wings_share_know_no_wing(imports: dict[str, set[str]]) -> None:
    wings = tuple(f"{FACE}.{wing}" for wing in WINGS)
    for name, read in imports.items():
        if not name.startswith((*wings, f"{FACE}.cli")):
            assert not [other for other in read if other.startswith(wings)], name


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport iai_hf.errors\nfrom iai_hf import hub, __version__\n"
        "if TYPE_CHECKING:\n    from iai_hf.state import TaskState\n"
        "def load():\n    from iai_hf.features.heads import Head\n"
    )
    below = {"iai_hf.errors", "iai_hf.hub", FACE, "iai_hf.state", "iai_hf.features.heads", "iai_hf.features"}
    assert imported(path, "iai_hf.a") == below


def test_the_library_does_not_speak_of_flags() -> None:
    for name, path in FILES.items():
        if not name.startswith(f"{FACE}.cli"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
                flags = re.findall(r"(?<!pip install )--[a-z][\w-]+", text)
                assert not flags, f"{name} line {node.lineno} speaks of {flags}; give the error `options` instead"  # type: ignore[attr-defined]
