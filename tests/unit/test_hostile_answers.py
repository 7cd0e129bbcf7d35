"""Hostile responses of a destination: none stops the deliverer, and none puts a secret into a log."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from pipeline.config.models import ConnectionConfig
from pipeline.delivery.http_deliverer import HttpDeliverer
from pipeline.destination import (
    Delivered,
    Event,
    Http,
    HttpRequest,
    HttpResponse,
    Misconfigured,
    Outcome,
    Rejected,
    Retry,
    judge,
)
from pipeline.registry import declared_destinations
from pipeline.sinks.http import HttpSink

pytestmark = pytest.mark.anyio

SECRETS = ("s3cret", "hidd3n")


@asynccontextmanager
async def responding(*answers: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server with one response per connection, the last one repeatedly. Yields its port and the request heads it received."""
    received: list[bytes] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answers[min(len(received), len(answers)) - 1])
        with suppress(ConnectionError):  # the client may close the connection early
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], received


async def exchange(port: int, times: int = 1) -> list[HttpResponse | Outcome]:
    sink = HttpSink(1, allow_private=True)
    request = HttpRequest("POST", f"http://localhost:{port}/?key={SECRETS[0]}", b"{}", {"authorization": SECRETS[1]})
    try:
        return [await sink.send(request) for _ in range(times)]
    finally:
        await sink.close()


@pytest.mark.parametrize(("status", "outcome"), [(200, Retry), (400, Rejected), (401, Misconfigured), (503, Retry)])
async def test_verdict_that_raises_is_replaced_by_the_status(status: int, outcome: type) -> None:
    def verdict(response: HttpResponse, events: Sequence[Event]) -> Outcome:
        raise TypeError("'int' object is not iterable")

    connection = ConnectionConfig(destination="Webhook", delivery={"allow_private": True})  # type: ignore[arg-type]
    webhook = declared_destinations()["Webhook"]
    assert isinstance(webhook.sink, Http)
    async with responding(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status) as (port, _):
        settings = webhook.settings.model_validate({"url": f"http://127.0.0.1:{port}/"})
        deliverer = HttpDeliverer("c", connection, webhook, replace(webhook.sink, verdict=verdict), settings)
        deliverer._get_attempts()
        assert isinstance(await deliverer._send([Event("hit-1", b"{}")]), outcome)
        await deliverer.close()


_BOMB = gzip.compress(b"0" * 20_000_000)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",  # a TLS alert
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"",
    ],
)
async def test_invalid_http_response_is_retried_and_logs_no_secret(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pipeline")
    connection = ConnectionConfig(destination="Webhook", delivery={"allow_private": True})  # type: ignore[arg-type]
    webhook = declared_destinations()["Webhook"]
    assert isinstance(webhook.sink, Http)
    async with responding(answer) as (port, _):
        headers = {"authorization": SECRETS[1]}
        settings = webhook.settings.model_validate(
            {"url": f"http://127.0.0.1:{port}/?key={SECRETS[0]}", "headers": headers}
        )
        deliverer = HttpDeliverer("c", connection, webhook, webhook.sink, settings)
        deliverer._get_attempts()
        outcome = repr(await deliverer._send([Event("hit-1", b"{}")]))
        await deliverer.close()
    assert outcome.startswith("Retry(")
    assert not any(secret in text for secret in SECRETS for text in (outcome, caplog.text))


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 204 \xdcberlastet",  # Latin-1
        b"HTTP/1.1 204 OK\r\nretry-after: Mon, 1 Jan 99999999999999999999 00:00:00 GMT",
        b"HTTP/1.1 204 OK\r\nretry-after: \xb2",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(_BOMB) + _BOMB,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"0" * 5_000_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + b"HTTP/1.1 204 OK",
    ],
)
async def test_unusual_success_response_counts_as_delivered(head: bytes) -> None:
    async with responding(head + b"\r\n\r\n") as (port, _):
        (answer,) = await exchange(port)
    assert isinstance(answer, HttpResponse) and judge(answer) == Delivered()
    assert len(answer.body) <= 65_536


async def test_cookies_are_not_stored() -> None:
    async with responding(b"HTTP/1.1 204 OK\r\nset-cookie: a=b\r\nconnection: close\r\n\r\n") as (port, received):
        await exchange(port, 3)
    assert len(received) == 3 and b"cookie" not in b"".join(received).lower()


async def test_failure_is_named_after_its_cause() -> None:
    async with responding(b"") as (port, _):
        assert await exchange(port) == [Retry("ServerDisconnectedError")]
    assert await exchange(1) == [Retry("ClientConnectorError")]
