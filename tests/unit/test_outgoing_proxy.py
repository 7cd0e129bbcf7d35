"""Outgoing requests use the operator's proxies, and reach no private network through them (docs/reference/outgoing-proxies.md)."""

from __future__ import annotations

import asyncio
import logging
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp.connector
import grpc
import httpx
import pytest
from aiohttp.resolver import ThreadedResolver
from google.auth.credentials import AnonymousCredentials

from pipeline.config import Config
from pipeline.console.demo import wait_for_intake
from pipeline.destination import BigQuery, HttpRequest, HttpResponse, Misconfigured, Retry
from pipeline.development.sample_hits import SampleHit
from pipeline.development.send_hits import send_hits
from pipeline.registry import declared_destinations
from pipeline.sinks.bigquery import BigQuerySink, proxy_options
from pipeline.sinks.http import HttpSink
from pipeline.sinks.proxies import InvalidProxy, Proxies, Proxy
from tests.proxy import NAME, Recorded, contexts
from tests.unit.test_address_guard import HOSTS

pytestmark = pytest.mark.anyio
PASSWORD = "p@ss:w/rd"
QUOTED = "p%40ss%3Aw%2Frd"


@pytest.fixture(autouse=True)
def no_proxy_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{kind}_proxy", raising=False)
        monkeypatch.delenv(f"{kind.upper()}_PROXY", raising=False)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return contexts(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def world(tls: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Recorded]:
    """A proxy in HTTPS_PROXY and HTTP_PROXY, and no name resolution, as on machines that reach the internet only by a proxy."""

    async def unknown(*_: object) -> Any:
        raise OSError("no such name")

    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", tls[1])
    monkeypatch.setattr(ThreadedResolver, "resolve", unknown)
    async with Recorded().serving(tls[0]) as recorded:
        for variable in ("HTTPS_PROXY", "http_proxy"):
            monkeypatch.setenv(variable, f"http://operator:{QUOTED}@{recorded.address}")
        yield recorded


async def asked(url: str, *, allow_private: bool = False, times: int = 1) -> Any:
    sink = HttpSink(4, allow_private)
    try:
        for _ in range(times):
            answer = await sink.send(HttpRequest("POST", url, b"{}", {"content-type": "application/json"}))
        return answer
    finally:
        await sink.close()


async def test_https_requests_share_a_tunnel_through_the_proxy(
    world: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await asked(f"https://{NAME}/hits", times=2)
    assert isinstance(answer, HttpResponse) and answer.status == 204
    (head,) = world.proxy_heads
    credentials = b64encode(f"operator:{PASSWORD}".encode())
    assert head.startswith(f"CONNECT {NAME}:443 HTTP/1.1\r\n".encode())
    assert b"\r\nProxy-Authorization: Basic " + credentials + b"\r\n" in head
    assert [one.split(b"\r\n")[0] for one in world.destination_heads] == [b"POST /hits HTTP/1.1"] * 2
    assert b"uthorization" not in b"".join(world.destination_heads)
    assert world.address in caplog.text, "the operator sees that the variable takes effect"
    for secret in (PASSWORD, QUOTED, credentials.decode(), "operator"):
        assert secret not in caplog.text


async def test_http_requests_send_the_absolute_url_to_the_proxy(world: Recorded) -> None:
    answer = await asked(f"http://{NAME}:8080/hits?a=b")
    assert isinstance(answer, HttpResponse) and answer.status == 204
    assert world.proxy_heads[0].startswith(f"POST http://{NAME}:8080/hits?a=b HTTP/1.1\r\n".encode())
    assert world.proxy_heads[0].count(b64encode(f"operator:{PASSWORD}".encode())) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("status", "outcome"),
    [(403, Misconfigured), (407, Misconfigured), (429, Retry), (502, Retry), (504, Retry)],
)
async def test_refusal_of_the_proxy_never_rejects_a_hit(
    world: Recorded, scheme: str, status: int, outcome: type, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.refusal = f"HTTP/1.1 {status} No\r\ncontent-length: 6\r\nconnection: close\r\n\r\nsecret".encode()
    answer = await asked(f"{scheme}://{NAME}/")
    if scheme == "http" and status != 407:  # indistinguishable from a response of the destination
        assert isinstance(answer, HttpResponse) and answer.status == status
        return
    assert isinstance(answer, outcome) and world.destination_heads == []
    assert not isinstance(answer, Misconfigured) or not answer.is_answer
    for secret in (PASSWORD, QUOTED, "operator"):
        assert secret not in caplog.text + str(answer)


async def test_unreachable_proxy_is_retried(world: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://operator:{QUOTED}@127.0.0.1:1")
    assert await asked(f"https://{NAME}/") == Retry("ClientProxyConnectionError")


async def test_netrc_password_is_not_sent(world: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {NAME} login me password fromnetrc\nmachine 127.0.0.1 login me password fromnetrc\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTPS_PROXY", world.address)
    assert isinstance(await asked(f"https://{NAME}/"), HttpResponse)
    assert b"uthorization" not in world.proxy_heads[0] + world.destination_heads[0]


@pytest.fixture
def real_names(world: Recorded, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.undo()
    for variable in ("HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(variable, world.address)
    yield world


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_spelling_of_a_private_address_reaches_the_proxy(real_names: Recorded, scheme: str) -> None:
    sink = HttpSink(4)
    wrong = []
    for host in HOSTS:
        answer = await sink.send(HttpRequest("POST", f"{scheme}://{host}:1/", b"secret"))
        # Requests to `localhost` use no proxy, and the address guard refuses them.
        unknown = isinstance(answer, Retry) and answer.reason == "ClientConnectorDNSError"
        if not isinstance(answer, Misconfigured) and not unknown:
            wrong.append((host, answer))
    await sink.close()
    assert (wrong, real_names.proxy_heads) == ([], [])


@pytest.mark.parametrize(
    "host", ["metadata.google.internal", "metadata", "printer.local", "2130706433", "127.0.0.1.", "a.home.arpa"]
)
async def test_name_unknown_here_is_sent_to_the_proxy_only_if_it_can_be_public(world: Recorded, host: str) -> None:
    assert isinstance(await asked(f"http://{host}/"), Misconfigured) and world.proxy_heads == []
    assert "private" not in str(await asked(f"http://{host}/", allow_private=True))


async def test_name_with_a_private_address_here_does_not_reach_the_proxy(
    world: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = []

    async def resolve(_: object, host: str, *__: object) -> list[dict[str, object]]:
        looked_up.append(host)
        return [{"hostname": host, "host": "10.0.0.1", "port": 0, "family": 0, "proto": 0, "flags": 0}]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    assert isinstance(await asked(f"https://{NAME}/", times=3), Misconfigured)
    assert (world.proxy_heads, looked_up) == ([], [NAME])
    assert isinstance(await asked(f"https://{NAME}/", allow_private=True), HttpResponse)


async def test_requests_to_the_own_intake_use_no_proxy(world: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The intake's address can be in a private network, which NO_PROXY need not list."""
    monkeypatch.setenv("ALL_PROXY", f"http://{world.address}")
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = Config.model_validate({"admin": {"listen": address}})
    assert await send_hits(f"http://{address}/track", {}, [SampleHit("shop", b"{}", 204)]) == [204]
    await asyncio.to_thread(wait_for_intake, config)
    server.close()
    assert (len(asked), world.proxy_heads) == (2, [])


async def test_bigquery_uses_the_proxy_of_an_upper_case_variable(
    world: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC itself reads only the variables in lower case."""
    world.refusal = b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n"
    monkeypatch.delenv("http_proxy")
    monkeypatch.setattr(BigQuerySink, "_credentials", lambda *_: AnonymousCredentials())
    destination = declared_destinations()["Google BigQuery"]
    settings = {"project": "project", "dataset": "d", "table": "t", "storage_url": f"https://bigquery.{NAME}"}
    assert isinstance(destination.sink, BigQuery)
    stream = BigQuerySink(destination.sink, destination.settings.model_validate(settings), 5.0)._open_stream()
    with pytest.raises(grpc.RpcError):
        await asyncio.to_thread(stream.append, [b""])
    stream.close()
    assert world.proxy_heads[0].startswith(f"CONNECT bigquery.{NAME}:443 ".encode())
    assert b64encode(f"operator:{PASSWORD}".encode()) in world.proxy_heads[0]
    direct = Proxies({"https": "http://proxy:1", "no": NAME})
    assert proxy_options(direct, f"https://bigquery.{NAME}") == [("grpc.enable_http_proxy", 0)]


def proxy_of(url: str) -> Proxy | None:
    parsed = httpx.URL(url)
    return Proxies.from_environment().proxy_for(parsed.scheme, parsed.raw_host.decode(), parsed.port)


EVERY = {"HTTPS_PROXY": "http://secure:3128", "HTTP_PROXY": "plain:8080"}


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://a.example/", None),
        (EVERY, "https://a.example/", "http://secure:3128"),
        (EVERY, "http://a.example/", "http://plain:8080"),
        (EVERY, "ftp://a.example/", None),
        ({"https_proxy": "lower:1", "HTTPS_PROXY": "upper:1"}, "https://a.example/", "http://lower:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "upper:1"}, "https://a.example/", None),
        ({"ALL_PROXY": "every:1"}, "https://a.example/", "http://every:1"),
        ({"ALL_PROXY": "every:1", **EVERY}, "https://a.example/", "http://secure:3128"),
        ({"HTTPS_PROXY": "[fd00::1]:3128"}, "https://a.example/", "http://[fd00::1]:3128"),
        ({"HTTPS_PROXY": "https://secure"}, "https://a.example/", "https://secure:443"),
        *[
            ({**EVERY, "NO_PROXY": no_proxy}, f"https://{host}/", None)
            for no_proxy, host in [
                ("*", "a.example"),
                ("b.example, *", "a.example"),
                ("a.example", "a.example"),
                ("A.Example", "a.EXAMPLE"),
                ("example", "a.example"),
                (".example", "a.b.example"),
                ("*.example", "a.example"),
                ("b.example a.example", "a.example"),
                ("a.example", "a.example."),
                ("a.example:443", "a.example"),
                ("a.example:8443", "a.example:8443"),
                ("8.8.0.0/16", "8.8.4.4"),
                ("8.8.4.4", "8.8.4.4"),
                ("8.8.4.4:443", "8.8.4.4"),
                ("2001:4860::/32", "[2001:4860::1]"),
                ("2001:4860::1", "[2001:4860::1]"),
                ("[2001:4860::1]:443", "[2001:4860::1]"),
                ("", "localhost"),
                ("", "a.localhost"),
                ("", "127.0.0.2"),
                ("", "[::1]"),
            ]
        ],
        *[
            ({**EVERY, "no_proxy": no_proxy}, f"https://{host}/", "http://secure:3128")
            for no_proxy, host in [
                ("b.example", "a.example"),
                ("example", "aexample"),
                ("a.example:8443", "a.example"),
                ("8.8.0.0/16", "8.9.4.4"),
                ("8.8.4.4:80", "8.8.4.4"),
                ("2001:4860::/32", "8.8.4.4"),
                (",", "a.example"),
            ]
        ],
    ],
)
def test_proxy_of_a_request(
    environment: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    found = proxy_of(url)
    assert (None if found is None else found.url) == proxy


@pytest.mark.parametrize("value", ["socks5://me:secret@a:1", "http://", "http://me:secret@a:port", "http://[me:secret"])
async def test_invalid_proxy_is_misconfigured(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(InvalidProxy):
        proxy_of("https://a.example/")
    answer = await asked("https://a.example/")
    assert isinstance(answer, Misconfigured)
    assert "HTTPS_PROXY" in answer.message and "secret" not in answer.message
