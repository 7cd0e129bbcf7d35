"""Makes text from strangers safe to print, and bounds its length."""

from __future__ import annotations

import json
import math
from typing import Any

_DIGITS = 1000
_UNICODE_LINE_ENDS = (("\x85".encode(), rb"\u0085"), ("\u2028".encode(), rb"\u2028"), ("\u2029".encode(), rb"\u2029"))


def escape_controls(text: str, kept: str = "") -> str:
    """Return `text` with unprintable characters escaped as in Python source; those in `kept` stay.

    Control characters could send escape sequences to the reader's terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def readable_value(body: bytes) -> Any:
    """Decode the JSON `body` for `readable_json` or json.dumps; a number too large for Python becomes its digits as text.

    Raises ValueError.
    """
    return json.loads(body, parse_float=_float, parse_int=lambda text: int(text) if len(text) < _DIGITS else text)


def _float(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def readable_json(value: object) -> str:
    """Return `value` as JSON over several lines, in Unicode, with unprintable characters as JSON escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def in_one_line(value: bytes) -> bytes:
    """Return the JSON `value` in one line, also for readers that split at Unicode line ends (splitlines, JavaScript).

    JSON strings write a newline as \\n, so a raw newline is white space. Unicode line ends occur only inside strings.
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
