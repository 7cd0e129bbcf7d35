"""Google Analytics 4: sends events by the Measurement Protocol.

GA4 answers 2xx even to events that it drops, so this file checks GA4's rules: "Sending events, Limitations" and "Protocol reference,
Reserved names". pipeline/destination/ga4_parameters.py translates names and parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import quote

import msgspec
from pydantic import Field

from pipeline.destination import (
    Delivery,
    Destination,
    Event,
    Http,
    HttpRequest,
    Limits,
    Options,
    Rejected,
    Settings,
    Skipped,
    encode_json,
    json_list,
)
from pipeline.destination.ga4_parameters import NAME_LENGTH, ga4_name, ga4_parameters
from pipeline.destination.semantic_event import semantic_event, unreadable_amount

_URLS = {
    "global": "https://www.google-analytics.com/mp/collect",
    "eu": "https://region1.google-analytics.com/mp/collect",
}
# GA4 accepts an older event, but dates it 72 hours back ("Sending events", "Past events").
_OLDEST_SECONDS = 72 * 3600
# "[GA4] Event collection limits". They do not mention client ids, but those count towards the bytes of a request.
_ID_LENGTH = 256
_REQUEST_BYTES = 126_000  # 130 kB, less client_id and user_id, which the deliverer does not count
_NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{NAME_LENGTH - 1}}}")
_RESERVED = re.compile(
    r"ad_(activeview|click|exposure|query|reward)|adunit_exposure|app_(clear_data|exception|install|remove|store_refund)"
    r"|app_(update|upgrade)|dynamic_link_(app_open|app_update|first_open)|error|firebase_.*|first_(open|visit)"
    r"|notification_(dismiss|foreground|open|receive|send)|os_update|session_start|user_engagement|(_|ga_|google_).*"
    r"|ad_impression|in_app_purchase|screen_view"  # only of apps
)


class GoogleAnalyticsSettings(Settings):
    """The data stream."""

    measurement_id: str = Field(pattern=r"^G-[A-Z0-9]+$", description="The stream's measurement id, such as G-XXXXXXX.")
    api_secret: str = Field(
        min_length=1,
        description="The API secret. Create it under Admin, Data streams, Measurement Protocol API secrets.",
    )
    region: Literal["global", "eu"] = Field(
        "global", description="Where Google collects the events: anywhere, or in the EU."
    )


class GoogleAnalyticsOptions(Options):
    """The sender's options for one hit."""

    clientId: str | None = Field(None, min_length=1, description="The client id of the browser's _ga cookie.")
    sessionId: str | int | None = Field(None, description="The session id of the browser's _ga_<stream> cookie.")


def event(delivery: Delivery) -> Event | Skipped | Rejected:
    """Return the event with its parameters. The client id is the option `clientId`, else userId, else anonymousId."""
    if (skipped := delivery.unsupported()) is not None:
        return skipped
    hit, options, translated = delivery.hit, delivery.options, semantic_event(delivery.message)
    name = ga4_name(translated, delivery.message)
    if not name:
        return Skipped("event_without_name")
    if not _NAME.fullmatch(name):
        return Rejected(
            "event_name",
            f"{name!r} is not a valid GA4 event name; use letters, digits and _, at most {NAME_LENGTH} characters",
        )
    if _RESERVED.fullmatch(name):
        return Rejected(
            "reserved_event_name", f"GA4 reserves {name!r} for itself or for apps, and would drop the event"
        )
    if translated.unreadable:
        return unreadable_amount(translated.unreadable)
    client_id = options.clientId or hit.userId or hit.anonymousId
    if max(len(hit.userId or ""), len(client_id or "")) > _ID_LENGTH:
        return Rejected("identity_too_long", f"GA4 drops a user_id of more than {_ID_LENGTH} characters")
    session = {} if options.sessionId is None else {"session_id": str(options.sessionId)}
    engaged_ms = delivery.properties.get("engagement_time_msec")
    # GA4 counts an active user only with an engagement time.
    engagement = {"engagement_time_msec": engaged_ms if isinstance(engaged_ms, int) else 1}
    parameters = ga4_parameters(translated, delivery.message, {**session, **engagement})
    body = encode_json({"name": name, "timestamp_micros": delivery.time_ms * 1000, "params": parameters})
    return Event(hit.hitId, body, (client_id, hit.userId))


def request(events: Sequence[Event], settings: GoogleAnalyticsSettings, now_seconds: float) -> HttpRequest:
    """Return the request; all events belong to one person."""
    client_id, user_id = msgspec.convert(events[0].group, tuple[str, str | None])
    person = {"client_id": client_id, **({"user_id": user_id} if user_id else {})}
    body = encode_json(person)[:-1] + b',"events":' + json_list(events) + b"}"
    secret = quote(settings.api_secret, safe="")
    url = f"{_URLS[settings.region]}?measurement_id={settings.measurement_id}&api_secret={secret}"
    return HttpRequest("POST", url, body, {"content-type": "application/json"})


destination = Destination(
    name="Google Analytics",
    summary="Sends events to a Google Analytics 4 web stream.",
    settings=GoogleAnalyticsSettings,
    options=GoogleAnalyticsOptions,
    sink=Http(event, request, limits=Limits(events=25, request_bytes=_REQUEST_BYTES, oldest_seconds=_OLDEST_SECONDS)),
    documentation="https://developers.google.com/analytics/devguides/collection/protocol/ga4/sending-events",
    delivery_guarantee="At least once; GA4 drops only repeated purchases, by transaction_id.",
)
