"""Anonymises the addresses of clients before anything is stored (`enrich.ip.anonymize`; contract.md, section 4)."""

from __future__ import annotations

from typing import Any

import msgspec

from pipeline.codec.context_ip import replace_context_ip
from pipeline.enrichments.ip import anonymous_ip, read_ip
from pipeline.intake.server_state import Store
from pipeline.stages.accept import Accepted


class Anonymizer:
    """Wraps a store. While `is_on`, no hit passes with a full address in `context.ip`.

    All dialects pass through here, and so do messages that become dead letters, before Kafka and the spill log.
    """

    def __init__(self, store: Store, is_on: bool) -> None:
        self.is_on = is_on
        """The current value of the configuration."""
        self._store = store

    def address(self, address: str) -> str:
        """Return the request's address as it may be stored."""
        return read_ip(address, anonymize=True) or "" if self.is_on else address

    def store(self, hit: Accepted, report: Any) -> bool:
        """See Store."""
        if self.is_on:
            value = replace_context_ip(hit.value, anonymous_ip)
            if value is not hit.value:
                hit = msgspec.structs.replace(hit, value=value)
        return self._store.store(hit, report)
