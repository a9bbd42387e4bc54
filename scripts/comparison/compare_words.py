"""Tasks that are answered in words: the state inside the language model beside in-context learning and fine-tuning.

    python scripts/comparison/compare_words.py --data_dir META_TEST --output scripts/results/compare_words

Rows: `lm-state` with its shipped weights, also with a single step on each example, and untrained, also after as many
examples as the longest stream of its training had, and after 8 times those (where a task has fewer, epoch after epoch);
zero-shot; in-context learning with more and more demonstrations; LoRA and prompt tuning (also from a learned start),
given 1 and 10 times the seconds that `lm-state` takes. Exact match of generated answers. For `lm-state` also: how much
next-token accuracy on unrelated texts (--unrelated) changes under its state. What is in OUTPUT/results.json already is
not measured again.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch

from comparison import lab
from comparison.lab import Answers, Job, Record, shown
from comparison.tasks import Rows, Task, chunk_of, endless
from iai_hf import AutoAmortizer, TaskSpec, TaskState, load_backbone, score, shipped
from iai_hf.amortizer import Amortizer
from iai_hf.backbones.causal_lm import CausalLM
from iai_hf.backbones.conditions import Condition
from iai_hf.compare import markdown
from iai_hf.data import open_stream
from iai_hf.errors import BackboneError, ConfigError
from iai_hf.language_model.gradient import Gradient
from iai_hf.language_model.prompted import Prompted

BACKBONE = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHIPPED, PROMPT_START = "smollm2-135m-lm-state", "smollm2-135m-prompt-tuning"
TASKS = tuple(f"fv_{name}" for name in (
    "antonym", "country_capital", "present_past", "english_german", "landmark_country", "fruit_v_animal_5",
))  # fmt: skip
SHOTS = ("8", "32", "96", "4,096 tokens")
ROWS = (
    "lm-state",
    "lm-state, 1 pass",
    "lm-state, as long as in training",
    "lm-state, 8 times as long as in training",
    "lm-state, untrained",
    "zero-shot",
    *(f"in-context, {shots}" for shots in SHOTS),
    "LoRA 1x",
    "LoRA 10x",
    "prompt tuning 1x",
    "prompt tuning 1x, learned start",
    "prompt tuning 10x",
)
CHUNK, BATCH = 64, 8
TIMES = 8
UNRELATED_TEXTS, UNRELATED_TOKENS = 60, 64


def read(amortizer: Amortizer, rows: Rows, state: TaskState | None = None) -> TaskState:
    state = state or amortizer.init_state(TaskSpec("generation"))
    for first in range(0, len(rows), CHUNK):
        state = amortizer.update(state, chunk_of(rows[first : first + CHUNK]))
    return state


def answered(amortizer: Amortizer, state: TaskState, task: Task, seconds: float) -> Answers:
    began = time.perf_counter()
    prediction = amortizer.predict(state, task.queries)
    cost = 1000 * (time.perf_counter() - began) / len(task.queries)
    answers = {**score(prediction, task.answers), "seconds": seconds, "ms_per_query": cost, "state_bytes": state.nbytes}
    if isinstance(amortizer, Prompted):
        answers["cache_bytes"] = amortizer.prepared(state).prefix.nbytes
    return answers


def in_one_pass(model: CausalLM, task: Task, rows: Rows, method: str, settings: dict[str, Any]) -> Answers:
    amortizer = AutoAmortizer.from_pretrained(method, backbone=model, config=settings)
    began = time.perf_counter()
    state = read(amortizer, rows)
    return answered(amortizer, state, task, time.perf_counter() - began)


def for_seconds(model: CausalLM, task: Task, rows: Rows, method: str, seconds: float, **settings: Any) -> Answers:
    """A gradient method, epoch after epoch until its time is up; its last step may end later."""
    amortizer = AutoAmortizer.from_pretrained(method, backbone=model, config=settings)
    state = amortizer.init_state(TaskSpec("generation"))
    began = time.perf_counter()
    for chunk in endless(rows, BATCH):
        state = amortizer.update(state, chunk)
        if time.perf_counter() - began > seconds:
            break
    return answered(amortizer, state, task, time.perf_counter() - began)


def shipped_state(model: CausalLM, task: Task, rows: Rows, unrelated: list[str], **settings: Any) -> Answers:
    """`lm-state` with the weights that belong to the model, and what its state does to unrelated texts."""
    amortizer = AutoAmortizer.from_pretrained("lm-state", backbone=model, config=settings)
    assert isinstance(amortizer, Gradient)
    if amortizer.config.weights is None:
        raise ConfigError(f"no weights of lm-state are shipped for {model.name}; measure 'lm-state, untrained'")
    began = time.perf_counter()
    state = read(amortizer, rows)
    answers = answered(amortizer, state, task, time.perf_counter() - began)
    return answers | harm(amortizer, state, unrelated)


def harm(amortizer: Gradient, state: TaskState, texts: list[str]) -> Answers:
    """Relative change of next-token accuracy and likelihood on unrelated texts under a state."""
    model = amortizer.prompter.model
    ids = [model.tokens(text[: 20 * UNRELATED_TOKENS])[:UNRELATED_TOKENS] for text in texts]
    found = []
    for under in (Condition(), amortizer.condition_of(state.tensors)):
        hits, likelihoods = [], []
        for text in ids:
            with torch.inference_mode():
                scores = model.next_tokens([text], under)[:-1]
            after = torch.tensor(text[1:])
            hits.append((scores.argmax(1) == after).float())
            likelihoods.append(scores.gather(1, after[:, None])[:, 0])
        found.append((float(torch.cat(hits).mean()), float(torch.cat(likelihoods).mean())))
    (plain_hits, plain), (hits_under, under_state) = found
    return {"unrelated_accuracy": hits_under / plain_hits - 1, "unrelated_likelihood": under_state - plain}


def measure(
    row: str, model: CausalLM, task: Task, rows: Rows, every: Rows, unit: float, unrelated: list[str]
) -> Answers:
    """One row on `rows`, or on as many of `every` as it says; `unit` are the seconds that `lm-state` took."""
    if row.startswith("in-context, "):
        shots = row.removeprefix("in-context, ")
        shown = rows if shots == SHOTS[-1] else rows[: int(shots)]
        return in_one_pass(model, task, shown, "in-context", {"demonstration_tokens": 4096})
    trained = every[: longest_trained()]
    longer = list(itertools.islice(itertools.cycle(every), TIMES * len(trained)))
    rows_of: dict[str, Callable[[], Answers]] = {
        "lm-state": lambda: shipped_state(model, task, rows, unrelated),
        "lm-state, 1 pass": lambda: shipped_state(model, task, rows, unrelated, passes=1),
        "lm-state, as long as in training": lambda: shipped_state(model, task, trained, unrelated),
        "lm-state, 8 times as long as in training": lambda: shipped_state(model, task, longer, unrelated),
        "lm-state, untrained": lambda: in_one_pass(model, task, rows, "lm-state", {"weights": None}),
        "zero-shot": lambda: in_one_pass(model, task, [], "in-context", {}),
        "LoRA 1x": lambda: for_seconds(model, task, rows, "lora", unit),
        "LoRA 10x": lambda: for_seconds(model, task, rows, "lora", 10 * unit),
        "prompt tuning 1x": lambda: for_seconds(model, task, rows, "prompt-tuning", unit),
        "prompt tuning 1x, learned start": lambda: for_seconds(
            model, task, rows, "prompt-tuning", unit, weights=PROMPT_START
        ),
        "prompt tuning 10x": lambda: for_seconds(model, task, rows, "prompt-tuning", 10 * unit),
    }
    return rows_of[row]()


def means(records: list[Record], column: str) -> dict[str, list[float]]:
    """Of each row that was measured on all tasks: the mean over tasks, an order each."""
    tasks = {record["task"] for record in records}
    found = {}
    for row in ROWS:
        mine = [record for record in records if record["row"] == row and column in record["answers"]]
        by_seed = [[r["answers"][column] for r in mine if r["seed"] == seed] for seed in range(len(records))]
        whole = [mean(values) for values in by_seed if len(values) == len(tasks)]
        if whole:
            found[row] = whole
    return found


def by_task(records: list[Record]) -> list[list[str]]:
    """Head and a row each: exact match in percent, mean over tasks ± standard error over orders, then by task."""
    tasks = list(dict.fromkeys(record["task"] for record in records))
    rows = [["exact match, %", "orders", "mean", *(task.removeprefix("fv_") for task in tasks)]]
    for row, values in means(records, "exact_match").items():
        cells = []
        for task in tasks:
            mine = [r["answers"]["exact_match"] for r in records if (r["row"], r["task"]) == (row, task)]
            cells.append(f"{100 * mean(mine):.1f}")
        rows.append([row, str(len(values)), shown(values, 100, 1), *cells])
    return rows


def costs(records: list[Record]) -> list[list[str]]:
    """Head and a row each: what adapting and answering cost."""
    columns = {
        "seconds": ("seconds to adapt", 1.0),
        "ms_per_query": ("ms a query", 1.0),
        "state_bytes": ("state, kB", 0.001),
        "cache_bytes": ("keys and values, kB", 0.001),
        "unrelated_accuracy": ("unrelated texts, % relative", 100.0),
    }
    measured = {column: means(records, column) for column in columns}
    rows = [["", *(title for title, _ in columns.values()), "orders"]]
    for row, values in means(records, "exact_match").items():
        cells = [shown(measured[column].get(row, []), scale, 1) for column, (_, scale) in columns.items()]
        rows.append([row, *cells, str(len(values))])
    return rows


def training() -> dict[str, Any]:
    """The log of the shipped weights' training."""
    found: dict[str, Any] = json.loads((shipped.locate(SHIPPED).folder / "training.json").read_text())
    return found


def longest_trained() -> int:
    """Examples of the longest stream that the shipped weights were trained on."""
    return int(training()["config"]["longest"])


def compute() -> list[list[str]]:
    """Head and a row each: scores of the shipped weights on held-out training tasks along their training."""
    history = training()["history"]
    rows = [["meta-training of lm-state", "minutes", "held-out loss, nats a token", "exact match, %"]]
    for point in history:
        figures = (f"{point['seconds'] / 60:.1f}", f"{point['loss']:.3f}", f"{100 * point['accuracy']:.1f}")
        rows.append([f"{point['step']} steps", *figures])
    return rows


def report(records: list[Record], output: Path) -> None:
    """Write results.md."""
    first = records[0]
    title = (
        f"{BACKBONE}, up to {first['examples']:,} examples, up to {first['queries']} queries; mean over tasks, "
        "± standard error over orders. Unrelated texts: change of next-token accuracy under the state."
    )
    lab.write_report(output, [title, markdown(by_task(records)), markdown(costs(records)), markdown(compute())])


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of tasks with train.jsonl and test.jsonl")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--unrelated", type=Path, default=Path("demo/data/reuters-r8-test.jsonl"))
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("scripts/results/compare_words"))
    args = parser.parse_args()
    model = load_backbone(args.backbone)
    if not isinstance(model, CausalLM):
        raise BackboneError(f"{args.backbone} is no causal language model")
    texts = [record.input for record in itertools.islice(open_stream(args.unrelated).records(), UNRELATED_TEXTS)]

    def measured(job: Job, mine: dict[str, Answers]) -> tuple[dict[str, Any], Answers]:
        seed, name, row = job
        task = Task(args.data_dir / name, model)
        task.queries, task.answers = task.queries[: args.queries], task.answers[: args.queries]
        known = mine.get("lm-state") or mine.get("lm-state, untrained") or {"seconds": 0.0}
        every = task.rows(seed)
        answers = measure(row, model, task, every[: args.examples], every, known["seconds"], texts)
        return {"examples": args.examples, "queries": args.queries}, answers

    lab.measure_all(args.output, itertools.product(range(args.seeds), args.tasks, args.rows), measured, report)


if __name__ == "__main__":
    lab.run(main)
