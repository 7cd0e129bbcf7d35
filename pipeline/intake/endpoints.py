"""The paths of the intake (contract.md, section 1): who may send, what is read, what is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from pipeline.codec.hit_text import BODY_BYTES
from pipeline.intake import answers
from pipeline.intake.tokens import Tokens
from pipeline.stages.accept import (
    Outcome,
    Refusal,
    Request,
    accept_batch,
    accept_collected,
    accept_data_stream,
    accept_hit,
    accept_message,
)
from pipeline.stages.accept.records import Random
from pipeline.stages.accept.segment import BATCH_BYTES

_MESSAGES = {
    "track": ("/v1/track", "/v1/t"),
    "page": ("/v1/page", "/v1/p"),
    "identify": ("/v1/identify", "/v1/i"),
    "screen": ("/v1/screen", "/v1/s"),
    "group": ("/v1/group", "/v1/g"),
    "alias": ("/v1/alias", "/v1/a"),
}
_BATCHES = ("/v1/batch", "/v1/b", "/v1/import")

Authorize = Callable[[str | None, str], str | Refusal]
"""From the `Authorization` header and the last part of the path to a project; "" when the body will name it."""
Accept = Callable[[bytes, Request, Random], Outcome]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One kind of call. `body_bytes` counts after decompression; `name` is its header on the record."""

    name: str
    methods: tuple[bytes, ...]
    authorize: Authorize
    accept: Accept
    stored: bytes = answers.NO_CONTENT
    cross_origin: bool = False
    body_bytes: int = BODY_BYTES

    @property
    def allow(self) -> str:
        """For the `Allow` header."""
        return ", ".join([method.decode() for method in self.methods] + ["OPTIONS"])


class Endpoints:
    """Finds the endpoint of a path."""

    def __init__(self, tokens: Tokens) -> None:
        self._data_stream = Endpoint(
            "/ds",
            (b"GET", b"POST"),
            lambda _, stream: tokens.data_stream(stream) or answers.NOT_FOUND,
            accept_data_stream,
        )
        self._paths = _fixed(tokens)

    def find(self, path: bytes) -> Endpoint | None:
        """None: 404."""
        found = self._paths.get(path)
        if found is None and path.startswith(b"/ds/") and path.count(b"/") == 2:
            return self._data_stream
        return found


def _fixed(tokens: Tokens) -> Mapping[bytes, Endpoint]:
    def with_token(authorization: str | None, _: str) -> str | Refusal:
        return tokens.project(authorization) or answers.UNAUTHORIZED

    def with_token_or_key(authorization: str | None, _: str) -> str | Refusal:
        return with_token(authorization, "") if authorization else ""

    def in_body(_: str | None, __: str) -> str:
        return ""

    paths = {
        "/track": Endpoint("/track", (b"POST",), with_token, accept_hit),
        "/collect": Endpoint(
            *("/collect", (b"POST",), in_body, partial(accept_collected, projects=tokens.projects)), cross_origin=True
        ),
    }
    for kind, names in _MESSAGES.items():
        accept = partial(accept_message, project_of=tokens.project_of, kind=kind)
        for name in names:
            paths[name] = Endpoint(
                *(names[0], (b"POST",), with_token_or_key, accept), stored=answers.SUCCESS, cross_origin=True
            )
    for name in _BATCHES:
        paths[name] = Endpoint(
            *(_BATCHES[0], (b"POST",), with_token_or_key, partial(accept_batch, project_of=tokens.project_of)),
            stored=answers.SUCCESS,
            cross_origin=True,
            body_bytes=BATCH_BYTES,
        )
    return {name.encode(): endpoint for name, endpoint in paths.items()}
