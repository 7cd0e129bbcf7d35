"""Random requests of one client, each with the answers that it may get."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from pipeline.codec.hit_text import BODY_BYTES
from pipeline.intake.request_reader import HEADER_BYTES
from tests.roles import hit


class RandomRequest:
    """One request. Its answer has one of `statuses` and names `origin`; without statuses there is no answer.

    `is_last` means that the connection answers no later request.
    """

    def __init__(self, data: bytes, *statuses: bytes, origin: bytes = b"", is_last: bool = False) -> None:
        self.data, self.statuses, self.origin, self.is_last = data, statuses, origin, is_last
        self.expects = b"Expect:" in data


def random_requests(source: random.Random, number: int) -> list[RandomRequest]:
    """Return a random request, or two. Each names another origin, except that hits with a known head need the same one."""
    origin = f"https://{number}.example"
    body = hit(str(number), projectId="shop")

    def post(body: bytes, *more: str, path: str = "/collect", origin: str = origin, version: str = "1.1") -> bytes:
        head = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: text/plain", f"Origin: {origin}", *more]
        if "Transfer-Encoding: chunked" not in more:
            head.append(f"Content-Length: {len(body)}")
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body

    def chunked(extension: bytes = b"", trailer: bytes = b"X: y") -> bytes:
        chunks = b"%x%b\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(body), extension, body, trailer)
        return post(chunks, "Transfer-Encoding: chunked")

    own = origin.encode()
    if source.random() < 0.35:
        known = "https://known.example"
        return [RandomRequest(post(body, origin=known), b"204", b"503", origin=known.encode())]
    batch = [{"type": "track", "event": "E", "userId": "u", "messageId": f"{number}-{part}"} for part in range(120)]
    kinds: list[Callable[[], RandomRequest]] = [
        lambda: RandomRequest(post(body), b"204", b"503", origin=own),
        lambda: RandomRequest(post(body, "Expect: 100-continue"), b"204", b"503", origin=own),
        lambda: RandomRequest(post(body, "Connection: Upgrade", "Upgrade: h2c"), b"204", b"503", origin=own),
        lambda: RandomRequest(chunked(b";x=y"), b"204", b"503", origin=own),
        lambda: RandomRequest(post(b"{"), b"400", b"503", origin=own),
        lambda: RandomRequest(post(b"", "Expect: 100-continue"), b"400", b"503", origin=own),
        lambda: RandomRequest(post(body, path="/nowhere"), b"404"),
        lambda: RandomRequest(
            post(json.dumps({"writeKey": "old", "batch": batch}).encode(), path="/v1/batch"),
            *(b"200", b"503"),
            origin=own,
        ),
    ]
    last: list[Callable[[], RandomRequest]] = [
        lambda: RandomRequest(post(body, "Connection: close"), b"204", b"503", origin=own, is_last=True),
        lambda: RandomRequest(post(body, version="1.0"), b"204", b"503", origin=own, is_last=True),
        lambda: RandomRequest(post(body, "Expect: 100-continue", path="/nowhere"), b"404", is_last=True),
        lambda: RandomRequest(post(b"x" * (BODY_BYTES + 1)), b"400", origin=own, is_last=True),
        lambda: RandomRequest(chunked(b";" + b"x" * 300), b"400", is_last=True),
        lambda: RandomRequest(post(body, "Host: y"), b"400", is_last=True),
        lambda: RandomRequest(
            post(body, "Transfer-Encoding: chunked").replace(b"\r\n\r\n", b"\r\n\r\nz"), b"400", is_last=True
        ),
        lambda: RandomRequest(b"no HTTP\r\n\r\n", b"405", is_last=True),
        lambda: RandomRequest(post(body, "X: " + "y" * HEADER_BYTES), is_last=True),
    ]
    if source.random() < 0.01:  # the parser reads nothing after such a trailer
        closing = RandomRequest(chunked(trailer=b"Connection: close"), b"204", b"503", origin=own)
        return [closing, RandomRequest(post(body), b"400", is_last=True)]
    return [source.choice(last if source.random() < 0.08 else kinds)()]
