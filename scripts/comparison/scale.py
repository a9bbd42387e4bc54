"""What rows and classes cost: seconds, peak memory, bytes of a state and accuracy, until a budget is spent.

    python scripts/comparison/scale.py --output scripts/results/scale
    python scripts/comparison/scale.py --backbone random --rows 1000 10000 100000 1000000 --seconds 7200

Texts are made: words of a class among words of all, so that there are as many as are asked for. Each measurement is a
process of its own; a method that has run out of its seconds or bytes is not asked for more rows. What stands in
OUTPUT/results.json is not measured again. `--backbone random` is a small encoder of random weights, which reads a
million short texts in minutes: it shows what is ours of the time and the memory, and accuracy beside others on the same
features, not what a trained encoder comes to.

Rivals take features that were stored before; their seconds are those of the features and of the fit. SetFit needs its
own package, and is left out where that is absent.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import numpy

from comparison import lab
from comparison.benchmark import bare_forward, interleaved
from iai_hf import AutoAmortizer, TaskSpec, load_backbone
from iai_hf.backbones import Backbone
from iai_hf.compare import markdown
from iai_hf.files import write_whole
from iai_hf.task import MAX_LABELS

OURS: dict[str, dict[str, Any]] = {
    "iterative": {},
    "iterative, 2,000 unlabelled": {},
    "iterative, depth": {"depth": "auto"},
}
PLAIN = {"adapter": None, "weights": None, "standardize": False}  # the backbone's own features, the untrained head
RIVALS = ("logistic regression", "SGD", "k-nearest neighbours")
ROWS = ("features", *OURS, *RIVALS, "SetFit")  # each after what it needs
QUERIES, UNLABELLED = 1000, 2000
OWN_WORDS, WORDS, OWN_SHARE = 12, 8, 0.4  # of a class; of a text, and how many of these are of its class
SEEDS = {"train": 0, "test": 1, "unlabelled": 2}
LONGEST = 20  # seconds of the clock for one of the processor, on a busy machine
TURN = 512  # rows between two looks at the clock, of ours and of the bare encoder


def words_of(backbone: Backbone) -> list[str]:
    """Whole words of the vocabulary, from which texts are made."""
    known = sorted(backbone.tokenizer.get_vocab(), key=lambda word: (len(word), word))
    return [word for word in known if word.isascii() and word.isalpha() and word.islower() and len(word) > 3][:4000]


def texts(words: Sequence[str], classes: int, part: str, count: int) -> list[dict[str, str]]:
    """Rows, the first of which are the same however many are asked for."""
    drawn = random.Random(SEEDS[part])
    own = [random.Random(1000 + number).sample(words, OWN_WORDS) for number in range(classes)]
    found = []
    for _ in range(count):
        label = drawn.randrange(classes)
        text = [drawn.choice(own[label] if drawn.random() < OWN_SHARE else words) for _ in range(WORDS)]
        found.append({"input": " ".join(text), "output": f"class {label}"})
    return found


def random_encoder(folder: Path) -> Path:
    """A small BERT of random weights with MiniLM's tokenizer, in a folder."""
    import torch
    from transformers import BertConfig, BertModel

    if not (folder / "config.json").is_file():
        tokenizer = load_backbone("sentence-transformers/all-MiniLM-L6-v2").tokenizer
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=256,
        )
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def held(pid: int | str = "self", what: str = "VmHWM") -> int:
    """Bytes that a process has held at most, or holds now ("VmRSS"), by Linux; 0 of one that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(what))


def spent(pid: int) -> float:
    """Seconds of the processor that a process has taken, by Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_rows(path: Path, words: Sequence[str], classes: int, rows: int) -> None:
    """Training rows as a file, where there is none yet."""
    if not path.is_file():
        content = "".join(json.dumps(one) + "\n" for one in texts(words, classes, "train", rows))
        write_whole(path, content.encode())


def measured(cell: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    backbone = load_backbone(cell["backbone"])
    words = words_of(backbone)
    folder, row, rows, classes = Path(cell["folder"]), cell["row"], cell["rows"], cell["classes"]
    path, stored = folder / f"{classes}-{rows}.jsonl", folder / f"{classes}-{rows}.npz"
    labels = tuple(f"class {number}" for number in range(classes))
    test = texts(words, classes, "test", QUERIES)
    queries, answers = [one["input"] for one in test], [one["output"] for one in test]
    if row == "features":
        return ratio_and_features(backbone, path, stored, rows, labels, queries)
    if row in OURS:
        config = {**OURS[row], "adapter": None, "weights": None, "max_labels": max(classes, MAX_LABELS)}
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=backbone, config=config)
        more = [one["input"] for one in texts(words, classes, "unlabelled", UNLABELLED)] if "unlabelled" in row else []
        unlabelled = [{"input": text} for text in more] or None
        began = time.process_time()
        task = TaskSpec("classification", labels)
        state = amortizer.adapt(path, task=task, unlabelled=unlabelled, max_examples=rows, progress=False)
        seconds = time.process_time() - began
        found = amortizer.predict(state, queries).outputs
        right = sum(one == other for one, other in zip(found, answers, strict=True)) / len(answers)
        return {"seconds": seconds, "memory": held(), "bytes": state.nbytes, "accuracy": right}
    return rival(row, path, stored, rows, labels, queries, answers, backbone)


def ratio_and_features(
    backbone: Backbone, path: Path, stored: Path, rows: int, labels: tuple[str, ...], queries: list[str]
) -> dict[str, Any]:
    """Features of all rows and queries, and how many tokens a second ours reads of the bare encoder's, in turns."""
    with path.open(encoding="utf-8") as file:
        data = [json.loads(line) for line in file]
    inputs = [one["input"] for one in data]
    amortizer = AutoAmortizer.from_pretrained(
        "iterative", backbone=backbone, config={**PLAIN, "max_labels": max(len(labels), MAX_LABELS)}
    )
    state = amortizer.init_state(TaskSpec("classification", labels))
    turns = []
    for first in range(0, min(4, rows // TURN) * TURN, TURN):
        turn = data[first : first + TURN]
        bare = bare_forward(backbone.model, backbone, inputs[first : first + TURN], None)
        job = partial(amortizer.adapt, turn, state, progress=False)
        turns.append(interleaved(job, bare, rounds=2, clock=time.process_time))
    began = time.process_time()
    made = [backbone.features(inputs[first : first + TURN]) for first in range(0, rows, TURN)]
    seconds = time.process_time() - began
    ours, bare_seconds = (sum(column) for column in zip(*turns, strict=True)) if turns else (math.nan, math.nan)
    asked = backbone.features(queries).vectors.numpy()
    numpy.savez(stored, x=numpy.concatenate([one.vectors.numpy() for one in made]), queries=asked)
    tokens = sum(one.tokens for one in made)
    found = {"seconds": seconds, "memory": held(), "tokens": tokens, "bytes": stored.stat().st_size}
    return found | ({"ratio": bare_seconds / ours} if turns else {})


def rival(
    row: str,
    path: Path,
    stored: Path,
    rows: int,
    labels: tuple[str, ...],
    queries: list[str],
    answers: list[str],
    backbone: Backbone,
) -> dict[str, Any]:
    """One that takes all rows at once."""
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.neighbors import KNeighborsClassifier

    with path.open(encoding="utf-8") as file:
        data = [json.loads(line) for line in file][:rows]
    outputs = [one["output"] for one in data]
    began = time.process_time()
    if row == "SetFit":
        return setfit(data, queries, answers, labels, backbone)
    kept = numpy.load(stored)
    made: dict[str, Callable[[], Any]] = {
        "logistic regression": lambda: LogisticRegression(C=10.0, max_iter=300, tol=1e-6),
        "SGD": lambda: SGDClassifier(loss="log_loss", alpha=1e-6, random_state=0),
        "k-nearest neighbours": lambda: KNeighborsClassifier(15, weights="distance", algorithm="brute"),
    }
    model = made[row]().fit(kept["x"], outputs)
    seconds = time.process_time() - began
    right = float((model.predict(kept["queries"]) == numpy.array(answers)).mean())
    size = kept["x"].nbytes if row.startswith("k-") else 4 * len(labels) * (kept["x"].shape[1] + 1)
    return {"seconds": seconds, "memory": held(), "bytes": size, "accuracy": right}


def setfit(
    data: list[dict[str, str]], queries: list[str], answers: list[str], labels: tuple[str, ...], backbone: Backbone
) -> dict[str, Any]:
    """SetFit as in `encoder_rivals`."""
    from comparison.encoder_rivals import setfit as trained
    from comparison.tasks import Task

    with tempfile.TemporaryDirectory() as folder:
        write_whole(Path(folder) / "train.jsonl", "".join(json.dumps(one) + "\n" for one in data).encode())
        write_whole(Path(folder) / "test.jsonl", b'{"input": "none", "output": "class 0"}\n')
        task = Task(Path(folder), backbone)
    began = time.process_time()
    answer = trained(task, data, 0)
    seconds = time.process_time() - began
    found = [task.labels[number] for number in answer(queries).argmax(1).tolist()]
    right = sum(one == other for one, other in zip(found, answers, strict=True)) / len(answers)
    size = sum(weight.numel() * 4 for weight in backbone.model.parameters())
    return {"seconds": seconds, "memory": held(), "bytes": size, "accuracy": right}


def within(cell: dict[str, Any], seconds: float, memory: float) -> dict[str, Any]:
    """What a process finds within so many seconds of the processor and bytes; where not, which it ran out of."""
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    began = time.monotonic()
    with (
        tempfile.TemporaryFile() as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, env=environment) as process,
    ):
        out = None
        try:
            while process.poll() is None:
                if spent(process.pid) > seconds or time.monotonic() - began > LONGEST * seconds:
                    out = "time"
                elif held(process.pid, "VmRSS") > memory:
                    out = "memory"
                if out is not None:
                    process.kill()
                    return {"out_of": out}
                time.sleep(0.1)
            if process.returncode:
                told.seek(0)
                return {"out_of": told.read().decode().strip().splitlines()[-1][:200]}
            assert process.stdout is not None
            found: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
            return found
        finally:
            process.kill()


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Exponent of a power law through points, by least squares of the logarithms; nan of fewer than two."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 2:
        return math.nan
    middle = [sum(column) / len(logs) for column in zip(*logs, strict=True)]
    moved = [(x - middle[0], y - middle[1]) for x, y in logs]
    return sum(x * y for x, y in moved) / sum(x * x for x, _ in moved)


def report(records: list[lab.Record], output: Path, head: str) -> None:
    """Write results.md, and growth.png of more sizes than one."""
    parts = [head]
    for classes in sorted({record["classes"] for record in records}):
        sizes = sorted({record["rows"] for record in lab.pick(records, classes=classes)})
        table = [["seconds / peak MB / kB kept / accuracy, % by rows", *(f"{size:,}" for size in sizes), "exponent"]]
        for row in ROWS:
            mine = {record["rows"]: record for record in lab.pick(records, classes=classes, row=row)}
            if mine:
                grown = slope([(size, mine[size]["seconds"]) for size in sizes if "seconds" in mine.get(size, {})])
                cells = [shown(mine.get(size)) for size in sizes]
                table.append([row, *cells, "" if math.isnan(grown) else f"{grown:.2f}"])
        parts += [f"## {classes:,} classes", markdown(table)]
    lab.write_report(output, [*parts, "## What was asked", *asked(records)])
    plot(records, output / "growth.png")


def shown(record: lab.Record | None) -> str:
    """A cell of the table."""
    if record is None:
        return ""
    if "out_of" in record:
        return f"out of {record['out_of']}"
    told = [f"{record['seconds']:,.1f}", f"{record['memory'] / 1e6:,.0f}", f"{record['bytes'] / 1e3:,.0f}"]
    return " / ".join([*told, *([f"{100 * record['accuracy']:.1f}"] if "accuracy" in record else [])])


def asked(records: list[lab.Record]) -> list[str]:
    """What was to be shown, as far as it was measured."""
    told, ours = [], [record for record in lab.pick(records, row="iterative") if "seconds" in record]
    for classes in sorted({record["classes"] for record in ours}):
        mine = sorted(lab.pick(ours, classes=classes), key=lambda record: record["rows"])
        if len(mine) > 1:
            times = {key: mine[-1][key] / mine[0][key] for key in ("rows", "memory", "seconds")}
            told.append(
                f"* {classes:,} classes: {times['rows']:,.0f} times the rows take {times['memory']:.3f} times the "
                f"memory and {times['seconds']:,.1f} times the seconds."
            )
        beside = {record["rows"]: record for record in lab.pick(records, row="logistic regression", classes=classes)}
        both = [record for record in mine if "accuracy" in beside.get(record["rows"], {})]
        if both:
            last = both[-1]
            other = beside[last["rows"]]
            told.append(
                f"* {classes:,} classes, {last['rows']:,} rows, the most that logistic regression got to: "
                f"{100 * last['accuracy']:.1f}% beside {100 * other['accuracy']:.1f}%."
            )
    for rows in sorted({record["rows"] for record in ours}):
        by_classes = {record["classes"]: record["seconds"] for record in lab.pick(ours, rows=rows)}
        if {10, 1000} <= set(by_classes):
            times = by_classes[1000] / by_classes[10]
            told.append(f"* {rows:,} rows: 1,000 classes take {times:.2f} times the seconds of 10.")
    ratios = [record["ratio"] for record in records if "ratio" in record]
    if ratios:
        told.append(f"* Of the bare encoder's tokens a second: {min(ratios):.2f} to {max(ratios):.2f}, in turns.")
    return ["\n".join(told)]


def plot(records: list[lab.Record], path: Path) -> None:
    """Seconds, memory and accuracy by rows, at the classes with the most measurements; of one size nothing grows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    each = [record["classes"] for record in records if "seconds" in record]
    classes = max(set(each), key=each.count, default=0)
    if len({record["rows"] for record in lab.pick(records, classes=classes)}) < 2:
        path.unlink(missing_ok=True)
        return
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4))
    for panel, (key, scale, title) in zip(
        panels, (("seconds", 1, "seconds"), ("memory", 1e-6, "peak MB"), ("accuracy", 100, "accuracy, %")), strict=True
    ):
        for number, row in enumerate(ROWS):
            mine = [record for record in lab.pick(records, row=row, classes=classes) if key in record]
            points = sorted((record["rows"], scale * record[key]) for record in mine)
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", label=row, color=f"C{number}")
        panel.set(xscale="log", yscale="linear" if key == "accuracy" else "log", xlabel="rows", title=title)
    panels[2].legend(*panels[0].get_legend_handles_labels(), fontsize=7, loc="lower right")  # where no line is
    figure.suptitle(f"{classes:,} classes")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2", help='or "random"')
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000, 2, 100])
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=3600, help="that a method may take for one measurement")
    parser.add_argument("--gigabytes", type=float, default=8, help="that it may hold")
    parser.add_argument("--output", type=Path, default=Path("scripts/results/scale"))
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/scale"), help="for texts and their features")
    parser.add_argument("--cell", help="measure this one alone, and print it")
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measured(json.loads(args.cell))))
        return
    args.cache_dir.mkdir(parents=True, exist_ok=True)
    backbone = str(random_encoder(args.cache_dir / "encoder")) if args.backbone == "random" else args.backbone
    records = lab.Records(args.output / "results.json")
    head = (
        f"Backbone: {args.backbone}. Texts of {WORDS} words, {OWN_SHARE:.0%} of them of the class; the untrained head "
        f"on plain features; one thread. A measurement may take {args.seconds:,.0f} seconds of the processor, loading "
        f"included, and hold {args.gigabytes:g} GB. Seconds are the processor's, too. Rivals' are "
        "those of the fit, beside those of the features. Memory is that of the whole process, libraries and backbone "
        "included."
    )
    words = words_of(load_backbone(backbone))
    absent = [] if importlib.util.find_spec("setfit") else ["SetFit"]
    for classes in args.classes:
        spent: set[str] = set(absent)
        for rows in sorted(args.rows):
            for row in ROWS:
                if row not in args.methods or row in spent or ("features" in spent and row in RIVALS):
                    continue
                standing = records.of(row=row, rows=rows, classes=classes)
                if not standing:
                    cell = {"row": row, "rows": rows, "classes": classes}
                    place = {"backbone": backbone, "folder": str(args.cache_dir)}
                    write_rows(args.cache_dir / f"{classes}-{rows}.jsonl", words, classes, rows)
                    print(f"{row}, {rows:,} rows, {classes:,} classes", file=sys.stderr, flush=True)
                    records.add(cell | within(cell | place, args.seconds, args.gigabytes * 1e9))
                    report(records.all, args.output, head)
                    standing = records.of(row=row, rows=rows, classes=classes)
                if "out_of" in standing[0]:
                    spent.add(row)
    report(records.all, args.output, head)
    print(f"results.json, results.md and growth.png in {args.output}")


if __name__ == "__main__":
    lab.run(main)
