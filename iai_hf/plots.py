"""Plots, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def blank() -> tuple[Figure, Axes]:
    """An empty figure, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def curve_plot(runs: Sequence[Mapping[str, Any]], metric: str, title: str) -> bytes:
    """`metric` against examples seen, one line a run; cost at the end of each line stands in the legend."""
    from matplotlib.ticker import NullLocator

    figure, axes = blank()
    for run, marker in zip(runs, "os^Dv*XP<>" * len(runs), strict=False):
        examples = [point["examples"] for point in run["curve"]]
        cost = (
            f"{run['method']}: {run['adapt_seconds']:.0f} s to adapt, "
            f"{run['state_bytes'] / 1000:.0f} kB, {run['milliseconds_per_query']:.0f} ms a query"
        )
        axes.plot(examples, [point[metric] for point in run["curve"]], marker=marker, markersize=5, label=cost)
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("examples seen")
    axes.set_ylabel(metric.replace("_", " "))
    axes.set_title(title)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    return png(figure)


def confusion_plot(matrix: Sequence[Sequence[float]], labels: Sequence[str], title: str) -> bytes:
    """Mean probability of each label (columns) by the given one (rows), as a grid of shades."""
    figure, axes = blank()
    side = max(4.8, 1.5 + 0.25 * len(labels))
    figure.set_size_inches(side + 1, side)
    axes.grid(False)
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="mean probability")
    axes.set_xticks(range(len(labels)), [label[:24] for label in labels], rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), [label[:24] for label in labels], fontsize=8)
    axes.set_xlabel("label by all other examples")
    axes.set_ylabel("given label")
    axes.set_title(title)
    return png(figure)
