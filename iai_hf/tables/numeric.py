"""Amortizers for tables of numbers: a solver (`solvers/`) under the contract. A subclass makes its solver."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from typing_extensions import TypeVar

from iai_hf.backbones import load_backbone
from iai_hf.backbones.numeric import NumericBackbone
from iai_hf.config import ABSENT, APART, read_config, require
from iai_hf.errors import ConfigError, DataError
from iai_hf.learned import Learned
from iai_hf.tables.solvers.network import NetworkSizes
from iai_hf.tables.solvers.predictor import Predictor
from iai_hf.tables.solvers.solver import Batch, Solver
from iai_hf.task import Chunk, Prediction, TaskSpec, Tensors
from iai_hf.threads import alone

if TYPE_CHECKING:
    import torch

    from iai_hf.training.config import TrainingConfig
    from iai_hf.training.curriculum import Curriculum, Sources


@dataclass(frozen=True)
class NumericConfig:
    """Settings of every amortizer on numbers.

    Attributes:
        kind: of the tasks that weights are learned for; without weights any kind will do.
        width: fixed random features of the predictor; 0 for a linear one.
        inputs, outputs: sizes that a network is made for; 0 for no network, which reads any table.
        hidden, layers: of the network.
        seed: of a network's first weights.
        horizon: steps that the network is trained for; it may go on for any number.
        counting: the network is told the size of a chunk too, and sees inputs through the predictor's features.
        standardise: bring the inputs, and the target of a regression, to the scale of the first chunk.
        weights: folder of learned weights; None for the solver at its initial value.
    """

    kind: str = "regression"
    width: int = 0
    inputs: int = 0
    outputs: int = 0
    hidden: int = 64
    layers: int = 2
    seed: int = 0
    horizon: int = 10
    counting: bool = field(default=False, metadata={ABSENT: False})
    standardise: bool = True
    weights: str | None = field(default=None, metadata=APART)

    def __post_init__(self) -> None:
        known = ("regression", "classification")
        require(self.kind in known, f"kind is {self.kind!r}; expected {' or '.join(known)}")
        for name in ("width", "inputs", "outputs"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; expected 0 or more")
        require(bool(self.inputs) == bool(self.outputs), "give both of inputs and outputs, or none of them")
        for name in ("layers", "horizon"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; expected 1 or more")
        require(self.hidden > 0 and self.hidden % 8 == 0, f"hidden is {self.hidden}; expected a multiple of 8, e.g. 64")


Config = TypeVar("Config", bound=NumericConfig, default=Any)


class _Prepared(NamedTuple):
    solver: Solver
    tensors: Tensors
    shift: torch.Tensor  # [inputs + 1]: of the inputs, then of the target
    scale: torch.Tensor


class Numeric(Learned[Config]):
    """Base class.

    Attributes:
        greedy: trained with the gradient stopped between steps.
    """

    kinds = ("classification", "regression")
    reads = "numbers"
    default_backbone = "numeric/llama"
    greedy: ClassVar[bool] = True

    @abstractmethod
    def make_solver(self, predictor: Predictor, sizes: NetworkSizes | None) -> Solver:
        """The solver at its initial value; `sizes` None for one without a network."""

    def make_module(self) -> Solver:
        """The solver of the configuration's kind."""
        return self._made(self.config.kind)

    @property
    def solver(self) -> Solver:
        """What is learned."""
        return cast("Solver", self.module)

    @classmethod
    def curriculum(cls, config: TrainingConfig, sources: Sources) -> tuple[Numeric, Curriculum]:
        """`tasks` names one family, whose sizes are the network's."""
        from iai_hf.tables.training import TableCurriculum

        if sources.family is None or len(config.tasks) != 1:
            raise ConfigError(f"tasks is {config.tasks}; on numbers expected one family")
        tasks = sources.family(config.tasks[0])
        settings = {
            "kind": "classification" if tasks.classification else "regression",
            "width": tasks.width,
            "inputs": tasks.inputs,
            "outputs": tasks.outputs,
            "horizon": config.most_steps,
            **config.settings,
            "weights": None,
        }
        amortizer = cls(load_backbone(config.backbone), read_config(cls.config_class, settings))
        return amortizer, TableCurriculum(amortizer, tasks, config)

    def initial(self, task: TaskSpec) -> Mapping[str, torch.Tensor]:
        """The solver's, and no scale yet."""
        import torch

        if not task.columns:
            raise DataError(
                f"{self.method!r} reads numbers, and the task names no numeric columns; say which is the target, or "
                "TaskSpec(kind, columns=(...))",
                options=("target",),
            )
        inputs = len(task.columns)
        if self.config.inputs not in (0, inputs):
            raise DataError(
                f"the weights read {self.config.inputs} numbers an example, the table has {inputs}: "
                f"{', '.join(task.columns[:5])}, ...; choose the columns, or leave weights and inputs out"
            )
        tensors = self._solver(task).initial(1, inputs, self._outputs(task))
        zero, one = torch.zeros(inputs + 1, dtype=torch.float32), torch.ones(inputs + 1, dtype=torch.float32)
        return {name: tensor[0] for name, tensor in tensors.items()} | {"scaling.shift": zero, "scaling.scale": one}

    def refine(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        """One step of the solver."""
        import torch

        x = self._rows(chunk.inputs, task)
        target = (
            torch.tensor([[_number(text, i)] for i, text in enumerate(chunk.outputs)], dtype=torch.float32)
            if _valued(task)
            else None
        )
        shift, scale = tensors["scaling.shift"], tensors["scaling.scale"]
        if examples == 0 and self.config.standardise:
            every = torch.cat([x, torch.zeros(len(x), 1, dtype=torch.float32) if target is None else target], 1)
            shift, scale = every.mean(0), every.std(0, correction=0)
            scale = torch.where(scale > 1e-6 * every.abs().amax(0), scale, 1.0)
            if target is None:
                scale[-1] = 1.0
        x = (x - shift[:-1]) / scale[:-1]
        outputs = self._outputs(task)
        if target is None:
            classes = torch.tensor([task.labels.index(label) for label in chunk.outputs])
            y = torch.nn.functional.one_hot(classes, outputs).float()
        else:
            y = (target - shift[-1]) / scale[-1]
        solver = self._solver(task)
        inner = solver.grow(_inner(tensors), outputs)
        refined = solver.refine(inner, Batch(x[None].float(), y[None].float()))
        found = {name: tensor[0].contiguous() for name, tensor in refined.items()}
        return found | {"scaling.shift": shift.float(), "scaling.scale": scale.float()}, {}

    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Any:
        """The tensors with a dimension of tasks."""
        solver = self._solver(task)
        inner = solver.grow(_inner(tensors), self._outputs(task))
        return _Prepared(solver, inner, tensors["scaling.shift"], tensors["scaling.scale"])

    def answer(self, prepared: Any, task: TaskSpec, queries: Sequence[Any]) -> Prediction:
        """Classes, or values in the target's own units."""
        import torch

        made = cast("_Prepared", prepared)
        x = (self._rows(queries, task) - made.shift[:-1]) / made.scale[:-1]
        with torch.no_grad():
            found = made.solver.answer(made.tensors, x[None].float())[0]
        if not _valued(task):
            return Prediction.from_logits(found[:, : len(task.labels)], task.labels)
        values = found[:, 0] * made.scale[-1] + made.shift[-1]
        return Prediction(tuple(f"{value:.7g}" for value in values.tolist()), values=values)

    def _rows(self, rows: Sequence[Any], task: TaskSpec) -> torch.Tensor:
        """float64 `[rows, columns]`.

        Raises:
            DataError: a row is no tuple of as many finite numbers as the task has columns.
        """
        import torch

        size = len(task.columns)
        for number, row in enumerate(rows):
            numeric = isinstance(row, (tuple, list)) and all(isinstance(value, (int, float)) for value in row)
            if not numeric or len(row) != size or not all(map(math.isfinite, row)):
                raise DataError(
                    f"row {number} is {str(row)[:60]!r}; expected {size} finite numbers: {', '.join(task.columns[:5])}"
                )
        return torch.tensor([list(row) for row in rows], dtype=torch.float64)

    def _outputs(self, task: TaskSpec) -> int:
        if _valued(task):
            return 1
        if self.config.outputs and len(task.labels) > self.config.outputs:
            raise DataError(
                f"the weights know {self.config.outputs} classes, the task has {len(task.labels)}: "
                f"{', '.join(task.labels[:5])}, ...; leave weights and outputs out for any number of them"
            )
        return self.config.outputs or len(task.labels)

    def _solver(self, task: TaskSpec) -> Solver:
        if task.kind == self.config.kind:
            return self.solver
        if self.config.weights is not None or self.config.inputs:
            raise DataError(f"the weights are for {self.config.kind}, the task is {task.kind}; leave weights out")
        return self._made(task.kind)  # at its initial value it has no numbers of its own

    def _made(self, kind: str) -> Solver:
        import torch

        assert isinstance(self.backbone, NumericBackbone)
        config = self.config
        sizes = None
        if config.inputs:
            sizes = NetworkSizes(
                self.backbone,
                config.inputs,
                config.outputs,
                config.hidden,
                config.layers,
                config.horizon,
                config.counting,
            )
        learned = config.inputs if self.regime == "explicit" else 0
        with alone(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            predictor = Predictor(kind == "classification", config.width, learned)
            return self.make_solver(predictor, sizes).requires_grad_(False).eval()


def _inner(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor[None] for name, tensor in tensors.items() if not name.startswith("scaling.")}


def _valued(task: TaskSpec) -> bool:
    return task.kind == "regression"


def _number(text: str, place: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"example {place} of a chunk has the target {text[:40]!r}; expected a finite number")
    return value
