"""Removes repeated keys from JSON objects: the last value counts (contract.md, section 1).

Parsers disagree about repeated keys: Python, JavaScript and PostgreSQL take the last value, DuckDB takes the first or refuses the
whole file. So the router outputs no such object. `hits-raw` keeps the client's bytes.
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
    """Return `text`, valid JSON of bounded depth, without repeated keys; the same bytes object if there are none.

    Keys are compared after decoding escapes. A key keeps its first position, as in Python and JavaScript, with the original text of
    its last value. Only if a key was repeated, white space and the escapes of keys are normalised.
    """
    try:
        return decoded_unique_keys(text, _decode(text))
    except msgspec.ValidationError:  # a number such as 1e999 is valid JSON, but no float
        return _last_of_equal_keys(text)


def decoded_unique_keys(text: bytes, value: object) -> bytes:
    """As `unique_keys`, with `value`, the decoded `text`, for a fast check that nearly every text passes.

    Decoding drops repeated keys. So `value` encoded again equals the text, or has one colon less for each dropped member. All other
    colons are inside strings, where only an escape (`\\u003a`) could change their number.
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
    """Return whether a key is repeated: the exact but slow test, for any numbers and escapes."""
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
