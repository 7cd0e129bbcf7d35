"""Tests unmodified, published clients against the running intake.

Each sends a track, an identify and a page; every message must be on `hits-raw` once, with its messageId as hitId.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import analytics
import pytest
import rudder_analytics.client
import segment.analytics
from snowplow_tracker import Emitter, SelfDescribingJson, StructuredEvent, Tracker

from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import read_topic


def stored(config: Config) -> list[tuple[str, dict[str, Any]]]:
    """Return key and value of every record."""
    topic = TopicNames(config.kafka.topic_prefix).hits_raw
    return [
        ((record.key() or b"").decode(), json.loads(record.value() or b""))
        for record in read_topic(config.kafka, topic)
    ]


def send_one_of_each(client: Any, ids: list[str]) -> None:
    """Send a track, an identify and a page call; the three clients have the same interface."""
    client.track("client-user", "Bought", {"price": 1.5}, message_id=ids[0])
    client.identify("client-user", {"plan": "free"}, message_id=ids[1])
    client.page("client-user", "Docs", "Home", {"url": "https://example.org"}, message_id=ids[2])
    client.flush()
    client.join()


def with_segment(url: str, ids: list[str], fail: Callable[..., None]) -> None:
    client = segment.analytics.Client("shop-token", host=url, on_error=fail, max_retries=3)
    send_one_of_each(client, ids)


def with_segment_in_gzip(url: str, ids: list[str], fail: Callable[..., None]) -> None:
    client = segment.analytics.Client("shop-token", host=url, on_error=fail, gzip=True)
    for name in ids:
        client.track("client-user", "Bought", {}, message_id=name)
    client.flush()
    client.join()


def with_analytics_python(url: str, ids: list[str], fail: Callable[..., None]) -> None:
    client = analytics.Client("shop-token", host=url, on_error=fail)
    send_one_of_each(client, ids)


def with_rudder(url: str, ids: list[str], fail: Callable[..., None]) -> None:
    client = rudder_analytics.client.Client("shop-token", host=url, on_error=fail)
    send_one_of_each(client, ids)


@pytest.mark.parametrize("send", [with_segment, with_segment_in_gzip, with_analytics_python, with_rudder])
def test_each_message_arrives_once(intake_for_clients: Config, send: Callable[..., None]) -> None:
    config = intake_for_clients
    ids = [f"{send.__name__}-{number}" for number in range(3)]
    failures: list[object] = []
    send(f"http://{config.intake.listen}", ids, lambda *about: failures.append(about))
    assert failures == []
    found = [(key, value) for key, value in stored(config) if key.removeprefix("shop/") in ids]
    assert sorted(key for key, _ in found) == sorted(f"shop/{name}" for name in ids)
    for _, value in found:
        assert value["event"]["user"]["userId"] == "client-user"
        assert value["event"]["name"] in {"Bought", "Identify", "Viewed Page"}


def test_data_stream_accepts_a_snowplow_tracker(intake_for_clients: Config) -> None:
    """The tracker posts to its own path; this test only sends its payload."""
    config = intake_for_clients
    sent: list[Any] = []
    emitter = Emitter(config.intake.listen, protocol="http", method="get", batch_size=1, on_success=sent.append)
    emitter.endpoint = f"http://{config.intake.listen}/ds/stream-secret"
    tracker = Tracker("cf", emitter)
    tracker.track(StructuredEvent(category="shop", action="add", label="snowplow-label"))
    tracker.flush()
    assert sent
    assert SelfDescribingJson  # the package is the real one
    (event,) = [value["event"] for _, value in stored(config) if "snowplow-label" in json.dumps(value)]
    assert (event["name"], event["payload"]["query"]["se_la"]) == ("Data Stream", "snowplow-label")
