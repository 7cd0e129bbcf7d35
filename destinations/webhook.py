"""Webhook: each routed hit as one POST request."""

from __future__ import annotations

from pydantic import Field

from pipeline.destination import Destination, Http, HttpRequest, HttpUrl, RoutedHit, Settings, Skipped


class WebhookSettings(Settings):
    """Where to post."""

    url: HttpUrl = Field(description="The address that takes the hits.")
    headers: dict[str, str] = Field({}, description="Sent with each request, for example an Authorization.")
    allow_private: bool = Field(False, description="Allow addresses of private networks and of this machine.")


def transform(hit: RoutedHit, value: bytes, settings: WebhookSettings) -> HttpRequest | Skipped:
    """The routed hit as it is; `webhook-id` is the same at each attempt (Standard Webhooks)."""
    headers = {**settings.headers, "content-type": "application/json", "webhook-id": hit.hitId}
    return HttpRequest("POST", settings.url, value, headers)


destination = Destination(
    name="Webhook",
    summary="Posts each routed hit to an address of yours.",
    settings=WebhookSettings,
    sink=Http(transform),
    documentation="https://www.standardwebhooks.com/",
    delivery_guarantee="At least once; `webhook-id` is the hitId, the same at each attempt.",
)
