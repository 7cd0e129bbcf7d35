"""Mixpanel: sends events to the import API."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from pipeline.destination import (
    Delivered,
    Delivery,
    Destination,
    Event,
    Http,
    HttpRequest,
    HttpResponse,
    Limits,
    Options,
    Rejected,
    Settings,
    Skipped,
    Verdict,
    encode_json,
    fitting_id,
    json_list,
    judge,
)

_REGIONS = {
    "us": "https://api.mixpanel.com/import",
    "eu": "https://api-eu.mixpanel.com/import",
    "in": "https://api-in.mixpanel.com/import",
}
_INSERT_ID = re.compile(
    r"(?!(?:0|-1|anon|anonymous|nil|none|null|na|undefined|unknown|true|false|0{8}(?:-0{4}){3}-0{12})$)[A-Za-z0-9-]{1,36}",
    re.IGNORECASE,
)
"""The ids that Mixpanel accepts as $insert_id. It refuses placeholders."""


class MixpanelSettings(Settings):
    """The project, and the service account that imports."""

    project_id: str = Field(pattern=r"^\d+$", description="The project's number.")
    username: str = Field(min_length=1, description="The name of a service account.")
    secret: str = Field(min_length=1, description="The secret of the service account.")
    region: Literal["us", "eu", "in"] = Field("us", description="Where the project's data is stored.")


def event(delivery: Delivery) -> Event | Skipped:
    """Return the event. $insert_id is the hitId if Mixpanel accepts it, else its hash; the same at each attempt.

    Identify and group calls are unsupported, because profiles need other endpoints (`/engage`, `/groups`) and another token.
    """
    if (skipped := delivery.unsupported()) is not None:
        return skipped
    hit = delivery.hit
    if not delivery.name:
        return Skipped("event_without_name")
    context = delivery.context
    location, browser, system = (context.get(key) for key in ("location", "browser", "os"))
    properties: dict[str, Any] = {
        **delivery.properties,
        "time": delivery.time_ms,
        "$insert_id": fitting_id(hit.idempotency_key, _INSERT_ID),
        "distinct_id": hit.userId or hit.anonymousId or "",
        **({"$user_id": hit.userId} if hit.userId else {}),
        **({"$device_id": hit.anonymousId} if hit.anonymousId else {}),
        **({"ip": context["ip"]} if isinstance(context.get("ip"), str) else {}),
        **({"$city": location.get("city")} if isinstance(location, dict) and location.get("city") else {}),
        **({"$browser": browser.get("name")} if isinstance(browser, dict) and browser.get("name") else {}),
        **({"$os": system.get("name")} if isinstance(system, dict) and system.get("name") else {}),
    }
    return Event(hit.hitId, encode_json({"event": delivery.name, "properties": properties}))


def request(events: Sequence[Event], settings: MixpanelSettings, now_seconds: float) -> HttpRequest:
    """Return the request. With strict=1 Mixpanel names the events that it refuses."""
    account = base64.b64encode(f"{settings.username}:{settings.secret}".encode()).decode()
    url = f"{_REGIONS[settings.region]}?strict=1&project_id={settings.project_id}"
    headers = {"content-type": "application/json", "authorization": f"Basic {account}"}
    return HttpRequest("POST", url, json_list(events), headers)


def verdict(response: HttpResponse, events: Sequence[Event]) -> Verdict:
    """Return the outcomes. A 400 with failed_records refuses those records and has stored the others."""
    content = response.json()
    failed = content.get("failed_records") if isinstance(content, dict) else None
    if response.status != 400 or not failed:
        return judge(response, events)
    invalid = {record["index"]: f"{record.get('field')}: {record.get('message')}" for record in failed}
    if not invalid.keys() <= set(range(len(events))):
        return judge(response, events)  # unknown indexes, so it is unclear which events are stored
    return [Rejected("invalid_event", invalid[i]) if i in invalid else Delivered() for i in range(len(events))]


destination = Destination(
    name="Mixpanel",
    summary="Sends events to a Mixpanel project.",
    settings=MixpanelSettings,
    options=Options,
    sink=Http(event, request, verdict, Limits(events=2000, request_bytes=10_000_000, per_second=30_000)),
    documentation="https://docs.mixpanel.com/reference/import-events",
    delivery_guarantee="At least once; $insert_id derives from the hitId, and Mixpanel drops its repeats.",
)
