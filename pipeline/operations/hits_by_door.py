"""Splits records with the same project and hitId by door: public and secret hits are different hits."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.operations.dead_letters import StoredDeadLetter
from pipeline.operations.raw_records_of_hit import RawRecord


def hits_by_door(
    records: Sequence[RawRecord], letters: Sequence[StoredDeadLetter]
) -> list[tuple[str, list[RawRecord], list[StoredDeadLetter]]]:
    """Return up to two hits of one project and hitId, each with its door, its records and its dead letters.

    Dead letters of older releases do not record a door; they get the door of `records`, if there is only one.
    """
    of_records = {one.is_public for one in records}

    def is_public(letter: StoredDeadLetter) -> bool:
        return letter.is_public or of_records == {True}

    return [
        (
            "public" if public else "secret",
            [one for one in records if one.is_public is public],
            [letter for letter in letters if is_public(letter) is public],
        )
        for public in sorted(of_records | set(map(is_public, letters)))
    ]
