"""README.md of a repository: what a user wrote around the card stays, on disk and on the Hub; the card is new."""

from __future__ import annotations

import pytest

from iai_hf.errors import DataError
from iai_hf.readme import combined

CARD = (
    "---\nlibrary_name: iai_hf\ntags:\n- iai_hf\n---\n\n# films\n\nMade of {count} examples.\n\nWritten by iai_hf 1.\n"
)
FIRST, SECOND = (CARD.format(count=count) for count in (30, 60))


def pushed(card: str, here: str | None = None, there: str | None = None) -> str:
    return combined(card, here, there, "folder")


def test_pushing_again_changes_the_card_alone() -> None:
    text = pushed(FIRST)
    assert pushed(FIRST, text, text) == text
    assert "60 examples" in pushed(SECOND, text, text)
    assert "30 examples" not in pushed(SECOND, text, text)


def test_what_a_user_wrote_stays_wherever() -> None:
    text = pushed(FIRST)
    for edited in (
        text.replace("# films", "# films", 1) + "\n## My notes\n\nOf 2024.\n",
        text.replace("---\n\n<!--", "---\n\nA word ahead.\n\n<!--"),
        text.replace("tags:\n", "license: mit\ntags:\n- mine\n"),
    ):
        assert edited != text
        added = [line for line in edited.splitlines() if line not in text.splitlines()]
        for here, there in ((edited, text), (text, edited), (None, edited), (edited, None), (edited, edited)):
            again = pushed(SECOND, here, there)
            assert all(line in again.splitlines() for line in added if "<!--" not in line), (added, again)
            assert "60 examples" in again
            assert pushed(SECOND, again, again) == again


def test_a_readme_of_the_users_own_is_kept_whole() -> None:
    own = "---\nlicense: mit\nmodel-index: []\n---\n# My films\n\nBy hand.\n"
    text = pushed(FIRST, own)
    assert "license: mit\nmodel-index: []\n" in text
    assert text.index("By hand.") < text.index("30 examples")


def test_a_card_without_marks_of_an_older_version_is_not_doubled() -> None:
    assert pushed(SECOND, FIRST, FIRST) == pushed(SECOND)
    edited = FIRST.replace("Made of", "By me. Made of")
    assert "By me. Made of 30" in pushed(SECOND, edited, FIRST)


def test_what_was_generated_once_is_not_claimed_for_ever() -> None:
    measured = FIRST.replace("tags:", "model-index:\n- name: films\ntags:")
    assert "model-index" in pushed(measured)
    assert "model-index" not in pushed(SECOND, pushed(measured), pushed(measured))


def test_edits_in_both_places_are_not_lost() -> None:
    text = pushed(FIRST)
    with pytest.raises(DataError, match="Of the Hub"):
        pushed(SECOND, text + "\nOf the disk.\n", text + "\nOf the Hub.\n")
    both = pushed(SECOND, text + "\nOf the disk.\n\nOf the Hub.\n", text + "\nOf the Hub.\n")
    assert "Of the disk" in both
    once = pushed(FIRST, text + "\nOld words.\n", text)
    assert "Old words" not in pushed(SECOND, once.replace("Old words.", "New words."), once)


def test_damaged_ones_are_named() -> None:
    text = pushed(FIRST)
    with pytest.raises(DataError, match=r"folder/README\.md are no YAML"):
        pushed(SECOND, text.replace("tags:", "tags: ["), None)
    with pytest.raises(DataError, match="on the Hub lacks one"):
        pushed(SECOND, None, text.replace("<!-- iai_hf: end -->", ""))
