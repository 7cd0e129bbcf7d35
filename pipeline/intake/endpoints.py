"""The intake's paths (contract.md, section 1): authentication, accepted methods and bodies, answers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pipeline.codec.hit_text import BODY_BYTES
from pipeline.intake import answers, bootstrap
from pipeline.intake.request_url import key_of_settings, last_part, write_key
from pipeline.intake.tokens import Tokens
from pipeline.stages.accept import (
    Outcome,
    Refusal,
    Request,
    Sender,
    accept_batch,
    accept_collected,
    accept_data_stream,
    accept_hit,
    accept_message,
    accept_pixel,
    batch_steps,
    project_id_in,
    write_key_in,
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
_PIXELS = {kind: (f"/v1/pixel/{kind}", f"/pixel/v1/{kind}") for kind in _MESSAGES}
_BATCHES = ("/v1/batch", "/v1/b", "/v1/import")
_BEACON = "/beacon/v1/batch"
_METRICS = "/v1/m"
_SOURCE_CONFIGURATION = "/sourceConfig"
_READ_ONLY = (b"GET", b"HEAD")

Steps = Generator[None, None, Outcome]
"""A generator that yields after each part of the work and returns the outcome."""
KeyInUrl = Callable[[bytes, bytes], str]
"""From a path and its query to the key in them; "" for none."""
Authorize = Callable[[str | None, str], Sender | Refusal]
"""From the `Authorization` header and the key in the URL to the sender; BY_BODY if the body names the project."""
BY_BODY = Sender("", True)
Preflight = Callable[[str], Refusal | None]
"""From an origin to the reason why its pages may not send; None if they may."""
Accept = Callable[[bytes, Request, Random], Outcome]
FindSender = Callable[[bytes], Sender | None]
"""From a body to the sender that it names, without validating the rest."""
Document = Callable[[str, str], bytes]
"""From the key in the URL and the intake's public URL to a JSON document."""


def _accept_nothing(body: bytes, request: Request, random: Random) -> Outcome:
    return ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One kind of request. `body_bytes` limits the inflated body; `name` is the value of the record's header `endpoint`.

    `find_sender` finds the sender that the body names. `steps` does the work of `accept` in steps, for large bodies.
    An endpoint with a `document` answers with it from the head alone, and stores nothing.
    """

    name: str
    methods: tuple[bytes, ...]
    authorize: Authorize
    accept: Accept = _accept_nothing
    stored: bytes = answers.NO_CONTENT
    cross_origin: bool = False
    preflight: Preflight = lambda _: None
    body_bytes: int = BODY_BYTES
    find_sender: FindSender = lambda _: None
    steps: Callable[[bytes, Request, Random], Steps] | None = None
    key_in_url: KeyInUrl | None = None
    document: Document | None = None

    @property
    def allow(self) -> str:
        """The value of the `Allow` header."""
        return ", ".join([method.decode() for method in self.methods] + ["OPTIONS"])


class Endpoints:
    """Finds the endpoint of a path. `refused_page` returns why a page may not send with the head's public key."""

    def __init__(self, tokens: Tokens) -> None:
        self._data_stream = Endpoint(
            "/ds",
            (b"GET", b"POST"),
            lambda _, stream: tokens.data_stream(stream) or answers.NOT_FOUND,
            accept_data_stream,
            key_in_url=last_part,
        )
        self._settings = Endpoint(
            "/v1/projects",
            _READ_ONLY,
            lambda _, key: tokens.address_sender(key) or answers.UNKNOWN_WRITE_KEY,
            cross_origin=True,
            key_in_url=key_of_settings,
            document=bootstrap.segment_settings,
        )
        self._paths = _fixed(tokens)
        self.refused_page = tokens.refused_page

    def find(self, path: bytes) -> Endpoint | None:
        """Return the endpoint of a normalised path; None means 404."""
        found = self._paths.get(path)
        if found is None:
            if path.startswith(b"/ds/") and path.count(b"/") == 2:
                return self._data_stream
            if key_of_settings(path):
                return self._settings
        return found


def _fixed(tokens: Tokens) -> Mapping[bytes, Endpoint]:
    def by_key(authorization: str | None, _: str) -> Sender | Refusal:
        if authorization is None:
            return answers.UNAUTHORIZED
        return tokens.sender(authorization) or answers.UNKNOWN_KEY

    def by_key_or_body(authorization: str | None, _: str) -> Sender | Refusal:
        return by_key(authorization, "") if authorization else BY_BODY

    def by_body(_: str | None, __: str) -> Sender:
        return BY_BODY

    def by_url_key_or_body(authorization: str | None, key: str) -> Sender | Refusal:
        if key:
            return tokens.address_sender(key) or answers.UNKNOWN_KEY_IN_ADDRESS
        return by_key_or_body(authorization, "")

    def by_url_or_key(authorization: str | None, key: str) -> Sender | Refusal:
        return by_url_key_or_body(authorization, key) if key else by_key(authorization, "")

    def by_project_id(body: bytes) -> Sender | None:
        project = project_id_in(body)
        return Sender(project, True) if project in tokens.collect_rules else None

    def by_write_key(body: bytes) -> Sender | None:
        write_key = write_key_in(body)
        return tokens.sender_of(write_key) if write_key else None

    paths = {
        "/track": Endpoint("/track", (b"POST",), by_key, accept_hit),
        "/collect": Endpoint(
            *("/collect", (b"POST",), by_body, partial(accept_collected, projects=tokens.collect_rules)),
            cross_origin=True,
            preflight=tokens.refused_collect,
            find_sender=by_project_id,
        ),
    }
    for kind, names in _MESSAGES.items():
        accept = partial(accept_message, sender_of=tokens.page_sender, kind=kind)
        for name in names:
            paths[name] = Endpoint(
                *(names[0], (b"POST",), by_key_or_body, accept),
                stored=answers.SUCCESS,
                cross_origin=True,
                find_sender=by_write_key,
            )
    for kind, names in _PIXELS.items():
        accept = partial(accept_pixel, accept=partial(accept_message, sender_of=tokens.picture_sender, kind=kind))
        for name in names:
            paths[name] = Endpoint(
                *(names[0], (b"GET",), by_url_key_or_body, accept, answers.PIXEL),
                cross_origin=True,
                key_in_url=write_key,
            )
    for name in _BATCHES:
        paths[name] = Endpoint(
            *(_BATCHES[0], (b"POST",), by_key_or_body, partial(accept_batch, sender_of=tokens.page_sender)),
            stored=answers.SUCCESS,
            cross_origin=True,
            body_bytes=BATCH_BYTES,
            find_sender=by_write_key,
            steps=partial(batch_steps, sender_of=tokens.page_sender),
        )
    paths[_BEACON] = replace(paths[_BATCHES[0]], authorize=by_url_key_or_body, key_in_url=write_key)
    paths[_SOURCE_CONFIGURATION] = Endpoint(
        *(_SOURCE_CONFIGURATION, _READ_ONLY, by_url_or_key),
        cross_origin=True,
        key_in_url=write_key,
        document=bootstrap.rudderstack_source,
    )
    paths[_METRICS] = Endpoint(
        *(_METRICS, (b"POST",), by_body),
        cross_origin=True,
        document=lambda _, __: answers.SUCCESS_BODY,
    )
    return {name.encode(): endpoint for name, endpoint in paths.items()}
