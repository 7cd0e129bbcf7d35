"""What one would write first: consume, send with the sink's own client, commit. No retries, no dead letters, no ledger.

python -m bench.plain_deliver SINK SERVERS TOPIC GROUP TARGET

Each sink imports its own client and no other, as a loop for one sink would: whatever is imported makes full garbage collections dearer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import Consumer, Message

_IN_FLIGHT = 32
_COLUMNS = [
    "project_id",
    "hit_id",
    "received_at",
    "sent_at",
    "user_id",
    "anonymous_id",
    "event_name",
    "event",
    "context",
]
Send = Callable[[Sequence[Message]], Awaitable[None]]


async def _webhook(target: str, stack: AsyncExitStack) -> Send:
    import aiohttp

    session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_IN_FLIGHT)))

    async def post(message: Message) -> None:
        headers = {"content-type": "application/json", "webhook-id": json.loads(message.value() or b"")["hitId"]}
        async with session.post(target, data=message.value(), headers=headers) as answer:
            assert answer.status == 200
            await answer.read()

    async def send(messages: Sequence[Message]) -> None:
        await asyncio.gather(*map(post, messages))

    return send


async def _segment(target: str, stack: AsyncExitStack) -> Send:
    import aiohttp

    session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_IN_FLIGHT)))

    async def post(part: Sequence[Message]) -> None:
        batch = []
        for message in part:
            hit = json.loads(message.value() or b"")
            event = hit["event"]
            properties = {key: value for key, value in event.items() if key not in ("name", "user")}
            track = {"type": "track", "messageId": hit["hitId"], "timestamp": hit["sentAt"], "context": hit["context"]}
            batch.append({**track, "userId": hit.get("userId"), "event": event["name"], "properties": properties})
        async with session.post(target, json={"batch": batch}) as answer:
            assert answer.status == 200
            await answer.read()

    async def send(messages: Sequence[Message]) -> None:
        await asyncio.gather(*(post(messages[start : start + 100]) for start in range(0, len(messages), 100)))

    return send


def _row(message: Message) -> tuple[Any, ...]:
    hit = json.loads(message.value() or b"")
    event, context = json.dumps(hit["event"]), json.dumps(hit["context"])
    ids = (hit["projectId"], hit["hitId"], hit["receivedAt"], hit["sentAt"], hit.get("userId"), hit.get("anonymousId"))
    return (*ids, hit["event"].get("name"), event, context)


def _declared(kinds: Sequence[str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in zip(_COLUMNS, kinds, strict=True))


async def _postgresql(target: str, stack: AsyncExitStack) -> Send:
    import psycopg

    database = await psycopg.AsyncConnection.connect(target, autocommit=True)
    declared = _declared(["text"] * 2 + ["timestamptz"] * 2 + ["text"] * 3 + ["jsonb"] * 2)
    await database.execute(f"CREATE TABLE hits ({declared}, PRIMARY KEY (project_id, hit_id))")  # type: ignore[arg-type]
    await database.execute(f"CREATE TEMP TABLE staging ({declared}) ON COMMIT DELETE ROWS")  # type: ignore[arg-type]

    async def send(messages: Sequence[Message]) -> None:
        async with database.transaction(), database.cursor() as cursor:
            async with cursor.copy(f"COPY staging ({', '.join(_COLUMNS)}) FROM STDIN") as copy:  # type: ignore[arg-type]
                for message in messages:
                    await copy.write_row(_row(message))
            await cursor.execute("INSERT INTO hits SELECT * FROM staging ON CONFLICT DO NOTHING")

    return send


async def _clickhouse(target: str, stack: AsyncExitStack) -> Send:
    import clickhouse_connect

    from tests.clickhouse import PASSWORD

    address = urlsplit(target)
    client = clickhouse_connect.get_client(
        host=address.hostname or "", port=address.port or 0, username="default", password=PASSWORD, compress=False
    )
    declared = _declared(["String"] * 2 + ["DateTime64(3, 'UTC')"] * 2 + ["Nullable(String)"] * 3 + ["String"] * 2)
    table = address.path.strip("/")
    client.command(f"CREATE TABLE {table} ({declared}) ENGINE MergeTree ORDER BY (project_id, received_at)")

    def times(row: tuple[Any, ...]) -> tuple[object, ...]:
        return (*row[:2], datetime.fromisoformat(row[2]), datetime.fromisoformat(row[3]), *row[4:])

    async def send(messages: Sequence[Message]) -> None:
        await asyncio.to_thread(client.insert, table, [times(_row(message)) for message in messages], _COLUMNS)

    return send


async def _parquet(target: str, stack: AsyncExitStack) -> Send:
    import pyarrow as pa
    import pyarrow.parquet as pq

    os.makedirs(target, exist_ok=True)

    async def send(messages: Sequence[Message]) -> None:
        rows = [_row(message) for message in messages]
        table = pa.table({name: [str(row[place]) for row in rows] for place, name in enumerate(_COLUMNS)})
        first = messages[0]
        pq.write_table(table, f"{target}/{first.partition()}-{first.offset()}.parquet", compression="zstd")

    return send


_SINKS: dict[str, tuple[Callable[[str, AsyncExitStack], Awaitable[Send]], int]] = {
    "webhook": (_webhook, _IN_FLIGHT),
    "segment": (_segment, _IN_FLIGHT * 100),
    "postgresql": (_postgresql, 5_000),
    "clickhouse": (_clickhouse, 10_000),
    "parquet": (_parquet, 10_000),
}
"""What opens each, and how many records it gets at once."""


async def main() -> None:
    """Until killed."""
    sink, servers, topic, group, target = sys.argv[1:6]
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([topic])
    opened, size = _SINKS[sink]
    async with AsyncExitStack() as stack:
        send = await opened(target, stack)
        while True:
            messages = [m for m in consumer.consume(size, 0.05) if m.error() is None]
            if messages:
                await send(messages)
                consumer.commit(asynchronous=False)


if __name__ == "__main__":
    asyncio.run(main())
