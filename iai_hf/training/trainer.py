"""The training loop, on accelerate: the same for one process, several, and a GPU."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from iai_hf.errors import ConfigError, DataError
from iai_hf.training.checkpoint import CHECKPOINT_FILE, Progress, load_checkpoint, save_checkpoint
from iai_hf.training.config import TrainingConfig
from iai_hf.training.episodes import FEWEST_EXAMPLES, Episode, draw, whole
from iai_hf.training.objective import GreedyObjective
from iai_hf.training.tasks import FeatureTask

if TYPE_CHECKING:
    from accelerate import Accelerator

    from iai_hf.amortizers.frozen_features import FrozenFeatures

log = logging.getLogger(__name__)
HIDDEN_NAMES = tuple("abcdefghijklmnopqrstuvwxyz") + tuple(str(number) for number in range(40))
VALIDATION_ORDERS = 2


def train(
    amortizer: FrozenFeatures,
    tasks: list[FeatureTask],
    config: TrainingConfig,
    accelerator: Accelerator,
    output: Path,
    *,
    resume: bool = False,
    progress_bar: bool = True,
) -> Progress:
    """Meta-train the amortizer's head on `tasks` and leave it with the weights that did best on the validation tasks.

    `output` gets `checkpoint.safetensors` at every evaluation, whole or not at all. Without validation tasks the last
    weights are kept.

    Raises:
        DataError: no task is left to train on, or a validation task is unknown.
        ConfigError: the loss became NaN or infinite; the step and task are named, the last checkpoint stands.
        StateError: `resume` from a checkpoint of another run.
    """
    from huggingface_hub.utils import tqdm

    training, validation = _split(tasks, config)
    head = amortizer.head.requires_grad_(True).train()
    initial = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
    objective = GreedyObjective(head, config.unroll)
    optimizer = torch.optim.Adam(objective.parameters(), lr=config.learning_rate)
    run = json.dumps([dataclasses.asdict(config), amortizer.backbone.fingerprint], sort_keys=True)
    best, progress = _weights(head), Progress()
    if resume and (output / CHECKPOINT_FILE).is_file():
        best, progress = load_checkpoint(output, head, optimizer, run)
        log.info("resumed behind step %s", progress.step)
    module, optimizer = accelerator.prepare(objective, optimizer)
    hidden = amortizer.name_features(HIDDEN_NAMES)
    began = time.perf_counter()
    bar = tqdm(
        total=config.train_steps,
        initial=progress.step,
        desc="train",
        unit=" steps",
        disable=None if progress_bar and accelerator.is_main_process else True,
    )
    if progress.step == 0:
        progress = _evaluated(progress, objective, validation, config, 0, began)
    with bar:
        for step in range(progress.step + 1, config.train_steps + 1):
            rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / config.train_steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            share = range(accelerator.process_index, config.episodes_per_step, accelerator.num_processes)
            total = torch.zeros(())
            for turn, place in enumerate(share):
                episode = draw(training, hidden, config, (step - 1) * config.episodes_per_step + place)
                with nullcontext() if turn == len(share) - 1 else accelerator.no_sync(module):
                    loss = _loss(module, _on(episode, accelerator.device), step) / len(share)
                    accelerator.backward(loss)
                total += loss.detach().cpu()
            _pull(head, initial, config.regularisation)
            accelerator.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            bar.update()
            accelerator.log({"loss": float(total), "learning_rate": rate}, step=step)
            progress = dataclasses.replace(progress, step=step)
            if step % config.evaluate_every == 0 or step == config.train_steps:
                progress = _evaluated(progress, objective, validation, config, step, began)
                if progress.best_step == step:
                    best = _weights(head)
                accelerator.log({"validation": progress.history[-1]["loss"]}, step=step)
                if accelerator.is_main_process:
                    save_checkpoint(output, head, optimizer.optimizer, best, progress, run)
                accelerator.wait_for_everyone()
    head.load_state_dict(best)
    head.requires_grad_(False).eval()
    amortizer.__dict__.pop("fingerprint", None)  # it is a digest of the weights
    return progress


def _split(tasks: list[FeatureTask], config: TrainingConfig) -> tuple[list[FeatureTask], list[FeatureTask]]:
    unknown = sorted(set(config.validation) - {task.name for task in tasks})
    if unknown:
        raise DataError(f"no task is called {', '.join(unknown)}; the tasks are {', '.join(t.name for t in tasks)}")
    usable = [task for task in tasks if len(task) >= FEWEST_EXAMPLES]
    training = [task for task in usable if task.name not in config.validation]
    if not training:
        raise DataError(f"no task is left to train on; expected one with at least {FEWEST_EXAMPLES} examples")
    return training, [task for task in tasks if task.name in config.validation]


def _evaluated(
    progress: Progress,
    objective: GreedyObjective,
    validation: list[FeatureTask],
    config: TrainingConfig,
    step: int,
    began: float,
) -> Progress:
    """The progress with one more evaluation; without validation tasks the newest weights are the best."""
    losses, hits = [], []
    with torch.no_grad():
        for task in validation:
            for seed in range(VALIDATION_ORDERS):
                episode = whole(task, config, seed)
                for logits in objective.paid_logits(episode):
                    loss = torch.nn.functional.cross_entropy(logits, episode.answers)
                    losses.append(float(loss) / math.log(max(episode.classes, 2)))
                    hits.append(float((logits.argmax(1) == episode.answers).float().mean()))
    entry: dict[str, Any] = {"step": step, "seconds": time.perf_counter() - began}
    if losses:
        entry |= {"loss": sum(losses) / len(losses), "accuracy": sum(hits) / len(hits)}
        log.info("step %s: validation loss %.4f, accuracy %.4f", step, entry["loss"], entry["accuracy"])
    else:
        entry |= {"loss": -float(step)}
    better = entry["loss"] < progress.best
    return dataclasses.replace(
        progress,
        best=entry["loss"] if better else progress.best,
        best_step=step if better else progress.best_step,
        history=(*progress.history, entry),
    )


def _loss(module: torch.nn.Module, episode: Episode, step: int) -> torch.Tensor:
    try:
        loss = module(episode)
        problem = None if torch.isfinite(loss) else f"the loss is {float(loss)}"
    except torch.linalg.LinAlgError as error:
        problem = f"a covariance can't be factored ({str(error).splitlines()[0]})"
    if problem:
        raise ConfigError(
            f"{problem} in step {step}, on task {episode.task!r} ({len(episode.targets)} examples, "
            f"{episode.classes} classes); the last checkpoint stands: lower learning_rate, or leave the task out"
        )
    return loss


def _pull(head: torch.nn.Module, initial: dict[str, torch.Tensor], strength: float) -> None:
    """Weight decay towards the initial value, as a part of the gradient."""
    if strength:
        for name, parameter in head.named_parameters():
            if parameter.grad is not None:
                parameter.grad += strength * (parameter.detach() - initial[name].to(parameter))


def _weights(head: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}


def _on(episode: Episode, device: torch.device) -> Episode:
    moved = {
        field.name: getattr(episode, field.name).to(device)
        for field in dataclasses.fields(episode)
        if isinstance(getattr(episode, field.name), torch.Tensor)
    }
    return dataclasses.replace(episode, **moved)
