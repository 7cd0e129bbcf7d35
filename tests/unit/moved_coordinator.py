"""librdkafka's mock cluster behind a proxy that answers the first OffsetFetch as a broker that is no longer the coordinator."""

from __future__ import annotations

import contextlib
import socket
import threading

from confluent_kafka import Producer

_OFFSET_FETCH, _FIRST_FLEXIBLE_VERSION, _NOT_COORDINATOR = 9, 6, 16


class MovedCoordinator:
    """Topic `x` has four partitions and a record in each; `refused` counts the answers that were changed."""

    def __init__(self) -> None:
        self._mock = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self._mock.list_topics(timeout=10).brokers.values()
        for partition in range(4):
            self._mock.produce("x", b"x", partition=partition)
        assert self._mock.flush(10) == 0
        self._port = broker.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.refused = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                versions: dict[bytes, int] = {}
                for source, target, change in (
                    (client, server, lambda frame, seen=versions: self._request(frame, seen)),
                    (server, client, lambda frame, seen=versions: self._response(frame, seen)),
                ):
                    threading.Thread(target=_pump, args=(source, target, change), daemon=True).start()

    def _request(self, frame: bytes, versions: dict[bytes, int]) -> bytes:
        api_key, version, correlation = int.from_bytes(frame[:2]), int.from_bytes(frame[2:4]), frame[4:8]
        if api_key == _OFFSET_FETCH:
            versions[correlation] = version
        return frame

    def _response(self, frame: bytes, versions: dict[bytes, int]) -> bytes:
        version = versions.pop(frame[:4], None)
        if version is not None and not self.refused:
            self.refused += 1
            # The error of the whole answer is its last field; a flexible version has an empty list of tags behind it.
            tags = frame[-1:] if version >= _FIRST_FLEXIBLE_VERSION else b""
            return frame[: -2 - len(tags)] + _NOT_COORDINATOR.to_bytes(2) + tags
        # The mock names itself; its clients come back to the proxy.
        return frame.replace(self._port.to_bytes(4), self._listener.getsockname()[1].to_bytes(4))


def _pump(source: socket.socket, target: socket.socket, change: object) -> None:
    stream = source.makefile("rb")
    with contextlib.suppress(OSError):
        while len(head := stream.read(4)) == 4:
            changed = change(stream.read(int.from_bytes(head)))  # type: ignore[operator]
            target.sendall(len(changed).to_bytes(4) + changed)
    target.close()
