"""Answers of the intake as bytes."""

from __future__ import annotations

import json
import random
from http import HTTPStatus

from pipeline.stages.accept import Refusal

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
NO_CONTENT_CLOSE = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

UNAUTHORIZED = Refusal(
    401, "unauthorized", "send the project's API token as the user name of Basic authentication, with an empty password"
)
NOT_FOUND = Refusal(404, "not_found", "no such path; hits go to POST /track")
TOO_LARGE = Refusal(400, "too_large", "a hit has at most 65536 bytes; send less in one hit")
UNAVAILABLE = Refusal(503, "unavailable", "not stored, or not known to be; send the same hitId again, it counts once")


def method_not_allowed(allowed: str) -> Refusal:
    """The path exists, the method does not."""
    return Refusal(405, "method_not_allowed", f"use {allowed}")


def refusal(what: Refusal, keep_alive: bool, allowed: str = "") -> bytes:
    """A whole response with the error body of contract.md, section 1."""
    body = json.dumps({"error": {"code": what.code, "message": what.message, "path": what.path}}).encode()
    lines = [
        f"HTTP/1.1 {what.status} {HTTPStatus(what.status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if what.status == 401:
        lines.append('WWW-Authenticate: Basic realm="hitrouter"')
    if what.status == 405:
        lines.append(f"Allow: {allowed}")
    if what.status == 503:
        lines.append(f"Retry-After: {random.randint(1, 5)}")  # jitter: not all at once
    if not keep_alive:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
