"""Enrich: what the server knows goes into `context`, beside what the client sent (contract.md, section 4).

Members are put behind the client's by splicing bytes; an object is rebuilt only where a client's value must change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from pipeline.config.models import EnrichConfig
from pipeline.enrichments.ip import FLAG_INVALID, derive_ip

_encode = msgspec.json.Encoder().encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OPENING = b"{ \t\r\n"  # the object may be empty


class _Context(msgspec.Struct, gc=False):
    ip: str | msgspec.UnsetType | None = msgspec.UNSET


_context = msgspec.json.Decoder(_Context)


@dataclass(slots=True)
class RequestFacts:
    """What the server saw of the request; `flags` and `sent_at_text` come from reading the hit."""

    request_ip: str | None = None
    flags: Sequence[str] = ()
    sent_at_text: str | None = None


def enrich(body: bytes, facts: RequestFacts, settings: EnrichConfig) -> bytes:
    """The context `body`, a JSON object, with what is derived; what the client sent under the same key wins."""
    sent: str | None = None
    try:
        found = _context.decode(body).ip
        odd = False
        if found is msgspec.UNSET:
            derived, _ = derive_ip(None, facts.request_ip, settings.ip)
            if derived is not None and not facts.flags and facts.sent_at_text is None and body[-2] not in _OPENING:
                return body[:-1] + b',"ip":' + _encode(derived) + b"}"
        else:
            sent = found  # type: ignore[assignment] # not UNSET
    except msgspec.ValidationError:  # an ip that is no text: kept as it is, and flagged
        odd = True
    derived, invalid = (None, True) if odd else derive_ip(sent, facts.request_ip, settings.ip)
    flags = [*facts.flags, FLAG_INVALID] if invalid else facts.flags
    if derived is None and not flags and facts.sent_at_text is None:
        return body
    added: dict[str, object] = {}
    if derived is not None:
        added["ip"] = derived
    if flags:
        added["flags"] = flags
    if facts.sent_at_text is not None:
        added["sentAtText"] = facts.sent_at_text
    members = _members.decode(body)
    replaced = sent is not None and derived is not None
    if replaced or members.get("ip") is not None:
        # A null ip, or one to anonymise: it must not stay in the bytes.
        if derived is not None:
            members.pop("ip", None)
        return _encode({**added, **members})
    missing = {name: value for name, value in added.items() if name not in members}
    if not missing:
        return body
    if not members:
        return _encode(missing)
    return body.rstrip()[:-1] + b"," + _encode(missing)[1:]
