"""The hits of one project that have one hitId: at most two, which came in by doors of different kinds."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.operations.dead_letters import Letter
from pipeline.operations.raw_records_of_hit import RawRecord


def hits_by_door(
    records: Sequence[RawRecord], letters: Sequence[Letter]
) -> list[tuple[str, list[RawRecord], list[Letter]]]:
    """Part what a project has under one hitId into the hits that it is: each with its kind of door.

    A letter of an older release does not say its door: it belongs to the records, where these have only one.
    """
    of_records = {one.is_public for one in records}

    def is_public(letter: Letter) -> bool:
        return letter.is_public or of_records == {True}

    return [
        (
            "public" if public else "secret",
            [one for one in records if one.is_public is public],
            [letter for letter in letters if is_public(letter) is public],
        )
        for public in sorted(of_records | set(map(is_public, letters)))
    ]
