"""The files of a tracking plan: its own, and those in its folder that its `$ref` lead to."""

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
    """The files of the plan `file`. `copies`: by the path of a file, the copy to read instead."""

    def __init__(self, file: Path, copies: Mapping[Path, Path] | None = None) -> None:
        self.file = file
        self._copies = copies or {}
        self.base_uri = file.absolute().as_uri()
        """What a relative `$ref` of the plan is relative to."""

    def copy_of(self, path: Path) -> Path:
        """Return the file to read for `path`."""
        return self._copies.get(path, path)

    @cached_property
    def paths(self) -> list[Path]:
        """The plan and the files that it leads to, in the order in which they are met, whether or not they exist."""
        met = {self.file: self.base_uri}
        left = [self.file]
        while left:
            path = left.pop(0)
            try:
                document = self.document(path)
            except (ValueError, OSError):
                continue  # who compiles the plan reports it
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
        """Return the document that `uri` stands for. Raises ValueError for anything that is not one of `paths`."""
        path = self._path(uri)
        if path is None or path not in self.paths:
            raise ValueError(
                f"$ref {uri} leads out of the plan's folder; copy the file beside the plan and name it there"
            )
        try:
            return self.document(path)
        except OSError as error:
            raise ValueError(f"$ref {uri}: {path} can't be read: {error.strerror}") from None

    def _path(self, uri: str) -> Path | None:
        """Return the file in the plan's folder that `uri` names; None when it leads elsewhere."""
        parts = urlsplit(uri)
        if parts.scheme != "file" or parts.netloc:
            return None
        folder = self.file.absolute().parent
        try:
            path = Path(os.path.normpath(unquote(parts.path)))
            if not path.is_relative_to(folder) or not path.resolve().is_relative_to(folder.resolve()):
                return None
        except (ValueError, OSError, RuntimeError):  # a NUL, or links that lead in a circle
            return None
        return self.file.parent / path.relative_to(folder)


def _references(value: Any, base: str) -> Iterator[str]:
    """The addresses, without fragments, that a document with the address `base` refers to."""
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
