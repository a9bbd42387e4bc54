"""From compare's results.json to the Markdown tables and the plots; nothing is typed in by hand.

python scripts/comparison/compare_report.py scripts/results/compare
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

from matplotlib import colormaps

from comparison.baselines import BASELINES
from iai_hf.files import write_whole
from iai_hf.plots import blank, png

COLUMNS = ("0", "16", "64", "256", "1,024", "all")
MARKS = dict(zip((0, 16, 64, 256, 1024), COLUMNS, strict=False))
Record = dict[str, Any]
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


def error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def markdown(values: Table, rows: Sequence[str], show: Callable[[float], str]) -> str:
    lines = [f"| | {' | '.join(COLUMNS)} |", f"| --- | {' | '.join(['---:'] * len(COLUMNS))} |"]
    for row in rows:
        cells = values.get(row, {})
        shown = [f"{show(mean(cells[c]))} ± {show(error(cells[c]))}" if c in cells else "" for c in COLUMNS]
        if any(shown):
            lines.append(f"| {row} | {' | '.join(shown)} |")
    return "\n".join(lines)


def best_rival(records: Sequence[Record]) -> dict[str, float]:
    """Column to the mean over tasks of the best cheap rival, chosen anew for each task and column."""
    tasks = sorted({record["task"] for record in records})
    best: dict[str, list[float]] = {}
    for task in tasks:
        scores = table([record for record in records if record["task"] == task], "accuracy")
        for where in COLUMNS:
            rivals = [mean(scores[row][where]) for row in BASELINES if where in scores.get(row, {})]
            if rivals:
                best.setdefault(where, []).append(max(rivals))
    return {where: mean(values) for where, values in best.items() if len(values) == len(tasks)}


def gains(records: Sequence[Record], rows: Sequence[str]) -> str:
    """Points of accuracy of each row over the best rival."""
    rival, scores = best_rival(records), table(records, "accuracy")
    lines = [f"| | {' | '.join(COLUMNS[1:])} |", f"| --- | {' | '.join(['---:'] * len(COLUMNS[1:]))} |"]
    for row in rows:
        cells = [
            f"{100 * (mean(scores[row][c]) - rival[c]):+.1f}" if c in scores.get(row, {}) and c in rival else ""
            for c in COLUMNS[1:]
        ]
        if any(cells):
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_task(records: Sequence[Record], rows: Sequence[str], where: str) -> str:
    """Accuracy of each row on each task in one column."""
    tasks = sorted({record["task"] for record in records})
    scores = {task: table([r for r in records if r["task"] == task], "accuracy") for task in tasks}
    lines = [f"| | {' | '.join(tasks)} |", f"| --- | {' | '.join(['---:'] * len(tasks))} |"]
    for row in rows:
        cells = [f"{mean(scores[t][row][where]):.3f}" if where in scores[t].get(row, {}) else "" for t in tasks]
        if any(cells):
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
            style = "--" if row in BASELINES else "-"
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
        mine = [record for record in records if record["backbone"] == backbone]
        rows = list(dict.fromkeys(record["row"] for record in mine))
        tasks = sorted({record["task"] for record in mine})
        seeds = len({record["seed"] for record in mine})
        accuracy, likelihood = table(mine, "accuracy"), table(mine, "negative_log_likelihood")
        calibration, f1 = table(mine, "calibration_error"), table(mine, "macro_f1")
        ours = [row for row in rows if row not in BASELINES]
        seconds, queries = table(mine, "head_seconds"), table(mine, "head_ms_per_query")
        size = table(mine, "state_bytes")
        text += [
            f"## {backbone}",
            f"Mean over {', '.join(tasks)}; {seeds} orders, ± standard error over orders. Features up to 128 tokens.",
            "### Accuracy, %",
            markdown(accuracy, rows, lambda value: f"{100 * value:.1f}"),
            "### Points of accuracy over the best rival, chosen anew for each task and column",
            gains(mine, ours),
            "### Negative log-likelihood, nats",
            markdown(likelihood, rows, lambda value: f"{value:.3f}"),
            "### Expected calibration error, %",
            markdown(calibration, rows, lambda value: f"{100 * value:.1f}"),
            "### Macro-F1, %",
            markdown(f1, rows, lambda value: f"{100 * value:.1f}"),
            "### Accuracy by task, 64 examples",
            by_task(mine, rows, "64"),
            "### Accuracy by task, all examples",
            by_task(mine, rows, "all"),
            "### Seconds to adapt, the backbone's features not counted",
            markdown(seconds, rows, lambda value: f"{value:.2f}"),
            "### Milliseconds a query, the backbone's features not counted",
            markdown(queries, rows, lambda value: f"{value:.3f}"),
            "### State, kB",
            markdown(size, rows, lambda value: f"{value / 1000:.0f}"),
        ]
        name = backbone.rpartition("/")[2]
        shown = [row for row in rows if "untrained" not in row]
        write_whole(output / f"{name}-accuracy.png", plot(accuracy, shown, f"accuracy, mean over {len(tasks)} tasks"))
        write_whole(output / f"{name}-likelihood.png", plot(likelihood, shown, "negative log-likelihood"))
    write_whole(output / "results.md", ("\n\n".join(text) + "\n").encode())


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "scripts/results/compare")
    report(json.loads((folder / "results.json").read_text()), folder)
