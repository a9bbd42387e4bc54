"""From the reproduction's results to tables in the paper's form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from comparison.lab import error, pick, shown
from iai_hf.compare import markdown
from iai_hf.signals import SIGNALS
from paper.cells import OWN, REGIMES, SOLVER

STEPS = ("1", "2", "5", "10", "50")
MARKS = {OWN: "", SOLVER: ", on a solver"}
PAYS = 0.02  # more steps pay while the loss is still this far, relative, above that after 50
Cell = dict[str, Any]


def families(cells: Sequence[Cell]) -> list[str]:
    """In the order in which they were run."""
    return list(dict.fromkeys(cell["family"] for cell in cells))


def losses(cells: Iterable[Cell], steps: str, where: str = "in distribution") -> list[float]:
    """A value a seed: nats, or half the squared error."""
    return [cell[where]["steps"][steps]["loss"] for cell in cells]


def exact_losses(cells: Iterable[Cell], steps: str) -> list[float]:
    """Of the exact answer, a value a seed."""
    return [cell["in distribution"]["exact"][steps]["loss"] for cell in cells]


def rows_of(cells: Sequence[Cell], family: str) -> dict[str, list[Cell]]:
    """Rows of a family's table: the regimes by signal, then the baselines."""
    mine = pick(cells, family=family)
    found = {}
    for group, mark in MARKS.items():
        for regime in REGIMES:
            for signal in SIGNALS:
                row = pick(mine, group=group, method=f"numeric-{regime}", signal=signal)
                found[f"{regime}, {signal}{mark}"] = row
    for cell in pick(mine, group="one-shot") + pick(mine, group="optimizer"):
        found.setdefault(cell["method"], []).append(cell)
    return {name: row for name, row in found.items() if row}


def table_rows(cells: Sequence[Cell]) -> Iterator[tuple[str, str, list[Cell]]]:
    """The rows of all families' tables: family, name, cells."""
    for family in families(cells):
        for name, row in rows_of(cells, family).items():
            yield family, name, row


def ratios(cells: Sequence[Cell], plain: Sequence[Cell], **changes: str) -> list[float]:
    """Loss after 10 chunks, relative to that of the cell of `plain` with the same family, method, signal and seed.

    But for `changes`; cells without such a one are left out.
    """
    found = []
    for cell in cells:
        twin = pick(plain, **{key: changes.get(key, cell[key]) for key in ("family", "method", "signal", "seed")})
        found += [losses([cell], "10")[0] / losses(twin, "10")[0]] if twin else []
    return found


def main_table(cells: Sequence[Cell], family: str) -> str:
    """Losses after 1 to 50 chunks in distribution, after 10 and 50 out of it; of classes accuracy beside it.

    The exact answer stands below.
    """
    rows = rows_of(cells, family)
    classes = any("error" in cell["in distribution"]["steps"]["1"] for row in rows.values() for cell in row)
    unit = "nats / accuracy, %" if classes else "squared error"
    places = [("in distribution", steps) for steps in STEPS] + [("shifted", "10"), ("shifted", "50")]
    lines = [[f"{family}: {unit}", "flat", *STEPS, "shifted, 10", "shifted, 50"]]

    def told(found: Sequence[dict[str, float]]) -> str:
        if not classes:
            return shown([each["loss"] for each in found], 2.0)
        right = shown([1 - each["error"] for each in found], 100.0, 1)
        return f"{shown([each['loss'] for each in found])} / {right}"

    for name, row in rows.items():
        cells_of = [told([cell[where]["steps"][steps] for cell in row]) for where, steps in places]
        lines.append([name, flats(row), *cells_of])
    first = next(iter(rows.values()))
    if first[0]["in distribution"]["exact"]:
        lines.append(["exact answer", "", *(told([c[where]["exact"][s] for c in first]) for where, s in places)])
    return markdown(lines)


def flats(row: Sequence[Cell]) -> str:
    """How many seeds of a row were trained until their held-out loss no longer fell; on a solver, in how many steps."""
    if row[0]["group"] == SOLVER:
        return f"{row[0]['steps']} steps"
    return f"{sum(cell['flat'] for cell in row)} of {len(row)}"


def excess_table(cells: Sequence[Cell]) -> str:
    """Risk above the Bayes-optimal one on the same data, linear regression."""
    lines = [["excess risk, %", "flat", "dimensions", "1 chunk", "10 chunks", "50 chunks"]]
    for family, name, row in table_rows([cell for cell in cells if cell["family"].startswith("linear regression")]):
        part = [
            [loss / exact - 1 for loss, exact in zip(losses(row, steps), exact_losses(row, steps), strict=True)]
            for steps in ("1", "10", "50")
        ]
        dimensions = family.rpartition(" ")[2]
        lines.append([name, flats(row), dimensions, *(shown(values, 100, 1) for values in part)])
    return markdown(lines)


def pays_until(row: Sequence[Cell], where: str) -> str:
    """The number of chunks after which the loss is within 2% of that after 50, and whether it ever rose."""
    curve = [mean(losses(row, steps, where)) for steps in STEPS]
    enough = next(steps for steps, loss in zip(STEPS, curve, strict=True) if loss <= curve[-1] * (1 + PAYS) + 1e-6)
    return enough + (" (rises)" if rises(row, where) else "")


def rises(row: Sequence[Cell], where: str) -> bool:
    """Whether the loss rises between two columns by more than two standard errors of the difference, and 1%."""
    for before, after in pairwise(STEPS):
        gaps = [late - early for early, late in zip(losses(row, before, where), losses(row, after, where), strict=True)]
        least = 0.01 * mean(losses(row, before, where)) + (2 * error(gaps) if len(gaps) > 1 else 0.0)
        if mean(gaps) > least:
            return True
    return False


def pays_table(cells: Sequence[Cell], group: str) -> str:
    """Where more steps stop paying, in and out of distribution."""
    grid = pick(cells, group=group)
    lines = [["more chunks pay until (in / out of distribution)", *families(grid)]]
    for regime in REGIMES:
        for signal in SIGNALS:
            line = [f"{regime}, {signal}"]
            for family in families(grid):
                row = pick(grid, family=family, method=f"numeric-{regime}", signal=signal)
                parts = [pays_until(row, where) for where in ("in distribution", "shifted")] if row else []
                line.append(" / ".join(parts))
            lines.append(line)
    return markdown(lines)


def horizon_table(cells: Sequence[Cell]) -> str:
    """What becomes of the loss behind the last step of training: after 50 chunks, relative to that after 10."""
    names = families([cell for cell in cells if cell["group"] in MARKS])
    lines = [["loss after 50 chunks / after 10", "", *names]]
    for group, title in ((OWN, "the paper's form"), (SOLVER, "on a solver")):
        for where in ("in distribution", "shifted"):
            line = [title, where]
            for family in names:
                found = [
                    losses([cell], "50", where)[0] / losses([cell], "10", where)[0]
                    for cell in pick(cells, group=group, family=family)
                ]
                line.append(f"{mean(found):.2f}, at most {max(found):.2f}" if found else "")
            lines.append(line)
    return markdown(lines)


def ratio_table(cells: Sequence[Cell]) -> str:
    """Loss after 10 chunks of variants, relative to the plain form on the same seed."""
    plain = pick(cells, group=OWN)
    variants = [
        (f"implicit state: {carried} instead of logits", pick(cells, group="carried", carried=carried))
        for carried in ("probabilities", "latents")
    ]
    variants.append(("window of 4 states instead of 1", pick(cells, group="window")))
    variants += [
        (f"{name} instead of our Transformer", pick(cells, group="architecture", backbone=f"numeric/{name.lower()}"))
        for name in ("Llama", "BERT")
    ]
    names = list(dict.fromkeys(cell["family"] for _, row in variants for cell in row))
    lines = [["loss relative to the plain form, after 10 chunks", *names]]
    for title, row in variants:
        found = {name: pick(row, family=name) for name in names}
        told = [
            f"{shown(ratios(found[name], plain))} ({flats(found[name])} flat)" if found[name] else "" for name in names
        ]
        lines.append([title, *told])
    return markdown(lines)


def generation_table(cells: Sequence[Cell]) -> str:
    """Energy distance of generated from true points after the training's number of chunks."""
    rows = [cell for cell in cells if "energy_distance" in cell["in distribution"]]
    names = families(rows)
    lines = [["energy distance to true points, after 10 chunks", *names]]
    every = dict.fromkeys(name for family in names for name in rows_of(rows, family))
    for name in every:
        parts = [
            shown([cell["in distribution"]["energy_distance"]["generated"] for cell in rows_of(rows, family)[name]])
            if name in rows_of(rows, family)
            else ""
            for family in names
        ]
        lines.append([name, *parts])
    for mark in ("true velocity", "noise"):
        values = [
            [cell["in distribution"]["energy_distance"][mark] for cell in pick(rows, family=family)] for family in names
        ]
        lines.append([mark, *(f"{mean(each):.3f}" for each in values)])
    return markdown(lines)


def size_table(cells: Sequence[Cell]) -> str:
    """Loss relative to the exact answer's, by the size of the task's data."""
    rows = [cell for cell in cells if "sizes" in cell]
    if not rows:
        return ""
    marks = list(rows[0]["sizes"])
    lines = [["loss / exact answer's, by examples", "", *(f"{int(mark):,}" for mark in marks)]]
    for family, name, row in table_rows(rows):
        found = [[cell["sizes"][mark]["loss"] / cell["sizes"][mark]["exact"] for cell in row] for mark in marks]
        lines.append([family, name, *(shown(each, digits=2) for each in found)])
    return markdown(lines)


def continual_table(cells: Sequence[Cell]) -> str:
    """Loss on a new task that follows an old one after 25 chunks, and on the old one."""
    rows = [cell for cell in cells if "continual" in cell]
    if not rows:
        return ""
    marks = list(rows[0]["continual"])
    head = ["stream whose task changes: loss on the new one, by chunks of it", "", *marks, "old, before", "old, after"]
    lines = [head]
    for family, name, row in table_rows(rows):
        for key, title in (("continual", name), ("continual, forgetting", f"{name}, forgetting")):
            runs = [cell[key] for cell in row if key in cell]
            values = [[run[mark]["new"] for run in runs] for mark in marks]
            values += [[run[mark]["old"] for run in runs] for mark in (marks[0], marks[-1])]
            lines += [[family, title, *(shown(each, digits=2) for each in values)]] if runs else []
    return markdown(lines)


def training_table(cells: Sequence[Cell]) -> str:
    """What an episode of training costs by its number of steps, relative to one step."""
    rows = [cell for cell in cells if "training" in cell]
    if not rows:
        return ""
    steps_of = list(rows[0]["training"])
    lines = [["training, relative to one step: time / memory, by steps", "ms, one step", "MB, one step", *steps_of[1:]]]
    for name in dict.fromkeys((cell["method"], cell["signal"], cell["group"]) for cell in rows):
        row = [cell["training"] for cell in pick(rows, method=name[0], signal=name[1], group=name[2])]
        costs = {
            (steps, part): mean(each[steps][part] for each in row)
            for steps in steps_of
            for part in ("seconds", "bytes")
        }
        relative = [
            " / ".join(f"{costs[steps, part] / costs['1', part]:.1f}" for part in ("seconds", "bytes"))
            for steps in steps_of[1:]
        ]
        first = [f"{1000 * costs['1', 'seconds']:.0f}", f"{costs['1', 'bytes'] / 1e6:.1f}"]
        lines.append([f"{name[0].removeprefix('numeric-')}, {name[1]}{MARKS[name[2]]}", *first, *relative])
    return markdown(lines)


def cost_table(cells: Sequence[Cell]) -> str:
    """Seconds and state by number of chunks, means over families and seeds."""
    lines = [
        [
            "cost, means over families",
            "parameters",
            "training, s",
            "its steps",
            "ms a chunk, first 10",
            "last 40",
            "ms an answer after 10",
            "after 50",
            "state after 10, kB",
            "after 50",
        ]
    ]
    chosen = [cell for cell in cells if cell["group"] in (OWN, SOLVER, "one-shot", "optimizer")]
    names = dict.fromkeys((cell["group"], cell["method"], cell["signal"]) for cell in chosen)
    for group, method, signal in names:
        row = pick(chosen, group=group, method=method, signal=signal)
        steps = [cell["in distribution"]["steps"] for cell in row]
        first = [1000 * sum(each[k]["update_seconds"] for k in STEPS[:4]) / 10 for each in steps]
        last = [1000 * each["50"]["update_seconds"] / 40 for each in steps]
        answers = [[1000 * each[k]["answer_seconds"] for each in steps] for k in ("10", "50")]
        states = [[each[k]["state_bytes"] / 1000 for each in steps] for k in ("10", "50")]
        lines.append(
            [
                f"{method.removeprefix('numeric-')}, {signal}{MARKS[group]}" if group in MARKS else method,
                f"{mean(cell['parameters'] for cell in row):,.0f}",
                f"{mean(cell['train_seconds'] for cell in row):.1f}",
                f"{mean(cell.get('steps', 0) for cell in row):,.0f}",
                *(f"{mean(values):.1f}" for values in (first, last, *answers, *states)),
            ]
        )
    return markdown(lines)
