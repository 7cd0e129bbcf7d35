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
