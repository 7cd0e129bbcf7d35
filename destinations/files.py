"""Files: routed hits in JSON Lines or Parquet files of a local folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.destination import Destination, Files, Settings


class FilesSettings(Settings):
    """Where and how to write."""

    path: str = Field(min_length=1, description="The folder; it is made when it does not exist.")
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="JSON Lines or Parquet.")


destination = Destination(
    name="Files",
    summary="JSON Lines or Parquet files in a folder, named by topic, partition and first offset.",
    settings=FilesSettings,
    sink=Files(lambda settings: str(settings.path), lambda settings: str(settings.format)),
    delivery_guarantee="Each hit once, whatever crashes: a file is complete or absent, and never written twice.",
)
