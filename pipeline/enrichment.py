"""The contract for authors of enrichments: one file in `pipeline/enrichments/` that holds one `enrichment`.

An enrichment derives members of `context` from what the hit and its request say. It is pure but for its data source, which
`prepare` opens; what the client sent under the same key wins, key by key (contract.md, section 4), and that is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pipeline.config.models import EnrichConfig

REMEMBERED = 65_536
"""How many answers of one enrichment are remembered."""
LONGEST_REMEMBERED = 1_000
"""Characters of what is remembered from hits, here and elsewhere: real ones are shorter, and a sender must not fill the memory."""

_encode = msgspec.json.Encoder().encode


class Observed(msgspec.Struct, frozen=True, gc=False):
    """What enrichments may look at; None where nobody knows. `ip` is a valid address, as it is stored."""

    ip: str | None = None
    user_agent: str | None = None
    page_url: str | None = None
    referrer: str | None = None


@dataclass(frozen=True, slots=True)
class Derived:
    """Members of `context` as values, and as JSON without the braces: `"bot":false,"os":{...}`."""

    members: Mapping[str, Any]
    fragment: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fragment", _encode(self.members)[1:-1])


Derive = Callable[[Observed], Derived | None]
"""None: nothing to say. What it raises flags the hit and is counted; the hit goes on."""


@dataclass(frozen=True, slots=True)
class Enrichment:
    """`members` are the keys of `context` that it may write; they run in the order of `order`.

    `reads` are the members of Observed that it looks at. Its answers are remembered by them, so it needs no cache of its own.
    `prepare` opens the data source; it returns None where the configuration switches the enrichment off, and raises
    ValueError or OSError when the source can't be used.
    """

    name: str
    summary: str
    order: int
    members: tuple[str, ...]
    prepare: Callable[[EnrichConfig], Derive | None]
    reads: tuple[str, ...] = Observed.__struct_fields__
