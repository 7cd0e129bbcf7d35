"""A Kafka of a test's own: with further broker settings, or behind a proxy that loses requests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from pipeline.kafka.embedded import EmbeddedBroker, broker
from pipeline.kafka.embedded.broker import free_port
from pipeline.kafka.embedded.properties import Node, server_properties


@contextmanager
def kafka_with(folder: Path, properties: dict[str, str], listen: str | None = None) -> Iterator[EmbeddedBroker]:
    """A broker whose server.properties end with `properties`; stopped at the end."""
    more = "".join(f"{name}={value}\n" for name, value in properties.items())

    def with_more(node: Node, nodes: list[Node]) -> str:
        return server_properties(node, nodes) + more

    with patch.object(broker, "server_properties", with_more):
        made = EmbeddedBroker(listen or f"127.0.0.1:{free_port()}", folder)
        made.start()
    try:
        yield made
    finally:
        made.stop()


class LosingProxy:
    """Passes Kafka's protocol through, and loses single requests; `lost` holds their API keys."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._wanted, self._skipped = -1, 0
        self.lost: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, api_key: int, after: int = 0) -> None:
        """Lose the next request of this kind, or the one `after` so many others of it."""
        self.lost.clear()
        self._wanted, self._skipped = api_key, after

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
                threading.Thread(target=_copy, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        stream = client.makefile("rb")
        with contextlib.suppress(OSError):
            while len(head := stream.read(4)) == 4:
                body = stream.read(int.from_bytes(head))
                api_key = int.from_bytes(body[:2])
                if api_key == self._wanted and not self._skipped:
                    self._wanted = -1
                    self.lost.append(api_key)
                    continue
                self._skipped -= api_key == self._wanted
                server.sendall(head + body)
        server.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65_536):
            target.sendall(part)
    target.close()
