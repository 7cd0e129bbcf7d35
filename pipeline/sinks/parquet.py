"""Encodes hits as Parquet. A separate module, because importing pyarrow takes a third of a second and few configurations need it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pipeline.sinks.files import FileRecord

_SCHEMA = pa.schema(
    [
        ("hitId", pa.string()),
        ("projectId", pa.string()),
        ("receivedAt", pa.string()),
        ("sentAt", pa.string()),
        ("userId", pa.string()),
        ("anonymousId", pa.string()),
        ("event", pa.string()),
        ("context", pa.string()),
        ("integrations", pa.string()),
        ("options", pa.string()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
    ]
)


def encode(partition: int, records: Sequence[FileRecord]) -> bytes:
    """Return `records` as the content of one Parquet file."""
    columns = {name: [getattr(record.hit, name) for record in records] for name in _SCHEMA.names[:6]}
    for name in _SCHEMA.names[6:10]:
        columns[name] = [_json_text(getattr(record.hit, name)) for record in records]
    columns["_partition"] = [partition] * len(records)
    columns["_offset"] = [record.offset for record in records]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def hit_ids(content: bytes) -> dict[int, str]:
    """Return the hitIds in a file by offset. Raises ValueError with the name of pyarrow's error if it is not such a file."""
    try:
        table = pq.read_table(io.BytesIO(content), columns=["_offset", "hitId"])
    except pa.ArrowException as error:
        raise ValueError(type(error).__name__) from None
    return dict(zip(table["_offset"].to_pylist(), table["hitId"].to_pylist(), strict=True))


def _json_text(raw: msgspec.Raw) -> str | None:
    text = bytes(raw)
    return None if text == b"null" else text.decode()
