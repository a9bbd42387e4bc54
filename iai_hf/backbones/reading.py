"""Reading: texts as the windows of tokens that a backbone reads, perhaps with what enters one of its layers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

from iai_hf.backbones import partial_pass
from iai_hf.backbones.batching import padded, text_windows
from iai_hf.backbones.tokenizing import shared_length
from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.sentence_transformers import Pipeline
    from iai_hf.processes import Group

MOST_KEPT = 8  # readings that wait for their use


class _Reader(Protocol):
    """What is asked of a backbone here."""

    name: str
    device: torch.device
    pipeline: Pipeline
    group: Group

    @property
    def base(self) -> torch.nn.Module: ...
    @property
    def window(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def feature_prompt(self) -> tuple[int, ...]: ...
    @property
    def special_tokens(self) -> tuple[list[int], list[int]]: ...
    def read(self, texts: Sequence[str]) -> list[list[int]]: ...
    def groups(self, reading: Reading) -> list[list[int]]: ...


class Entrance(NamedTuple):
    """Where a pass begins that goes on from hidden states.

    Attributes:
        layers: of the model.
        first: number of the first one that is read.
        hands_on: what those before it do (`partial_pass.HANDING_ON`).
    """

    layers: torch.nn.ModuleList
    first: int
    hands_on: Callable[..., Any]


class Batch(NamedTuple):
    """Windows that are read together: their numbers, padded ids int64 `[windows, longest]`, and their mask or None."""

    windows: list[int]
    ids: torch.Tensor
    mask: torch.Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on another device."""
        return Batch(self.windows, self.ids.to(device), None if self.mask is None else self.mask.to(device))


@dataclass(frozen=True, eq=False)
class Reading(Sequence[str]):
    """Texts, and how they are read; those that were read up to a layer are read on from there.

    Attributes:
        texts: as they are.
        max_tokens: read only so many tokens of each.
        windows: token ids, special ones included.
        owners: of each window the number of its text.
        before: tokens of a window before its text.
        cut: which texts have more than `max_tokens` tokens.
        lengths: tokens that are read of each text, without special ones.
        entrance: where passes begin; None where they are read from the first layer on.
        hidden: what enters there of each window, `[tokens, width]`.
        made: this process's batches, where they were made ahead.
    """

    texts: Sequence[str]
    max_tokens: int | None
    windows: Sequence[list[int]]
    owners: Sequence[int]
    before: int
    cut: Sequence[bool]
    lengths: Sequence[int]
    entrance: Entrance | None = None
    hidden: Sequence[torch.Tensor] = ()
    made: Sequence[Batch] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.texts[index]

    def rows(self, numbers: Sequence[int]) -> Reading:
        """Of these texts, in this order."""
        at = [(row, place) for row, number in enumerate(numbers) for place in self._places[number]]
        return replace(
            self,
            texts=[self.texts[number] for number in numbers],
            windows=[self.windows[place] for _, place in at],
            owners=[row for row, _ in at],
            cut=[self.cut[number] for number in numbers],
            lengths=[self.lengths[number] for number in numbers],
            hidden=[self.hidden[place] for _, place in at] if self.hidden else (),
            made=(),
        )

    @property
    def _places(self) -> list[list[int]]:
        """Of each text the numbers of its windows."""
        places: list[list[int]] = [[] for _ in self.texts]
        for place, owner in enumerate(self.owners):
            places[owner].append(place)
        return places

    @property
    def tokens(self) -> int:
        """In all windows."""
        return sum(map(len, self.windows))

    @property
    def tokens_of_each(self) -> torch.Tensor:
        """In each text's windows, float32 `[texts]`."""
        import torch

        lengths = torch.tensor([len(window) for window in self.windows], dtype=torch.float32)
        owners = torch.tensor(self.owners, dtype=torch.long)
        return torch.zeros(len(self), dtype=torch.float32).index_add_(0, owners, lengths)

    def batches(self, backbone: _Reader) -> Iterable[Batch]:
        """What this process passes through the model, of all processes that read together."""
        import torch

        groups = backbone.groups(self)[backbone.group.index :: backbone.group.count]
        cpu = torch.device("cpu")
        return self.made or (
            Batch(group, *padded([self.windows[i] for i in group], backbone.pad_id, cpu)) for group in groups
        )

    def ready(self, backbone: _Reader) -> Reading:
        """The same with its batches made, so that only the model's passes are left."""
        return replace(self, made=list(self.batches(backbone)))

    def prefilled(self, backbone: _Reader, entrance: Entrance) -> Reading:
        """The same, read up to an entrance; one pass, no gradient."""
        import torch

        hidden = [torch.empty(0, dtype=torch.float32)] * len(self.windows)
        with torch.no_grad():
            for group in backbone.groups(self):
                batch, mask = padded([self.windows[i] for i in group], backbone.pad_id, backbone.device)
                with told(backbone.name, batch):
                    found = partial_pass.entrance(backbone.base, entrance.layers[entrance.first], batch, mask)
                for row, place in enumerate(group):
                    hidden[place] = found[row, : len(self.windows[place])]
        return replace(self, entrance=entrance, hidden=hidden)

    def entered(self, group: Sequence[int]) -> AbstractContextManager[None]:
        """A pass through some windows, padded to the longest, goes on from where they were read up to."""
        from torch.nn.utils.rnn import pad_sequence

        if self.entrance is None:
            return nullcontext()
        layers, first, hands_on = self.entrance
        hidden = pad_sequence([self.hidden[i] for i in group], batch_first=True)
        return partial_pass.entered(layers, first, hidden, hands_on)

    @classmethod
    def of(cls, backbone: _Reader, texts: Sequence[str], max_tokens: int | None) -> Reading:
        """Texts of any length: longer ones than the context are cut into windows.

        Raises:
            BackboneError: the backbone's prompt leaves no room for a text.
        """
        prompt = backbone.pipeline.prompt
        ids = backbone.read([prompt + text for text in texts])
        before = len(backbone.feature_prompt)
        if prompt:
            # Behind it a text may begin with another token than alone, so they are read as one and then told apart.
            asked = backbone.read([prompt])[0]
            before = len(asked)
            shared = [shared_length(asked, text) for text in ids]
            prompts = [text[:length] for text, length in zip(ids, shared, strict=True)]
            ids = [text[length:] for text, length in zip(ids, shared, strict=True)]
        else:
            prompts = [list(backbone.feature_prompt)] * len(ids)
        cut = [max_tokens is not None and len(text) > max_tokens for text in ids]
        ids = [text[:max_tokens] for text in ids]
        start, end = backbone.special_tokens
        longest = backbone.window - max(map(len, prompts), default=0) - len(start) - len(end)
        if longest < 1:
            raise BackboneError(f"{backbone.name} has no room for a text behind its prompt of {len(prompts[0])} tokens")
        owners, windows = text_windows(ids, [[*start, *ahead] for ahead in prompts], end, backbone.window)
        windows = [window or [backbone.pad_id] for window in windows]
        return cls(texts, max_tokens, windows, owners, len(start) + before, cut, [len(text) for text in ids])


class KeptReadings:
    """Readings that were made ahead of their use; each is used once, and those that nobody asks for go.

    Any number of threads may put and take. A copy, in this process or another, keeps none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Hashable, Reading] = {}

    def put(self, key: Hashable, reading: Reading) -> None:
        """Keep a reading until it is taken, in the place of the oldest where there are too many."""
        with self._lock:
            self._made[key] = reading
            while len(self._made) > MOST_KEPT:
                self._made.pop(next(iter(self._made)))

    def take(self, key: Hashable) -> Reading | None:
        """The one that was kept under a key, which is gone then; None where there is none."""
        with self._lock:
            return self._made.pop(key, None)

    def __len__(self) -> int:
        return len(self._made)

    def __reduce__(self) -> tuple[type[KeptReadings], tuple[()]]:
        return KeptReadings, ()


@dataclass
class Meter:
    """How many tokens were read for features so far, by a backbone and all its variants."""

    tokens: int = 0


def entrances(base: torch.nn.Module, depth: int, first: int) -> list[Entrance]:
    """What may be an entrance at a layer of `depth` ones; of a model whose layers another library calls, none."""
    try:
        layers = partial_pass.layers_of(base, depth)
    except LookupError:
        return []
    if any("forward" in vars(part) for part in layers.modules()):  # accelerate has placed them
        return []
    return [Entrance(layers, first, hands_on) for hands_on in partial_pass.HANDING_ON]


@contextmanager
def told(name: str, batch: torch.Tensor) -> Iterator[None]:
    """What a backbone can't do with a batch of tokens is told.

    Raises:
        BackboneError: it can't read so many.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BackboneError(
            f"{name} can't read {batch.shape[1]} tokens ({reason}); choose another backbone, or max_tokens"
        ) from error
