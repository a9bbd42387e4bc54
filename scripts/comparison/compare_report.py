"""From compare's results.json to the Markdown tables and the plots; nothing is typed in by hand.

python scripts/comparison/compare_report.py scripts/results/compare
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

from matplotlib import colormaps

from comparison import lab
from comparison.baselines import BASELINES, RIVALS
from comparison.lab import Record, error, shown
from comparison.rows import ROWS
from comparison.tasks import MAX_TOKENS
from iai_hf.compare import markdown
from iai_hf.files import write_whole
from iai_hf.plots import blank, png

COLUMNS = ("0", "16", "64", "256", "1,024", "all")
MARKS = dict(zip((0, 16, 64, 256, 1024), COLUMNS, strict=False))
METRICS = {  # title, scale, digits
    "accuracy": ("Accuracy, %", 100, 1),
    "negative_log_likelihood": ("Negative log-likelihood, nats", 1, 3),
    "calibration_error": ("Expected calibration error, %", 100, 1),
    "macro_f1": ("Macro-F1, %", 100, 1),
    "head_seconds": ("Seconds to adapt, the backbone's features not counted", 1, 2),
    "head_ms_per_query": ("Milliseconds a query, the backbone's features not counted", 1, 3),
    "state_bytes": ("State, kB", 0.001, 0),
}
Table = dict[str, dict[str, list[float]]]  # row -> column -> one value a seed


def column(examples: int, largest: int) -> str:
    """The column of a point: a mark's, or that of all examples."""
    return "all" if examples == largest else MARKS[examples]


def table(records: Sequence[Record], metric: str) -> Table:
    """Mean over tasks of a metric, for each row, column and seed that all tasks have."""
    tasks = sorted({record["task"] for record in records})
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for record in records:
        largest = max(max(p["examples"] for p in r["curve"]) for r in records if r["task"] == record["task"])
        for entry in record["curve"]:
            if entry.get(metric) is not None:
                place = (record["row"], column(entry["examples"], largest), record["seed"])
                found.setdefault(place, {})[record["task"]] = entry[metric]
                if record["row"] == "label names":  # the same however many examples there are
                    for other in COLUMNS:
                        found.setdefault((record["row"], other, record["seed"]), {})[record["task"]] = entry[metric]
    result: Table = {}
    for (row, where, _), values in sorted(found.items(), key=lambda item: item[0][2]):
        if len(values) == len(tasks):
            result.setdefault(row, {}).setdefault(where, []).append(mean(values.values()))
    return result


def metric_table(values: Table, rows: Sequence[str], scale: float, digits: int) -> str:
    """A metric by row and column."""
    lines = [["", "orders", *COLUMNS]]
    for row in rows:
        cells = values.get(row, {})
        if cells:
            orders = str(max(map(len, cells.values())))
            lines.append([row, orders, *(shown(cells.get(where, []), scale, digits) for where in COLUMNS)])
    return markdown(lines)


def best_rival(records: Sequence[Record]) -> dict[str, float]:
    """Column to the mean over tasks of the best cheap rival, chosen anew for each task and column."""
    tasks = sorted({record["task"] for record in records})
    best: dict[str, list[float]] = {}
    for task in tasks:
        scores = table(lab.pick(records, task=task), "accuracy")
        for where in COLUMNS:
            rivals = [mean(scores[row][where]) for row in BASELINES if where in scores.get(row, {})]
            if rivals:
                best.setdefault(where, []).append(max(rivals))
    return {where: mean(values) for where, values in best.items() if len(values) == len(tasks)}


def gains(records: Sequence[Record], rows: Sequence[str]) -> str:
    """Points of accuracy of each row over the best rival."""
    rival, scores = best_rival(records), table(records, "accuracy")
    lines = [["", "orders", *COLUMNS[1:]]]
    for row in rows:
        cells = scores.get(row, {})
        both = {c: f"{100 * (mean(cells[c]) - rival[c]):+.1f}" for c in COLUMNS[1:] if c in cells and c in rival}
        if both:
            lines.append([row, str(max(map(len, cells.values()))), *(both.get(c, "") for c in COLUMNS[1:])])
    return markdown(lines)


def by_task(records: Sequence[Record], rows: Sequence[str], where: str) -> str:
    """Accuracy of each row on each task in one column."""
    tasks = sorted({record["task"] for record in records})
    scores = {task: table(lab.pick(records, task=task), "accuracy") for task in tasks}
    lines = [["", "orders", *tasks]]
    for row in rows:
        cells = {task: scores[task][row][where] for task in tasks if where in scores[task].get(row, {})}
        if cells:
            values = (f"{mean(cells[task]):.3f}" if task in cells else "" for task in tasks)
            lines.append([row, str(max(map(len, cells.values()))), *values])
    return markdown(lines)


def plot(values: Table, rows: Sequence[str], label: str) -> bytes:
    """Curves over the columns as PNG."""
    figure, axes = blank()
    axes.set_prop_cycle(color=colormaps["tab20"].colors[::2] + colormaps["tab20"].colors[1::2])  # type: ignore[attr-defined]
    for row, marker in zip(rows, "os^Dv*XP<>phH8d" * 2, strict=False):
        cells = values.get(row, {})
        places = [place for place, where in enumerate(COLUMNS) if where in cells]
        if places:
            heights = [mean(cells[COLUMNS[place]]) for place in places]
            spread = [error(cells[COLUMNS[place]]) for place in places]
            style = "--" if row in RIVALS else "-"
            axes.errorbar(places, heights, spread, label=row, marker=marker, markersize=5, linestyle=style, capsize=2)
    axes.set_xticks(range(len(COLUMNS)), COLUMNS)
    axes.set_xlabel("examples seen")
    axes.set_ylabel(label)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return png(figure)


def report(records: Sequence[Record], output: Path) -> None:
    """Write results.md and the plots, one set a backbone."""
    text = []
    for backbone in sorted({record["backbone"] for record in records}):
        mine = lab.pick(records, backbone=backbone)
        rows = sorted({record["row"] for record in mine}, key=ROWS.index)
        ours = [row for row in rows if row not in RIVALS]
        tasks = sorted({record["task"] for record in mine})
        values = {metric: table(mine, metric) for metric in METRICS}
        first, *others = (
            (f"### {title}", metric_table(values[metric], rows, scale, digits))
            for metric, (title, scale, digits) in METRICS.items()
        )
        text += [
            f"## {backbone}",
            f"Mean over {', '.join(tasks)}; ± standard error over orders. Features up to {MAX_TOKENS} tokens.",
            *first,
            "### Points of accuracy over the best rival, chosen anew for each task and column",
            gains(mine, ours),
            "### Accuracy by task, 64 examples",
            by_task(mine, rows, "64"),
            "### Accuracy by task, all examples",
            by_task(mine, rows, "all"),
            *(part for section in others for part in section),
        ]
        name = backbone.rpartition("/")[2]
        trained = [row for row in rows if "untrained" not in row]
        for metric, label in (
            ("accuracy", f"accuracy, mean over {len(tasks)} tasks"),
            ("negative_log_likelihood", "negative log-likelihood"),
        ):
            short = metric.removeprefix("negative_log_")
            write_whole(output / f"{name}-{short}.png", plot(values[metric], trained, label))
    lab.write_report(output, text)


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("scripts/results/compare"))
    folder: Path = parser.parse_args().folder
    report(lab.Records(folder / "results.json").all, folder)


if __name__ == "__main__":
    lab.run(main)
