"""CachedBackbone: a backbone whose features are kept on disk, so that a text is read by the model once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.backbones.backbone import Backbone, Features
from iai_hf.backbones.low_rank import LowRank
from iai_hf.backbones.reading import Reading
from iai_hf.errors import BackboneError, DataError
from iai_hf.files import write_whole
from iai_hf.threads import one_at_a_time

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from iai_hf.backbones.sentence_transformers import Pipeline


class CachedBackbone(Backbone):
    """`features` as `backbone` gives them, to float16; texts that were seen before come from memory-mapped files.

    The folder holds safetensors shards, one a call that brought new texts, under a name made of the backbone's
    fingerprint and `max_tokens`: features of another backbone are never mixed in.

    Args:
        backbone: gives the features of texts that are not cached yet.
        folder: where the shards are; made if need be.
    """

    def __init__(self, backbone: Backbone, folder: str | Path) -> None:
        parts = (backbone.tokenizer, backbone.model, backbone.pipeline, backbone.source)
        super().__init__(backbone.name, backbone.revision, *parts)
        self.backbone, self.folder, self.lock = backbone, Path(folder), backbone.lock  # the model is the same
        self.meter = backbone.meter
        self._shards: dict[int | None, list[dict[str, torch.Tensor]]] = {}
        self._places: dict[int | None, dict[bytes, tuple[int, int]]] = {}

    @property
    def hidden_size(self) -> int:
        """Size of a feature vector."""
        return self.backbone.hidden_size

    @property
    def reading(self) -> dict[str, Any]:
        """As the backbone's."""
        return self.backbone.reading

    def digest(self) -> str:
        """The backbone's own: features are what it gives."""
        return self.backbone.fingerprint

    def has_fingerprint(self, fingerprint: str, *, earlier: bool) -> bool:
        """As the backbone's."""
        return self.backbone.has_fingerprint(fingerprint, earlier=earlier)

    def variant(
        self, fingerprint: str, *, model: PreTrainedModel | None = None, pipeline: Pipeline | None = None
    ) -> CachedBackbone:
        """As `Backbone.variant`, with a cache of its own in the same folder."""
        other = CachedBackbone(self.backbone.variant(fingerprint, model=model, pipeline=pipeline), self.folder)
        other._plain = self.plain
        return other

    @property
    def uncached(self) -> Backbone:
        return self.backbone

    def prefill_texts(self, texts: Sequence[str], max_tokens: int | None, first_layer: int) -> Reading:
        return self.backbone.prefill_texts(texts, max_tokens, first_layer)

    def read_ahead(self, texts: Sequence[str], max_tokens: int | None = None) -> None:
        """Nothing: which of the texts the model has to read is known when they are asked for."""

    @one_at_a_time
    def features(
        self,
        texts: Sequence[str],
        max_tokens: int | None = None,
        weights: Sequence[LowRank] = (),
        adapter_indices: Sequence[int] | None = None,
    ) -> Features:
        """As `Backbone.features`; `tokens` counts those that the model had to read now. Under weights none is kept.

        Raises:
            BackboneError: a shard is damaged or of another size; the message names it.
        """
        import torch

        if weights:
            return self.backbone.features(texts, max_tokens, weights, adapter_indices)
        if isinstance(texts, Reading):
            max_tokens = texts.max_tokens
        places = self._open(max_tokens)
        keys = [_key(text) for text in texts]
        unknown = {key: text for key, text in zip(keys, texts, strict=True) if key not in places}
        tokens = self._add(unknown, max_tokens) if unknown else 0
        vectors = torch.empty(len(texts), self.hidden_size, dtype=torch.float32)
        cut = 0
        for row, key in enumerate(keys):
            shard, place = places[key]
            content = self._shards[max_tokens][shard]
            vectors[row] = content["vectors"][place]
            cut += int(content["cut"][place])
        return Features(vectors, tokens, cut)

    def _directory(self, max_tokens: int | None) -> Path:
        return self.folder / f"{self.fingerprint}-{max_tokens or 'all'}"

    def _open(self, max_tokens: int | None) -> dict[bytes, tuple[int, int]]:
        if max_tokens not in self._places:
            self._places[max_tokens], self._shards[max_tokens] = {}, []
            for path in sorted(self._directory(max_tokens).glob("*.safetensors")):
                self._map(path, max_tokens)
        return self._places[max_tokens]

    def _map(self, path: Path, max_tokens: int | None) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            shard = load_file(path)  # memory-mapped: rows are read from disk when they are asked for
            keys = shard["keys"].numpy()
            shapes = (tuple(shard["vectors"].shape), tuple(shard["cut"].shape))
        except (SafetensorError, OSError, KeyError) as error:
            raise BackboneError(f"{path} is no readable feature cache ({error}); delete it, it is made anew") from error
        if shapes != ((len(keys), self.hidden_size), (len(keys),)):
            raise BackboneError(
                f"{path} has shapes {shapes}, expected features of size {self.hidden_size}; delete it, it is made anew"
            )
        number = len(self._shards[max_tokens])
        self._shards[max_tokens].append(shard)
        self._places[max_tokens].update({key.tobytes(): (number, row) for row, key in enumerate(keys)})

    def _add(self, unknown: dict[bytes, str], max_tokens: int | None) -> int:
        import torch
        from safetensors.torch import save

        found = self.backbone.features(list(unknown.values()), max_tokens)
        cut = torch.zeros(len(unknown), dtype=torch.uint8)
        if found.cut:
            lengths = [len(ids) for ids in self.texts.ids(list(unknown.values()))]
            cut = torch.tensor([length > (max_tokens or length) for length in lengths], dtype=torch.uint8)
        keys = torch.frombuffer(bytearray(b"".join(unknown)), dtype=torch.uint8).reshape(len(unknown), -1)
        content = save({"vectors": found.vectors.half(), "cut": cut, "keys": keys})
        path = self._directory(max_tokens) / f"{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except OSError as error:
            raise DataError(f"can't write features to {path.parent}: {error.strerror or error}; free space") from error
        self._map(path, max_tokens)
        return found.tokens


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
