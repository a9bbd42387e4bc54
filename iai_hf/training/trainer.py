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

from iai_hf.config import require
from iai_hf.errors import ConfigError
from iai_hf.training.captured import CapturedStep
from iai_hf.training.checkpoint import CHECKPOINT_FILE, Progress, load_checkpoint, save_checkpoint
from iai_hf.training.config import TrainingConfig
from iai_hf.training.curriculum import Curriculum
from iai_hf.training.schedule import decaying, ended, regular, unending

if TYPE_CHECKING:
    from accelerate import Accelerator

    from iai_hf.amortizer import Amortizer

log = logging.getLogger(__name__)
CHECKED = 50  # steps that a GPU may go on before it is asked for the loss


def train(
    amortizer: Amortizer,
    curriculum: Curriculum,
    config: TrainingConfig,
    accelerator: Accelerator,
    output: Path,
    *,
    resume: bool = False,
    progress_bar: bool = True,
    seconds: float | None = None,
) -> Progress:
    """Meta-train what the curriculum has to learn, and leave it with the weights that did best on validation tasks.

    With `seconds`, the run ends behind so many, with an evaluation, those before a resumption counted, and its
    learning rate goes down in their course, but with `until_flat`, where a run whose time was over goes on exactly with
    more of it: an evaluation at the limit is told, but neither it nor its weights count in what follows.
    `train_steps` is then the most that there can be.

    `output` gets `checkpoint.safetensors` at every evaluation, whole or not at all. Without validation tasks the last
    weights are kept.

    Raises:
        ConfigError: `seconds` is not above 0; or the loss, a weight or the validation loss became NaN or infinite: the
            step is named, and the task where it can be told, the last checkpoint stands.
        StateError: `resume` from a checkpoint of another run.
    """
    from huggingface_hub.utils import tqdm

    require(seconds is None or seconds > 0, f"seconds is {seconds}; expected above 0, or None to go by train_steps")
    learned = curriculum.learned.requires_grad_(True).train()
    resume = resume and (output / CHECKPOINT_FILE).is_file()
    if not resume:
        curriculum.begin()
    learned.to(accelerator.device)
    initial = {name: parameter.detach().clone() for name, parameter in learned.named_parameters()}
    objective = curriculum.objective
    captures = _captures(accelerator, config, curriculum)
    # A captured step reads the rate where it lies on the GPU.
    rate: Any = torch.tensor(config.learning_rate, device=accelerator.device) if captures else config.learning_rate
    optimizer = torch.optim.Adam(objective.parameters(), lr=rate, capturable=captures)
    run = json.dumps([dataclasses.asdict(config), amortizer.backbone.fingerprint], sort_keys=True)
    best, progress = _weights(learned), Progress()
    if resume:
        best, progress = load_checkpoint(output, learned, optimizer, run)
        log.info("resumed behind step %s", progress.step)
    # Not for DistributedDataParallel: processes may have unequal shares of the episodes, or none.
    module = accelerator.prepare_model(objective, evaluation_mode=True)
    optimizer = accelerator.prepare_optimizer(optimizer)
    began = time.perf_counter() - progress.seconds
    bar = tqdm(
        total=config.train_steps,
        initial=progress.step,
        desc="train",
        unit=" steps",
        disable=None if progress_bar and accelerator.is_main_process else True,
    )

    def descend(episode: Any) -> torch.Tensor:
        optimizer.zero_grad()
        loss = module(episode)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    captured = CapturedStep(descend) if captures else None
    if progress.step == 0:
        progress = _evaluated(progress, curriculum, 0, began)
    with bar, torch.cuda.stream(torch.cuda.Stream()) if captures else nullcontext():
        over = ended(progress.history, config.until_flat, seconds)
        if not over:
            progress = dataclasses.replace(progress, history=regular(progress.history))
        while progress.step < config.train_steps and not over:
            step = progress.step + 1
            part = (step - 1) / config.train_steps
            if seconds is not None:
                part = max(part, _agreed((time.perf_counter() - began) / seconds, accelerator))
            share_of_peak = unending(step) if config.until_flat else decaying(part, config.warmup)
            rate = config.learning_rate * share_of_peak
            _set_rate(optimizer, rate)
            if captured:
                total = captured(curriculum.draw(step - 1, accelerator.device))
            else:
                optimizer.zero_grad()
                share = range(accelerator.process_index, config.episodes_per_step, accelerator.num_processes)
                total = torch.zeros(())
                for place in share:
                    episode = curriculum.draw((step - 1) * config.episodes_per_step + place, accelerator.device)
                    loss = _loss(module, curriculum, episode, step) / config.episodes_per_step
                    accelerator.backward(loss)
                    total += loss.detach().cpu()
                total = _summed(module, total, accelerator)
                _pull(learned, initial, config.regularisation)
                accelerator.clip_grad_norm_(module.parameters(), 1.0)
                optimizer.step()
            curriculum.stepped(step)
            bar.update()
            last = step == config.train_steps or part >= 1
            regularly = step % config.evaluate_every == 0 or step == config.train_steps
            if captured and (step % CHECKED == 0 or regularly or last):
                _check(float(total), step)
            if not captured or step % CHECKED == 0:
                accelerator.log({"loss": float(total), "learning_rate": rate}, step=step)
            progress = dataclasses.replace(progress, step=step)
            if regularly or last:
                _check_weights(learned, step)
                progress = _evaluated(progress, curriculum, step, began, at_limit=not regularly)
                if progress.best_step == step:
                    best = _weights(learned)
                accelerator.log({"validation": progress.history[-1]["loss"]}, step=step)
                if accelerator.is_main_process:
                    save_checkpoint(output, learned, optimizer.optimizer, best, progress, run)
                accelerator.wait_for_everyone()
                over = last or ended(progress.history, config.until_flat)
    newest = progress.history[-1]
    if "at_limit" in newest and newest["loss"] < progress.best:
        best, progress = _weights(learned), dataclasses.replace(progress, best=newest["loss"], best_step=newest["step"])
    learned.load_state_dict(best)
    learned.requires_grad_(False).eval().cpu()  # where states are
    amortizer.__dict__.pop("fingerprint", None)  # it is a digest of the weights
    return progress


def _captures(accelerator: Accelerator, config: TrainingConfig, curriculum: Curriculum) -> bool:
    """Whether a step is one that a GPU can replay."""
    single = accelerator.num_processes == config.episodes_per_step == 1 and not config.regularisation
    return accelerator.device.type == "cuda" and single and curriculum.capturable


def _agreed(value: float, accelerator: Accelerator) -> float:
    """The largest of all processes' values."""
    if accelerator.num_processes == 1:
        return value
    return float(accelerator.gather(torch.tensor([value], device=accelerator.device)).max())


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _summed(module: torch.nn.Module, loss: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Gradients summed over the processes, in place; the sum of their losses."""
    if accelerator.num_processes == 1:
        return loss
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    flat = [
        torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
        for parameter in parameters
    ]
    reached = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    whole = torch.cat([part.float() for part in (*flat, reached.to(flat[0].device), loss[None].to(flat[0].device))])
    *gradients, reached, loss = accelerator.reduce(whole, "sum").split([*map(len, flat), len(flat), 1])
    for parameter, gradient, anywhere in zip(parameters, gradients, reached.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if anywhere else None
    return loss[0].cpu()


def _evaluated(
    progress: Progress, curriculum: Curriculum, step: int, began: float, *, at_limit: bool = False
) -> Progress:
    """The progress with one more evaluation; without validation tasks the newest weights are the best.

    One at the limit of time is marked, and is not yet the best: the run may go on.

    Raises:
        ConfigError: the validation loss is NaN or infinite.
    """
    found = curriculum.evaluate()
    entry: dict[str, Any] = {"step": step, "seconds": time.perf_counter() - began}
    if found is None:
        entry |= {"loss": -float(step)}
    elif not math.isfinite(found.loss):
        mend = "lower learning_rate, or leave the validation task out" if step else "leave the validation task out"
        raise ConfigError(f"the validation loss is {found.loss} behind step {step}; the last checkpoint stands: {mend}")
    else:
        entry |= found._asdict()
        log.info("step %s: validation loss %.4f, accuracy %.4f", step, found.loss, found.accuracy)
    if at_limit:
        entry["at_limit"] = True
    better = not at_limit and entry["loss"] < progress.best
    return dataclasses.replace(
        progress,
        best=entry["loss"] if better else progress.best,
        best_step=step if better else progress.best_step,
        history=(*progress.history, entry),
    )


def _loss(module: torch.nn.Module, curriculum: Curriculum, episode: Any, step: int) -> torch.Tensor:
    try:
        loss = module(episode)
        problem = None if torch.isfinite(loss) else f"the loss is {float(loss)}"
    except torch.linalg.LinAlgError as error:
        problem = f"a covariance can't be factored ({str(error).splitlines()[0]})"
    if problem:
        raise ConfigError(
            f"{problem} in step {step}, on {curriculum.describe(episode)}; the last checkpoint stands: lower "
            "learning_rate, or leave the task out"
        )
    return loss


def _check(loss: float, step: int) -> None:
    """Raise ConfigError where one of the captured steps before this one ended in no number."""
    if not math.isfinite(loss):
        raise ConfigError(
            f"the loss is {loss} in step {step}, or one of the {CHECKED} before it; the last checkpoint stands: lower "
            "learning_rate"
        )


def _check_weights(learned: torch.nn.Module, step: int) -> None:
    """Raise ConfigError where a gradient that is no number reached the weights, though the loss was one."""
    if not torch.stack([parameter.isfinite().all() for parameter in learned.parameters()]).all():
        raise ConfigError(
            f"a weight is NaN or infinite behind step {step}; the last checkpoint stands: lower learning_rate"
        )


def _pull(module: torch.nn.Module, initial: dict[str, torch.Tensor], strength: float) -> None:
    """Weight decay towards the initial value, as a part of the gradient."""
    if strength:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                parameter.grad += strength * (parameter.detach() - initial[name].to(parameter))


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
