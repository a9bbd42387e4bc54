"""The package's figures of cost and accuracy, measured on this machine; ratios are taken within one run.

    python scripts/comparison/benchmark.py --tasks TASKS --json
    python scripts/comparison/benchmark.py --parts query,start --output scripts/results/benchmark.json

Parts (--parts): throughput, memory, query, features, language_model, start, accuracy. With --output a part is written
as soon as it is measured, and those that are in the file already stay. `accuracy` wants --tasks, a folder of tasks with
train.jsonl and test.jsonl each, and takes ten minutes with the long posts of 20 Newsgroups; the rest takes five.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

from comparison import lab
from iai_hf import AutoAmortizer, Chunk, TaskSpec, load_backbone
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.backbones.batching import length_buckets
from iai_hf.backbones.causal_lm import CausalLM
from iai_hf.backbones.conditions import Condition
from iai_hf.backbones.packing import Row
from iai_hf.files import write_whole
from prepare_data import prepare

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
CAUSAL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROUNDS = 5
WORDS = (5, 20, 80)  # of a text, for the cost of reading a chunk


def read(path: Path) -> tuple[list[str], list[str]]:
    """Inputs and outputs of a JSONL file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["input"] for row in rows], [row["output"] for row in rows]


def interleaved(
    first: Callable[[], Any],
    second: Callable[[], Any],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Least seconds of each of two jobs, run in turns, so that a busy moment of the machine hits both."""
    best = [float("inf"), float("inf")]
    first(), second()  # warm up
    for _ in range(rounds):
        for i, job in enumerate((first, second)):
            began = clock()
            job()
            best[i] = min(best[i], clock() - began)
    return best[0], best[1]


def bare_forward(model: Any, backbone: Backbone, texts: list[str], max_tokens: int | None) -> Callable[[], None]:
    """The forward pass of `model`, as transformers loads it, over the buckets of `features`, tokenised ahead."""
    import torch

    start, end = backbone.special_tokens
    ids = backbone.tokenizer(texts, add_special_tokens=False)["input_ids"]
    windows = [[*start, *text[:max_tokens], *end] for text in ids]
    batches = [
        backbone.tokenizer.pad({"input_ids": [windows[i] for i in group]}, return_tensors="pt")
        for group in length_buckets([len(window) for window in windows])
    ]

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(**batch)

    return run


def bare_encoder(backbone: Backbone) -> Any:
    """The encoder without this package."""
    from transformers import AutoModel

    from iai_hf.backbones.weights import resolve

    return AutoModel.from_pretrained(resolve(ENCODER)[0], dtype=backbone.dtype).eval()


def throughput(data: Path) -> dict[str, float]:
    """Adapting with `iterative` against the bare backbone, in tokens a second over the same batches."""
    inputs, outputs = read(data / "20newsgroups-train.jsonl")
    rows = [{"input": text, "output": label} for text, label in zip(inputs[::44], outputs[::44], strict=True)]
    texts = [row["input"] for row in rows]
    amortizer = AutoAmortizer.from_pretrained("iterative", config={"max_tokens": 128})
    tokens = amortizer.backbone.features(texts, 128).tokens
    model = bare_encoder(amortizer.backbone)
    state = amortizer.init_state(TaskSpec("classification", tuple(sorted(set(outputs)))))
    turns = []
    for first in range(0, len(rows), 64):
        chunk = rows[first : first + 64]
        bare_chunk = bare_forward(model, amortizer.backbone, texts[first : first + 64], 128)
        turns.append(interleaved(partial(amortizer.adapt, chunk, state, progress=False), bare_chunk))
        state = amortizer.adapt(chunk, state, progress=False)
    adapting, bare = (sum(seconds) for seconds in zip(*turns, strict=True))
    return {
        "adapt_tokens_per_second": tokens / adapting,
        "bare_tokens_per_second": tokens / bare,
        "ratio": bare / adapting,
    }


MEMORY_JOB = """
import json, re, sys
from comparison import lab
from iai_hf import AutoAmortizer
state = AutoAmortizer.from_pretrained("iterative").adapt(sys.argv[1], progress=False, max_examples=int(sys.argv[2]))
# getrusage would tell the peak of the parent, which exec hands on; VmHWM is this process's own (Linux).
print(json.dumps([int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]), state.nbytes]))
"""


def memory(data: Path) -> dict[str, float]:
    """Peak resident memory and state size of a process that streams 2,000 and one that streams 100,000 examples."""
    inputs, outputs = read(data / "20newsgroups-train.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for i in range(100_000):
                words = inputs[i % len(inputs)].split()[i // len(inputs) * 5 :][:5]
                file.write(json.dumps({"input": " ".join(words) or "none", "output": outputs[i % len(inputs)]}) + "\n")
        # The file is sorted by class; 2,000 lines in, all classes must have been named for the states to be alike.
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for i in range(997) for line in lines[i::997]), encoding="utf-8")
        found = {
            count: json.loads(
                subprocess.run(
                    [sys.executable, "-c", MEMORY_JOB, str(path), str(count)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for count in (2_000, 100_000)
        }
    (small, small_state), (large, large_state) = found[2_000], found[100_000]
    return {
        "peak_kb_2000": small,
        "peak_kb_100000": large,
        "ratio": large / small,
        "state_bytes_2000": small_state,
        "state_bytes_100000": large_state,
    }


def query_cost(data: Path) -> dict[str, float]:
    """A query with a state against the backbone's bare forward pass, and a shared prefix against re-reading it."""
    inputs, outputs = read(data / "reuters-r8-train.jsonl")
    pairs = list(zip(inputs[::67], outputs[::67], strict=True))
    rows = [{"input": " ".join(text.split()[:20]), "output": label} for text, label in pairs][:80]
    queries = [row["input"] for row in rows[32:72]]
    iterative = AutoAmortizer.from_pretrained("iterative")
    state = iterative.adapt(rows[:32], progress=False)
    model = bare_encoder(iterative.backbone)
    bare = [bare_forward(model, iterative.backbone, [query], None) for query in queries]
    turns = [
        interleaved(partial(iterative.predict, state, [query]), run) for query, run in zip(queries, bare, strict=True)
    ]
    with_state, alone = (sum(seconds) for seconds in zip(*turns, strict=True))
    lm = load_backbone(CAUSAL)
    in_context = AutoAmortizer.from_pretrained("in-context", backbone=lm, config={"demonstration_tokens": 4096})
    shots = in_context.adapt(rows[:32], progress=False)
    few = queries[:8]
    shared, again = interleaved(
        lambda: in_context.predict(shots, few),
        lambda: reread(in_context, shots.tensors["tokens"].tolist(), few, shots.task),
        2,
    )
    same = reread(in_context, shots.tensors["tokens"].tolist(), few, shots.task) == list(
        in_context.predict(shots, few).outputs
    )
    return {
        "iterative_ms": 1000 * with_state / len(queries),
        "bare_ms": 1000 * alone / len(queries),
        "iterative_ratio": with_state / alone,
        "in_context_demonstrations": len(shots.tensors["lengths"]),
        "in_context_shared_ms": 1000 * shared / len(few),
        "in_context_reread_ms": 1000 * again / len(few),
        "in_context_speedup": again / shared,
        "in_context_same_predictions": float(same),
    }


def feature_costs(data: Path) -> dict[str, float]:
    """Ratios of `iterative` with its feature adapter to that without, and of unlabelled rows to labelled ones.

    Of the processor's time, for a chunk of 64 texts of twenty words and for queries one by one, of states behind 64.
    """
    inputs, outputs = read(data / "reuters-r8-train.jsonl")
    texts, labels = [" ".join(text.split()[:20]) for text in inputs[::27][:168]], outputs[::27][:168]
    task = TaskSpec("classification", tuple(sorted(set(outputs))))
    first, second = (Chunk(tuple(texts[part]), tuple(labels[part])) for part in (slice(64), slice(64, 128)))
    unlabelled, queries = Chunk((), (), second.inputs), texts[128:]
    backbone = load_backbone(ENCODER)
    own, other = (
        AutoAmortizer.from_pretrained("iterative", backbone=backbone, config=config)
        for config in ({}, {"adapter": None})
    )
    state, plain_state = (amortizer.update(amortizer.init_state(task), first) for amortizer in (own, other))
    time_in_turns = partial(interleaved, rounds=10 * ROUNDS, clock=time.process_time)
    reading = partial(own.update, state, second)
    with_adapter, without = time_in_turns(reading, partial(other.update, plain_state, second))
    rows_without, rows_with = time_in_turns(partial(own.update, state, unlabelled), reading)
    turns = [
        time_in_turns(partial(own.predict, state, [query]), partial(other.predict, plain_state, [query]))
        for query in queries
    ]
    adapted, plain = (sum(seconds) for seconds in zip(*turns, strict=True))
    return {
        "chunk_ms": 1000 * with_adapter,
        "adapter_ratio_of_a_chunk": with_adapter / without,
        "query_ms": 1000 * adapted / len(queries),
        "adapter_ratio_of_a_query": adapted / plain,
        "unlabelled_ratio_of_a_chunk": rows_without / rows_with,
    }


def language_model(data: Path) -> dict[str, Any]:
    """`lm-state`: reading a chunk against the model's plain forward pass, and a query against a zero-shot one.

    Only answers are stepped on, so the longer the texts, the less there is to a chunk beyond its forward pass.
    """
    inputs, outputs = read(data / "reuters-r8-train.jsonl")
    pairs = list(zip(inputs[::67], outputs[::67], strict=True))[:80]
    lm = load_backbone(CAUSAL)
    assert isinstance(lm, CausalLM)
    amortizer, once = (
        AutoAmortizer.from_pretrained("lm-state", backbone=lm, config=settings) for settings in ({}, {"passes": 1})
    )
    plain = AutoAmortizer.from_pretrained("in-context", backbone=lm)
    task = TaskSpec("classification", tuple(sorted(set(outputs))))
    chunks = {}
    for words in WORDS:
        rows = [{"input": " ".join(text.split()[:words]), "output": label} for text, label in pairs]
        chunk = Chunk(tuple(row["input"] for row in rows[:64]), tuple(row["output"] for row in rows[:64]))
        state, lighter = (method.update(method.init_state(task), chunk) for method in (amortizer, once))
        texts = [f"Input: {row['input']}\nOutput: {row['output']}\n" for row in rows[:64]]
        bare = bare_forward(lm.model, lm, texts, None)
        reading, forward = interleaved(partial(amortizer.update, state, chunk), bare)
        reading_once, forward_then = interleaved(partial(once.update, lighter, chunk), bare)
        chunks[str(words)] = {
            "tokens": sum(len(lm.tokens(text)) for text in texts),
            "chunk_ms": 1000 * reading,
            "forward_ms": 1000 * forward,
            "ratio": reading / forward,
            "ratio_of_one_pass": reading_once / forward_then,
        }
    rows = [{"input": " ".join(text.split()[: WORDS[0]]), "output": label} for text, label in pairs]
    state = amortizer.adapt(rows[:64], amortizer.init_state(task), progress=False)
    empty, queries = plain.init_state(task), [row["input"] for row in rows[64:]]
    turns = [
        interleaved(partial(amortizer.predict, state, [query]), partial(plain.predict, empty, [query]))
        for query in queries
    ]
    with_state, zero_shot = (sum(seconds) for seconds in zip(*turns, strict=True))
    return {
        "chunks_by_words_a_text": chunks,
        "query_ms": 1000 * with_state / len(queries),
        "zero_shot_ms": 1000 * zero_shot / len(queries),
        "query_ratio": with_state / zero_shot,
    }


def reread(amortizer: Amortizer, demonstrations: list[int], queries: list[str], task: TaskSpec) -> list[str]:
    """In-context learning without a shared prefix: the whole prompt is read again for each query."""
    prompter = amortizer.prompter  # type: ignore[attr-defined]
    model: CausalLM = prompter.model
    empty = Condition(model.encode_prefix())
    found = []
    for query in queries:
        row = prompter.row(query, task.labels)
        scores = model.score(empty, [Row((*demonstrations, *row.query), row.answers)])[0]
        found.append(task.labels[int(scores.argmax())])
    return found


def start() -> dict[str, float]:
    """Seconds to import the package, and to answer `iai --help`; least of five processes each."""

    def run(*command: str) -> str:
        return subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True).stdout

    def help_seconds() -> float:
        began = time.perf_counter()
        run("-m", "iai_hf.cli", "--help")
        return time.perf_counter() - began

    code = "import time; began = time.perf_counter(); import iai_hf; print(time.perf_counter() - began)"
    return {
        "import_seconds": min(float(run("-c", code)) for _ in range(ROUNDS)),
        "help_seconds": min(help_seconds() for _ in range(ROUNDS)),
    }


def accuracy(data: Path, tasks: Path) -> dict[str, dict[str, float]]:
    """The untrained head after all training examples, against scikit-learn's logistic regression, same features."""
    from sklearn.linear_model import LogisticRegression

    amortizer = AutoAmortizer.from_pretrained("iterative", config={"weights": None})
    sources = {"20newsgroups": (data / "20newsgroups-train.jsonl", data / "20newsgroups-test.jsonl")}
    index = json.loads((tasks / "index.json").read_text())
    for name in (name for name, task in index.items() if task["kind"] == "classification"):
        sources[name] = (tasks / name / "train.jsonl", tasks / name / "test.jsonl")
    found = {}
    for name, (train, test) in sorted(sources.items(), key=lambda item: item[1][0].stat().st_size):
        limit = 128 if name == "20newsgroups" else None
        amortizer = AutoAmortizer.from_pretrained(
            "iterative", backbone=amortizer.backbone.plain, config={"max_tokens": limit, "weights": None}
        )
        inputs, outputs = read(train)
        test_inputs, test_outputs = read(test)
        features = amortizer.backbone.features(inputs, limit).vectors.numpy()
        test_features = amortizer.backbone.features(test_inputs, limit).vectors.numpy()
        plain = LogisticRegression(max_iter=3000).fit(features, outputs).score(test_features, test_outputs)
        state = amortizer.adapt(train, shuffle_seed=0, progress=False)
        answers = amortizer.predict(state, test_inputs).outputs
        ours = sum(a == b for a, b in zip(answers, test_outputs, strict=True)) / len(answers)
        found[name] = {
            "examples": len(inputs),
            "labels": len(state.task.labels),
            "iterative": ours,
            "logistic_regression": plain,
            "state_bytes": state.nbytes,
        }
        print(f"{name}: iterative {ours:.4f}, logistic regression {plain:.4f}", file=sys.stderr)
    return found


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("demo/data"), help="where the long texts are laid out")
    parser.add_argument("--tasks", type=Path, help="folder of text tasks")
    parser.add_argument("--parts", default="throughput,memory,query,features,language_model,start,accuracy")
    parser.add_argument("--output", type=Path, help="JSON file to which the parts are written")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    arguments = parser.parse_args()
    data: Path = arguments.data
    prepare(data)
    jobs: dict[str, Callable[[], Any]] = {
        "throughput": lambda: throughput(data),
        "memory": lambda: memory(data),
        "query": lambda: query_cost(data),
        "features": lambda: feature_costs(data),
        "language_model": lambda: language_model(data),
        "start": start,
        "accuracy": lambda: accuracy(data, arguments.tasks),
    }
    results = {}
    for part in arguments.parts.split(","):
        if part not in jobs:
            parser.error(f"no part {part!r}; the parts are {', '.join(jobs)}")
        if part == "accuracy" and arguments.tasks is None:
            parser.error("the part accuracy wants --tasks")
        print(f"measuring {part}", file=sys.stderr)
        results[part] = jobs[part]()
        if arguments.output is not None:
            standing = lab.standing(arguments.output, {}, {})
            write_whole(arguments.output, json.dumps(standing | results, indent=2).encode())
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for part, figures in results.items():
        print(part, *(f"  {name}: {value}" for name, value in figures.items()), sep="\n")


if __name__ == "__main__":
    lab.run(main)
