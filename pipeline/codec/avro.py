"""Avro values with a header that names the writer's schema: single-object encoding, or the wire format of schema registries."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import fastavro
from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

MARKER = b"\xc3\x01"
"""Begins a value in single-object encoding (Avro 1.12, "Single object encoding")."""
REGISTRY_MARKER = b"\x00"
"""Begins a value in the wire format of Confluent's registry; the schema id follows as four bytes, big-endian."""
_REGISTRY_HEADER_BYTES = 5

Schema = dict[str, Any]


def single_object_header(schema: Schema) -> bytes:
    """Return ten bytes: the marker and the fingerprint of the schema."""
    return MARKER + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))


def registry_header(schema_id: int) -> bytes:
    """Return five bytes: the marker and the schema id."""
    return REGISTRY_MARKER + schema_id.to_bytes(4, "big")


class Framing:
    """Encodes and decodes dicts of one schema.

    With a `schema_id` encoded values have the registry's header, else the fingerprint. `written_by` returns the schema of an id
    that another version has registered. Single objects with another fingerprint are refused.
    """

    def __init__(
        self, schema: Schema, schema_id: int | None = None, written_by: Callable[[int], Schema] | None = None
    ) -> None:
        self._schema = parse_schema(schema)
        self._single = single_object_header(schema)
        self.header = self._single if schema_id is None else registry_header(schema_id)
        self._written_by = written_by
        self._writers: dict[int, Any] = {} if schema_id is None else {schema_id: self._schema}

    @property
    def may_block(self) -> bool:
        """Whether `decode` may request a schema from the registry."""
        return self._written_by is not None

    def encode(self, value: dict[str, Any]) -> bytes:
        """Return the header and the Avro body."""
        buffer = io.BytesIO()
        buffer.write(self.header)
        fastavro.schemaless_writer(buffer, self._schema, value)
        return buffer.getvalue()

    def decode(self, data: bytes) -> dict[str, Any]:
        """Return the value in `data`. Raises ValueError if it has another schema, is truncated, or has trailing bytes."""
        buffer = io.BytesIO(data)
        writer = self._schema
        if data[:1] == REGISTRY_MARKER and self._written_by is not None and len(data) >= _REGISTRY_HEADER_BYTES:
            writer = self._writer(int.from_bytes(data[1:_REGISTRY_HEADER_BYTES], "big"))
            buffer.seek(_REGISTRY_HEADER_BYTES)
        elif data[: len(self._single)] == self._single:
            buffer.seek(len(self._single))
        else:
            raise ValueError(f"not an Avro value of this schema: it begins with {data[:10].hex()}")
        try:
            value = fastavro.schemaless_reader(buffer, writer, self._schema)
        except Exception as error:  # fastavro raises EOFError, IndexError, struct.error, ... on broken bytes
            raise ValueError(f"broken Avro body: {error!r}") from error
        if buffer.tell() != len(data):
            raise ValueError(f"{len(data) - buffer.tell()} bytes after the Avro body")
        assert isinstance(value, dict)
        return value

    def _writer(self, schema_id: int) -> Any:
        writer = self._writers.get(schema_id)
        if writer is None and self._written_by is not None:
            writer = self._writers[schema_id] = parse_schema(self._written_by(schema_id))
        return writer
