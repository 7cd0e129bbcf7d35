"""Files: stores routed hits in JSON Lines or Parquet files of a local folder or a bucket."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.destination import Destination, Files, Settings

_OPTIONS = {
    "s3": {"region", "endpoint", "access_key_id", "secret_access_key"},
    "gs": {"service_account_key", "endpoint"},
    "az": {"account_name", "account_key", "endpoint"},
}
"""Settings that each scheme of a path accepts; they are named as the options of obstore's stores."""


class FilesSettings(Settings):
    """The folder or bucket, and the format. Without credentials, a bucket uses those of the environment or the machine."""

    free_texts = frozenset({"service_account_key"})

    path: str = Field(
        min_length=1,
        description="A folder, created if it is missing, or s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.",
    )
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="The format of the files: JSON Lines or Parquet.")
    region: str | None = Field(None, description="The region of an S3 bucket.")
    endpoint: str | None = Field(
        None,
        description="The address of another server that implements S3, Google's XML API or Azure Blob.",
    )
    access_key_id: str | None = Field(None, description="The id of the access key, for S3.")
    secret_access_key: str | None = Field(None, description="The secret access key, for S3; as ${NAME}.")
    service_account_key: str | None = Field(
        None, description="The JSON of the key file, for Google Cloud Storage; as ${NAME}."
    )
    account_name: str | None = Field(None, description="The name of the account, for Azure.")
    account_key: str | None = Field(None, description="The key of the account, for Azure; as ${NAME}.")

    @model_validator(mode="after")
    def _options_fit(self) -> FilesSettings:
        scheme = self.path.partition("://")[0] if "://" in self.path else ""
        if "://" in self.path and scheme not in _OPTIONS:
            raise ValueError("path: write a folder, or the address of a bucket: s3://, gs:// or az://")
        if scheme and not self.path.split("/")[2]:
            raise ValueError(f"path: write the name of a bucket or container after {scheme}://")
        if scheme == "s3" and self.path.split("/")[2].endswith("--x-s3"):
            # The suffix is reserved for directory buckets. The end of a chain of files is found by the order of names.
            raise ValueError("path: a directory bucket lists in no order; use a general purpose bucket")
        unsupported = sorted(set(_store_options(self)) - _OPTIONS.get(scheme, set()))
        if unsupported:
            raise ValueError(
                f"{', '.join(unsupported)}: not allowed for {scheme + '://' if scheme else 'a local folder'}"
            )
        return self


def _store_options(settings: FilesSettings) -> dict[str, str]:
    return settings.model_dump(exclude={"path", "format"}, exclude_none=True)


destination = Destination(
    name="Files",
    summary="Writes JSON Lines or Parquet files to a folder or a bucket, named by topic, partition and first offset.",
    settings=FilesSettings,
    sink=Files(lambda settings: str(settings.path), lambda settings: str(settings.format), _store_options),
    delivery_guarantee="Each hit once, also after crashes: a file is complete or absent, and never written twice.",
)
