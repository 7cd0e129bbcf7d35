"""The intake's HTTP answers as bytes."""

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
    "X-Retry-Count",  # Segment's, on retries
    *("AnonymousId", "SentAt"),  # RudderStack's; the next line holds those on its retries
    *("Rsa-Recovered", "Rsa-Retry-Attempt", "Rsa-Retry-Reason", "Rsa-Since-Last-Attempt", "Rsa-Since-First-Attempt"),
)
"""Headers that a page may send. If a client uses another one, the browser blocks its requests."""

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
NO_HOST = Refusal(400, Code.INVALID_REQUEST, "the Host header is not a valid host and port; send those of this server")
NOT_FOUND = Refusal(404, Code.NOT_FOUND, "no such path; GET /openapi.json lists them")
BROKEN = Refusal(400, Code.INVALID_REQUEST, "not an HTTP/1.1 request; the connection is closed")
ONE_AUTHORIZATION = Refusal(
    400, Code.INVALID_REQUEST, "send at most one Authorization header; the connection is closed"
)
ONE_HOST = Refusal(400, Code.INVALID_REQUEST, "send exactly one Host header; the connection is closed")
NOT_CHUNKED = Refusal(
    400, Code.INVALID_REQUEST, "the only supported Transfer-Encoding is chunked, sent once; the connection is closed"
)
LONG_EXTENSION = Refusal(
    400, Code.INVALID_REQUEST, "a chunk extension is over 256 bytes; send none; the connection is closed"
)
BAD_GZIP = Refusal(400, Code.INVALID_CONTENT_ENCODING, "send the body uncompressed or as one complete gzip stream")
INTERNAL_ERROR = Refusal(
    400,
    Code.INVALID_HIT,
    "internal error while reading this body; do not retry, report it to the operator of this server",
)
UNAVAILABLE = Refusal(
    503, Code.UNAVAILABLE, "not stored, or the result is unknown; send the same hitId again, it counts only once"
)


def method_not_allowed(allowed: str) -> Refusal:
    """Return the refusal of a method on an existing path."""
    return Refusal(405, Code.METHOD_NOT_ALLOWED, f"use {allowed}", allow=allowed)


def too_large(limit: int) -> Refusal:
    """Return the refusal of a body; `limit` is in bytes after decompression."""
    return Refusal(400, Code.TOO_LARGE, f"at most {limit} bytes in one request; send less at once")


def too_many_requests(project: str, what: str, retry_after_seconds: float) -> Refusal:
    """Return the refusal of a rate limit; `what` is "hits" or "bytes"."""
    return Refusal(
        429,
        Code.TOO_MANY_REQUESTS,
        f"too many {what} of this project; nothing was stored, send it again after the seconds of Retry-After",
        project=project,
        retry_after_seconds=min(int(retry_after_seconds), _LONGEST_RETRY_SECONDS),
    )


def shared_with(origin: str) -> str:
    """Return the CORS headers for a page of `origin`: with credentials, so never a wildcard."""
    if not origin or not origin.isascii():
        return ""
    return f"Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\nVary: Origin\r\n"


def stored(answer: bytes, keep_alive: bool, origin: str) -> bytes:
    """Return NO_CONTENT, SUCCESS or PIXEL, adapted to keep-alive and origin."""
    if keep_alive and not origin:
        return answer
    status, rest = answer.split(b"\r\n", 1)
    close = b"" if keep_alive else b"Connection: close\r\n"
    return status + b"\r\n" + shared_with(origin).encode() + close + rest


def preflight(allow: str, origin: str) -> bytes:
    """Return the answer to OPTIONS; with an `origin` it permits the methods and headers of CORS."""
    shared = ""
    if origin:
        shared = (
            f"{shared_with(origin)}Access-Control-Allow-Methods: {allow}\r\n"
            f"Access-Control-Allow-Headers: {', '.join(_ALLOWED_HEADERS)}\r\n"
            "Access-Control-Max-Age: 86400\r\n"
        )
    return f"HTTP/1.1 204 No Content\r\nAllow: {allow}\r\n{shared}\r\n".encode()


def document(content: bytes, keep_alive: bool, with_body: bool, more: str = "") -> bytes:
    """Return a JSON document with `more` header lines, without the body for HEAD."""
    more += "" if keep_alive else "Connection: close\r\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{more}\r\n"
    return head.encode() + (content if with_body else b"")


def refusal(what: Refusal, keep_alive: bool, origin: str = "", *, with_body: bool = True) -> bytes:
    """Return the response with the error body of contract.md, section 1, or without a body for HEAD.

    A page of a refused origin gets no CORS headers, so it cannot read the answer.
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
