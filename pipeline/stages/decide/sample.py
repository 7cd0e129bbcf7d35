"""`sample` of a connection: a share of the people, not of the hits."""

from __future__ import annotations

from hashlib import blake2b


def in_sample(identity: str, share: float) -> bool:
    """Is this person among the `share` (0..1)? The same answer everywhere and always; who is in 0.1 is in 0.2, too.

    The first 8 bytes of blake2b(identity), read as a fraction of 2**64, are below the share.
    """
    digest = blake2b(identity.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64
