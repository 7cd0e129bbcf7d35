"""Texts that strangers wrote, made safe to print and bounded."""

from __future__ import annotations


def escape_controls(text: str, kept: str = "") -> str:
    """Return `text` with unprintable characters escaped as in Python source; those in `kept` stay.

    A control character could command the terminal of whoever reads the text.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`; `…` at the end marks a cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shorten_bytes(text: str, limit: int) -> str:
    """Return `text` with at most `limit` bytes in UTF-8; `…` at the end marks a cut."""
    if len(text) * 4 <= limit:
        return text
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return text
    return encoded[: limit - 3].decode(errors="ignore") + "…"
