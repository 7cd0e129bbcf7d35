"""The columns of a Parquet file of hits. Apart from `files.py`: pyarrow takes a third of a second to import, and few files need it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pipeline.sinks.files import Row

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


def encode(partition: int, rows: Sequence[Row]) -> bytes:
    """A whole file of `rows`."""
    columns = {name: [getattr(row.hit, name) for row in rows] for name in _SCHEMA.names[:6]}
    for name in _SCHEMA.names[6:10]:
        columns[name] = [_json_text(getattr(row.hit, name)) for row in rows]
    columns["_partition"] = [partition] * len(rows)
    columns["_offset"] = [row.offset for row in rows]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def hit_ids(content: bytes) -> dict[int, str]:
    """The hitIds of a file by their offsets. Raises ValueError named after what is wrong when it is not such a file."""
    try:
        table = pq.read_table(io.BytesIO(content), columns=["_offset", "hitId"])
    except pa.ArrowException as error:
        raise ValueError(type(error).__name__) from None
    return dict(zip(table["_offset"].to_pylist(), table["hitId"].to_pylist(), strict=True))


def _json_text(raw: msgspec.Raw) -> str | None:
    text = bytes(raw)
    return None if text == b"null" else text.decode()
