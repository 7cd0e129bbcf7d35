"""Tests that no request is sent to a private, loopback or metadata address in any spelling (contract.md, section 6)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import aiohttp.resolver
import pytest

from pipeline.codec.public_address import is_public
from pipeline.destination import HttpRequest, HttpResponse, Misconfigured, Rejected, Retry
from pipeline.sinks.http import HttpSink

pytestmark = pytest.mark.anyio

PRIVATE = [
    "127.0.0.1", "127.1.2.3", "10.0.0.1", "10.255.255.254", "172.16.0.1", "172.31.255.1", "192.168.0.1",
    "169.254.169.254", "100.64.0.1", "0.0.0.0", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "168.63.129.16",  # Azure's machine agent
    "192.0.0.192",  # Oracle Cloud's metadata
    "192.88.99.1",
]  # fmt: skip
PRIVATE_V6 = [
    "::1", "::", "fc00::1", "fd00:ec2::254", "fe80::1", "ff02::1", "::127.0.0.1",
    "100::1", "2001:db8::1", "5f00::1", "3fff::1", "2001:1::1", "fec0::1", "feff::1",
]  # fmt: skip


def spellings(address: str) -> Iterator[str]:
    """Yield hosts of a URL that some resolver reads as this IPv4 address."""
    number = int(IPv4Address(address))
    a, b, c, d = (number >> shift & 255 for shift in (24, 16, 8, 0))
    yield address
    yield str(number)
    yield hex(number)
    yield f"0{number:o}"
    yield f"{a:#x}.{b:#x}.{c:#x}.{d:#x}"
    yield f"0{a:o}.0{b:o}.0{c:o}.0{d:o}"
    yield f"{a}.{(b << 16) + (c << 8) + d}"
    yield f"{a}.{b}.{(c << 8) + d}"
    yield f"{address}."
    yield "".join(chr(ord(sign) + 0xFEE0) if sign.isdigit() else sign for sign in address)  # full-width digits
    yield address.replace(".", "\u3002")  # ideographic full stops
    yield f"[::ffff:{address}]"
    yield f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]"
    yield f"[0:0:0:0:0:ffff:{address}]"
    yield f"[::{address}]"
    yield f"[64:ff9b::{address}]"
    yield f"[64:ff9b:1::{number >> 16:x}:{number & 0xFFFF:x}]"
    yield f"[2002:{number >> 16:x}:{number & 0xFFFF:x}::]"
    yield f"[{IPv6Address((0x20010000 << 96) + (0x53AA064C << 64) + (number ^ 0xFFFFFFFF))}]"  # Teredo
    yield f"user@{address}"
    yield f"example.com@{address}"


HOSTS = [host for address in PRIVATE for host in spellings(address)] + [
    *(f"[{address}]" for address in PRIVATE_V6),
    "localhost", "LOCALHOST", "localhost.", "ip6-localhost", "[::1%25lo]", "[fe80::1%25eth0]",
]  # fmt: skip


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A port that listens on all local addresses, and the list of peers that connected."""
    came: list[object] = []
    server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)

    def accept() -> None:
        while True:
            try:
                connection, address = server.accept()
            except OSError:
                return
            came.append(address)
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1], came
    server.close()


def test_list_holds_at_least_300_spellings() -> None:
    assert len(set(HOSTS)) >= 300


async def test_no_request_is_sent_to_any_spelling_of_a_private_address(listener: tuple[int, list[object]]) -> None:
    port, came = listener
    sink = HttpSink(4)
    wrong = []
    for host in HOSTS:
        answer = await sink.send(HttpRequest("POST", f"http://{host}:{port}/", b"secret"))
        # A name that no resolver knows is a Retry, also without a request.
        unknown = isinstance(answer, Retry) and "Connect" in answer.reason
        if not isinstance(answer, Misconfigured) and not unknown:
            wrong.append((host, answer))
    await sink.close()
    assert (wrong, came) == ([], [])


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://127.0.0.1:1/", {}),
        ("http://localhost:1/", {}),
        ("http://user@crm.example/", {"Authorization": "Bearer t"}),
        ("ftp://crm.example/", {}),
    ],
)
async def test_outcome_of_a_request_that_is_not_sent_is_not_an_answer(url: str, headers: dict[str, str]) -> None:
    """Otherwise hits would be set aside and given up as if the destination had refused them."""
    sink = HttpSink(1)
    found = await sink.send(HttpRequest("POST", url, b"", headers))
    await sink.close()
    assert isinstance(found, Misconfigured) and not found.is_answer


async def test_redirect_is_not_followed(listener: tuple[int, list[object]]) -> None:
    port, came = listener
    redirecting = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = redirecting.accept()
        connection.recv(65536)
        connection.sendall(
            f"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{port}/\r\ncontent-length: 0\r\n\r\n".encode()
        )
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    sink = HttpSink(1, allow_private=True)
    found = await sink.send(HttpRequest("POST", f"http://127.0.0.1:{redirecting.getsockname()[1]}/", b""))
    await sink.close()
    redirecting.close()
    assert isinstance(found, HttpResponse) and found.status == 302
    assert came == []


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", [*PRIVATE, *PRIVATE_V6])
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


async def test_name_is_resolved_once_and_all_its_addresses_must_be_public(
    listener: tuple[int, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents DNS rebinding, in which a name is public when it is checked and private when it is used."""
    port, came = listener
    answers = iter([["127.0.0.1"], ["192.0.32.7", "10.0.0.1"], ["fd00::1"]])
    asked: list[str] = []

    async def resolve(_: object, host: str, port: int = 0, family: int = 0) -> list[dict[str, object]]:
        asked.append(host)
        return [
            {"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            for address in next(answers)
        ]

    monkeypatch.setattr(aiohttp.resolver.ThreadedResolver, "resolve", resolve)
    for name in ("a.example", "b.example", "c.example"):
        sink = HttpSink(1)
        answer = await sink.send(HttpRequest("POST", f"http://{name}:{port}/", b"secret"))
        await sink.close()
        assert isinstance(answer, Misconfigured)
    assert (asked, came) == (["a.example", "b.example", "c.example"], [])


@pytest.mark.parametrize("name", ["n\u00e4me", "\u65e5\u672c", "\U0001f600"])
async def test_non_ascii_header_value_is_sent_as_utf_8(name: str) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def answer() -> None:
        connection, _ = server.accept()
        heard.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    sink = HttpSink(1, allow_private=True)
    url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    found = await sink.send(HttpRequest("POST", url, b"", {"webhook-id": name}))
    await sink.close()
    server.close()
    assert isinstance(found, HttpResponse) and name.encode() in heard[0]


@pytest.mark.parametrize("name", ["a\r\nevil: 1", "a\nb", "a\x00b"])
async def test_control_character_in_a_header_rejects_the_request(name: str) -> None:
    sink = HttpSink(1, allow_private=True)
    for headers in ({"webhook-id": name}, {name: "webhook-id"}):
        assert isinstance(await sink.send(HttpRequest("POST", "http://127.0.0.1:1/", b"", headers)), Rejected)
    await sink.close()


def test_teredo_address_of_a_public_address_is_refused() -> None:
    assert not is_public("2001:0:4136:e378:8000:63bf:f7f7:f7f7")  # of 8.8.8.8
