"""What the local Hub keeps of files that come by Xet: https://huggingface.co/docs/xet, as much as its client asks for.

A file is cut into chunks, chunks travel in xorbs, and a shard says which chunks of which xorbs make which file. Chunks
stay compressed as they came: the client that fetches them unpacks them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

ENTRY = 48  # bytes: every part of a shard, its head included
BOOKEND = b"\xff" * 32
WITH_VERIFICATION, WITH_DIGEST = 1 << 31, 1 << 30


class XetFile(NamedTuple):
    """A file by its Xet hash and its SHA-256, both hexadecimal, and its bytes' number."""

    xet_hash: str
    digest: str
    size: int


class Term(NamedTuple):
    """Chunks `first` to `end` of a xorb, and their unpacked length in bytes."""

    xorb: str
    length: int
    first: int
    end: int


class XetStore:
    """Xorbs by hash, files by SHA-256."""

    def __init__(self) -> None:
        self.xorbs: dict[str, bytes] = {}
        self.files: dict[str, XetFile] = {}
        self.terms: dict[str, list[Term]] = {}

    def add_shard(self, shard: bytes) -> None:
        """Take up the files that a shard tells of; their xorbs are here already.

        Raises:
            KeyError: a xorb is not.
        """
        at = ENTRY
        while shard[at : at + 32] != BOOKEND:
            flags, count = struct.unpack_from("<II", shard, at + 32)
            xet_hash = _hexadecimal(shard[at : at + 32])
            terms = []
            for _ in range(count):
                at += ENTRY
                length, first, end = struct.unpack_from("<III", shard, at + 36)
                terms.append(Term(_hexadecimal(shard[at : at + 32]), length, first, end))
                self.xorbs[terms[-1].xorb]
            at += ENTRY * count if flags & WITH_VERIFICATION else 0
            assert flags & WITH_DIGEST, "a repository's files need their SHA-256"
            at += ENTRY
            digest = _hexadecimal(shard[at : at + 32])
            self.files[digest] = XetFile(xet_hash, digest, sum(term.length for term in terms))
            self.terms[xet_hash] = terms
            at += ENTRY

    def reconstruction(self, xet_hash: str, address: str) -> dict[str, Any]:
        """Where the client finds a file's chunks: below `address`, in ranges of bytes that include their last.

        Raises:
            KeyError: no such file.
        """
        terms = self.terms[xet_hash]
        fetch: dict[str, list[dict[str, Any]]] = {}
        for term in terms:
            bounds = list(_bounds(self.xorbs[term.xorb], term.end))
            fetch.setdefault(term.xorb, []).append(
                {
                    "range": {"start": term.first, "end": term.end},
                    "url": f"{address}/{term.xorb}",
                    "url_range": {"start": bounds[term.first], "end": bounds[term.end] - 1},
                }
            )
        return {
            "offset_into_first_range": 0,
            "terms": [
                {"hash": term.xorb, "unpacked_length": term.length, "range": {"start": term.first, "end": term.end}}
                for term in terms
            ],
            "fetch_info": fetch,
        }


def _hexadecimal(content: bytes) -> str:
    """A hash as the protocol spells it: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", content))


def _bounds(xorb: bytes, chunks: int) -> Iterator[int]:
    """Where the first chunks of a xorb begin, and where the last of them ends; a chunk's head tells its packed size."""
    at = 0
    for _ in range(chunks):
        yield at
        at += 8 + int.from_bytes(xorb[at + 1 : at + 4], "little")
    yield at
