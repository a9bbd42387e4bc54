"""The cells of the reproduction: what is trained on what, how large, and which come first."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from iai_hf import AutoAmortizer
from iai_hf.signals import SIGNALS
from iai_hf.tables.numeric import Numeric
from iai_hf.tables.training.families import Family
from iai_hf.training.config import TrainingConfig
from paper.tasks import POOLS, SYNTHETIC

REGIMES = ("parametric", "explicit", "implicit")
ONE_SHOT = ("prior-fitted", "hypernetwork")
META_LEARNED = {"learned-optimizer": "adam", "maml": "sgd", "reptile": "sgd"}  # each begins as the other, tuned
RATES = {"sgd": (0.3, 1.0, 3.0, 10.0, 30.0), "adam": (0.003, 0.01, 0.03, 0.1, 0.3)}
RATE_EXPONENTS, INNER_STEPS = (0.0, 0.5, 1.0), (1, 4)  # that SGD and Adam are tuned over, beside the rate
LEARNED_INNER_STEPS = 4  # on each chunk, of optimizers that are meta-learned
VARIED = ("linear regression, 5", "linear classification")  # on which variants of the paper's form are tried
FLAT = 0.005  # share by which the held-out loss still falls over the last fifth of the steps, at most
FIRST = ("linear regression, 2", "linear regression, 5", "linear regression, 10")
OWN, SOLVER = "own", "solver"
SOLVER_BACKBONES = ("numeric/llama", "numeric/plain")  # of the first families plain; the others were measured before


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        families: of both parts.
        seeds, solver_seeds: of the paper's form and its rivals, and of the solver-backed form.
        seconds: that a cell of the paper's form or of a rival is trained for, at most.
        most_steps, solver_steps: of meta-training.
        streams: side by side in training; solver_streams: of the solver-backed form, which has little to learn.
        tasks: in tests; queries: of each; generated: points of a generated sample.
        chunk: examples a step in tests, at most in training; horizon: steps in training.
        evaluate_every: steps of training.
    """

    families: tuple[str, ...]
    seeds: int
    seconds: float
    most_steps: int
    solver_steps: int
    streams: int
    tasks: int
    queries: int
    chunk: int
    hidden: int
    layers: int
    solver_seeds: int = 1
    solver_streams: int = 8
    horizon: int = 10
    learning_rate: float = 0.003
    evaluate_every: int = 250
    generated: int = 128


EVERY = (*SYNTHETIC, *POOLS)
DEEP = (
    *FIRST,
    "linear classification",
    "non-linear classification",
    "digits",
    "MNIST",
    "topological order",
    "Gaussian mixtures",
)
PRESETS = {
    "smoke": Preset(
        ("linear regression, 5", "Gaussian mixtures"),
        1,
        60.0,
        8,
        8,
        6,
        4,
        16,
        8,
        16,
        1,
        1,
        4,
        3,
        evaluate_every=4,
        generated=32,
    ),
    "cpu": Preset(DEEP, 3, 600.0, 200_000, 150, 64, 64, 64, 32, 32, 3),
    "gpu": Preset(EVERY, 5, 36_000.0, 1_000_000, 2000, 128, 128, 64, 64, 256, 4, 5, 128, learning_rate=0.0003),
}


@dataclass(frozen=True)
class Cell:
    """One model: what is trained on what, from which seed; `group` is the table it belongs to.

    Groups: "own", the paper's form; its variants "window", "carried" and "architecture"; its rivals "one-shot" and
    "optimizer"; "solver", our form on a solver.
    """

    group: str
    family: str
    method: str
    seed: int
    signal: str = "data"
    window: int = 1
    carried: str = "logits"
    backbone: str = "numeric/plain"


def own_cells(preset: Preset) -> list[Cell]:
    """The paper's form and its rivals: first those on which the most rests, each with all its seeds."""
    found: list[tuple[int, Cell]] = []
    for name, seed in product(preset.families, range(preset.seeds)):
        signals = SYNTHETIC[name].signals if name in SYNTHETIC else SIGNALS
        later = 10 * (1 + seed)
        rank = 0 if name in FIRST else later
        for regime, signal in product(REGIMES, signals):
            cell = Cell(OWN, name, f"numeric-{regime}", seed, signal)
            if regime == "implicit" and signal != "data":
                # The implicit state is the queries' own: whoever sees its gradient carries all later inputs along.
                found.append((later + 4 if name in FIRST else 40, cell))
            else:
                found.append((rank + 2 * (signal == "gradient"), cell))
        found += [(rank + 1, Cell("one-shot", name, method, seed)) for method in ONE_SHOT]
        if "gradient" in signals:
            found += [(rank + 1, Cell("optimizer", name, m, seed, "gradient")) for m in (*RATES, *META_LEARNED)]
        if name in VARIED:
            varied = later + 3
            found.append((varied, Cell("window", name, "numeric-parametric", seed, "both", window=4)))
            for other in ("numeric/llama", "numeric/bert"):
                found.append((varied, Cell("architecture", name, "numeric-parametric", seed, "both", backbone=other)))
            for carried in ("latents", "probabilities") if "classification" in name else ("latents",):
                found.append((varied, Cell("carried", name, "numeric-implicit", seed, carried=carried)))
    return [cell for _, cell in sorted(found, key=lambda pair: pair[0])]


def solver_cells(preset: Preset) -> list[Cell]:
    """Our form on a solver, seed by seed."""
    return [
        Cell(SOLVER, name, f"numeric-{regime}", seed, signal, backbone=SOLVER_BACKBONES[name in FIRST])
        for seed in range(preset.solver_seeds)
        for name in preset.families
        for regime in REGIMES
        for signal in (SYNTHETIC[name].signals if name in SYNTHETIC else SIGNALS)
    ]


def made(cell: Cell, tasks: Family, preset: Preset, **tuned: float) -> Numeric:
    """The untrained amortizer of a cell; `tuned`: settings of optimizers."""
    settings: dict[str, Any] = {
        "kind": "classification" if tasks.classification else "regression",
        "width": tasks.width,
        "standardise": False,  # the tasks have one scale
        "hidden": preset.hidden,
        "layers": preset.layers,
        "horizon": preset.horizon,
        "counting": cell.group != SOLVER,
        "seed": cell.seed,
        **tuned,
    }
    if cell.method not in RATES:
        settings |= {"inputs": tasks.inputs, "outputs": tasks.outputs}
    if cell.method.startswith("numeric-"):
        settings |= {"signal": cell.signal, "window": cell.window, "carried": cell.carried}
        settings |= {"free": cell.group != SOLVER}
    amortizer = AutoAmortizer.from_pretrained(cell.method, backbone=cell.backbone, config=settings)
    assert isinstance(amortizer, Numeric)
    return amortizer


def training(cell: Cell, tasks: Family, preset: Preset) -> TrainingConfig:
    """How a cell is meta-trained: until it is flat, but for the solver-backed form."""
    common: dict[str, Any] = {
        "method": cell.method,
        "backbone": cell.backbone,
        "tasks": [tasks.name],
        "episodes_per_step": 1,
        "learning_rate": preset.learning_rate,
        "queries": min(preset.queries, 32),
        "most_steps": preset.horizon,
        "seed": cell.seed,
    }
    if cell.group == SOLVER:
        steps = preset.solver_steps
        return TrainingConfig(
            **common,
            train_steps=steps,
            tasks_per_episode=preset.solver_streams,
            chunk_sizes=[max(preset.chunk // 2, 1), preset.chunk],
            evaluate_every=max(steps // 4, 1),
        )
    return TrainingConfig(
        **common,
        train_steps=preset.most_steps,
        tasks_per_episode=preset.streams,
        chunk_sizes=[max(preset.chunk // 4, 1), preset.chunk],
        evaluate_every=preset.evaluate_every,
        until_flat=FLAT,
        averaging=0.999,
        staggered=True,
    )
