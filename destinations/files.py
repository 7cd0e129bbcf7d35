"""Files: routed hits in JSON Lines or Parquet files of a local folder or a bucket."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.destination import Destination, Files, Settings

_OPTIONS = {
    "s3": {"region", "endpoint", "access_key_id", "secret_access_key"},
    "gs": {"service_account_key", "endpoint"},
    "az": {"account_name", "account_key", "endpoint"},
}
"""By the scheme of the path; the keys are those of obstore's stores."""


class FilesSettings(Settings):
    """Where and how to write. Without credentials a bucket is opened with those of the environment or of the machine."""

    free_texts = frozenset({"service_account_key"})

    path: str = Field(
        min_length=1,
        description="A folder, made when it is missing, or s3://bucket/prefix, gs://bucket/prefix, az://container/prefix.",
    )
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="JSON Lines or Parquet.")
    region: str | None = Field(None, description="Of an S3 bucket.")
    endpoint: str | None = Field(
        None,
        description="Of a server other than the vendor's own that speaks S3, Google's XML API or Azure Blob.",
    )
    access_key_id: str | None = Field(None, description="S3's.")
    secret_access_key: str | None = Field(None, description="S3's; from ${NAME}.")
    service_account_key: str | None = Field(
        None, description="Google Cloud Storage's: the key file's JSON, from ${NAME}."
    )
    account_name: str | None = Field(None, description="Azure's.")
    account_key: str | None = Field(None, description="Azure's; from ${NAME}.")

    @model_validator(mode="after")
    def _options_fit(self) -> FilesSettings:
        scheme = self.path.partition("://")[0] if "://" in self.path else ""
        if "://" in self.path and scheme not in _OPTIONS:
            raise ValueError("path: a folder, or the address of a bucket: s3://, gs:// or az://")
        if scheme and not self.path.split("/")[2]:
            raise ValueError(f"path: {scheme}:// needs the name of a bucket or container behind it")
        if scheme == "s3" and self.path.split("/")[2].endswith("--x-s3"):
            # Where a chain of files ends is found by the alphabet; the suffix is reserved for these buckets.
            raise ValueError("path: a directory bucket lists in no order; name a general purpose bucket")
        strange = sorted(set(_given(self)) - _OPTIONS.get(scheme, set()))
        if strange:
            raise ValueError(f"{', '.join(strange)}: not for {scheme + '://' if scheme else 'a local folder'}")
        return self


def _given(settings: FilesSettings) -> dict[str, str]:
    return settings.model_dump(exclude={"path", "format"}, exclude_none=True)


destination = Destination(
    name="Files",
    summary="JSON Lines or Parquet files in a folder or a bucket, named by topic, partition and first offset.",
    settings=FilesSettings,
    sink=Files(lambda settings: str(settings.path), lambda settings: str(settings.format), _given),
    delivery_guarantee="Each hit once, whatever crashes: a file is complete or absent, and never written twice.",
)
