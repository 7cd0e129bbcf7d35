"""What one would write first: consume, send with the sink's own client, commit. No retries, no dead letters, no ledger.

python -m bench.plain_deliver SINK SERVERS TOPIC GROUP TARGET
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import clickhouse_connect
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, Message

from tests.clickhouse import PASSWORD

_IN_FLIGHT = 32
Send = Callable[[Sequence[Message]], Awaitable[None]]


async def _webhook(target: str, messages: Sequence[Message], session: aiohttp.ClientSession) -> None:
    async def post(message: Message) -> None:
        async with session.post(
            target, data=message.value(), headers={"content-type": "application/json", "webhook-id": _id(message)}
        ) as answer:
            assert answer.status == 200
            await answer.read()

    await asyncio.gather(*map(post, messages))


def _id(message: Message) -> str:
    hit_id: str = json.loads(message.value() or b"")["hitId"]
    return hit_id


async def _segment(target: str, messages: Sequence[Message], session: aiohttp.ClientSession) -> None:
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

    await asyncio.gather(*(post(messages[start : start + 100]) for start in range(0, len(messages), 100)))


def _row(message: Message) -> tuple[object, ...]:
    hit = json.loads(message.value() or b"")
    event, context = json.dumps(hit["event"]), json.dumps(hit["context"])
    ids = (hit["projectId"], hit["hitId"], hit["receivedAt"], hit["sentAt"], hit.get("userId"), hit.get("anonymousId"))
    return (*ids, hit["event"].get("name"), event, context)


def _times(row: tuple[Any, ...]) -> tuple[object, ...]:
    return (*row[:2], datetime.fromisoformat(row[2]), datetime.fromisoformat(row[3]), *row[4:])


def _clickhouse(target: str, columns: Sequence[str]) -> tuple[Any, str]:
    address = urlsplit(target)
    client = clickhouse_connect.get_client(
        host=address.hostname or "", port=address.port or 0, username="default", password=PASSWORD, compress=False
    )
    kinds = ["String"] * 2 + ["DateTime64(3, 'UTC')"] * 2 + ["Nullable(String)"] * 3 + ["String"] * 2
    declared = ", ".join(f"{name} {kind}" for name, kind in zip(columns, kinds, strict=True))
    table = address.path.strip("/")
    client.command(f"CREATE TABLE {table} ({declared}) ENGINE MergeTree ORDER BY (project_id, received_at)")
    return client, table


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
    if sink == "parquet":
        os.makedirs(target, exist_ok=True)
    size = {
        "webhook": _IN_FLIGHT,
        "segment": _IN_FLIGHT * 100,
        "postgresql": 5_000,
        "clickhouse": 10_000,
        "parquet": 10_000,
    }[sink]
    columns = [
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
    database = await psycopg.AsyncConnection.connect(target, autocommit=True) if sink == "postgresql" else None
    if database is not None:
        kinds = ["text"] * 2 + ["timestamptz"] * 2 + ["text"] * 3 + ["jsonb"] * 2
        declared = ", ".join(f"{name} {kind}" for name, kind in zip(columns, kinds, strict=True))
        await database.execute(f"CREATE TABLE hits ({declared}, PRIMARY KEY (project_id, hit_id))")  # type: ignore[arg-type]
        await database.execute(f"CREATE TEMP TABLE staging ({declared}) ON COMMIT DELETE ROWS")  # type: ignore[arg-type]
    warehouse, warehouse_table = _clickhouse(target, columns) if sink == "clickhouse" else (None, "")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_IN_FLIGHT)) as session:
        while True:
            messages = [m for m in consumer.consume(size, 0.05) if m.error() is None]
            if not messages:
                continue
            if sink == "webhook":
                await _webhook(target, messages, session)
            elif sink == "segment":
                await _segment(target, messages, session)
            elif database is not None:
                async with database.transaction(), database.cursor() as cursor:
                    async with cursor.copy(f"COPY staging ({', '.join(columns)}) FROM STDIN") as copy:  # type: ignore[arg-type]
                        for message in messages:
                            await copy.write_row(_row(message))
                    await cursor.execute("INSERT INTO hits SELECT * FROM staging ON CONFLICT DO NOTHING")
            elif warehouse is not None:
                rows = [_times(_row(message)) for message in messages]
                await asyncio.to_thread(warehouse.insert, warehouse_table, rows, columns)
            else:
                rows = [_row(message) for message in messages]
                table = pa.table({name: [str(row[place]) for row in rows] for place, name in enumerate(columns)})
                first = messages[0]
                pq.write_table(table, f"{target}/{first.partition()}-{first.offset()}.parquet", compression="zstd")
            consumer.commit(asynchronous=False)


if __name__ == "__main__":
    asyncio.run(main())
