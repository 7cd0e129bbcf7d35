"""Tests of the HTTP sink: bytes on the wire, reuse of HTTP connections, timeouts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate

import aiohttp
import pytest
from aiohttp.resolver import ThreadedResolver

import pipeline.sinks.http
from pipeline.destination import HttpRequest, HttpResponse, Misconfigured, Outcome, Retry
from pipeline.sinks.http import HttpSink

pytestmark = pytest.mark.anyio

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[str]:
    """Run a server that handles each HTTP connection with `talk`; yield its host and port."""
    ended = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking = asyncio.ensure_future(talk(reader, writer))
        await asyncio.wait({talking, asyncio.ensure_future(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
        talking.cancel()
        with suppress(ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=4_000_000)
    async with server:
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            ended.set()


@asynccontextmanager
async def sending(in_flight: int = 1) -> AsyncIterator[HttpSink]:
    sink = HttpSink(in_flight, allow_private=True)
    try:
        yield sink
    finally:
        await sink.close()


class Receiver:
    """Reads requests by their length, and answers with `answers` in order. Keeps heads and bodies by HTTP connection."""

    def __init__(self, *answers: bytes) -> None:
        self.heard: list[list[tuple[bytes, bytes]]] = []
        self._answers = list(answers)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests: list[tuple[bytes, bytes]] = []
        self.heard.append(requests)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                requests.append((head, await reader.readexactly(int(_fields(head)[b"content-length"][0]))))
                writer.write(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])


def _fields(head: bytes) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for line in head.split(b"\r\n")[1:-2]:
        name, _, value = line.partition(b": ")
        found.setdefault(name.lower(), []).append(value)
    return found


async def test_consecutive_requests_share_an_http_connection() -> None:
    receiver = Receiver(OK)
    async with serving(receiver.talk) as host, sending() as sink:
        for number in range(3):
            answer = await sink.send(HttpRequest("POST", f"http://{host}/{number}?a=b", b"body %d" % number))
            assert isinstance(answer, HttpResponse) and (answer.status, answer.body) == (200, b"ok")
    (requests,) = receiver.heard
    assert [(head.split(b"\r\n")[0], body) for head, body in requests] == [
        (b"POST /%d?a=b HTTP/1.1" % number, b"body %d" % number) for number in range(3)
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000,  # longer than the sink reads
        OK + OK,  # an unsolicited response must not become the response to the next request
    ],
)
async def test_http_connection_with_unread_data_is_not_reused(answer: bytes) -> None:
    receiver = Receiver(answer, OK)
    async with serving(receiver.talk) as host, sending() as sink:
        for _ in range(2):
            assert isinstance(await sink.send(HttpRequest("POST", f"http://{host}/", b"{}")), HttpResponse)
    assert [len(requests) for requests in receiver.heard] == [1, 1]


@pytest.mark.parametrize("size", [0, 65_536, 65_537, 3_000_000])
async def test_body_of_any_size_arrives_complete(size: int) -> None:
    receiver = Receiver(OK)
    async with serving(receiver.talk) as host, sending() as sink:
        for _ in range(2):
            answer = await sink.send(HttpRequest("POST", f"http://{host}/", b"x" * size, {"x-name": "v"}))
            assert isinstance(answer, HttpResponse) and answer.status == 200
    assert [[(len(body), _fields(head)[b"x-name"]) for head, body in part] for part in receiver.heard] == [
        [(size, [b"v"])] * 2
    ]


async def test_response_before_the_body_is_read_is_returned() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await asyncio.Event().wait()

    async with serving(talk) as host, sending() as sink:
        answer = await sink.send(HttpRequest("POST", f"http://{host}/", b"x" * 50_000_000))
    assert isinstance(answer, HttpResponse) and answer.status == 413


@pytest.mark.parametrize("size", [2, 70_000])
async def test_each_header_is_sent_once_and_the_destinations_headers_win(size: int) -> None:
    receiver = Receiver(OK)
    headers = {"User-Agent": "mine/1", "content-type": "application/json", "webhook-id": "hit-1"}
    async with serving(receiver.talk) as host, sending() as sink:
        await sink.send(HttpRequest("POST", f"http://name:word@{host}/", b"x" * size, headers))
        await sink.send(HttpRequest("POST", f"http://name:word@{host}/", b"x" * size))
        await sink.send(HttpRequest("POST", f"http://{host}/", b"x" * size))
    first, second, third = (_fields(head) for head, _ in receiver.heard[0])
    assert first == {
        b"host": [host.encode()],
        b"accept": [b"*/*"],
        b"accept-encoding": [b"identity"],
        b"user-agent": [b"mine/1"],
        b"authorization": [b"Basic bmFtZTp3b3Jk"],
        b"content-type": [b"application/json"],
        b"webhook-id": [b"hit-1"],
        b"content-length": [str(size).encode()],
    }
    assert second[b"user-agent"] == [b"hitrouter"] and b"authorization" in second and b"webhook-id" not in second
    assert b"authorization" not in third


@pytest.mark.parametrize("url", ["http:///path", "ftp://example.com/", "example.com", "http://[::1/"])
async def test_invalid_url_is_misconfigured(url: str) -> None:
    async with sending() as sink:
        assert type(await sink.send(HttpRequest("POST", url, b""))).__name__ == "Misconfigured"


async def test_credentials_in_both_url_and_header_are_misconfigured() -> None:
    async with sending() as sink:
        request = HttpRequest("POST", "http://name:word@127.0.0.1:1/", b"", {"Authorization": "Bearer token"})
        outcome = await sink.send(request)
    assert isinstance(outcome, Misconfigured) and "word" not in outcome.message and "token" not in outcome.message


async def test_retry_after_date_is_converted_to_seconds() -> None:
    date = formatdate(time.time() + 3600, usegmt=True).encode()
    receiver = Receiver(b"HTTP/1.1 503 No\r\nX-Other: 1\r\nRetry-After: " + date + b"\r\ncontent-length: 0\r\n\r\n")
    async with serving(receiver.talk) as host, sending() as sink:
        answer = await sink.send(HttpRequest("POST", f"http://{host}/", b""))
    assert isinstance(answer, HttpResponse) and answer.headers["x-other"] == "1"
    assert 3000 < int(answer.headers["retry-after"]) <= 3600


async def _drip(writer: asyncio.StreamWriter, text: bytes) -> None:
    writer.write(text)
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\n\r\n"])
@pytest.mark.parametrize("size", [2, 70_000])
async def test_slow_endless_response_times_out(begin: bytes, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.sinks.http, "_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        if connections <= 2:
            await _drip(writer, begin)
        await reader.readexactly(size)
        writer.write(OK)

    async with serving(talk) as host, sending(2) as sink:
        request = HttpRequest("POST", f"http://{host}/", b"x" * size)
        assert await asyncio.gather(sink.send(request), sink.send(request)) == [Retry("Timeout")] * 2
        assert isinstance(await sink.send(request), HttpResponse)


async def test_silent_server_times_out_after_the_read_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.sinks.http, "_TIMEOUT", aiohttp.ClientTimeout(total=60.0, sock_read=0.1))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving(talk) as host, sending() as sink:
        assert await sink.send(HttpRequest("POST", f"http://{host}/", b"")) == Retry("SocketTimeoutError")


async def test_close_during_a_name_look_up_is_a_retry_and_not_a_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def never(*_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ThreadedResolver, "resolve", never)
    sink = HttpSink(1)
    async with asyncio.timeout(10):
        request = asyncio.ensure_future(sink.send(HttpRequest("POST", "https://silent.example/", b"")))
        await asked.wait()
        await sink.close()
        assert await request == Retry("Closed")


async def test_cancelled_request_raises_and_frees_its_http_connection() -> None:
    asked = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if asked.is_set():
            writer.write(OK)
        asked.set()
        await asyncio.Event().wait()

    async with serving(talk) as host, sending() as sink:
        request = HttpRequest("POST", f"http://{host}/", b"")
        first: asyncio.Task[HttpResponse | Outcome] = asyncio.ensure_future(sink.send(request))
        await asked.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        # One request in flight is allowed, so this one would wait for ever if the first one still counted.
        assert isinstance(await asyncio.wait_for(sink.send(request), 10), HttpResponse)
