"""README.md of a repository: the card is generated anew at every push, what a user wrote around it stays."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from iai_hf.errors import DataError

BEGIN = "<!-- iai_hf: written anew at every push; what stands outside is kept. {digest} -->"
END = "<!-- iai_hf: end -->"
GENERATED = re.compile(r"<!-- iai_hf: written anew .*? ([0-9a-f]{8}) -->\n(.*?)\n<!-- iai_hf: end -->\n*", re.DOTALL)
METADATA = re.compile(r"\A---[ \t]*\n(.*?\n)?---[ \t]*(?:\n+|\Z)", re.DOTALL)
OURS = ("base_model", "library_name", "pipeline_tag", "model-index")  # keys that a card writes, and no user
JOINED = ("tags", "datasets")


@dataclass(frozen=True)
class Readme:
    """A README.md in parts.

    Attributes:
        metadata: the YAML at its top.
        before, after: what stands around the generated part; all of it is before where there is none.
        generated: the generated part, None where there is none.
        edited: whether text or metadata of the user's were changed since the generated part was written.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    before: str = ""
    generated: str | None = None
    after: str = ""
    edited: bool = False

    @property
    def lines(self) -> list[str]:
        """Lines of the user's own text."""
        return [line.strip() for line in f"{self.before}\n{self.after}".splitlines() if line.strip()]


def read(text: str, where: str) -> Readme:
    """The parts of a README.md at `where`.

    Raises:
        DataError: its metadata are no YAML, or one of the comments around the generated part is missing.
    """
    import yaml

    text = text.replace("\r\n", "\n")
    found = METADATA.match(text)
    try:
        metadata = (yaml.safe_load(found[1] or "") or {}) if found else {}
        if not isinstance(metadata, dict):
            raise ValueError(f"a {type(metadata).__name__}, no mapping")
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the metadata at the top of {where} are no YAML ({reason}); mend or delete them") from error
    body = text[found.end() :] if found else text
    part = GENERATED.search(body)
    if part is None:
        if "<!-- iai_hf:" in body:
            raise DataError(
                f"{where} lacks one of the two comments around its generated part; delete the other one, too"
            )
        return Readme(metadata, body.strip("\n"), edited=bool(body.strip()))
    before, after = body[: part.start()].strip("\n"), body[part.end() :].strip("\n")
    return Readme(metadata, before, part[2], after, edited=part[1] != _digest(metadata, before, after))


def combined(card: str, here: str | None, there: str | None, place: str) -> str:
    """`card` with what a user wrote: into the README.md `here`, in `place`, since the last push, or into the Hub's.

    Raises:
        DataError: one of them can't be read, or the one on the Hub was edited there and the other lacks its text.
    """
    new = read(card, "the card")
    mine = _own(read(here or "", f"{place}/README.md"), new)
    theirs = _own(read(there or "", "README.md on the Hub"), new)
    lost = [line for line in theirs.lines if line not in mine.lines]
    if mine.edited and theirs.edited and lost:
        raise DataError(
            f"README.md was edited on the Hub ({lost[0][:60]!r}) and in {place}; take the Hub's text over into "
            f"{place}/README.md, or delete it on the Hub, then push again"
        )
    on_hub = not mine.edited and there is not None  # what stands here was pushed as it is, and may be older
    kept, other = (theirs, mine) if on_hub else (mine, theirs)
    metadata = new.metadata
    for old in (kept, other):
        users = {key: value for key, value in old.metadata.items() if old.generated is None or key not in OURS}
        joined = {key: _joined(metadata.get(key), users.get(key)) for key in JOINED if key in users}
        metadata = {**metadata, **{key: value for key, value in users.items() if key not in metadata}, **joined}
    begin = BEGIN.format(digest=_digest(metadata, kept.before, kept.after))
    parts = [kept.before, f"{begin}\n{new.before}\n{END}", kept.after]
    return f"---\n{_yaml(metadata)}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _own(standing: Readme, new: Readme) -> Readme:
    """The same without a card of a version that did not mark what it generated, as far as nobody edited that."""
    if standing.generated is None and set(map(_plain, standing.lines)) <= set(map(_plain, new.lines)):
        return Readme(standing.metadata, generated=standing.before)
    return standing


def _plain(line: str) -> str:
    return re.sub(r"[\d.,]+", "0", line)  # figures and versions differ from card to card


def _joined(first: Any, second: Any) -> list[Any]:
    lists = [value if isinstance(value, list) else [value] for value in (first, second) if value is not None]
    return list(dict.fromkeys(item for values in lists for item in values))


def _digest(metadata: dict[str, Any], before: str, after: str) -> str:
    users = {key: value for key, value in sorted(metadata.items()) if key not in OURS}
    return hashlib.sha256(f"{_yaml(users)}\n{before}\n{after}".encode()).hexdigest()[:8]


def _yaml(metadata: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True))
