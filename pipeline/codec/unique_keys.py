"""Each key of an object once: the last of equal keys counts (contract.md, section 1).

Parsers disagree about a key that an object has twice: Python, JavaScript and PostgreSQL take its last value, DuckDB takes the first
or refuses the whole file. So no such object leaves the router. `hits-raw` keeps the client's bytes.
"""

from __future__ import annotations

import json

import msgspec
import orjson

_decode = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_BACKSLASH = 0x5C


def unique_keys(text: bytes) -> bytes:
    """`text`, valid JSON of a bounded depth, with each key once in each of its objects; the same bytes when it has none twice.

    Equal keys are equal after their escapes. A key stays where it first stood, as in Python and JavaScript, with the text of its last
    value: numbers and strings are not written anew. White space and escapes of keys are not kept where a key stood twice.
    """
    try:
        return decoded_unique_keys(text, _decode(text))
    except msgspec.ValidationError:  # a number such as 1e999, which is JSON but no float
        return _last_of_equal_keys(text)


def decoded_unique_keys(text: bytes, value: object) -> bytes:
    """As `unique_keys`; `value` is `text` decoded, by which nearly every text passes quickly.

    Decoding keeps one of equal keys. So `value` in JSON is the same text, or has a colon less for each member that was lost. The
    other colons stand in strings, where only an escape (`\\u003a`) could hide them.
    """
    try:
        encoded = orjson.dumps(value)  # in half the time of msgspec
    except TypeError:  # an integer of more than 64 bits
        encoded = _encode(value)
    if encoded == text or (
        encoded.count(b":") == text.count(b":") and (_BACKSLASH not in text or b"\\u003" not in text)
    ):
        return text
    return _last_of_equal_keys(text)


def _last_of_equal_keys(text: bytes) -> bytes:
    return _rebuild(text) if _repeats_key(text) else text


def _repeats_key(text: bytes) -> bool:
    """The exact test, which no number and no escape confuses; slow."""
    repeats = False

    def look(members: list[tuple[str, object]]) -> None:
        nonlocal repeats
        repeats = repeats or len({key for key, _ in members}) < len(members)

    json.loads(text, object_pairs_hook=look, parse_int=str, parse_float=str)
    return repeats


def _rebuild(text: bytes) -> bytes:
    if text.startswith(b"{"):
        members = _decode_members(text).items()
        return b"{" + b",".join([_encode(key) + b":" + _rebuild(bytes(value)) for key, value in members]) + b"}"
    if text.startswith(b"["):
        return b"[" + b",".join([_rebuild(bytes(item)) for item in _decode_items(text)]) + b"]"
    return text
