"""Decides on a request from its head alone: method, path and headers, before the body is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import httptools
import msgspec

from pipeline.codec.hit_text import BODY_BYTES
from pipeline.intake import answers, bootstrap
from pipeline.intake.endpoints import BY_BODY, Document, Endpoint
from pipeline.intake.request_url import plain_path
from pipeline.intake.server_state import ServerState
from pipeline.stages.accept import Refusal, Sender
from pipeline.telemetry import HITS_ACCEPTED

_DOCUMENT_PATH = b"/openapi.json"
_READ_ONLY = (b"GET", b"HEAD")
_WITHOUT_HOST = "1.0"
_VERSIONS = ("1.1", _WITHOUT_HOST)
_DOCUMENT_ALLOW = "GET, HEAD, OPTIONS"
_PIXEL = b"pixel=1"
_HEADER_NAMES_BYTES = 100
"""Estimated bytes of a record's header names, project, endpoint and time."""


class Head(msgspec.Struct, gc=False):
    """The parsed head. `answer` is set if the head decides; `stored` is the answer sent once the hits are stored.

    `path` is normalised, without the query. `project` is "" if the body names it. `address` is the client's, anonymised if
    configured.
    """

    keep_alive: bool
    method: bytes = b""
    path: bytes = b""
    answer: Refusal | bytes | None = None
    endpoint: Endpoint | None = None
    project: str = ""
    content_type: str = ""
    user_agent: str = ""
    address: str = ""
    query: str = ""
    origin: str = ""
    gzip: bool = False
    expects_continue: bool = False
    with_body: bool = True
    """Whether the answer has a body; False for HEAD."""
    body_bytes: int = BODY_BYTES
    stored: bytes = b""
    sender: Sender = BY_BODY
    accepted: Any = None
    """The counter of the project's accepted hits."""
    traffic: Any = None
    """The project's `Traffic`; None if the body names the project."""
    record_header_bytes: int = 0
    """Estimated bytes of the headers of one record."""


def read_head(
    state: ServerState,
    peer: str,
    method: bytes,
    url: bytes,
    headers: Mapping[bytes, bytes],
    keep_alive: bool,
    version: str,
) -> Head:
    """Return the parsed head. `version` is that of HTTP; `Expect` counts only from 1.1 on.

    `headers` holds the headers named in `ServerState.headers`, by lower-case name.
    """
    head = Head(keep_alive, method, with_body=method != b"HEAD")
    if b"expect" in headers and version != _WITHOUT_HOST:
        head.expects_continue = headers[b"expect"].lower() == b"100-continue"
    head.answer = _decide(head, state, method, url, headers)
    if head.answer is None:
        forwarded_for = forwarded = None
        if b"x-forwarded-for" in headers or b"forwarded" in headers:
            forwarded_for, forwarded = _text(headers, b"x-forwarded-for"), _text(headers, b"forwarded")
        head.address = state.hide_address(state.addresses.read(peer, forwarded_for, forwarded))
        head.content_type = _text(headers, b"content-type") or ""
        head.user_agent = headers.get(b"user-agent", b"").decode("utf-8", "replace")
        head.record_header_bytes = (
            _HEADER_NAMES_BYTES + len(head.user_agent) + len(head.content_type) + len(head.address)
        )
        if head.project:
            head.accepted = _accepted(head.project)
            head.traffic = state.admission.traffic(*head.sender)
    return head


@cache
def _accepted(project: str) -> Any:
    """Return the counter of a configured project; cached because `labels` costs a microsecond."""
    return HITS_ACCEPTED.labels(project)


def broken_head(version: str, headers: Mapping[bytes, bytes], repeated: bytes) -> Refusal | None:
    """Refuse a head that a proxy could read differently (request smuggling); `repeated` is a repeated header of ONCE."""
    if version not in _VERSIONS:
        return answers.BROKEN
    if repeated == b"host" or (version != _WITHOUT_HOST and b"host" not in headers):
        return answers.ONE_HOST
    if repeated == b"authorization":
        return answers.ONE_AUTHORIZATION
    coding = headers.get(b"transfer-encoding")
    if coding is not None and (repeated or coding.strip().lower() != b"chunked"):
        return answers.NOT_CHUNKED
    return None


def _decide(
    head: Head, state: ServerState, method: bytes, url: bytes, headers: Mapping[bytes, bytes]
) -> Refusal | bytes | None:
    """Return the answer that the head decides; None if the body must be read."""
    if url == b"*" and method == b"OPTIONS":
        return answers.preflight("GET, POST, OPTIONS", "")
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return answers.NOT_FOUND
    path = parsed.path or b"/"  # absent in http://host
    endpoint = state.endpoints.find(path)
    if endpoint is None:  # endpoints have normalised paths, and so do most requests
        path = plain_path(path)
        endpoint = state.endpoints.find(path)
    head.path = path
    if endpoint is None:
        return _openapi(head, state) if path == _DOCUMENT_PATH else answers.NOT_FOUND
    head.endpoint = endpoint
    head.body_bytes = endpoint.body_bytes
    if endpoint.cross_origin:
        head.origin = _text(headers, b"origin") or ""
    if method == b"OPTIONS":
        refused = endpoint.preflight(head.origin) if head.origin else None
        return refused or answers.preflight(endpoint.allow, head.origin)
    if method not in endpoint.methods:
        return answers.method_not_allowed(endpoint.allow)
    query: bytes = parsed.query or b""
    key = endpoint.key_in_url(path, query) if endpoint.key_in_url is not None else ""
    sender = endpoint.authorize(_text(headers, b"authorization") or None, key)
    if isinstance(sender, Refusal):
        return sender
    head.sender, head.project = sender, sender.project
    if head.origin and head.project:
        refused = state.endpoints.refused_page(sender, head.origin)
        if refused is not None:
            return refused
    if endpoint.document is not None:
        return _document(head, endpoint.document, state.public_url, key, headers)
    head.query = query.decode("utf-8", "replace")
    answer = answers.PIXEL if _PIXEL in query.split(b"&") else endpoint.stored
    head.stored = answers.stored(answer, head.keep_alive, head.origin)
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if encoding != b"identity":
        if encoding not in (b"gzip", b"x-gzip"):
            return answers.BAD_GZIP
        head.gzip = True
    return None


def _openapi(head: Head, state: ServerState) -> Refusal | bytes:
    if head.method == b"OPTIONS":
        return answers.preflight(_DOCUMENT_ALLOW, "")
    if head.method not in _READ_ONLY:
        return answers.method_not_allowed(_DOCUMENT_ALLOW)
    return answers.document(state.document, head.keep_alive, head.with_body)


def _document(
    head: Head, document: Document, public_url: str | None, key: str, headers: Mapping[bytes, bytes]
) -> Refusal | bytes:
    url = public_url or bootstrap.own_url(_text(headers, b"host") or "", head.origin)
    if url is None:
        return answers.NO_HOST
    more = answers.shared_with(head.origin) + bootstrap.HEADERS
    return answers.document(document(key, url), head.keep_alive, head.with_body, more)


def plain_head(method: bytes, url: bytes, version: str, keep_alive: bool, headers: Mapping[bytes, bytes]) -> bytes:
    """Return the same head without `Upgrade`, which a server may ignore (RFC 9110, 7.8)."""
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    lines += [b"%b: %b" % (name, value) for name, value in headers.items() if name != b"upgrade"]
    lines.append(b"connection: keep-alive" if keep_alive else b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")
