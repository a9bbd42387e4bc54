"""Data sets of several labels a text: Debian's tags of programs, and texts that stand in two tasks at once."""

from __future__ import annotations

import random
import subprocess
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from iai_hf.data import open_stream
from iai_hf.errors import DataError

Example = tuple[str, tuple[str, ...]]
TAGGED = {  # facets of Debian's tags, see https://debtags.debian.org
    "debtags_use": ("use",),
    "debtags_works_with": ("works-with",),
    "debtags_interface": ("interface", "uitoolkit", "implemented-in"),
    "debtags_subject": ("field", "admin", "network", "hardware", "protocol", "security", "game"),
}
JOINED = {
    "hwu64": ("hwu64_intent", "hwu64_scenario"),
    "meld": ("meld_emotion", "meld_sentiment"),
    "goemotions": ("goemotions", "goemotions_ekman"),
    "airline": ("airline_complaint", "airline_sentiment"),
}
LEAST = 40  # programs that a tag must be of
LARGEST_TEST = 1500


class LabelSets(NamedTuple):
    """Texts with the labels that apply to each, ascending."""

    train: list[Example]
    test: list[Example]

    @property
    def labels(self) -> tuple[str, ...]:
        """All that occur."""
        return tuple(sorted({label for part in self for _, several in part for label in several}))


def load(name: str, data_dir: Path) -> LabelSets:
    """A data set by name, in an order of its own that is always the same.

    Raises:
        DataError: it is not known, or its source is not there.
    """
    if name in TAGGED:
        rows = _programs(TAGGED[name])
    elif name in JOINED:
        rows = _joined([data_dir / task for task in JOINED[name]])
    else:
        raise DataError(f"{name!r} is not known; expected {', '.join((*TAGGED, *JOINED))}")
    random.Random(0).shuffle(rows)
    test = min(LARGEST_TEST, len(rows) // 4)
    return LabelSets(rows[test:], rows[:test])


def _programs(facets: Collection[str]) -> list[Example]:
    """Short descriptions of Debian's programs and their tags of some facets, often none."""
    tags: dict[str, set[str]] = {}
    for package in _packages():
        found = {tag.strip() for tag in package.get("Tag", "").split(",")}
        if "role::program" in found and (text := package.get("Description", "")):
            tags.setdefault(text, set()).update(found)
    wanted = (tag for several in tags.values() for tag in several if tag.partition("::")[0] in facets)
    counts = Counter(tag for tag in wanted if not tag.endswith("TODO"))
    names = {tag: tag.partition("::")[2].replace(":", " ") for tag, count in counts.items() if count >= LEAST}
    return [(text, tuple(sorted({names[tag] for tag in several if tag in names}))) for text, several in tags.items()]


def _packages() -> list[dict[str, str]]:
    """Fields of each package in the index that apt has."""
    try:
        listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"there is no package index of Debian here ({error}); apt-get update makes one") from error
    found = []
    for paragraph in listed.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.split("\n"):
            if line.startswith((" ", "\t")) and name:
                fields[name] += " " + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        found.append(fields)
    return found


def _joined(tasks: Sequence[Path]) -> list[Example]:
    """Texts that stand in all of the tasks, with the label of each."""
    each = []
    for task in tasks:
        labels: dict[str, set[str]] = defaultdict(set)
        for part in ("train", "test"):
            for record in open_stream(task / f"{part}.jsonl").records():
                labels[record.input].add(record.output)
        each.append(labels)
    shared = sorted(set(each[0]).intersection(*each[1:]))
    return [(text, tuple(sorted(set().union(*(labels[text] for labels in each))))) for text in shared]
