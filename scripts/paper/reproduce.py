"""The paper, reproduced: three regimes by three signals, their rivals, and the questions that reviewers asked.

    accelerate launch scripts/paper/reproduce.py --preset cpu --output runs/paper

Two parts. `own`: the paper's form, a learned update or predictor without a solver, on the greedy objective, and its
rivals, each trained until its held-out loss no longer falls or its budget of time ends. `solver`: what a solver beneath
adds, which is ours. `smoke` takes three minutes, `cpu` is a night of two cores, `gpu` the paper's scale; with --hours
the cells on which the most rests come first. Every cell is trained with the training loop of
scripts/train_amortizer.py and tested through the contract's `refine` and `answer`, in and out of distribution, after 1,
2, 5, 10 and 50 chunks. What stands in OUTPUT/results.json is not run again, a cell that was cut off goes on exactly
where it was, and so does one that was not flat when the same command has more --cell_seconds. OUTPUT then has
results.json, tables (results.md) and plots.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch
from accelerate import Accelerator
from huggingface_hub.utils import tqdm

from comparison import lab
from iai_hf.errors import ConfigError, DataError
from iai_hf.files import write_whole
from iai_hf.tables.numeric import Numeric
from iai_hf.tables.solvers.parametric import Parametric
from iai_hf.tables.training import TableCurriculum
from iai_hf.tables.training.families import Family
from iai_hf.training import train
from iai_hf.training.checkpoint import read_progress
from iai_hf.training.schedule import flat
from paper import report
from paper.cells import (
    FLAT,
    INNER_STEPS,
    LEARNED_INNER_STEPS,
    META_LEARNED,
    OWN,
    PRESETS,
    RATE_EXPONENTS,
    RATES,
    SOLVER,
    Cell,
    Preset,
    made,
    own_cells,
    solver_cells,
    training,
)
from paper.measure import continual, sizes, tested, training_cost
from paper.tasks import family

LONG = ("linear regression, 10", "linear classification")  # with data-size ablation and continual streams
FORGETTING = 5  # chunks: the half-life on continual streams
LEAST_SECONDS = 5.0  # that a cell is trained for; with less left of a run's hours none is begun


@dataclass(frozen=True)
class Job:
    """A cell and what it may take: seconds of training, and the time at which all ends."""

    cell: Cell
    preset: Preset
    output: Path
    full: bool
    seconds: float
    end: float


def tuned(cell: Cell, tasks: Family, preset: Preset) -> dict[str, Any]:
    """The rate, its exponent and the steps on each chunk with which SGD or Adam are best on training tasks.

    Of an optimizer that is meta-learned those that it begins with, for the steps that it takes.

    Raises:
        ConfigError: all of them diverge.
    """
    plain = replace(cell, method=META_LEARNED.get(cell.method, cell.method))
    config = training(plain, tasks, preset)
    choices = [
        {"rate": rate, "rate_exponent": exponent, "inner_steps": inner}
        for rate in RATES[plain.method]
        for exponent in RATE_EXPONENTS
        for inner in (INNER_STEPS if plain == cell else (LEARNED_INNER_STEPS,))
    ]
    losses = [TableCurriculum(made(plain, tasks, preset, **each), tasks, config).evaluate().loss for each in choices]
    finite = [(loss, number) for number, loss in enumerate(losses) if math.isfinite(loss)]
    if not finite:
        rates = ", ".join(map(str, RATES[plain.method]))
        raise ConfigError(f"{plain.method} diverges on {cell.family} with all rates ({rates}); give RATES lower ones")
    return choices[min(finite)[1]]


def learned(job: Job, tasks: Family, folder: Path) -> tuple[Numeric, dict[str, Any]]:
    """The amortizer of a cell, meta-trained; where it was cut off it goes on."""
    cell, preset = job.cell, job.preset
    began = time.perf_counter()
    settings = tuned(cell, tasks, preset) if cell.method in (*RATES, *META_LEARNED) else {}
    amortizer, config = made(cell, tasks, preset, **settings), training(cell, tasks, preset)
    if cell.method in RATES:
        return amortizer, {**settings, "train_seconds": time.perf_counter() - began, "parameters": 3, "flat": True}
    folder.mkdir(parents=True, exist_ok=True)
    curriculum = TableCurriculum(amortizer, tasks, config)
    seconds = None
    if cell.group != SOLVER:
        spent = read_progress(folder).seconds
        seconds = min(job.seconds, spent + job.end - time.time())
    progress = train(
        amortizer, curriculum, config, Accelerator(), folder, resume=True, progress_bar=False, seconds=seconds
    )
    return amortizer, {
        "train_seconds": progress.seconds,
        "budget": seconds,
        "parameters": sum(parameter.numel() for parameter in amortizer.module.parameters()),
        "steps": progress.step,
        "best_step": progress.best_step,
        "flat": cell.group == SOLVER or flat(progress.history, FLAT),
        "curve": thinned([(entry["step"], entry["loss"]) for entry in progress.history]),
    }


def thinned(curve: list[tuple[int, float]], most: int = 24) -> list[tuple[int, float]]:
    """Some points of a curve, the first and the last among them."""
    places = {round(place * (len(curve) - 1) / (most - 1)) for place in range(most)}
    return [curve[place] for place in sorted(places)]


def run(job: Job) -> dict[str, Any] | None:
    """Train and test one cell, in a process of its own; None where the run's hours are over."""
    cell, preset, output = job.cell, job.preset, job.output
    if time.time() > job.end - LEAST_SECONDS:
        return None
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # of a GPU
    began = time.perf_counter()
    tasks = family(cell.family, output / "cache", job.full)
    folder = cell_folder(output, cell)
    amortizer, record = learned(job, tasks, folder)
    solver = amortizer.solver
    regime = amortizer.regime if cell.family in LONG and cell.group in (OWN, SOLVER, "optimizer") else None
    if regime and cell.group != "optimizer":
        amortizer.module.requires_grad_(True)
        record["training"] = training_cost(solver, tasks, preset, cell.seed)
        amortizer.module.requires_grad_(False)
    with torch.no_grad():
        record["in distribution"] = tested(solver, tasks, preset, cell.seed, shifted=False)
        record["shifted"] = tested(solver, tasks, preset, cell.seed, shifted=True)
        if regime == "parametric":
            record["sizes"] = sizes(solver, tasks, preset, cell.seed)
            record["continual"] = continual(solver, tasks, preset, cell.seed)
            if isinstance(solver, Parametric) and not solver.free:
                solver.half_life = FORGETTING * preset.chunk
                record["continual, forgetting"] = continual(solver, tasks, preset, cell.seed)
    record["seconds"] = time.perf_counter() - began
    record["machine"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "a core"
    record |= {"hidden": preset.hidden, "tasks": preset.tasks}
    if record["flat"]:
        shutil.rmtree(folder, ignore_errors=True)  # there is nothing to go on with
    return rounded({**asdict(cell), **record})


def cell_folder(output: Path, cell: Cell) -> Path:
    """Where a cell's checkpoint is."""
    return output / "cells" / "-".join(map(str, asdict(cell).values())).replace(" ", "_").replace("/", "_")


def settled(record: dict[str, Any], seconds: float) -> bool:
    """Whether a cell needs no more training: it is flat, or has had its time."""
    return record["flat"] or record["budget"] is None or record["budget"] >= seconds


def cell_of(record: dict[str, Any]) -> Cell:
    """The cell that a record is of."""
    return Cell(**{name: record[name] for name in Cell.__dataclass_fields__})


def rounded(value: Any) -> Any:
    """Floats to five significant digits, so that the file stays small."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=(OWN, SOLVER), default=(OWN, SOLVER))
    parser.add_argument(
        "--hours", type=float, default=float("inf"), help="of the run; those of a cell are its preset's"
    )
    parser.add_argument("--cell_seconds", type=float, help="of training a cell, instead of the preset's")
    parser.add_argument("--num_workers", type=int, default=0, help="cells at a time; by default one a core, or a GPU")
    args = parser.parse_args()
    end = time.time() + 3600 * args.hours
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("iai_hf.training", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    preset, full = PRESETS[args.preset], args.preset == "gpu"
    seconds = args.cell_seconds or preset.seconds
    path = args.output / "results.json"
    done = lab.standing(path, {"preset": args.preset}, {"cells": []})
    left_out = {}
    for name in preset.families:
        try:
            family(name, args.output / "cache", full)
        except DataError as error:
            left_out[name] = str(error).split(" (")[0]
            logging.warning("%s is left out: %s", name, error)
    done |= {"left_out": left_out, "chunk": preset.chunk}
    wanted = own_cells(preset) * (OWN in args.parts) + solver_cells(preset) * (SOLVER in args.parts)
    known = {cell_of(record) for record in done["cells"] if settled(record, seconds)}
    jobs = [
        Job(cell, preset, args.output, full, seconds, end)
        for cell in wanted
        if cell not in known and cell.family not in left_out
    ]
    workers = args.num_workers or torch.cuda.device_count() or multiprocessing.cpu_count()
    # Each worker starts clean: it must not share this process's threads or rank.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    with pool, tqdm(total=len(jobs), desc="reproduce", unit=" cells") as bar:
        futures = {pool.submit(run, job): job.cell for job in jobs}
        failed = 0
        try:
            for future in as_completed(futures):
                if (problem := future.exception()) is not None:
                    failed += 1
                    logging.error("%s failed, and is left to the next run: %s", futures[future], problem)
                elif (found := future.result()) is not None:
                    others = [record for record in done["cells"] if cell_of(record) != cell_of(found)]
                    done["cells"] = [*others, found]
                    write_whole(path, json.dumps(done).encode())
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is done is kept; the same command goes on
            raise
    write_whole(path, json.dumps(done).encode())
    report.write(done, args.output)
    if failed:
        raise DataError(f"{failed} cells failed, as told above; what is done stands, and the same command goes on")
    print(f"results.json, results.md and plots in {args.output}")


if __name__ == "__main__":
    lab.run(main)
