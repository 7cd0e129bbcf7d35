"""The text of a hit: what msgspec does not look at in the parts that it leaves raw (contract.md, section 1)."""

from __future__ import annotations

import json

import msgspec

from pipeline.errors import InvalidHit

BODY_BYTES = 65_536
DEPTH = 32
NODES = 2_000

_NODE_BYTES = 2  # a value and what parts it from the next
_BRACKET, _BACKSLASH = b"[\\"  # one byte is found ten times as fast as two
_anything = msgspec.json.Decoder()


def check_text(body: bytes) -> None:
    """What msgspec does not look at in the parts that it leaves raw: UTF-8, surrogates, depth and number of values."""
    if len(body) > BODY_BYTES:
        raise InvalidHit("too_large", f"{len(body)} bytes; a hit has at most {BODY_BYTES}")
    try:
        if not body.isascii():
            body.decode()
        opened = body.count(b"{")
        if _BRACKET in body:
            opened += body.count(b"[")
        if opened > DEPTH or len(body) > _NODE_BYTES * NODES or (_BACKSLASH in body and b"\\u" in body):
            _check_whole(body)
    except UnicodeDecodeError as error:
        raise InvalidHit("invalid_json", f"not UTF-8 at byte {error.start}") from None
    except msgspec.DecodeError as error:
        raise InvalidHit("invalid_json", str(error)) from None
    except RecursionError:
        raise InvalidHit("invalid_json", f"nested deeper than {DEPTH}") from None


def _check_whole(body: bytes) -> None:
    opened = body.count(b"{") + body.count(b"[")
    # Every value but the first stands behind a comma or an opening bracket.
    if opened <= DEPTH and body.count(b",") + opened < NODES and b"\\u" not in body:
        return
    nodes, depth = 0, 0
    level = [_whole(body)]
    while level:
        nodes += len(level)
        if nodes > NODES:
            raise InvalidHit("invalid_json", f"over {NODES} values")
        below: list[object] = []
        nested = False
        for value in level:
            if isinstance(value, dict):
                nested = True
                below.extend(value.values())
            elif isinstance(value, list):
                nested = True
                below.extend(value)
        depth += nested
        if depth > DEPTH:
            raise InvalidHit("invalid_json", f"nested deeper than {DEPTH}")
        level = below


def _whole(body: bytes) -> object:
    try:
        return _anything.decode(body)
    except msgspec.ValidationError:
        # A float such as 1e999 is JSON, and its digits are kept; only Python can't hold it.
        return _big_numbers(body)


def _big_numbers(body: bytes) -> object:
    """What msgspec would say of everything but the numbers. Raises InvalidHit."""
    try:
        value: object = json.loads(body, parse_float=str, parse_int=str)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InvalidHit("invalid_json", f"{error.msg} at character {error.pos}") from None
    except UnicodeEncodeError:
        raise InvalidHit("invalid_json", "half of a surrogate pair") from None
    return value
