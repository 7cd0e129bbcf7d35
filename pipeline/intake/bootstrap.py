"""Documents that client libraries fetch before they send: Segment's settings and RudderStack's source configuration.

Each document holds only what a client needs to send hits here. It names no destination and no metrics. The only fact about
the project is the write key from the client's own request. Readers of the documents: `loadCDNSettings` and `segmentio` in
@segment/analytics-next, `processConfig` in @rudderstack/analytics-js.
"""

from __future__ import annotations

import json
import re

HEADERS = "Cache-Control: private, max-age=300\r\n"
"""Private, because the document repeats the Host header. A shared cache could serve a forged host to every visitor."""

_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_LOOPBACK = re.compile(r"(?:localhost|127\.[0-9.]+|\[::1\])(?::[0-9]+)?", re.IGNORECASE)
_SOURCE = {
    "isHosted": True,
    "source": {
        "id": "hitrouter",
        "name": "hitrouter",
        "workspaceId": "",
        "enabled": True,
        "updatedAt": "1970-01-01T00:00:00.000Z",
        "config": {"statsCollection": {"errors": {"enabled": False}, "metrics": {"enabled": False}}},
        "destinations": [],
    },
}


def segment_settings(write_key: str, url: str) -> bytes:
    """Return the settings of Segment's clients; `url` is the address under which the client reaches this intake.

    Without `apiHost` a client sends its hits to Segment.
    """
    scheme, _, host = url.partition("://")
    segment = {"apiKey": write_key, "apiHost": f"{host}/v1", "protocol": scheme, "addBundledMetadata": False}
    return json.dumps({"integrations": {"Segment.io": segment}, "metrics": {"sampleRate": 0}}).encode()


def rudderstack_source(write_key: str, url: str) -> bytes:
    """Return the source configuration of RudderStack's clients, whose data plane URL is set in the page."""
    return json.dumps(_SOURCE).encode()


def own_url(host: str, origin: str) -> str | None:
    """Return the URL under which a browser reaches this intake, from its `Host` and `Origin`; None if `host` is invalid.

    Browsers let an https page request only https URLs, except on loopback. So if the origin is
    https, the URL of this intake is https, too, even if a proxy terminates TLS.
    """
    if not _HOST.fullmatch(host):
        return None
    secure = origin.startswith("https://") and not _LOOPBACK.fullmatch(host)
    return f"{'https' if secure else 'http'}://{host}"
