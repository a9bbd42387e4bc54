"""Cells of the reproduction's grid against their rivals on the same data: which win, and which do not."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from comparison.lab import pick
from iai_hf.compare import markdown
from paper.tables import Cell, families, losses, rows_of

OWN, ONE_SHOT = "one-shot form of its regime", ("hypernetwork", "prior-fitted")
RIVALS = (OWN, *ONE_SHOT, "maml", "reptile", "learned-optimizer", "adam", "sgd")
DUELS = ("10", "50")  # chunks


class Duel(NamedTuple):
    """A cell of regime by signal against a rival on the same data; `ratio` is of their mean losses."""

    family: str
    row: str
    rival: str
    steps: str
    ratio: float


def duels(cells: Sequence[Cell]) -> list[Duel]:
    """Of all cells with all rivals, after 10 and 50 chunks."""
    found = []
    grid = pick(cells, group="grid")
    for family in families(grid):
        for name, row in rows_of(grid, family).items():
            for rival in RIVALS:
                method = _one_shot(name) if rival == OWN else rival
                others = pick(cells, family=family, method=method)
                for steps in DUELS if others else ():
                    ratio = mean(losses(row, steps)) / mean(losses(others, steps))
                    found.append(Duel(family, name, rival, steps, ratio))
    return found


def versus_table(cells: Sequence[Cell]) -> str:
    """Of the nine cells of regime by signal, how many beat each rival on the same data."""
    every = duels(cells)
    lines = [["cells better than the rival, after 10 / 50 chunks", *RIVALS]]
    for family in [*dict.fromkeys(duel.family for duel in every), "all"]:
        line = [family]
        for rival in RIVALS:
            mine = [duel for duel in every if duel.rival == rival and family in (duel.family, "all")]
            ratios = [[duel.ratio for duel in mine if duel.steps == steps] for steps in DUELS]
            line.append(" / ".join(f"{sum(ratio < 1 for ratio in part)} of {len(part)}" for part in ratios if part))
        lines.append(line)
    return markdown(lines)


def lost_table(cells: Sequence[Cell]) -> str:
    """The duels that are not won, but for those against one-shot methods of another regime."""
    lost = [duel for duel in duels(cells) if duel.ratio >= 1 and duel.rival not in ONE_SHOT]
    rows = [[duel.family, duel.row, duel.rival, duel.steps, f"{duel.ratio:.3f}"] for duel in lost]
    return markdown([["not better", "", "rival", "chunks", "loss / rival's"], *rows])


def _one_shot(name: str) -> str:
    return "prior-fitted" if name.startswith("implicit") else "hypernetwork"
