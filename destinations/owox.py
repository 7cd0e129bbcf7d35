"""OWOX BI Streaming: sends GA4 events to OWOX's access point. Unlike GA4, it accepts events of any age."""

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
    """The stream."""

    url: HttpUrl = Field(
        repr=False,
        description="The access point for the Measurement Protocol, https://streaming.bi.owox.com/ga4/.../mp, "
        "from the stream's Settings tab, without a slash at the end. The address is a secret.",
    )


def request(events: Sequence[Event], settings: OwoxSettings, now_seconds: float) -> HttpRequest:
    """Return the request; as for GA4, all events belong to one person. OWOX needs no API secret and no measurement id."""
    client_id, user_id = msgspec.convert(events[0].group, tuple[str, str | None])
    person = {"client_id": client_id, **({"user_id": user_id} if user_id else {})}
    body = encode_json(person)[:-1] + b',"events":' + json_list(events) + b"}"
    return HttpRequest("POST", settings.url.rstrip("/"), body, {"content-type": "application/json"})


destination = Destination(
    name="OWOX BI Streaming",
    summary="Sends GA4 events to an OWOX BI stream, which stores them in BigQuery.",
    settings=OwoxSettings,
    options=GoogleAnalyticsOptions,
    sink=Http(event, request, limits=Limits(events=25, request_bytes=130_000)),
    documentation="https://support.owox.com/hc/en-us/articles/11831600747284",
    delivery_guarantee="At least once; OWOX documents no field by which it drops repeats.",
)
