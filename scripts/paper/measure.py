"""What is measured of a trained cell: errors along streams, by size of the data, where a task changes, and costs."""

from __future__ import annotations

import time
from typing import Any

import torch

from iai_hf.tables.solvers.solver import Batch, Solver
from iai_hf.tables.training.families import Family, TableEpisode
from iai_hf.task import Tensors
from paper.cells import Preset
from paper.flows import Flow, energy_distance, generate

STEPS = (1, 2, 5, 10, 50)


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
