"""`sample` of a connection: a share of the identities, not of the hits."""

from __future__ import annotations

from hashlib import blake2b


def in_sample(identity: str, share: float) -> bool:
    """Return whether `identity` is in the `share` (0..1). Deterministic; an identity in 0.1 is also in 0.2.

    It is in if the first 8 bytes of blake2b(identity), as a fraction of 2**64, are below the share.
    """
    digest = blake2b(identity.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64
