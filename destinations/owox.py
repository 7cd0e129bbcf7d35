"""OWOX BI Streaming: GA4's events, sent to OWOX's access point instead of Google's; of any age, unlike GA4's."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from pydantic import Field

from destinations.google_analytics import GoogleAnalyticsOptions, event
from pipeline.destination import (
    Destination,
    Event,
    Http,
    HttpRequest,
    HttpUrl,
    Limits,
    Settings,
    encode_json,
    json_list,
)


class OwoxSettings(Settings):
    """Which stream."""

    url: HttpUrl = Field(
        repr=False,
        description="The access point for the Measurement Protocol, https://streaming.bi.owox.com/ga4/.../mp, "
        "from the stream's Settings tab; without a slash at the end. It is the secret, too.",
    )


def request(events: Sequence[Event], settings: OwoxSettings, now_seconds: float) -> HttpRequest:
    """One request per person, as GA4's Measurement Protocol has it; OWOX needs no secret and no measurement id."""
    client_id, user_id = msgspec.convert(events[0].group, tuple[str, str | None])
    person = {"client_id": client_id, **({"user_id": user_id} if user_id else {})}
    body = encode_json(person)[:-1] + b',"events":' + json_list(events) + b"}"
    return HttpRequest("POST", settings.url.rstrip("/"), body, {"content-type": "application/json"})


destination = Destination(
    name="OWOX BI Streaming",
    summary="Events of an OWOX BI stream of the GA4 kind, on their way to BigQuery.",
    settings=OwoxSettings,
    options=GoogleAnalyticsOptions,
    sink=Http(event, request, limits=Limits(events=25, request_bytes=130_000)),
    documentation="https://support.owox.com/hc/en-us/articles/11831600747284",
    delivery_guarantee="At least once; the documentation names no field by which OWOX drops repeats.",
)
