"""Enrich: adds what the server derives to `context`, beside what the client sent (contract.md, section 4).

New members are appended to the client's bytes. `context` is re-encoded only if the client already sent a derived key.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any

import msgspec

from pipeline.config.models import EnrichConfig
from pipeline.enrichments.contract import LONGEST_REMEMBERED, REMEMBERED, Derive, Derived, Enrichment, Observed
from pipeline.enrichments.ip import FLAG_INVALID, HIDDEN, LONGEST_IP, derive_ip, remembered_ip

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_anything = msgspec.json.Decoder()
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OPENING = b"{ \t\r\n"  # the object may be empty
_NULL = b"null"
_UNSET = msgspec.UNSET


class _Page(msgspec.Struct, gc=False):
    url: str | None = None
    referrer: str | None = None


class RequestFacts(msgspec.Struct, gc=False):
    """What the server knows of the request; `flags` and `sent_at_text` result from decoding the hit."""

    request_ip: str | None = None
    user_agent: str | None = None
    flags: Sequence[str] = ()
    sent_at_text: str | None = None


class Enriched(msgspec.Struct, gc=False):
    """`context` is a JSON object; `failed` names the enrichments that raised."""

    context: bytes
    failed: Sequence[str] = ()


class _DerivedCache(dict[Any, Derived | None]):
    """Caches the results of an enrichment by the values it reads. A missing key calls the enrichment; exceptions are not cached."""

    def __init__(self, derive: Derive, reads: tuple[str, ...]) -> None:
        super().__init__()
        self._derive = derive
        self._reads = reads
        # One value is the key itself, several form a tuple.
        self.key: Callable[[tuple[str | None, ...]], Any] = itemgetter(*map(Observed.__struct_fields__.index, reads))

    def __missing__(self, key: Any) -> Derived | None:
        values = key if len(self._reads) > 1 else (key,)
        answer = self._derive(Observed(**dict(zip(self._reads, values, strict=True))))
        if sum(len(value) for value in values if value is not None) > LONGEST_REMEMBERED:
            return answer
        if len(self) >= REMEMBERED:  # evict the older half
            for old in list(islice(self, REMEMBERED // 2)):
                del self[old]
        self[key] = answer
        return answer


class Enricher:
    """Applies the configured enrichments in their order. Opens their data sources.

    Raises ValueError or OSError if one can't be used.
    """

    def __init__(self, config: EnrichConfig, enrichments: Sequence[Enrichment]) -> None:
        self._ip = config.ip
        self._anonymize = config.ip.anonymize
        self._running: list[tuple[str, _DerivedCache, Callable[[tuple[str | None, ...]], Any]]] = []
        derived = ["flags", "sentAtText"]
        for enrichment in sorted(enrichments, key=lambda found: found.order):
            derive = enrichment.prepare(config)
            if derive is not None:
                cache = _DerivedCache(derive, enrichment.reads)
                self._running.append((enrichment.name, cache, cache.key))
                derived += enrichment.members
        # Decodes only what enrichment needs of a context, and which derived keys it already has; their values stay raw.
        self._look = msgspec.json.Decoder(
            msgspec.defstruct(
                "Context",
                [
                    ("ip", str | msgspec.UnsetType | None, _UNSET),
                    ("userAgent", str | None, None),
                    ("page", _Page | None, None),
                    *((name, msgspec.Raw | msgspec.UnsetType, _UNSET) for name in derived),
                ],
                gc=False,
            )
        ).decode
        self._already = attrgetter(*derived)
        self._absent = (_UNSET,) * len(derived)
        self._failures: Counter[str] = Counter()

    def __call__(self, body: bytes, facts: RequestFacts) -> Enriched:
        """Return the context `body`, a JSON object, with the derived members; a value of the client wins over a derived one."""
        try:
            seen: Any = self._look(body)
            sent, agent, page = seen.ip, seen.userAgent, seen.page
            # Whether an ip may be appended to the client's bytes.
            clear = sent is _UNSET or bool(sent)
            odd_ip = False
        except msgspec.ValidationError:  # a member has an unexpected type: decode members one by one
            clear = False
            members = _members.decode(body)
            sent, odd_ip = _text_of(members.get("ip"))
            agent, _ = _text_of(members.get("userAgent"))
            page = _page_of(members.get("page"))
        if sent and sent is not _UNSET and not self._anonymize:  # the common case: `derive_ip` without the call
            address = remembered_ip(sent, False) if len(sent) <= LONGEST_IP else None
            replace, invalid = None, False
            if address != sent:  # invalid, or an IPv4-mapped address
                replace, invalid, clear = address, address is None, False
        elif odd_ip:
            replace, invalid, address = (HIDDEN if self._anonymize else None), True, None
        else:
            sent = None if sent is _UNSET else sent
            clear = clear and not sent
            replace, invalid = derive_ip(sent, facts.request_ip, self._ip)
            address = None if invalid else replace or sent
        observed = (
            address,
            agent or facts.user_agent,
            page.url if page is not None else None,
            page.referrer if page is not None else None,
        )
        found: list[Derived] = []
        failed: list[str] = []
        for name, cache, key in self._running:
            try:
                answer = cache[key(observed)]
            except Exception as error:
                self._log_failure(name, error)
                failed.append(name)
                continue
            if answer is not None:
                found.append(answer)
        flags = facts.flags
        if invalid or failed:
            flags = [*flags, *([FLAG_INVALID] if invalid else []), *(f"{name}_failed" for name in failed)]
        plain = clear and not flags and facts.sent_at_text is None and body[-2] not in _OPENING
        if plain and self._already(seen) == self._absent:
            parts = [body[:-1]]
            if replace is not None:
                parts.append(b'"ip":' + _encode(replace))
            for answer in found:
                parts.append(answer.fragment)  # noqa: PERF401 # quicker than a list for so few
            if len(parts) == 1:
                return Enriched(body)
            parts[-1] += b"}"
            return Enriched(b",".join(parts))
        added: dict[str, Any] = {}
        if replace is not None:
            added["ip"] = replace
        if flags:
            added["flags"] = flags
        if facts.sent_at_text is not None:
            added["sentAtText"] = facts.sent_at_text
        for answer in found:
            added.update(answer.members)
        return Enriched(_merge(body, added), failed)

    def _log_failure(self, name: str, error: Exception) -> None:
        """Log failure 1, 10, 100 and so on, since a broken data source fails for every hit."""
        self._failures[name] += 1
        times = self._failures[name]
        if str(times).strip("0") == "1":
            logger.warning("enrichment failed, hits get a flag: enrichment=%s failures=%d error=%r", name, times, error)


def _merge(body: bytes, added: dict[str, Any]) -> bytes:
    """Return the object `body` with `added`. The client's values win, in nested objects key by key; null counts as absent."""
    members: dict[str, Any] = dict(_members.decode(body))
    for name, value in added.items():
        raw = members.get(name)
        if raw is None or bytes(raw) == _NULL or name == "ip":
            # An ip is derived only if the client's is blank or must be anonymised, so the client's must not stay.
            members[name] = value
        elif isinstance(value, dict) and bytes(raw).startswith(b"{"):
            sent = _members.decode(raw)
            kept = {key: part for key, part in sent.items() if bytes(part) != _NULL}
            members[name] = {**value, **kept} if not value.keys() <= kept.keys() else raw
    return _encode(members)


def _text_of(raw: msgspec.Raw | None) -> tuple[str | None, bool]:
    """Return the string, and whether the value has another type."""
    if raw is None or bytes(raw) == _NULL:
        return None, False
    value = _anything.decode(raw) if bytes(raw).startswith(b'"') else None
    return value, value is None


def _page_of(raw: msgspec.Raw | None) -> _Page | None:
    if raw is None or not bytes(raw).startswith(b"{"):
        return None
    members = _members.decode(raw)
    return _Page(_text_of(members.get("url"))[0], _text_of(members.get("referrer"))[0])
