"""From the reproduction's results.json to results.md and plots; nothing is typed in by hand.

python scripts/paper/report.py runs/paper
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

from matplotlib import colormaps

from comparison import lab
from iai_hf.files import write_whole
from iai_hf.plots import png
from paper import duels, tables
from paper.cells import FLAT, OWN, REGIMES, SOLVER
from paper.findings import findings

BASELINES = ("hypernetwork", "prior-fitted", "maml", "learned-optimizer", "adam", "sgd")
COLOURS = (*REGIMES, *BASELINES)
STYLES = {"best signal": ("-o", 1.6), "on a solver": ("-.^", 0.8)}


def write(results: dict[str, Any], output: Path) -> None:
    """results.md and curves.png."""
    cells = results["cells"]
    own = [cell for cell in cells if cell["group"] != SOLVER]
    places = Counter((cell["machine"], cell["hidden"]) for cell in cells)
    hours = {place: sum(c["seconds"] for c in cells if (c["machine"], c["hidden"]) == place) / 3600 for place in places}
    sizes = {
        count: sorted({c["family"] for c in cells if c["tasks"] == count})
        for count in sorted({c["tasks"] for c in cells})
    }
    tests = "; ".join(f"{count} tasks: {', '.join(found)}" for count, found in sizes.items())
    trained = "; ".join(
        f"{count} on {machine}, width {hidden}, {hours[machine, hidden]:.1f} hours"
        for (machine, hidden), count in places.items()
    )
    not_flat = sum(not cell["flat"] for cell in own)
    rivals = "; ".join(duels.unready(cells))
    parts = [
        f"Preset {results['preset']}: {len(cells)} models ({trained}), "
        f"chunks of {results['chunk']} examples. Means ± standard errors over seeds, each another model and other test "
        "tasks. The paper's own numbers could not be had, so nothing here is claimed to match them.",
        f"`flat`: models whose held-out loss fell by less than {100 * FLAT:.1f}% over the last fifth of their "
        f"training; {not_flat} of {len(own)} models of the first part were cut off by their budget of time before.",
        f"A model is tested on so many tasks, by family: {tests}.",
        *(f"{name} is left out: {why}" for name, why in results.get("left_out", {}).items()),
        "# The paper's form",
        "A learned update, or predictor, without a solver, trained on the greedy objective.",
        "## Findings of the paper",
        "Of the models that are flat.",
        "\n".join(findings(cells)),
        "## Excess risk",
        "Above that of the exact answer on the same data, also of the forms on a solver.",
        tables.excess_table(cells),
        "## Where more steps stop paying",
        f"Chunks after which the loss is within {100 * tables.PAYS:.0f}% of that after 50; `rises`: it once rises.",
        tables.pays_table(cells, OWN),
        "## Against one-shot methods and optimizers, on equal data",
        f"Rivals count where all their seeds are flat; those that do not: {rivals or 'none'}.",
        duels.versus_table(cells, OWN),
        duels.lost_table(cells, OWN),
        "## What is carried, history, architecture",
        tables.ratio_table(cells),
        "# What a solver adds",
        "Our form: a solver that can't collapse, and a network that corrects it.",
        "## Past the steps of training",
        tables.horizon_table(cells),
        tables.pays_table(cells, SOLVER),
        "## The solver's form against the same rivals",
        duels.versus_table(cells, SOLVER),
        duels.lost_table(cells, SOLVER),
        "# Both",
        "## Generation",
        tables.generation_table(cells),
        "## Size of the task's data",
        tables.size_table(cells),
        "## A stream whose task changes",
        tables.continual_table(cells),
        "## Cost",
        tables.cost_table(cells),
        tables.training_table(cells),
        "## All tasks",
        *(tables.main_table(cells, family) for family in tables.families(cells)),
    ]
    lab.write_report(output, parts)
    write_whole(output / "curves.png", curves(cells))


def drawn_rows(cells: list[tables.Cell], family: str) -> dict[str, list[tables.Cell]]:
    """Each regime's best signal in both forms, and the rivals, of the seeds that all of them have."""
    found = tables.rows_of(cells, family)
    chosen = {}
    for group, title in ((OWN, "best signal"), (SOLVER, "on a solver")):
        for regime in REGIMES:
            mine = [
                row for row in found.values() if (row[0]["method"], row[0]["group"]) == (f"numeric-{regime}", group)
            ]
            if mine:
                chosen[f"{regime}, {title}"] = min(mine, key=lambda row: mean(tables.losses(row, "10")))
    chosen |= {name: found[name] for name in BASELINES if name in found}
    shared = set.intersection(*({cell["seed"] for cell in row} for row in chosen.values()))
    return {name: [cell for cell in row if cell["seed"] in shared] for name, row in chosen.items()}


def curves(cells: list[tables.Cell]) -> bytes:
    """Loss against chunks, one panel a family: each regime's best signal in both forms, rivals, the exact answer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    names = tables.families(cells)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 3.1 * rows + 0.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    colours = colormaps["tab10"]
    lines: dict[str, Any] = {}
    for place, family in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        chosen = drawn_rows(cells, family)
        for name, row in chosen.items():
            values = [mean(tables.losses(row, steps)) for steps in tables.STEPS]
            style, width = STYLES.get(name.rpartition(", ")[2], ("--", 1.0))
            (lines[name],) = axes.plot(
                list(map(int, tables.STEPS)),
                values,
                style,
                ms=3,
                lw=width,
                color=colours(COLOURS.index(name.partition(",")[0])),
            )
        exact = [cell["in distribution"]["exact"] for cell in next(iter(chosen.values()))]
        if exact[0]:
            values = [mean(each[steps]["loss"] for each in exact) for steps in tables.STEPS]
            (lines["exact answer"],) = axes.plot(list(map(int, tables.STEPS)), values, ":", color="black")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(family, fontsize=10)
        axes.set_xticks(list(map(int, tables.STEPS)), tables.STEPS)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.supxlabel("chunks read", fontsize=10)
    figure.supylabel("loss (nats, or half the squared error)", fontsize=10)
    figure.legend(list(lines.values()), list(lines), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return png(figure)


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("scripts/results/paper"))
    folder: Path = parser.parse_args().folder
    write(json.loads((folder / "results.json").read_text()), folder)


if __name__ == "__main__":
    lab.run(main)
