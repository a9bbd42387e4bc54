"""The paper, reproduced: three regimes by three signals, their baselines, and the questions that reviewers asked.

    accelerate launch scripts/paper/reproduce.py --preset cpu --output runs/paper

`smoke` takes three minutes, `cpu` an hour and a half on two cores, `gpu` is the paper's scale. Every cell is trained
with the training loop of scripts/train_amortizer.py and tested through the contract's `refine` and `answer`, in and out
of distribution, after 1, 2, 5, 10 and 50 chunks. What stands in OUTPUT/results.json is not run again. OUTPUT then has
results.json, tables (results.md) and plots.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch
from accelerate import Accelerator
from huggingface_hub.utils import tqdm

from comparison import lab
from iai_hf import AutoAmortizer
from iai_hf.errors import DataError
from iai_hf.files import write_whole
from iai_hf.signals import SIGNALS
from iai_hf.tables.numeric import Numeric
from iai_hf.tables.solvers.parametric import Parametric
from iai_hf.tables.solvers.solver import Batch, Solver
from iai_hf.tables.training import TableCurriculum
from iai_hf.tables.training.families import Family, TableEpisode
from iai_hf.task import Tensors
from iai_hf.training import train
from iai_hf.training.config import TrainingConfig
from paper import report
from paper.flows import Flow, energy_distance, generate
from paper.tasks import POOLS, SYNTHETIC, family

STEPS = (1, 2, 5, 10, 50)
REGIMES = ("parametric", "explicit", "implicit")
RATES = {"sgd": (0.3, 1.0, 3.0, 10.0, 30.0), "adam": (0.003, 0.01, 0.03, 0.1, 0.3)}
LONG = ("linear regression, 10", "linear classification")  # with data-size ablation and continual streams
FORGETTING = 5  # chunks: the half-life on continual streams


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        families, free_families: of the main grid, and of the paper's form without a solver beneath.
        train_steps, free_steps: of meta-training.
        tasks: side by side, in training and in tests; queries: of each.
        chunk: examples a step in tests, at most in training; generated: points of a generated sample.
    """

    families: tuple[str, ...]
    free_families: tuple[str, ...]
    seeds: int
    train_steps: int
    free_steps: int
    tasks: int
    queries: int
    chunk: int
    hidden: int
    layers: int
    horizon: int = 10
    learning_rate: float = 0.003
    generated: int = 128


EVERY = (*SYNTHETIC, *POOLS)
PRESETS = {
    "smoke": Preset(("linear regression, 2", "Gaussian mixtures"), (), 1, 8, 8, 4, 16, 8, 16, 1, 3, generated=32),
    "cpu": Preset(EVERY, ("linear regression, 2", "linear classification"), 5, 150, 200, 8, 64, 32, 64, 2),
    "gpu": Preset(EVERY, EVERY, 5, 20000, 50000, 128, 128, 64, 256, 4, learning_rate=0.0003, generated=512),
}


@dataclass(frozen=True)
class Cell:
    """One model: what is trained on what, from which seed; `group` is the table it belongs to."""

    group: str
    family: str
    method: str
    seed: int
    signal: str = "data"
    free: bool = False
    window: int = 1
    carried: str = "logits"
    backbone: str = "numeric/llama"


def cells(preset: Preset) -> list[Cell]:
    """All cells, seed by seed, so that a run that is cut off has whole tables of fewer seeds."""
    found = []
    for seed in range(preset.seeds):
        for name in preset.families:
            signals = SYNTHETIC[name].signals if name in SYNTHETIC else SIGNALS
            found += [Cell("grid", name, f"numeric-{r}", seed, s) for r in REGIMES for s in signals]
            found += [Cell("one-shot", name, method, seed) for method in ("hypernetwork", "prior-fitted")]
            if "gradient" in signals:
                optimizers = ("sgd", "adam", "maml", "reptile", "learned-optimizer")
                found += [Cell("optimizer", name, method, seed, "gradient") for method in optimizers]
        for name in preset.free_families:
            signals = SYNTHETIC[name].signals if name in SYNTHETIC else SIGNALS
            found += [Cell("free", name, f"numeric-{r}", seed, s, True) for r in REGIMES for s in signals]
            both = "both" if "both" in signals else "data"
            found += [Cell("window", name, "numeric-parametric", seed, both, True, window=4)]
            found += [Cell("architecture", name, "numeric-parametric", seed, both, backbone="numeric/bert")]
            found += [
                Cell("carried", name, "numeric-implicit", seed, "data", True, carried=carried)
                for carried in ("probabilities", "latents")
                if carried == "latents" or "classification" in name
            ]
    return found


def made(cell: Cell, tasks: Family, preset: Preset, rate: float | None = None) -> Numeric:
    """The untrained amortizer of a cell."""
    settings: dict[str, Any] = {
        "kind": "classification" if tasks.classification else "regression",
        "width": tasks.width,
        "standardise": False,  # the tasks have one scale
        "hidden": preset.hidden,
        "layers": preset.layers,
        "horizon": preset.horizon,
        "seed": cell.seed,
    }
    if cell.method not in RATES:
        settings |= {"inputs": tasks.inputs, "outputs": tasks.outputs}
    if cell.method.startswith("numeric-"):
        settings |= {key: getattr(cell, key) for key in ("signal", "free", "window", "carried")}
    if rate is not None:
        settings["rate"] = rate
    amortizer = AutoAmortizer.from_pretrained(cell.method, backbone=cell.backbone, config=settings)
    assert isinstance(amortizer, Numeric)
    return amortizer


def learned(cell: Cell, tasks: Family, preset: Preset, folder: Path) -> tuple[Numeric, dict[str, Any]]:
    """The amortizer of a cell, meta-trained (SGD and Adam: with the rate that is best on training tasks)."""
    config = TrainingConfig(
        method=cell.method,
        backbone=cell.backbone,
        tasks=[tasks.name],
        train_steps=preset.free_steps if cell.free else preset.train_steps,
        episodes_per_step=1,
        tasks_per_episode=preset.tasks,
        learning_rate=preset.learning_rate,
        queries=min(preset.queries, 32),
        chunk_sizes=[max(preset.chunk // 2, 1), preset.chunk],
        most_steps=preset.horizon,
        evaluate_every=max((preset.free_steps if cell.free else preset.train_steps) // 4, 1),
        seed=cell.seed,
    )
    began = time.perf_counter()
    if cell.method in RATES:
        tried = {rate: made(cell, tasks, preset, rate) for rate in RATES[cell.method]}
        losses = {rate: TableCurriculum(each, tasks, config).evaluate().loss for rate, each in tried.items()}
        rate = min(losses, key=lambda key: losses[key])
        return tried[rate], {"rate": rate, "train_seconds": time.perf_counter() - began, "parameters": 1}
    amortizer = made(cell, tasks, preset)
    folder.mkdir(parents=True, exist_ok=True)
    curriculum = TableCurriculum(amortizer, tasks, config)
    progress = train(amortizer, curriculum, config, Accelerator(), folder, progress_bar=False)
    for file in folder.iterdir():
        file.unlink()  # a cell is short, and starts anew where it was cut off
    folder.rmdir()
    return amortizer, {
        "train_seconds": time.perf_counter() - began,
        "parameters": sum(parameter.numel() for parameter in amortizer.module.parameters()),
        "best_step": progress.best_step,
    }


def read(solver: Solver, chunks: list[Batch], tensors: Tensors | None = None) -> Tensors:
    """The state after some chunks."""
    if tensors is None:
        tensors = solver.initial(chunks[0].x.shape[0], chunks[0].x.shape[2], chunks[0].y.shape[2])
    for chunk in chunks:
        tensors = solver.refine(tensors, chunk)
    return tensors


def errors(solver: Solver, outputs: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Loss (nats, or half the squared error), and for classes the share of errors."""
    found = {"loss": float(solver.predictor.loss(outputs, y).mean())}
    if solver.predictor.classification:
        found["error"] = float((outputs.argmax(-1) != y.argmax(-1)).float().mean())
    return found


def tested(solver: Solver, tasks: Family, preset: Preset, seed: int, shifted: bool) -> dict[str, Any]:
    """Errors after 1, 2, 5, 10 and 50 chunks of new tasks, beside those of the exact answer on the same data."""
    generator = torch.Generator().manual_seed(2 * 10**9 + 2 * seed + shifted)
    drawn = tasks.sample(generator, preset.tasks, STEPS[-1] * preset.chunk, preset.queries, shifted)
    chunks, queries = drawn.chunks(preset.chunk), drawn.queries
    found: dict[str, Any] = {"steps": {}, "exact": {}}
    state, before = None, 0
    for steps in STEPS:
        began = time.perf_counter()
        state, before = read(solver, chunks[before:steps], state), steps
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        outputs = solver.answer(state, queries.x)
        found["steps"][str(steps)] = {
            **errors(solver, outputs, queries.y),
            "update_seconds": seconds,
            "answer_seconds": time.perf_counter() - began,
            "state_bytes": sum(tensor.nbytes for tensor in state.values()) // preset.tasks,
        }
        if drawn.exact is not None:
            seen = Batch(drawn.stream.x[:, : steps * preset.chunk], drawn.stream.y[:, : steps * preset.chunk])
            found["exact"][str(steps)] = errors(solver, drawn.exact(seen, queries.x), queries.y)
    if isinstance(tasks, Flow) and not shifted:
        found["energy_distance"] = distances(solver, tasks, chunks[: preset.horizon], drawn, preset, generator)
    return found


def distances(
    solver: Solver, tasks: Flow, chunks: list[Batch], drawn: TableEpisode, preset: Preset, generator: torch.Generator
) -> dict[str, float]:
    """Of generated from true points, after the training's number of chunks; of the true velocity's, and of noise."""
    state = read(solver, chunks)
    assert drawn.exact is not None
    exact = drawn.exact
    shape = (preset.tasks, preset.generated, 2)
    noise = torch.randn(shape, generator=generator)
    # True points that no state has read.
    later = drawn.chunks(preset.generated)[2]
    ends = later.x[..., :2] + (1 - later.x[..., 2:]) * later.y  # x_1 from x_t and x_1 - x_0
    samples = {
        "generated": generate(lambda asked: solver.answer(state, asked), noise, steps=8),
        "true velocity": generate(lambda asked: exact(chunks[0], asked), noise, steps=8),
        "noise": noise,
    }
    return {name: float(energy_distance(sample, ends).mean()) for name, sample in samples.items()}


def sizes(solver: Solver, tasks: Family, preset: Preset, seed: int) -> dict[str, Any]:
    """Errors by the size of the task's data, 16 to 65,536; chunks of 16, from 256 examples on of 256."""
    generator = torch.Generator().manual_seed(3 * 10**9 + seed)
    drawn = tasks.sample(generator, 4, 65536, 256)
    head = drawn.chunks(16)[:16]
    tail = drawn.chunks(256)[1:]
    found, state, before = {}, None, 0
    for size in (16, 64, 256, 1024, 4096, 16384, 65536):
        chunks = head[before // 16 : size // 16] if size <= 256 else tail[before // 256 - 1 : size // 256 - 1]
        state, before = read(solver, chunks, state), size
        found[str(size)] = errors(solver, solver.answer(state, drawn.queries.x), drawn.queries.y)
        if drawn.exact is not None:
            seen = Batch(drawn.stream.x[:, :size], drawn.stream.y[:, :size])
            found[str(size)]["exact"] = errors(solver, drawn.exact(seen, drawn.queries.x), drawn.queries.y)["loss"]
    return found


def training_cost(solver: Solver, tasks: Family, preset: Preset, seed: int) -> dict[str, Any]:
    """Of one episode by its number of steps: seconds of a forward and a backward pass, bytes kept between them."""
    generator = torch.Generator().manual_seed(5 * 10**9 + seed)
    drawn = tasks.sample(generator, preset.tasks, preset.horizon * preset.chunk, 32)
    found = {}
    for steps in (steps for steps in STEPS if steps <= preset.horizon):
        kept: dict[int, int] = {}  # storages, which several tensors share

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                outputs = solver.outputs(drawn.chunks(preset.chunk)[:steps], drawn.queries.x)
                loss = torch.stack([solver.predictor.loss(part, drawn.queries.y).mean() for part in outputs]).mean()
            loss.backward()
            seconds.append(time.perf_counter() - began)
        solver.zero_grad()
        found[str(steps)] = {"seconds": min(seconds), "bytes": sum(kept.values())}
    return found


def continual(solver: Solver, tasks: Family, preset: Preset, seed: int) -> dict[str, Any]:
    """A stream whose task changes after 25 chunks: errors on the old and the new task along it."""
    generator = torch.Generator().manual_seed(4 * 10**9 + seed)
    old, new = (tasks.sample(generator, preset.tasks, 25 * preset.chunk, preset.queries) for _ in range(2))
    state = read(solver, old.chunks(preset.chunk))
    found, before = {}, 0
    for steps in (0, 1, 2, 5, 10, 25):
        state, before = read(solver, new.chunks(preset.chunk)[before:steps], state), steps
        found[str(steps)] = {
            name: errors(solver, solver.answer(state, drawn.queries.x), drawn.queries.y)["loss"]
            for name, drawn in (("old", old), ("new", new))
        }
    return found


def run(cell: Cell, preset: Preset, output: Path, full: bool) -> dict[str, Any]:
    """Train and test one cell, in a process of its own."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    tasks = family(cell.family, output / "cache", full)
    folder = output / "cells" / "-".join(map(str, asdict(cell).values())).replace(" ", "_").replace("/", "_")
    amortizer, record = learned(cell, tasks, preset, folder)
    solver = amortizer.solver
    regime = amortizer.regime if cell.family in LONG and cell.group in ("grid", "optimizer") else None
    if regime and cell.group == "grid":
        amortizer.module.requires_grad_(True)
        record["training"] = training_cost(solver, tasks, preset, cell.seed)
        amortizer.module.requires_grad_(False)
    with torch.no_grad():
        record["in distribution"] = tested(solver, tasks, preset, cell.seed, shifted=False)
        record["shifted"] = tested(solver, tasks, preset, cell.seed, shifted=True)
        if regime == "parametric":
            record["sizes"] = sizes(solver, tasks, preset, cell.seed)
            record["continual"] = continual(solver, tasks, preset, cell.seed)
            if isinstance(solver, Parametric):
                solver.half_life = FORGETTING * preset.chunk
                record["continual, forgetting"] = continual(solver, tasks, preset, cell.seed)
    record["seconds"] = time.perf_counter() - began
    return rounded({**asdict(cell), **record})


def rounded(value: Any) -> Any:
    """Floats to five significant digits, so that the file stays small."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--num_workers", type=int, default=0, help="cells at a time; by default one a core, or one a GPU"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("iai_hf.training", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    preset, full = PRESETS[args.preset], args.preset == "gpu"
    path = args.output / "results.json"
    done = lab.standing(path, {"preset": args.preset}, {"cells": []})
    names = set(Cell.__dataclass_fields__)
    known = {Cell(**{key: value for key, value in cell.items() if key in names}) for cell in done["cells"]}
    left_out = {}
    for name in preset.families:
        try:
            family(name, args.output / "cache", full)
        except DataError as error:
            left_out[name] = str(error).split(" (")[0]
            logging.warning("%s is left out: %s", name, error)
    done |= {"left_out": left_out, "chunk": preset.chunk}
    jobs = [cell for cell in cells(preset) if cell not in known and cell.family not in left_out]
    workers = args.num_workers or torch.cuda.device_count() or multiprocessing.cpu_count()
    # Each worker starts clean: it must not share this process's threads or rank.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    with pool, tqdm(total=len(jobs), desc="reproduce", unit=" cells") as bar:
        futures = [pool.submit(run, cell, preset, args.output, full) for cell in jobs]
        try:
            for future in as_completed(futures):
                done["cells"].append(future.result())
                write_whole(path, json.dumps(done).encode())
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is done is kept; the same command goes on
            raise
    write_whole(path, json.dumps(done).encode())
    report.write(done, args.output)
    print(f"results.json, results.md and plots in {args.output}")


if __name__ == "__main__":
    lab.run(main)
