"""Who sends: API tokens and data streams of projects (contract.md, section 1)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Mapping
from hashlib import sha256

from pipeline.config.models import ProjectConfig
from pipeline.config.values import digest_of


class Tokens:
    """Only digests are kept and looked up, so that neither memory nor timing tells a token."""

    def __init__(self, projects: Mapping[str, ProjectConfig]) -> None:
        self.projects: set[str] = set()
        """Names of all projects; always the same object, whatever is replaced."""
        self.replace(projects)

    def replace(self, projects: Mapping[str, ProjectConfig]) -> None:
        """Take over a changed configuration."""
        self._tokens = _by_digest({name: project.tokens for name, project in projects.items()})
        self._streams = _by_digest({name: project.data_streams for name, project in projects.items()})
        self.projects.clear()
        self.projects.update(projects)

    def project(self, authorization: str | None) -> str | None:
        """The project of a Basic `Authorization` header whose user name is its token; None for anything else.

        A token with a password is refused (contract.md, section 1); the clients of Segment and RudderStack send none.
        """
        if authorization is None:
            return None
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, separator, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        if not separator or password:
            return None
        return self._tokens.get(sha256(user).digest())

    def project_of(self, token: str) -> str | None:
        """The project of a token (a write key in a body)."""
        return self._tokens.get(sha256(token.encode(errors="replace")).digest())

    def is_secret(self, text: str) -> bool:
        """Return whether `text` is a token or the id of a data stream."""
        return self.project_of(text) is not None or self.data_stream(text) is not None

    def data_stream(self, stream: str) -> str | None:
        """The project of a data stream, whose id is its secret."""
        return self._streams.get(sha256(stream.encode(errors="replace")).digest())


def _by_digest(secrets: Mapping[str, Collection[str]]) -> dict[bytes, str]:
    return {digest_of(secret): name for name, found in secrets.items() for secret in found}
