"""TrainingConfig: all that a run of meta-training depends on, read from a JSON file with every key checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iai_hf.config import read_config, require
from iai_hf.errors import ConfigError


@dataclass(frozen=True)
class TrainingConfig:
    """One run.

    Attributes:
        method: registered name of an amortizer that has something to learn.
        backbone: Hub id or folder.
        tasks: folders with `train.jsonl`, files, or patterns of them; `{data}` stands for a folder of the run's.
        validation: names of the tasks among them that choose the weights and are never trained on.
        settings: of the method.
        learns: "head", all that the method has to learn; or "adapter", low-rank weights of the backbone for better
            features, on which the method's head stays as it is.
        adapter_rank: of an adapter's weights.
        moved_weight: of the penalty on how far an adapter moves features, mean 1 - cos.
        averaging: of the weights over steps, which are what is kept: 0.99 is about the last hundred; 0 takes the last.
        max_task_examples: read so many of a task, evenly spaced.
        train_steps, episodes_per_step: of the optimiser; episodes are spread over the processes.
        tasks_per_episode: on numbers: tasks that are read side by side; on features an episode is one task.
        side_by_side: on texts: tasks whose streams go on side by side, a step of all in one pass, as a GPU wants it;
            with 1 each is read as it is when the method is used.
        learning_rate: peak, with cosine decay; with `until_flat`, as nobody knows when the run ends, it rises in two
            hundred steps, and falls with their root from the thousandth on.
        warmup: share of the run in which the learning rate rises.
        until_flat: stop where the validation loss fell by less than this share over the last fifth of the steps (not
            before twenty evaluations); 0 takes all `train_steps`.
        staggered: on numbers: streams at different steps side by side, one step of each in a step of the optimiser,
            where the gradient stops between steps.
        unroll: updates that the gradient goes through before it is stopped.
        losses_per_episode: steps of a stream after which the loss is taken.
        queries: per loss.
        shortest, longest: stream lengths, drawn log-uniformly.
        chunk_sizes: drawn log-uniformly between the two.
        most_steps: chunks of a stream; where there would be more, they are made larger.
        hidden_names: share of episodes with label names that mean nothing.
        subset, merge, imbalance: on features: shares of episodes with a random subset of the classes, with classes
            merged into new ones, and with uneven class frequencies.
        permuted_names, swap: on texts: shares of episodes with labels permuted, and with inputs and outputs swapped.
        unrelated, unrelated_weight: on texts: files of other texts, on which a state should change nothing, and the
            weight of the divergence there.
        evaluate_every: steps between evaluations on the validation tasks, each also a checkpoint.
        regularisation: weight decay towards the initial value.
        seed: of everything.
    """

    method: str
    backbone: str
    tasks: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    learns: str = "head"
    adapter_rank: int = 10
    moved_weight: float = 0.25
    averaging: float = 0.0
    max_task_examples: int = 20000
    train_steps: int = 400
    episodes_per_step: int = 8
    tasks_per_episode: int = 16
    side_by_side: int = 1
    learning_rate: float = 0.02
    warmup: float = 0.0
    until_flat: float = 0.0
    staggered: bool = False
    unroll: int = 1
    losses_per_episode: int = 3
    queries: int = 128
    shortest: int = 4
    longest: int = 4096
    chunk_sizes: list[int] = field(default_factory=lambda: [4, 128])
    most_steps: int = 40
    subset: float = 0.6
    merge: float = 0.2
    imbalance: float = 0.3
    hidden_names: float = 0.1
    permuted_names: float = 0.0
    swap: float = 0.0
    unrelated: list[str] = field(default_factory=list)
    unrelated_weight: float = 0.0
    evaluate_every: int = 50
    regularisation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.tasks), "tasks is empty; expected folders with train.jsonl, or files")
        for name in (
            "train_steps",
            "episodes_per_step",
            "tasks_per_episode",
            "side_by_side",
            "unroll",
            "losses_per_episode",
            "queries",
            "most_steps",
            "evaluate_every",
            "adapter_rank",
        ):
            value = getattr(self, name)
            require(value > 0, f"{name} is {value}; expected 1 or more")
        require(0 < self.shortest <= self.longest, f"shortest is {self.shortest}; expected 1 to {self.longest}")
        sizes = self.chunk_sizes
        require(self.unrelated_weight >= 0, f"unrelated_weight is {self.unrelated_weight}; expected 0 or more")
        fits = len(sizes) == 2 and all(type(size) is int for size in sizes) and 0 < sizes[0] <= sizes[1]
        require(fits, f"chunk_sizes is {sizes}; expected [least, most]")
        require(self.learns in ("head", "adapter"), f"learns is {self.learns!r}; expected head or adapter")
        require(self.moved_weight >= 0, f"moved_weight is {self.moved_weight}; expected 0 or more")
        require(0 <= self.warmup < 1, f"warmup is {self.warmup}; expected 0 to below 1")
        require(0 <= self.until_flat < 1, f"until_flat is {self.until_flat}; expected 0 to below 1, e.g. 0.005")
        require(
            not self.staggered or self.episodes_per_step == 1,
            f"episodes_per_step is {self.episodes_per_step}; staggered expects 1, with more tasks_per_episode",
        )
        require(0 <= self.averaging < 1, f"averaging is {self.averaging}; expected 0 to below 1")
        for name in ("subset", "merge", "imbalance", "hidden_names", "permuted_names", "swap"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} is {value}; expected 0 to 1")


def read_training_config(path: str | Path) -> TrainingConfig:
    """A run's configuration from a JSON file.

    Raises:
        ConfigError: no such file, no JSON, an unknown key or a bad value; each is named.
    """
    try:
        values: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't read the configuration {path}: {error}; expected a JSON object") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a JSON {type(values).__name__}; expected an object")
    missing = [key for key in ("method", "backbone", "tasks") if key not in values]
    if missing:
        raise ConfigError(f"{path} has no {', '.join(missing)}; expected at least method, backbone and tasks")
    return read_config(TrainingConfig, values)
