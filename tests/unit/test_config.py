"""Settings: what is written is read by the type of its setting; numbers are of any library and in range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
import pytest

from iai_hf import AutoAmortizer
from iai_hf.backbones import Backbone
from iai_hf.backbones.conditions import Sampling
from iai_hf.config import Written, read_config, whole_number
from iai_hf.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    count: int = 1
    limit: int | None = 1
    rate: float = 0.5
    switch: bool = False
    name: str = "a"
    source: str | None = "auto"
    parts: list[str] = field(default_factory=list)
    sizes: list[int] | None = None
    signal: Literal["data", "both"] = "both"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "5", 5),
        ("count", "1e3", 1000),
        ("count", "8.0", 8),
        ("count", " 5 ", 5),
        ("limit", "none", None),
        ("limit", "None", None),
        ("limit", "null", None),
        ("limit", "7", 7),
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("switch", "true", True),
        ("switch", "True", True),
        ("switch", "no", False),
        ("name", "none", "none"),
        ("name", "5", "5"),
        ("name", "true", "true"),
        ("name", '"Text: "', "Text: "),
        ("source", "none", None),
        ("source", "12", "12"),
        ("parts", "a,b", ["a", "b"]),
        ("parts", '["a"]', ["a"]),
        ("sizes", "[4, 128]", [4, 128]),
        ("sizes", "none", None),
        ("signal", "data", "data"),
    ],
)
def test_what_is_written_is_read_as_a_person_means_it(key: str, text: str, value: object) -> None:
    found = getattr(read_config(Settings, {key: Written(text)}), key)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "text"),
    [("count", "none"), ("count", "2.5"), ("count", "x"), ("rate", "nan"), ("rate", "inf"), ("switch", "maybe")],
)
def test_what_does_not_fit_is_told_as_it_was_written(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is"):
        read_config(Settings, {key: Written(text)})


def test_numbers_of_numpy_are_numbers() -> None:
    found = read_config(Settings, {"count": numpy.int64(3), "rate": numpy.float32(0.5), "switch": numpy.bool_(True)})
    assert (found.count, found.rate, found.switch) == (3, 0.5, True)
    assert type(found.count) is int
    assert whole_number("n", numpy.int32(4), at_least=1) == 4


@pytest.mark.parametrize(
    "given",
    [{"temperature": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 2}, {"seed": 0.5}],
    ids=str,
)
def test_what_nothing_can_be_drawn_with_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        Sampling(**given)


@pytest.mark.parametrize(
    "given",
    [{"chunk_size": 2.5}, {"chunk_size": -1}, {"max_examples": 0}, {"checkpointing_steps": 0}, {"shuffle_seed": -1}],
    ids=str,
)
def test_the_streaming_loop_checks_its_numbers(given: dict[str, Any], encoder: Backbone) -> None:
    rows = [{"input": "ball", "output": "a"}, {"input": "song", "output": "b"}]
    with pytest.raises(ConfigError, match=next(iter(given))):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder).adapt(rows, progress=False, **given)


def test_a_backbone_for_numbers_is_none_for_texts(encoder: Backbone) -> None:
    from iai_hf.errors import BackboneError

    with pytest.raises(BackboneError, match="reads texts"):
        AutoAmortizer.from_pretrained("iterative", backbone="numeric/llama")
    with pytest.raises(BackboneError, match="reads numbers"):
        AutoAmortizer.from_pretrained("numeric-parametric", backbone=encoder)
