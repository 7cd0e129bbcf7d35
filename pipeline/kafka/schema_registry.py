"""Client of a schema registry with Confluent's API: registers our schemas, and reads schemas by id."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from pipeline.codec.avro import Framing, Schema
from pipeline.errors import RegistryUnavailable

_CACHED_SCHEMAS = 1000
_NOT_FOUND = 404


class SchemaRegistry:
    """The registry at `url`, which may contain a user name and a password. Every method blocks on the network."""

    def __init__(self, url: str) -> None:
        # Imported here: its OAuth clients take 0.4 s to import, and few configurations name a registry.
        from confluent_kafka.schema_registry import SchemaRegistryClient

        self._url = url.rpartition("@")[2]
        self._client: Any = SchemaRegistryClient({"url": url})
        self.schema_of = lru_cache(maxsize=_CACHED_SCHEMAS)(self._schema_of)

    def framing(self, topic: str, schema: Schema) -> Framing:
        """Return the framing for writing values of `schema` to `topic`. Registers the schema as `<topic>-value`."""
        from confluent_kafka.schema_registry import Schema as Registered

        try:
            number = self._client.register_schema(f"{topic}-value", Registered(json.dumps(schema), "AVRO"))
        except Exception as error:
            raise RegistryUnavailable(f"the schema of {topic} cannot be registered at {self._url}: {error}") from error
        return Framing(schema, number, self.schema_of)

    def reading(self, schema: Schema) -> Framing:
        """Return the framing for reading values that other writers wrote with other schemas. Registers nothing."""
        return Framing(schema, None, self.schema_of)

    def _schema_of(self, number: int) -> Schema:
        """Return the schema `number`. Raises ValueError if there is none, RegistryUnavailable if the registry fails."""
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            schema: Schema = json.loads(self._client.get_schema(number).schema_str)
            return schema
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                raise ValueError(f"the registry at {self._url} has no schema {number}") from None
            raise RegistryUnavailable(
                f"schema {number} cannot be read from the registry at {self._url}: {error}"
            ) from error
        except Exception as error:
            raise RegistryUnavailable(
                f"schema {number} cannot be read from the registry at {self._url}: {error}"
            ) from error
