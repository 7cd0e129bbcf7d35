"""Google BigQuery: stores hits as rows of a table, by the Storage Write API."""

from __future__ import annotations

import json

from pydantic import Field, field_validator, model_validator

from pipeline.destination import BigQuery, Destination, HttpUrl, Limits, Settings


class BigQuerySettings(Settings):
    """The table and the credentials. Without a key, Google's Application Default Credentials are used."""

    free_texts = frozenset({"credentials"})

    project: str = Field(pattern=r"^[a-z][a-z0-9.:-]*[a-z0-9]$", description="The id of the Google Cloud project.")
    dataset: str = Field(pattern=r"^[A-Za-z0-9_]+$", description="The dataset, which must exist.")
    table: str = Field("hits", pattern=r"^[A-Za-z0-9_]+$", description="The table, which is created if it is missing.")
    credentials: str | None = Field(
        None,
        repr=False,
        description="The JSON of a service account key, as ${NAME}; the account needs BigQuery Data Editor on the dataset.",
    )
    credentials_file: str | None = Field(
        None, min_length=1, description="The path of the key file, instead of `credentials`."
    )
    url: HttpUrl = Field(
        "https://bigquery.googleapis.com",
        description="The REST API, for the table. An address with http:// is for an emulator, and gets no credentials.",
    )
    storage_url: HttpUrl = Field(
        "https://bigquerystorage.googleapis.com",
        description="The Storage Write API, for the rows. An address with http:// gets no credentials.",
    )

    @field_validator("credentials")
    @classmethod
    def _is_a_key(cls, value: str | None) -> str | None:
        try:
            key = json.loads(value) if value is not None else None
        except ValueError:
            key = ()
        if key is not None and not (isinstance(key, dict) and {"client_email", "private_key", "token_uri"} <= set(key)):
            raise ValueError("must be the JSON of a service account key, as downloaded from Google's console")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> BigQuerySettings:
        if self.credentials is not None and self.credentials_file is not None:
            raise ValueError("credentials and credentials_file: set only one of them")
        return self


destination = Destination(
    name="Google BigQuery",
    summary="Stores hits in a table: ids, times, and event, context, integrations and options as JSON.",
    settings=BigQuerySettings,
    sink=BigQuery(
        lambda settings: f"{settings.project}.{settings.dataset}.{settings.table}",
        lambda settings: settings.credentials,
        lambda settings: settings.credentials_file,
        lambda settings: str(settings.url),
        lambda settings: str(settings.storage_url),
        # AppendRows accepts less than 10 MB, including the rest of the request.
        Limits(events=5_000, request_bytes=9_000_000),
    ),
    aliases=("DDManager Streaming",),
    documentation="https://cloud.google.com/bigquery/docs/change-data-capture",
    delivery_guarantee="Each hit once: rows are upserts by the primary key (project_id, hit_id).",
)
