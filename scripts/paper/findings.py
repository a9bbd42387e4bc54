"""The paper's findings, each confirmed or not by its own form, with its families, counts and standard errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from comparison.lab import pick, shown
from iai_hf.signals import SIGNALS
from paper.cells import OWN, REGIMES
from paper.tables import Cell, families, losses, ratios, table_rows

HIGH = ("linear regression, 30", "digits", "MNIST", "frozen features", "FashionMNIST")  # of high dimension
FEWEST_FAMILIES = 2  # of tasks, before a finding counts as confirmed or not

CLAIMS = {
    1: "more steps help in all regimes, in and out of distribution",
    2: "data beat gradients in low dimension, gradients help in high; both is often best",
    3: "parametric beats explicit",
    4: "logits are the best implicit state",
    5: "a longer history barely helps",
}


def findings(cells: Sequence[Cell]) -> list[str]:
    """A line for each finding: confirmed or not, with the figure, or that its cells are still to be trained.

    Models count that were trained until their held-out loss no longer fell. One family of tasks, or a part of what the
    claim is about, confirms nothing: then the figure alone is told.
    """
    cells = pick(cells, flat=True)
    own = pick(cells, group=OWN)
    told = [*_steps(own), *_signals(own), *_regimes(own), *_variants(cells, own)]
    found = {int(line.partition(".")[0]): line for line in told}
    return [found.get(number, f"{number}. {claim}: not measured yet.") for number, claim in CLAIMS.items()]


def _steps(own: Sequence[Cell]) -> Iterator[str]:
    rows = [row for _, _, row in table_rows(own)]
    if not rows:
        return
    regimes = {cell["method"].removeprefix("numeric-") for row in rows for cell in row}

    def share(early: str, late: str, where: str) -> tuple[int, str]:
        better = sum(mean(losses(row, late, where)) < mean(losses(row, early, where)) for row in rows)
        return better, f"{better} of {len(rows)}"

    (inside, first), (outside, second) = share("1", "10", "in distribution"), share("1", "10", "shifted")
    yield _line(
        1,
        min(inside, outside) > 0.9 * len(rows),
        families([cell for row in rows for cell in row]),
        f"loss after 10 chunks below that after 1 in {first} cells ({second} shifted), after 50, five times as far as "
        f"was trained, below that after 10 in {share('10', '50', 'in distribution')[1]} "
        f"({share('10', '50', 'shifted')[1]} shifted)",
        whole=regimes == set(REGIMES),
    )


def _signals(own: Sequence[Cell]) -> Iterator[str]:
    gains: dict[bool, list[float]] = {False: [], True: []}  # loss with gradients, relative to that with data
    both, named = [], []
    for family in families(own):
        for regime in REGIMES:
            row = {s: pick(own, family=family, method=f"numeric-{regime}", signal=s) for s in SIGNALS}
            if not all(row.values()):
                continue
            found = {s: mean(losses(row[s], "10")) for s in SIGNALS}
            gains[family in HIGH].append(found["gradient"] / found["data"])
            both.append(found["both"] <= min(found.values()) * 1.01)
            named.append(family)
    if not both:
        return
    won = {high: sum(gain > 1 for gain in part) for high, part in gains.items()}
    shares = {high: won[high] / max(len(part), 1) for high, part in gains.items()}
    told = " and ".join(
        f"{won[high]} of {len(part)} {'high' if high else 'low'}-dimensional (loss with gradients / with data "
        f"{shown(part)})"
        for high, part in gains.items()
        if part
    )
    yield _line(
        2,
        shares[False] > 0.5 and shares[True] < shares[False] and mean(both) > 0.5,
        list(dict.fromkeys(named)),
        f"data better than gradient in {told} cells; both best, or within 1% of it, in {sum(both)} of {len(both)}",
        whole=all(gains.values()),
    )


def _regimes(own: Sequence[Cell]) -> Iterator[str]:
    named, found = _paired(pick(own, method="numeric-parametric"), own, method="numeric-explicit")
    if found:
        better = sum(ratio < 1 for ratio in found)
        yield _line(
            3,
            better > len(found) / 2 and mean(found) < 1,
            named,
            f"lower loss after 10 chunks in {better} of {len(found)} pairs, ratio {shown(found)}",
        )


def _variants(cells: Sequence[Cell], own: Sequence[Cell]) -> Iterator[str]:
    others = pick(cells, group="carried")
    carried = {state: _paired(pick(others, carried=state), own)[1] for state in ("probabilities", "latents")}
    told = ", ".join(
        f"with {state} {shown(found)} over {len(found)} pairs" for state, found in carried.items() if found
    )
    if told:
        best = all(mean(found) > 1 for found in carried.values() if found)
        figure = f"loss relative to that with logits: {told}"
        yield _line(4, best, _paired(others, own)[0], figure, whole=all(carried.values()))
    named, longer = _paired(pick(cells, group="window"), own)
    if longer:
        figure = f"loss with 4 states relative to that with one {shown(longer)} over {len(longer)} pairs"
        yield _line(5, mean(longer) > 0.97, named, figure)


def _paired(cells: Sequence[Cell], plain: Sequence[Cell], **changes: str) -> tuple[list[str], list[float]]:
    """The `ratios`, and the families that have any."""
    found = {family: ratios(pick(cells, family=family), plain, **changes) for family in families(cells)}
    return [family for family, part in found.items() if part], [ratio for part in found.values() for ratio in part]


def _line(number: int, confirmed: bool, named: Sequence[str], figure: str, *, whole: bool = True) -> str:
    """A finding on the families of these names; `whole`: all that the claim is about was measured."""
    where = "; ".join(named)
    if len(named) < FEWEST_FAMILIES or not whole:
        return f"{number}. {CLAIMS[number]}: so far, on {where}: {figure}."
    return f"{number}. {CLAIMS[number]}: **{'confirmed' if confirmed else 'not confirmed'}** on {where} ({figure})."
