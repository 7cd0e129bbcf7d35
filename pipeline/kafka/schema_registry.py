"""Schema registries of Confluent's API: numbers for our schemas, and the schemas of others' numbers."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from pipeline.codec.avro import Framing, Schema
from pipeline.errors import RegistryUnavailable

_REMEMBERED = 1000
_NOT_FOUND = 404


class SchemaRegistry:
    """The registry at `url`; a name and a password may stand in it. Every method blocks on the network."""

    def __init__(self, url: str) -> None:
        # Imported here: its clients of OAuth take 0.4 s, and few files name a registry.
        from confluent_kafka.schema_registry import SchemaRegistryClient

        self._url = url.rpartition("@")[2]
        self._client: Any = SchemaRegistryClient({"url": url})
        self.schema_of = lru_cache(maxsize=_REMEMBERED)(self._schema_of)

    def framing(self, topic: str, schema: Schema) -> Framing:
        """How values of `schema` are written to `topic` (subject `<topic>-value`); registers the schema."""
        from confluent_kafka.schema_registry import Schema as Registered

        try:
            number = self._client.register_schema(f"{topic}-value", Registered(json.dumps(schema), "AVRO"))
        except Exception as error:
            raise RegistryUnavailable(f"the schema of {topic} can't be registered at {self._url}: {error}") from error
        return Framing(schema, number, self.schema_of)

    def reading(self, schema: Schema) -> Framing:
        """Reads values that others wrote with schemas of their own; registers nothing."""
        return Framing(schema, None, self.schema_of)

    def _schema_of(self, number: int) -> Schema:
        """Raises ValueError when the registry has no such schema, RegistryUnavailable when it does not answer."""
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            schema: Schema = json.loads(self._client.get_schema(number).schema_str)
            return schema
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                raise ValueError(f"the registry at {self._url} has no schema {number}") from None
            raise RegistryUnavailable(f"the registry at {self._url} does not tell schema {number}: {error}") from error
        except Exception as error:
            raise RegistryUnavailable(f"the registry at {self._url} does not tell schema {number}: {error}") from error
