"""Finds and reads the files of a tracking plan: its own file, and those in its folder that `$ref` refers to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

_REFERENCES = ("$ref", "$dynamicRef", "$schema")


class PlanFiles:
    """The files of the plan `file`. `copies` maps the path of a file to the copy to read instead."""

    def __init__(self, file: Path, copies: Mapping[Path, Path] | None = None) -> None:
        self.file = file
        self._copies = copies or {}
        self.base_uri = file.absolute().as_uri()
        """Base URI of the relative `$ref` values of the plan."""

    def copy_of(self, path: Path) -> Path:
        """Return the file to read for `path`."""
        return self._copies.get(path, path)

    @cached_property
    def paths(self) -> list[Path]:
        """The plan and all files that it refers to, in breadth-first order. Includes files that do not exist."""
        met = {self.file: self.base_uri}
        left = [self.file]
        while left:
            path = left.pop(0)
            try:
                document = self.document(path)
            except (ValueError, OSError):
                continue  # compiling the plan reports it
            for uri in _references(document, met[path]):
                found = self._path(uri)
                if found is not None and found not in met:
                    met[found] = uri
                    left.append(found)
        return list(met)

    def document(self, path: Path) -> Any:
        """Return the JSON of `path`. Raises ValueError or OSError."""
        try:
            return json.loads(self.copy_of(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 at byte {error.start}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None

    def retrieve(self, uri: str) -> Any:
        """Return the document with this URI. Raises ValueError if it is not one of `paths`."""
        path = self._path(uri)
        if path is None or path not in self.paths:
            raise ValueError(
                f"$ref {uri} points outside the plan's folder; copy the file into that folder and refer to the copy"
            )
        try:
            return self.document(path)
        except OSError as error:
            raise ValueError(f"$ref {uri}: {path} can't be read: {error.strerror}") from None

    def _path(self, uri: str) -> Path | None:
        """Return the file that `uri` names, or None if it is outside the plan's folder."""
        parts = urlsplit(uri)
        if parts.scheme != "file" or parts.netloc:
            return None
        folder = self.file.absolute().parent
        try:
            path = Path(os.path.normpath(unquote(parts.path)))
            if not path.is_relative_to(folder) or not path.resolve().is_relative_to(folder.resolve()):
                return None
        except (ValueError, OSError, RuntimeError):  # a NUL, or a loop of symbolic links
            return None
        return self.file.parent / path.relative_to(folder)


def _references(value: Any, base: str) -> Iterator[str]:
    """Yield the URIs, without fragments, that a document with the URI `base` refers to."""
    left: list[tuple[Any, str]] = [(value, base)]
    while left:
        value, base = left.pop()
        if isinstance(value, list):
            left.extend((member, base) for member in value)
        elif isinstance(value, dict):
            if isinstance(value.get("$id"), str):
                base = _joined(base, value["$id"])
            for name in _REFERENCES:
                if isinstance(value.get(name), str):
                    yield _joined(base, value[name])
            left.extend((member, base) for member in value.values())


def _joined(base: str, reference: str) -> str:
    try:
        return urldefrag(urljoin(base, reference)).url
    except ValueError:  # such as http://[
        return ""
