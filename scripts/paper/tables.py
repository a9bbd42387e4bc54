"""From the reproduction's results to tables in the paper's form, and its findings with their figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from comparison.lab import error, pick, shown
from iai_hf.compare import markdown
from iai_hf.signals import SIGNALS

STEPS = ("1", "2", "5", "10", "50")
REGIMES = ("parametric", "explicit", "implicit")
LOW = 10  # inputs up to which a task counts as of low dimension
HIGH = ("linear regression, 30", "digits", "MNIST", "frozen features", "FashionMNIST")
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
    for group, mark in (("grid", ""), ("free", ", without a solver")):
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
    """Errors after 1 to 50 chunks in distribution, after 10 and 50 out of it; the exact answer below."""
    rows = rows_of(cells, family)
    classes = any("error" in cell["in distribution"]["steps"]["1"] for row in rows.values() for cell in row)
    key, scale, digits = ("error", 100.0, 1) if classes else ("loss", 2.0, 3)
    unit = "errors, %" if classes else "squared error"
    places = [("in distribution", steps) for steps in STEPS] + [("shifted", "10"), ("shifted", "50")]
    head = [f"{family}: {unit}", "seeds", *STEPS, "shifted, 10", "shifted, 50"]
    lines = [head]
    for name, row in rows.items():
        values = [[cell[where]["steps"][steps][key] for cell in row] for where, steps in places]
        lines.append([name, str(len(row)), *(shown(each, scale, digits) for each in values)])
    first = next(iter(rows.values()))
    if first[0]["in distribution"]["exact"]:
        values = [[cell[where]["exact"][steps][key] for cell in first] for where, steps in places]
        lines.append(["exact answer", str(len(first)), *(shown(each, scale, digits) for each in values)])
    return markdown(lines)


def excess_table(cells: Sequence[Cell]) -> str:
    """Risk above the Bayes-optimal one on the same data, linear regression."""
    lines = [["excess risk, %", "seeds", "dimensions", "10 chunks", "50 chunks"]]
    for family, name, row in table_rows([cell for cell in cells if cell["family"].startswith("linear regression")]):
        part = [
            [loss / exact - 1 for loss, exact in zip(losses(row, steps), exact_losses(row, steps), strict=True)]
            for steps in ("10", "50")
        ]
        dimensions = family.rpartition(" ")[2]
        lines.append([name, str(len(row)), dimensions, *(shown(values, 100, 1) for values in part)])
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


def pays_table(cells: Sequence[Cell]) -> str:
    """Where more steps stop paying, in and out of distribution."""
    grid = pick(cells, group="grid")
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


def ratio_table(cells: Sequence[Cell]) -> str:
    """Loss after 10 chunks of variants, relative to the plain form on the same seed."""
    grid, free = pick(cells, group="grid"), pick(cells, group="free")
    variants = [
        (f"implicit state: {carried} instead of logits", pick(cells, group="carried", carried=carried), free)
        for carried in ("probabilities", "latents")
    ]
    variants.append(("window of 4 states instead of 1", pick(cells, group="window"), free))
    variants.append(("BERT instead of Llama (on a solver)", pick(cells, group="architecture"), grid))
    names = list(dict.fromkeys(cell["family"] for _, row, _ in variants for cell in row))
    lines = [["loss relative to the plain form, after 10 chunks", *names]]
    lines += [
        [title, *(shown(ratios(pick(row, family=name), plain)) for name in names)] for title, row, plain in variants
    ]
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
    for name in dict.fromkeys((cell["method"], cell["signal"]) for cell in rows):
        row = [cell["training"] for cell in pick(rows, method=name[0], signal=name[1])]
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
        lines.append([f"{name[0].removeprefix('numeric-')}, {name[1]}", *first, *relative])
    return markdown(lines)


def cost_table(cells: Sequence[Cell]) -> str:
    """Seconds and state by number of chunks, means over families and seeds."""
    lines = [
        [
            "cost, means over families",
            "parameters",
            "training, s",
            "ms a chunk, first 10",
            "last 40",
            "ms an answer after 10",
            "after 50",
            "state after 10, kB",
            "after 50",
        ]
    ]
    chosen = [cell for cell in cells if cell["group"] in ("grid", "one-shot", "optimizer")]
    names = dict.fromkeys(
        (cell["method"], cell["signal"] if cell["group"] == "grid" else "") for cell in chosen if cell["seed"] == 0
    )
    for method, signal in names:
        row = pick(chosen, method=method, **({"signal": signal} if signal else {}))
        steps = [cell["in distribution"]["steps"] for cell in row]
        first = [1000 * sum(each[k]["update_seconds"] for k in STEPS[:4]) / 10 for each in steps]
        last = [1000 * each["50"]["update_seconds"] / 40 for each in steps]
        answers = [[1000 * each[k]["answer_seconds"] for each in steps] for k in ("10", "50")]
        states = [[each[k]["state_bytes"] / 1000 for each in steps] for k in ("10", "50")]
        lines.append(
            [
                method.removeprefix("numeric-") + (f", {signal}" if signal else ""),
                f"{mean(cell['parameters'] for cell in row):,.0f}",
                f"{mean(cell['train_seconds'] for cell in row):.1f}",
                *(f"{mean(values):.1f}" for values in (first, last, *answers, *states)),
            ]
        )
    return markdown(lines)


def findings(cells: Sequence[Cell]) -> list[str]:
    """A line for each finding of the paper: confirmed or not, with the figure."""
    grid, free = pick(cells, group="grid"), pick(cells, group="free")
    groups = [row for part in (grid, free) for _, _, row in table_rows(part)]
    better = [
        [mean(losses(row, late, where)) < mean(losses(row, early, where)) for row in groups]
        for early, late in (("1", "10"), ("10", "50"))
        for where in ("in distribution", "shifted")
    ]
    share = [100 * mean(map(float, each)) for each in better]
    lines = [
        _line(
            1,
            "more steps help in all regimes, in and out of distribution",
            min(share[:2]) > 90,
            f"loss after 10 chunks below that after 1 in {share[0]:.0f}% of the cells ({share[1]:.0f}% shifted), "
            f"after 50 below that after 10 in {share[2]:.0f}% ({share[3]:.0f}% shifted)",
        )
    ]
    wins = {True: [0, 0], False: [0, 0]}
    both = [0, 0]
    for part in (grid, free):
        for family in families(part):
            for regime in REGIMES:
                row = {s: pick(part, family=family, method=f"numeric-{regime}", signal=s) for s in SIGNALS}
                if not all(row.values()):
                    continue
                found = {s: mean(losses(row[s], "10")) for s in SIGNALS}
                place = wins[family not in HIGH]
                place[0] += found["data"] < found["gradient"]
                place[1] += 1
                both[0] += found["both"] <= min(found.values()) * 1.01
                both[1] += 1
    if both[1]:
        low, high = wins[True], wins[False]
        data_low, data_high = (part[0] / max(part[1], 1) for part in (low, high))
        lines.append(
            _line(
                2,
                "data beat gradients in low dimension, gradients help in high; both is often best",
                data_low > 0.5 and data_high < data_low and both[0] > both[1] / 2,
                f"data better than gradient in {low[0]} of {low[1]} low-dimensional and {high[0]} of {high[1]} "
                f"high-dimensional cells; both best, or within 1% of it, in {both[0]} of {both[1]}",
            )
        )
    against_explicit = [
        ratio
        for part in (grid, free)
        for ratio in ratios(pick(part, method="numeric-parametric"), part, method="numeric-explicit")
    ]
    if against_explicit:
        share_better = mean(float(ratio < 1) for ratio in against_explicit)
        lines.append(
            _line(
                3,
                "parametric beats explicit",
                share_better > 0.5 and mean(against_explicit) < 1,
                f"lower loss after 10 chunks in {100 * share_better:.0f}% of {len(against_explicit)} pairs, mean ratio "
                f"{mean(against_explicit):.3f}",
            )
        )
    for number, title, group, good in (
        (4, "logits are the best implicit state", "carried", lambda ratio: ratio > 1),
        (5, "a longer history barely helps", "window", lambda ratio: ratio > 0.97),
    ):
        pairs = ratios(pick(cells, group=group), free)
        if pairs:
            figure = f"loss relative to the plain form {shown(pairs)} over {len(pairs)} pairs"
            lines.append(_line(number, title, good(mean(pairs)), figure))
    return lines


def _line(number: int, claim: str, confirmed: bool, figure: str) -> str:
    return f"{number}. {claim}: **{'confirmed' if confirmed else 'not confirmed'}** ({figure})."
