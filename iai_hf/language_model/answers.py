"""Answers: an output as one line of a prompt, and what was generated as the output again.

A prompt has an answer a line, and what is generated counts up to the end of its line. Signs that would be lost so are
written as the pictures that Unicode has of them: line ends everywhere, spaces at either end. All other text, nearly all
that there is, stands in the prompt as it is. Of a set each label ends in `;`, so that one is told from the beginning of
another, and the empty set is an empty line.
"""

from __future__ import annotations

import re

from iai_hf.backbones.tokenizing import SPACES

ESCAPE = "␛"
END_OF_LABEL = ";"
PICTURES = {"\n": "␊", "\r": "␍", "\t": "␉", "\v": "␋", "\f": "␌", " ": "␠"}
SIGNS = {picture: sign for sign, picture in PICTURES.items()}

# A picture that an output holds itself; a line end; a space at either end.
_LOST = re.compile(rf"[{ESCAPE}{''.join(SIGNS)}]|[\n\r]|^[{SPACES}]+|[{SPACES}]+\Z")
_WRITTEN = re.compile(rf"{ESCAPE}(.)|([{''.join(SIGNS)}])")


def escape(output: str) -> str:
    """The output as one line, without spaces at its ends."""
    return _LOST.sub(lambda lost: "".join(PICTURES.get(sign, ESCAPE + sign) for sign in lost[0]), output)


def unescape(line: str) -> str:
    """The output that `escape` made the line of."""
    return _WRITTEN.sub(lambda found: found[1] or SIGNS[found[2]], line)


def element(label: str) -> str:
    """A label as it stands in the line of a set."""
    return escape(label).replace(END_OF_LABEL, ESCAPE + END_OF_LABEL) + END_OF_LABEL


def written(output: str | tuple[str, ...]) -> str:
    """What tells an output from another one: itself, or the line of a set."""
    return output if isinstance(output, str) else " ".join(map(element, output))
