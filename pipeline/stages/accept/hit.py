"""Hits in their own format: `POST /track` from servers, `POST /collect` from browsers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from pipeline.codec.hit import check_hit
from pipeline.errors import InvalidHit
from pipeline.stages.accept.origins import CollectRules
from pipeline.stages.accept.records import Code, Outcome, Random, Refusal, Request, record_of, refusal_of

_JSON = "application/json"


@lru_cache(256)
def media_type(content_type: str) -> str:
    """Return the media type in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def accept_hit(body: bytes, request: Request, random: Random) -> Outcome:
    """Accept one hit as JSON, and keep its bytes."""
    if media_type(request.content_type) != _JSON:
        return Refusal(400, Code.INVALID_CONTENT_TYPE, f"send the hit with Content-Type: {_JSON}")
    try:
        hit_id, _ = check_hit(body)
    except InvalidHit as error:
        return refusal_of(error)
    return record_of(body, hit_id, request, request.sender, random)


def accept_collected(body: bytes, request: Request, random: Random, projects: Mapping[str, CollectRules]) -> Outcome:
    """Accept one hit that names its project in `projectId`. Browsers send it as text/plain to avoid a preflight."""
    if media_type(request.content_type) not in (_JSON, "text/plain"):
        return Refusal(400, Code.INVALID_CONTENT_TYPE, f"send the hit as text/plain or {_JSON}")
    try:
        hit_id, project = check_hit(body)
    except InvalidHit as error:
        return refusal_of(error)
    rules = projects.get(project) if project is not None else None
    if rules is None:
        return Refusal(400, Code.INVALID_HIT, "projectId names no project of this server", "projectId")
    refused = None if rules.are_open else rules.refusal(request.origin)
    return refused or record_of(body, hit_id, request, rules.sender, random)
