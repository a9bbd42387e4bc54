"""Cells of the reproduction against their rivals on the same data: which win, and which do not."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from comparison.lab import pick
from iai_hf.compare import markdown
from paper.cells import ONE_SHOT
from paper.tables import Cell, families, losses, rows_of

SAME_REGIME = "one-shot form of its regime"
RIVALS = (SAME_REGIME, *ONE_SHOT, "maml", "reptile", "learned-optimizer", "adam", "sgd")
DUELS = ("10", "50")  # chunks


class Duel(NamedTuple):
    """A cell of regime by signal against a rival on the same data; `ratio` is of their mean losses."""

    family: str
    row: str
    rival: str
    steps: str
    ratio: float


def duels(cells: Sequence[Cell], group: str) -> list[Duel]:
    """Of all cells of a group with all rivals that were trained until they were flat, after 10 and 50 chunks."""
    found = []
    mine = pick(cells, group=group)
    for family in families(mine):
        for name, row in rows_of(mine, family).items():
            for rival in RIVALS:
                others = _rivals(cells, family, _one_shot(name) if rival == SAME_REGIME else rival, row)
                if not others or not all(other["flat"] for other in others):
                    continue
                seeds = {other["seed"] for other in others}
                same = [cell for cell in row if cell["seed"] in seeds]
                for steps in DUELS if same else ():
                    ratio = mean(losses(same, steps)) / mean(losses(others, steps))
                    found.append(Duel(family, name, rival, steps, ratio))
    return found


def unready(cells: Sequence[Cell]) -> list[str]:
    """Rivals that count nowhere yet, as their held-out loss still fell when their time was over."""
    rivals = [cell for cell in cells if cell["group"] in ("one-shot", "optimizer")]
    found = {(cell["method"], cell["family"]): None for cell in rivals if not cell["flat"]}
    methods = dict.fromkeys(method for method, _ in found)
    return [f"{method} ({'; '.join(family for other, family in found if other == method)})" for method in methods]


def versus_table(cells: Sequence[Cell], group: str) -> str:
    """Of the cells of regime by signal, how many beat each rival on the same data."""
    every = duels(cells, group)
    lines = [["cells better than the rival, after 10 / 50 chunks", *RIVALS]]
    for family in [*dict.fromkeys(duel.family for duel in every), "all"]:
        line = [family]
        for rival in RIVALS:
            mine = [duel for duel in every if duel.rival == rival and family in (duel.family, "all")]
            ratios = [[duel.ratio for duel in mine if duel.steps == steps] for steps in DUELS]
            line.append(" / ".join(f"{sum(ratio < 1 for ratio in part)} of {len(part)}" for part in ratios if part))
        lines.append(line)
    return markdown(lines)


def lost_table(cells: Sequence[Cell], group: str) -> str:
    """The duels that are not won, but for those against one-shot methods of another regime."""
    lost = [duel for duel in duels(cells, group) if duel.ratio >= 1 and duel.rival not in ONE_SHOT]
    rows = [[duel.family, duel.row, duel.rival, duel.steps, f"{duel.ratio:.3f}"] for duel in lost]
    return markdown([["not better", "", "rival", "chunks", "loss / rival's"], *rows])


def _rivals(cells: Sequence[Cell], family: str, method: str, row: Sequence[Cell]) -> list[Cell]:
    """Of the same seeds, and as many tasks, whose test data are the same."""
    same = {(cell["seed"], cell["tasks"]) for cell in row}
    return [c for c in pick(cells, family=family, method=method) if (c["seed"], c["tasks"]) in same]


def _one_shot(name: str) -> str:
    return "prior-fitted" if name.startswith("implicit") else "hypernetwork"
