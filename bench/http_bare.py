"""What uvloop, httptools and the producer cost without us: nothing is checked, each body goes to Kafka as it is, or nowhere.

python -m bench.http_bare PORT [CONFIG]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import cast

import httptools
import uvloop

from pipeline.config import load_config
from pipeline.intake.answers import NO_CONTENT
from pipeline.kafka.producer import AcknowledgingProducer, Report
from pipeline.kafka.topics import TopicNames
from pipeline.process.garbage import reduce_gc_frequency

Send = Callable[[bytes, Report], None]
_HEADERS = [
    ("received-at", b"1795515330123"),
    ("project", b"shop"),
    ("request-ip", b"127.0.0.1"),
    ("user-agent", b"bench/1"),
    ("content-type", b"application/json"),
    ("endpoint", b"/track"),
]


class Bare(asyncio.Protocol):
    """One connection."""

    def __init__(self, send: Send) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._send = send

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body = body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        self._send(body, self._answer)

    def _answer(self, _: bool) -> None:
        self._transport.write(NO_CONTENT)


def to_kafka(file: Path) -> Send:
    """Answered when Kafka has it."""
    config = load_config(file)
    producer, topic = AcknowledgingProducer(config.kafka), TopicNames(config.kafka.topic_prefix).hits_raw
    numbers = count()
    return lambda body, report: cast(
        None, producer.send(topic, body, b"shop/hit-%d" % next(numbers), _HEADERS, report) or report(False)
    )


async def serve(port: int, file: Path | None) -> None:
    """Until killed."""
    send: Send = (lambda _, report: report(True)) if file is None else to_kafka(file)
    server = await asyncio.get_running_loop().create_server(lambda: Bare(send), "127.0.0.1", port)
    reduce_gc_frequency()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
