"""The routed hit, as destinations receive it."""

from __future__ import annotations

import hashlib

import msgspec


class RoutedHit(msgspec.Struct, gc=False):
    """A hit as a record of a deliveries topic (contract.md, section 2). `Raw` parts are JSON; times are ISO 8601 text."""

    hitId: str
    projectId: str
    receivedAt: str
    sentAt: str
    event: msgspec.Raw
    context: msgspec.Raw
    userId: str | None = None
    anonymousId: str | None = None
    integrations: msgspec.Raw = msgspec.Raw(b"null")
    options: msgspec.Raw = msgspec.Raw(b"null")
    door: str = "secret"
    """The kind of door it was sent to: `secret` or `public`. Two hits with the same hitId can differ in it."""

    @property
    def is_public(self) -> bool:
        """True if it was sent to a public door, so that a stranger may have sent it."""
        return self.door == "public"

    @property
    def idempotency_key(self) -> str:
        """The key by which a receiver drops repeats: the hitId, or for a public hit a hash of it (32 hex digits).

        A stranger may know or guess a hitId. With equal keys, a receiver would drop a server's hit as a repeat of the stranger's.
        """
        if not self.is_public:
            return self.hitId
        return hashlib.blake2b(self.hitId.encode(), digest_size=16, person=b"public").hexdigest()
