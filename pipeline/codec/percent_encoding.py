"""Decodes percent-encoded text. Some senders encode windows-1252 instead of UTF-8, so bytes that are not UTF-8 are decoded as
windows-1252, never to U+FFFD (WHATWG, "Encoding", 9.1).
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote_plus

_KEPT = "surrogateescape"
_UNDEFINED = frozenset(b"\x81\x8d\x8f\x90\x9d")
_WINDOWS_1252 = [chr(byte) if byte in _UNDEFINED else bytes((byte,)).decode("cp1252") for byte in range(256)]


def unquoted(text: str) -> str:
    """Decode a name or value of a query, where `+` is a space. Bytes that are not UTF-8 are read as windows-1252."""
    if "%" not in text:
        return text.replace("+", " ")
    try:
        return unquote_plus(text, "utf-8", "strict")
    except UnicodeDecodeError:
        return _repaired(unquote_plus(text, errors=_KEPT))


def query_fields(text: str, most: int | None = None) -> tuple[list[tuple[str, str]], bool]:
    """Return names and values of a query or form, decoded as by `unquoted`, and whether all bytes were UTF-8.

    Raises ValueError for more than `most` fields.
    """
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=most, errors="strict"), True
    except UnicodeDecodeError:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=most, errors=_KEPT)
        return [(_repaired(name), _repaired(value)) for name, value in fields], False


def _repaired(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_WINDOWS_1252[byte] for byte in text.encode(errors=_KEPT))
    return text
