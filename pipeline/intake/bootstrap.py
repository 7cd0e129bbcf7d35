"""What clients ask for before they send: Segment's settings and RudderStack's source configuration.

Each holds what a client needs to send hits here, and nothing else: no destination, no metrics, and of the project only the
write key that the client has asked with. What the clients read: `loadCDNSettings` and `segmentio` in
@segment/analytics-next, `processConfig` in @rudderstack/analytics-js.
"""

from __future__ import annotations

import json
import re

HEADERS = "Cache-Control: private, max-age=300\r\n"
"""Private: it holds the host that one client asked. A shared cache could hand an invented host to every visitor."""

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
    """Return the settings of Segment's clients; `url` is the intake's own, as the client reaches it.

    Without a host in them a client would send its hits to Segment.
    """
    scheme, _, host = url.partition("://")
    segment = {"apiKey": write_key, "apiHost": f"{host}/v1", "protocol": scheme, "addBundledMetadata": False}
    return json.dumps({"integrations": {"Segment.io": segment}, "metrics": {"sampleRate": 0}}).encode()


def rudderstack_source(write_key: str, url: str) -> bytes:
    """Return the source configuration of RudderStack's clients, which know from elsewhere where to send."""
    return json.dumps(_SOURCE).encode()


def own_url(host: str, origin: str) -> str | None:
    """Return the URL of the intake as a browser sees it, from its `Host` and `Origin`; None where `host` is no host.

    A page that came by https may ask only by https, but for its own machine: so the scheme is known behind a proxy, too.
    """
    if not _HOST.fullmatch(host):
        return None
    secure = origin.startswith("https://") and not _LOOPBACK.fullmatch(host)
    return f"{'https' if secure else 'http'}://{host}"
