"""The contract for authors of enrichments: an enrichment is one file in `pipeline/enrichments/` with one `enrichment`.

An enrichment derives members of `context` from a hit and its request. It is pure except for its data source, which `prepare` opens.
Values that the client sent take precedence, key by key (contract.md, section 4); `pipeline/stages/enrich.py` ensures that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.config.models import EnrichConfig

REMEMBERED = 65_536
"""Most cached results per enrichment."""
LONGEST_REMEMBERED = 1_000
"""Most characters of a cache key from a hit. Real texts are shorter, and a sender must not be able to fill the memory."""

_encode = msgspec.json.Encoder().encode


class Observed(msgspec.Struct, frozen=True, gc=False):
    """The input of enrichments; None where a value is unknown. `ip` is a valid address, as it is stored."""

    ip: str | None = None
    user_agent: str | None = None
    page_url: str | None = None
    referrer: str | None = None


@dataclass(frozen=True, slots=True)
class Derived:
    """Derived members of `context`, as values and as JSON without the outer braces: `"bot":false,"os":{...}`."""

    members: Mapping[str, Any]
    fragment: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fragment", _encode(self.members)[1:-1])


Derive = Callable[[Observed], Derived | None]
"""Derives members of `context`; None if nothing is known. If it raises, the hit is flagged and counted, and processing continues."""


@dataclass(frozen=True, slots=True)
class Enrichment:
    """A step that derives members of `context`. Enrichments run in the order of `order`.

    `members` lists the keys of `context` that it may write. `reads` lists the members of Observed that it uses. Its results are
    cached by them, so it needs no cache. `prepare` opens the data source. It returns None if the configuration disables the
    enrichment, and raises ValueError or OSError if the source cannot be used.
    """

    name: str
    summary: str
    order: int
    members: tuple[str, ...]
    prepare: Callable[[EnrichConfig], Derive | None]
    reads: tuple[str, ...] = Observed.__struct_fields__
