"""Replaces `context.ip` in the JSON of a hit, and keeps all other bytes as the client sent them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator

import msgspec

_KEY = b'"ip"'
_ESCAPES = (b"\\u006", b"\\u007")
"""A key `ip` or `context` with escapes contains one of these, because its letters lie between U+0060 and U+007F."""
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_TOKEN = re.compile(rb"(" + _STRING + rb")([ \t\r\n]*:[ \t\r\n]*)?|[][{}]", re.DOTALL)
_SCALAR = re.compile(_STRING + rb"|[^][{},\s]+", re.DOTALL)
_PLAIN = re.compile(rb'"ip"[ \t\r\n]*:[ \t\r\n]*("[^"\\]*")')
_SHORTEST_BYTES = 3
"""A shorter value (`5`, `""`, `{}`) holds no address."""


class _Context(msgspec.Struct, gc=False):
    ip: str | msgspec.UnsetType | None = msgspec.UNSET


class _Hit(msgspec.Struct, gc=False):
    context: _Context | None = None


_look = msgspec.json.Decoder(_Hit).decode
_text = msgspec.json.Decoder(str)


def replace_context_ip(body: bytes, replace: Callable[[str], str]) -> bytes:
    """Return the JSON object `body` with each `context.ip` replaced by the result of `replace`; null stays.

    `replace` gets the string, or the JSON text of a value of another type. If the key is repeated, both values are replaced, since
    both are stored.
    """
    if _KEY not in body and not _has_escapes(body):
        return body
    parts: list[bytes] = []
    end = 0
    for start, stop in _places(body):
        raw = body[start:stop]
        if len(raw) < _SHORTEST_BYTES or raw == b"null":
            continue
        text = _text_of(raw)
        if (replaced := replace(text)) != text:
            parts += (body[end:start], msgspec.json.encode(replaced))
            end = stop
    return b"".join((*parts, body[end:])) if parts else body


def _has_escapes(body: bytes) -> bool:
    return _ESCAPES[0] in body or _ESCAPES[1] in body


def _places(body: bytes) -> Iterable[tuple[int, int]]:
    """Return start and end of each value of `context.ip`."""
    if not _has_escapes(body):
        # The common case: msgspec is ten times as fast as the scan of all tokens.
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            context = _look(body).context
            ip = context.ip if context is not None else msgspec.UNSET
            if ip is msgspec.UNSET and body.count(b'"context"') <= 1:
                return ()
            if isinstance(ip, str) and body.count(_KEY) == 1 and (found := _PLAIN.search(body)) is not None:
                return (found.span(1),)
    return _walk(body)


def _walk(body: bytes) -> Iterator[tuple[int, int]]:
    depth = 0
    in_context = False
    last_key = b""
    value_start: int | None = None
    for token in _TOKEN.finditer(body):
        sign = token[0]
        if sign in (b"{", b"["):
            depth += 1
            if depth == 2:
                in_context = sign == b"{" and last_key == b"context"
        elif sign in (b"}", b"]"):
            depth -= 1
            if depth == 2 and value_start is not None:
                yield value_start, token.end()
                value_start = None
        elif token[2] is not None and depth <= 2:  # a key
            last_key = _key(token[1])
            if depth == 2 and in_context and last_key == b"ip":
                scalar = _SCALAR.match(body, token.end())
                if scalar is None:
                    value_start = token.end()
                else:
                    yield scalar.span()


def _key(string: bytes) -> bytes:
    return _text_of(string).encode() if b"\\" in string else string[1:-1]


def _text_of(raw: bytes) -> str:
    """Return the string, or the JSON text of another value or of an undecodable string (in a message that is refused)."""
    try:
        return _text.decode(raw)
    except msgspec.DecodeError:
        return raw.decode(errors="replace")
