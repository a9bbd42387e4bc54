"""The reproduction's smallest preset: it runs, resumes without running anything again, and writes its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_the_smoke_preset_runs_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPTS / "reproduce_paper.py", "--preset", "smoke", "--output", tmp_path]
    first = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert first.returncode == 0, first.stderr[-2000:]
    content = (tmp_path / "results.json").read_text()
    cells = json.loads(content)["cells"]
    assert {cell["method"] for cell in cells} >= {"numeric-explicit", "maml", "hypernetwork", "prior-fitted"}
    report = (tmp_path / "results.md").read_text()
    assert "1. more steps help" in report
    assert "exact answer" in report
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    kept = {**json.loads(content), "cells": cells[:-2]}
    (tmp_path / "results.json").write_text(json.dumps(kept))
    again = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr[-2000:]
    assert json.loads((tmp_path / "results.json").read_text())["cells"][: len(cells) - 2] == cells[:-2]
    other = subprocess.run([*command[:3], "cpu", *command[4:]], capture_output=True, text=True, timeout=100)
    assert other.returncode == 2
    assert "preset 'smoke'" in other.stderr
