"""Avro single-object encoding: the bytes carry the fingerprint of their schema (Avro 1.12, "Single object encoding")."""

from __future__ import annotations

import io
from typing import Any

import fastavro
from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

MARKER = b"\xc3\x01"


class SingleObject:
    """Encodes and decodes values of one schema. A value is a dict in the schema's shape."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = parse_schema(schema)
        self.header = MARKER + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))

    def encode(self, value: dict[str, Any]) -> bytes:
        """Ten bytes of header, then the Avro body."""
        buffer = io.BytesIO()
        buffer.write(self.header)
        fastavro.schemaless_writer(buffer, self._schema, value)
        return buffer.getvalue()

    def decode(self, data: bytes) -> dict[str, Any]:
        """Raises ValueError when `data` is of another schema, cut short, or longer than its value."""
        if data[:10] != self.header:
            raise ValueError(f"not an Avro single object of this schema: it begins with {data[:10].hex()}")
        buffer = io.BytesIO(data)
        buffer.seek(10)
        try:
            value = fastavro.schemaless_reader(buffer, self._schema, None)
        except Exception as error:  # fastavro raises EOFError, IndexError, struct.error, ... on broken bytes
            raise ValueError(f"broken Avro body: {error!r}") from error
        if buffer.tell() != len(data):
            raise ValueError(f"{len(data) - buffer.tell()} bytes behind the Avro body")
        assert isinstance(value, dict)
        return value
