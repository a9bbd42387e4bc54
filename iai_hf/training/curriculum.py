"""Curriculum: what a run trains on. The loop knows nothing of features or texts; a curriculum does."""

from __future__ import annotations

import glob
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from iai_hf.errors import DataError
from iai_hf.training.config import TrainingConfig

if TYPE_CHECKING:
    from iai_hf.amortizer import Amortizer

TRAIN_FILE = "train.jsonl"
FEWEST_EXAMPLES = 12  # a task with fewer can't be split into a stream and queries


@dataclass(frozen=True)
class Sources:
    """Where the tasks of a run come from, and where it computes.

    Attributes:
        data_dir: what `{data}` in a pattern of files stands for.
        cache_dir: of features.
        device: of the backbone; None for the best there is.
        family: makes a family of tables of numbers by its name, where there are any.
    """

    data_dir: Path
    cache_dir: Path
    device: torch.device | None = None
    family: Callable[[str], Any] | None = None


class Evaluation(NamedTuple):
    """On the validation tasks: loss in units that are alike for all tasks, and share of right answers."""

    loss: float
    accuracy: float


class Curriculum(ABC):
    """Episodes, their loss, and the validation tasks.

    Attributes:
        learned: what is learned: its weights are kept in checkpoints, and the best of them at the end.
        objective: `objective(episode)` is the loss to go down; its parameters are among those of `learned`.
        capturable: the objective launches the same work on every episode of the same shapes, and waits for none of it.
    """

    learned: nn.Module
    objective: nn.Module
    capturable: bool = False

    def begin(self) -> None:
        """Before the first step: learn what can be had in closed form; by default nothing."""
        return

    def stepped(self, step: int) -> None:
        """After each step of the optimiser; by default nothing."""
        return

    def save(self, amortizer: Amortizer, output: Path) -> None:
        """Write what was learned; by default the amortizer, whose weights it is."""
        amortizer.save_pretrained(output)

    @abstractmethod
    def draw(self, number: int, device: torch.device) -> Any:
        """Episode `number` of the run, which follows from the seed and its number alone."""

    @abstractmethod
    def describe(self, episode: Any) -> str:
        """Where an episode comes from, for a message."""

    @abstractmethod
    def evaluate(self) -> Evaluation | None:
        """The validation tasks as they stand; None where there are none."""


class Named(Protocol):
    @property
    def name(self) -> str:
        """Of its folder or file."""

    def __len__(self) -> int: ...


Task = TypeVar("Task", bound=Named)


def split(tasks: Sequence[Task], config: TrainingConfig) -> tuple[list[Task], list[Task]]:
    """Tasks to train on, and those that choose the weights.

    Raises:
        DataError: a validation task is unknown, or no task is left to train on.
    """
    unknown = sorted(set(config.validation) - {task.name for task in tasks})
    if unknown:
        raise DataError(f"no task is called {', '.join(unknown)}; the tasks are {', '.join(t.name for t in tasks)}")
    usable = [task for task in tasks if len(task) >= FEWEST_EXAMPLES]
    training = [task for task in usable if task.name not in config.validation]
    if not training:
        raise DataError(f"no task is left to train on; expected one with at least {FEWEST_EXAMPLES} examples")
    return training, [task for task in tasks if task.name in config.validation]


def task_files(patterns: Sequence[str], data_dir: str | Path) -> list[Path]:
    """Files that the patterns name, each once; a folder stands for its train.jsonl.

    Raises:
        DataError: a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        full = pattern.replace("{data}", str(data_dir))
        matches = [Path(path) for path in sorted(glob.glob(full))]
        files = [path / TRAIN_FILE if path.is_dir() else path for path in matches]
        files = [path for path in files if path.is_file()]
        if not files:
            raise DataError(f"no task at {full}; expected a folder with {TRAIN_FILE}, or a file")
        found.update(dict.fromkeys(files))
    return list(found)


def task_name(path: Path) -> str:
    """`sst2` of `sst2/train.jsonl`, `reuters` of `reuters.jsonl`."""
    return path.parent.name if path.name == TRAIN_FILE else path.stem
