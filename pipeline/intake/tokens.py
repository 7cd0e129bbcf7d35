"""Who sends: API tokens of projects (contract.md, section 1)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from hashlib import sha256

from pipeline.config.models import ProjectConfig


class Tokens:
    """Only digests are kept and looked up, so that neither memory nor timing tells a token."""

    def __init__(self, projects: Mapping[str, ProjectConfig]) -> None:
        self._projects = {
            sha256(token.encode()).digest(): name for name, project in projects.items() for token in project.tokens
        }

    def project(self, authorization: str | None) -> str | None:
        """The project of a Basic `Authorization` header whose user name is its token; None for anything else."""
        if authorization is None:
            return None
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, separator, _ = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        if not separator:
            return None
        return self._projects.get(sha256(user).digest())
