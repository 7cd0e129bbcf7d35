"""A hit's object `integrations`: which destinations its sender allows (contract.md, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from pipeline.codec.unique_keys import unique_keys
from pipeline.errors import InvalidHit

Entry = bool | bytes
"""True, False, or the options: the bytes of a JSON object."""

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Integrations:
    """The parsed object. `everything` is the entry `All`; `entries` holds all others except nulls, which count as absent.

    `raw` is the object as JSON without repeated keys, None if the hit has none.
    """

    everything: bool | None
    entries: Mapping[str, Entry]
    raw: bytes | None = None


ABSENT = Integrations(None, {})


LONGEST_REMEMBERED = 1_000
"""Largest JSON that is cached, in bytes. Senders use few distinct objects, and short ones."""


def parse_integrations(raw: bytes | None) -> Integrations:
    """Parse the raw JSON value; None if the hit has none. Raises InvalidHit, since consent must not be guessed."""
    if raw is None or raw == b"null":
        return ABSENT
    return _remembered(raw) if len(raw) <= LONGEST_REMEMBERED else _parse(raw)


def _parse(raw: bytes) -> Integrations:
    try:
        raw = unique_keys(raw)
        members = _decoder.decode(raw)
    except msgspec.ValidationError:
        raise InvalidHit(
            "invalid_hit", 'integrations must be an object of names, such as {"All": true}', "integrations"
        ) from None
    everything: bool | None = None
    entries: dict[str, Entry] = {}
    for name, value in members.items():
        text = bytes(value)
        path = f"integrations.{name}"
        if text == b"null":
            continue
        if text == b"true" or text == b"false":
            if name == "All":
                everything = text == b"true"
            else:
                entries[name] = text == b"true"
        elif name == "All":
            raise InvalidHit("invalid_hit", "All must be true or false", path)
        elif text.startswith(b"{"):
            entries[name] = True if text[1:-1].isspace() or text == b"{}" else text
        else:
            raise InvalidHit("invalid_hit", "an entry must be true, false or an object of options", path)
    return Integrations(everything, entries, raw)


_remembered = lru_cache(maxsize=4096)(_parse)
