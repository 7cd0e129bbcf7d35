"""Google BigQuery: hits as rows of a table, by the Storage Write API."""

from __future__ import annotations

import json

from pydantic import Field, field_validator, model_validator

from pipeline.destination import BigQuery, Destination, HttpUrl, Limits, Settings


class BigQuerySettings(Settings):
    """Which table, and as whom. Without a key Google's Application Default Credentials count: the environment, the machine."""

    free_texts = frozenset({"credentials"})

    project: str = Field(pattern=r"^[a-z][a-z0-9.:-]*[a-z0-9]$", description="The Google Cloud project's id.")
    dataset: str = Field(pattern=r"^[A-Za-z0-9_]+$", description="Must be there.")
    table: str = Field("hits", pattern=r"^[A-Za-z0-9_]+$", description="Made when it is missing.")
    credentials: str | None = Field(
        None,
        repr=False,
        description="The JSON of a service account's key, from ${NAME}; it needs BigQuery Data Editor on the dataset.",
    )
    credentials_file: str | None = Field(None, min_length=1, description="Or the path of a file that holds it.")
    url: HttpUrl = Field(
        "https://bigquery.googleapis.com",
        description="The REST API, for the table; http:// is for an emulator, and sends no credentials.",
    )
    storage_url: HttpUrl = Field(
        "https://bigquerystorage.googleapis.com", description="The Storage Write API, for the rows; likewise."
    )

    @field_validator("credentials")
    @classmethod
    def _is_a_key(cls, value: str | None) -> str | None:
        try:
            key = json.loads(value) if value is not None else None
        except ValueError:
            key = ()
        if key is not None and not (isinstance(key, dict) and {"client_email", "private_key", "token_uri"} <= set(key)):
            raise ValueError("must be the JSON of a service account's key, as Google's console makes it")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> BigQuerySettings:
        if self.credentials is not None and self.credentials_file is not None:
            raise ValueError("credentials and credentials_file: give one of them")
        return self


destination = Destination(
    name="Google BigQuery",
    summary="Rows of a table: ids, times, and event, context, integrations and options as JSON.",
    settings=BigQuerySettings,
    sink=BigQuery(
        lambda settings: f"{settings.project}.{settings.dataset}.{settings.table}",
        lambda settings: settings.credentials,
        lambda settings: settings.credentials_file,
        lambda settings: str(settings.url),
        lambda settings: str(settings.storage_url),
        # AppendRows takes less than 10 MB; the rest is for the frame.
        Limits(events=5_000, request_bytes=9_000_000),
    ),
    aliases=("DDManager Streaming",),
    documentation="https://cloud.google.com/bigquery/docs/change-data-capture",
    delivery_guarantee="Each hit once: rows are upserts by the table's primary key (project_id, hit_id).",
)
