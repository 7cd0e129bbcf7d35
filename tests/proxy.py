"""A forward proxy for tests, and a certificate for the host behind it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAME = "destination.example"
OK = b"HTTP/1.1 204 No Content\r\n\r\n"


class Recorded:
    """A proxy and the destination behind it: the request heads that each has read, and the response by which the proxy refuses."""

    def __init__(self) -> None:
        self.proxy_heads: list[bytes] = []
        self.destination_heads: list[bytes] = []
        self.refusal = b""
        self.address = ""

    async def _proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.proxy_heads.append(head)
            if self.refusal or not head.startswith(b"CONNECT"):
                writer.write(self.refusal or OK)
            else:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                there = await asyncio.open_connection(*self._behind)
                await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
        writer.close()

    async def _destination(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.destination_heads.append(head)
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0))
                writer.write(OK)
        writer.close()

    @asynccontextmanager
    async def serving(self, certificate: ssl.SSLContext) -> AsyncIterator[Recorded]:
        """Serve; every CONNECT connects to the one destination."""
        destination = await asyncio.start_server(self._destination, "127.0.0.1", 0, ssl=certificate)
        proxy = await asyncio.start_server(self._proxy, "127.0.0.1", 0)
        self._behind = destination.sockets[0].getsockname()[:2]
        self.address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            proxy.close()
            destination.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while part := await reader.read(65_536):
            writer.write(part)
    with suppress(OSError):
        writer.close()


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of a server named NAME, and of a client that trusts only that server."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))
