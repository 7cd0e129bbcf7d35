"""Texts that strangers wrote, made safe to print and bounded."""

from __future__ import annotations

import json
import math
from typing import Any

_DIGITS = 1000
_UNICODE_LINE_ENDS = (("\x85".encode(), rb"\u0085"), ("\u2028".encode(), rb"\u2028"), ("\u2029".encode(), rb"\u2029"))


def escape_controls(text: str, kept: str = "") -> str:
    """Return `text` with unprintable characters escaped as in Python source; those in `kept` stay.

    A control character could command the terminal of whoever reads the text.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def readable_value(body: bytes) -> Any:
    """Return the value of the JSON `body` for `readable_json` or json.dumps; a number that Python can't hold by its digits.

    Raises ValueError.
    """
    return json.loads(body, parse_float=_float, parse_int=lambda text: int(text) if len(text) < _DIGITS else text)


def _float(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def readable_json(value: object) -> str:
    """Return `value` as JSON over several lines, in Unicode, with unprintable characters escaped as JSON has it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def in_one_line(value: bytes) -> bytes:
    """Return the JSON `value` in one line, also to readers that split at the line ends of Unicode (splitlines, JavaScript).

    Within a text JSON writes \\n, so a real one is only white space; the others stand only within texts.
    """
    line = value.replace(b"\n", b" ").replace(b"\r", b" ")
    if line.isascii():
        return line
    for character, escaped in _UNICODE_LINE_ENDS:
        line = line.replace(character, escaped)
    return line


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
