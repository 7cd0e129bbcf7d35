"""Finds the records of a hit by its hitId, also among invalid hits such as dead letters."""

from __future__ import annotations

import msgspec

from pipeline.codec.avro import Framing
from pipeline.codec.raw_record import RAW_HIT_SCHEMA
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.config.models import Config
from pipeline.delivery.deliverers import ReadHit, RoutedHits
from pipeline.operations.read_topic import framing_of

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_id = msgspec.json.Decoder(str | int)
_JSON_SPACE = b" \t\r\n"


class HitMatch:
    """Matches raw and routed records of one hitId, in JSON or in Avro."""

    def __init__(self, hit_id: str, raw_framing: Framing, routed: RoutedHits) -> None:
        self._hit_id = hit_id
        self._raw_framing = raw_framing
        self._routed = routed

    @classmethod
    def of(cls, config: Config, hit_id: str) -> HitMatch:
        """Return a match for the formats that `config` uses."""
        routed = RoutedHits(framing_of(config, ROUTED_HIT_SCHEMA))
        return cls(hit_id, framing_of(config, RAW_HIT_SCHEMA), routed)

    def matches(self, key: bytes | None, value: bytes | None, project: str = "") -> bool:
        """Return whether the key, `<project>/<hitId>`, or the document names the hit. With `project` "" any project matches."""
        named_project, slash, named_id = (key or b"").partition(b"/")
        if slash and named_id == self._hit_id.encode() and project.encode() in (b"", named_project):
            return True
        return self.hit_id_of(value or b"") == self._hit_id

    def hit_id_of(self, value: bytes) -> str | None:
        """Return the hitId of a document as text; None if it has none or cannot be decoded, as with some dead letters."""
        text = value.lstrip(_JSON_SPACE)
        if text[:1] == b"{":
            return _member(text)
        try:
            return _member(self._raw_framing.decode(value)["hit"])
        except (ValueError, KeyError):
            read = self._routed.read(value)
            return read.hit.hitId if isinstance(read, ReadHit) else None


def _member(document: bytes) -> str | None:
    """Return the hitId, or the messageId: invalid messages of a Segment batch are stored as they were sent."""
    try:
        members = _members.decode(document)
        found = members.get("hitId", members.get("messageId"))
        return None if found is None else str(_id.decode(found))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
