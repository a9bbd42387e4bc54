"""Processes that work together, started by torchrun or `accelerate launch`, each on a device of its own."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iai_hf.errors import BackboneError, DataError

if TYPE_CHECKING:
    import torch


def several() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this process was started alone or as the first of several: the one that speaks and writes."""
    return not several() or os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Group:
    """The processes that work together, as one of them sees them; by default it is on its own.

    Attributes:
        index, count: this one's number, and how many they are.
        device: this one's.
    """

    index: int = 0
    count: int = 1
    device: str = "cpu"

    @classmethod
    def joined(cls) -> Group:
        """The group of all that were started together, once all have come: over NCCL on GPUs, over gloo elsewhere.

        Raises:
            BackboneError: there are fewer GPUs than processes, or they don't come together.
        """
        import torch
        from accelerate import PartialState

        gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if 0 < gpus < here:
            raise BackboneError(
                f"{here} processes were started for {gpus} GPU(s), expected one for each: start {gpus}, or set "
                "CUDA_VISIBLE_DEVICES= to compute on the CPU"
            )
        state = PartialState(cpu=not gpus)
        if state.num_processes == 1 and several():
            raise BackboneError(
                "the processes that were started together are not connected, as Accelerator or PartialState was made "
                "without them before; on a CPU make it with cpu=True"
            )
        return cls(state.process_index, state.num_processes, str(state.device))

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors of one shape, where the given one is.

        Raises:
            BackboneError: another process ended.
        """
        from torch.distributed import ReduceOp

        return self._reduced(tensor, ReduceOp.SUM)

    def agree(self, *contents: str) -> None:
        """Go on once all processes are here with the same contents.

        Raises:
            DataError: some have others. All processes raise it.
            BackboneError: another process ended.
        """
        if self.count == 1:
            return
        import torch
        from torch.distributed import ReduceOp

        digest = hashlib.sha256()
        for content in contents:
            part = content.encode("utf-8", "surrogatepass")
            digest.update(len(part).to_bytes(8, "little") + part)
        number = int.from_bytes(digest.digest()[:7], "little")
        most, least = self._reduced(torch.tensor([number, -number]), ReduceOp.MAX).tolist()
        if most != -least:
            raise DataError(
                f"{self.count} processes work together, but do not read the same texts at the same time; what was "
                "saved last stands: give all of them the same data, in the same order (a list that is sorted, one "
                "seed of shuffling), or merge states of parts of it",
                options=("shuffle_seed",),
            )

    def _reduced(self, tensor: torch.Tensor, how: object) -> torch.Tensor:
        if self.count == 1:
            return tensor
        from torch.distributed import all_reduce

        found = tensor.to(self.device, copy=True)
        try:
            all_reduce(found, how)
        except RuntimeError as error:
            raise BackboneError(
                f"another of the {self.count} processes ended ({str(error).splitlines()[0][:200]}); see what it said, "
                "and start all of them again"
            ) from error
        return found.to(tensor.device)
