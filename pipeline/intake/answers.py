"""Answers of the intake as bytes."""

from __future__ import annotations

import json
import random
from http import HTTPStatus

from pipeline.stages.accept import Code, Refusal

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
SUCCESS_BODY = b'{"success":true}'
SUCCESS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n" + SUCCESS_BODY
PIXEL = (
    b"HTTP/1.1 200 OK\r\nContent-Type: image/gif\r\nCache-Control: no-store\r\nContent-Length: 43\r\n\r\n"
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00"
    b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)
_LONGEST_RETRY_SECONDS = 3_600
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_ALLOWED_HEADERS = (
    *("Authorization", "Content-Type", "Content-Encoding"),
    "X-Retry-Count",  # Segment's, of a hit that is sent again
    *("AnonymousId", "SentAt"),  # RudderStack's, and the rest of one that is sent again
    *("Rsa-Recovered", "Rsa-Retry-Attempt", "Rsa-Retry-Reason", "Rsa-Since-Last-Attempt", "Rsa-Since-First-Attempt"),
)
"""Headers that a page may send: a client's own are refused by its browser where one of them is missing here."""

UNAUTHORIZED = Refusal(
    401,
    Code.UNAUTHORIZED,
    "send a token of the project, or one of its public_keys, as the user name of Basic authentication, with an empty "
    "password",
)
UNKNOWN_KEY = Refusal(
    401,
    Code.UNAUTHORIZED,
    "no project has this token or public key; it is the user name of Basic authentication, with an empty password",
)
UNKNOWN_KEY_IN_ADDRESS = Refusal(
    401, Code.UNAUTHORIZED, "no project has the key in this address; send one of the project's public_keys"
)
UNKNOWN_WRITE_KEY = Refusal(404, Code.NOT_FOUND, "no project has this write key; take one of its public_keys")
NO_HOST = Refusal(400, Code.INVALID_REQUEST, "the Host header names no host and port; send the one of this server")
NOT_FOUND = Refusal(404, Code.NOT_FOUND, "no such path; GET /openapi.json lists them")
BROKEN = Refusal(400, Code.INVALID_REQUEST, "this is no HTTP/1.1 request; the connection ends")
ONE_AUTHORIZATION = Refusal(
    400, Code.INVALID_REQUEST, "a request has one Authorization header at most; the connection ends"
)
ONE_HOST = Refusal(400, Code.INVALID_REQUEST, "an HTTP/1.1 request has one Host header; the connection ends")
NOT_CHUNKED = Refusal(
    400, Code.INVALID_REQUEST, "the only transfer coding here is chunked, named once; the connection ends"
)
LONG_EXTENSION = Refusal(
    400, Code.INVALID_REQUEST, "an extension of a chunk is over 256 bytes; send none; the connection ends"
)
BAD_GZIP = Refusal(400, Code.INVALID_CONTENT_ENCODING, "send the body plain, or whole as one gzip stream")
INTERNAL_ERROR = Refusal(
    400,
    Code.INVALID_HIT,
    "this server has a fault that this body shows; don't send it again, report it to its operator",
)
UNAVAILABLE = Refusal(
    503, Code.UNAVAILABLE, "not stored, or not known to be; send the same hitId again, it counts once"
)


def method_not_allowed(allowed: str) -> Refusal:
    """The path exists, the method does not."""
    return Refusal(405, Code.METHOD_NOT_ALLOWED, f"use {allowed}", allow=allowed)


def too_large(limit: int) -> Refusal:
    """`limit` in bytes after decompression."""
    return Refusal(400, Code.TOO_LARGE, f"at most {limit} bytes in one request; send less at once")


def too_many_requests(project: str, what: str, retry_after_seconds: float) -> Refusal:
    """`what` is more than the project may send: hits or bytes."""
    return Refusal(
        429,
        Code.TOO_MANY_REQUESTS,
        f"too many {what} of this project; nothing was stored, send it again after the seconds of Retry-After",
        project=project,
        retry_after_seconds=min(int(retry_after_seconds), _LONGEST_RETRY_SECONDS),
    )


def shared_with(origin: str) -> str:
    """The headers that let a page of `origin` read an answer to a request with credentials; never a wildcard."""
    if not origin or not origin.isascii():
        return ""
    return f"Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\nVary: Origin\r\n"


def stored(answer: bytes, keep_alive: bool, origin: str) -> bytes:
    """One of the three answers above, for this connection and origin."""
    if keep_alive and not origin:
        return answer
    status, rest = answer.split(b"\r\n", 1)
    close = b"" if keep_alive else b"Connection: close\r\n"
    return status + b"\r\n" + shared_with(origin).encode() + close + rest


def preflight(allow: str, origin: str) -> bytes:
    """To OPTIONS; the answer of a path that browsers may use names their origin, methods and headers."""
    shared = ""
    if origin:
        shared = (
            f"{shared_with(origin)}Access-Control-Allow-Methods: {allow}\r\n"
            f"Access-Control-Allow-Headers: {', '.join(_ALLOWED_HEADERS)}\r\n"
            "Access-Control-Max-Age: 86400\r\n"
        )
    return f"HTTP/1.1 204 No Content\r\nAllow: {allow}\r\n{shared}\r\n".encode()


def document(content: bytes, keep_alive: bool, with_body: bool, more: str = "") -> bytes:
    """A JSON document with `more` header lines; HEAD asks for it without its body."""
    more += "" if keep_alive else "Connection: close\r\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{more}\r\n"
    return head.encode() + (content if with_body else b"")


def refusal(what: Refusal, keep_alive: bool, origin: str = "", *, with_body: bool = True) -> bytes:
    """A whole response with the error body of contract.md, section 1; to HEAD without it, or it were the next answer.

    A page that may not send may not read the answer either.
    """
    body = json.dumps({"error": {"code": what.code, "message": what.message, "path": what.path}}).encode()
    lines = [
        f"HTTP/1.1 {what.status} {HTTPStatus(what.status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if what.status == 401:
        lines.append('WWW-Authenticate: Basic realm="hitrouter"')
    if what.allow:
        lines.append(f"Allow: {what.allow}")
    if what.status in (429, 503):
        lines.append(f"Retry-After: {what.retry_after_seconds + random.randint(1, 5)}")  # jitter: not all at once
        if origin:
            lines.append("Access-Control-Expose-Headers: Retry-After")
    if not keep_alive:
        lines.append("Connection: close")
    if what.code is Code.ORIGIN_NOT_ALLOWED:
        origin = ""
    return "\r\n".join(lines).encode() + b"\r\n" + shared_with(origin).encode() + b"\r\n" + (body if with_body else b"")
