"""Invalid records and failing backends of one connection: other hits and other connections are not affected."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message
from faust.types import TP

from pipeline.codec.avro import REGISTRY_MARKER, Framing
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.config import Config, ConnectionConfig
from pipeline.delivery.app import _ResetOnRebalance, enlarge_default_executor, wanted_apps
from pipeline.delivery.deliverers import Received, RoutedHits, event_of, read_records
from pipeline.delivery.files_deliverer import FilesDeliverer
from pipeline.destination import Delivered, Files, Http, Rejected
from pipeline.errors import RegistryUnavailable
from pipeline.kafka.transport.driver import Transport
from pipeline.kafka.transport.run import Loop
from pipeline.registry import declared_destinations, read_settings
from pipeline.sinks.clickhouse import Record, values_of
from pipeline.sinks.table_row import Row, row_of
from pipeline.telemetry.waiting import WAITING, Waiting
from tests.guard import FakeGuard, stale_when

pytestmark = pytest.mark.anyio

_TP = TP("deliveries-c", 0)
_HITS = RoutedHits(Framing(ROUTED_HIT_SCHEMA))
_GOOD = b'{"hitId":"h","projectId":"p","receivedAt":"2026-11-24T10:15:30.123Z","sentAt":"2026-11-24T10:15:30.123Z",'


def record(value: bytes) -> Message:
    return Message(topic=_TP.topic, partition=0, offset=0, value=value)


@pytest.fixture(autouse=True)
def _no_connection_is_paused() -> Iterator[None]:
    yield
    WAITING.end("c")


@pytest.mark.parametrize(
    "rest",
    [
        b'"event":[],"context":{}}',
        b'"event":{},"context":7}',
        b'"event":{"a":"\xff"},"context":{}}',
        b'"event":' + b"[" * 100_000,
    ],
)
def test_invalid_record_is_rejected(rest: bytes) -> None:
    read = _HITS.read(_GOOD + rest)
    assert isinstance(read, Rejected) and read.reason == "invalid_routed_hit"


def test_unreadable_time_rejects_only_its_row() -> None:
    read = _HITS.read(_GOOD.replace(b"2026-11-24T10:15:30.123Z", b"soon", 1) + b'"event":{},"context":{}}')
    assert not isinstance(read, Rejected)
    assert isinstance(values_of(Record(0, 0, row_of(read.hit)), "t"), Rejected)


@pytest.mark.parametrize(
    ("time", "ms"),
    [
        ("1899-12-31T23:59:59.999Z", None),
        ("1900-01-01T00:00:00.000Z", -2_208_988_800_000),
        ("1969-12-31T23:59:59.999Z", -1),
        ("2026-11-24T10:15:30.123Z", 1_795_515_330_123),
        ("2026-11-24T12:15:30.123+02:00", 1_795_515_330_123),
        ("2299-12-31T23:59:59.999Z", 10_413_791_999_999),
        ("2299-12-31T23:59:59.999-00:01", None),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_clickhouse_times_are_milliseconds_and_out_of_range_times_are_rejected(
    time: str, ms: int | None, which: int
) -> None:
    good = "2026-11-24T10:15:30.123Z"
    row = Row("shop", "hit-1", *((time, good), (good, time))[which], "u", None, None, "{}", "{}", None, None)
    values = values_of(Record(0, 0, row), "t")
    if ms is None:
        assert isinstance(values, Rejected) and values.reason == "not_storable"
    else:
        assert not isinstance(values, Rejected) and values[2 + which] == ms and values[3 - which] == 1_795_515_330_123


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 5_000])
def test_number_beyond_a_float_rejects_its_hit_without_a_log_line(
    number: str, caplog: pytest.LogCaptureFixture
) -> None:
    slack = declared_destinations()["Slack"]
    assert isinstance(slack.sink, Http)
    read = _HITS.read(_GOOD + f'"event":{{"a":{number}}},"context":{{}}}}'.encode())
    assert not isinstance(read, Rejected)
    event = event_of(slack, slack.sink, read, slack.settings.model_validate({"url": "https://a.example"}))
    assert isinstance(event, Rejected) and event.reason == "unreadable_number"
    assert caplog.text == ""


@pytest.mark.parametrize(
    "product",
    [
        f'"price":{"7" * 400}}},"quantity":1.5',
        f'"price":{"7" * 400}}},"quantity":-{"7" * 400}',
        '"price":1e308},"quantity":10',
        f'"price":0.5,"unitPrice":{"7" * 400}}}',
        '"price":-1e308,"unitPrice":1e308}',
    ],
)
def test_calculation_beyond_a_float_rejects_its_hit_without_a_log_line(
    product: str, caplog: pytest.LogCaptureFixture
) -> None:
    analytics = declared_destinations()["Google Analytics"]
    assert isinstance(analytics.sink, Http)
    event = f'{{"name":"Viewed Product Detail","product":{{"id":"a","currency":"EUR",{product}}}'
    read = _HITS.read(_GOOD + f'"event":{event},"context":{{}}}}'.encode())
    assert not isinstance(read, Rejected)
    settings = analytics.settings.model_validate({"measurement_id": "G-1", "api_secret": "s"})
    made = event_of(analytics, analytics.sink, read, settings)
    assert isinstance(made, Rejected) and made.reason == "unreadable_number"
    assert caplog.text == ""


def files_deliverer(path: Path | str, **settings: Any) -> FilesDeliverer:
    """Return a files deliverer that gives up after 100 ms."""
    connection = ConnectionConfig.model_validate(
        {
            "destination": "Files",
            "settings": {"path": str(path), **settings},
            "delivery": {"longest_backoff": "1s", "give_up_after": "100ms"},
        }
    )
    destination, checked = read_settings(connection)
    assert isinstance(destination.sink, Files)
    return FilesDeliverer("c", _TP.topic, connection, destination.sink, checked)


def received_at(*ages_seconds: float) -> dict[TP, list[Received]]:
    """Return valid records with the given ages."""
    made = []
    for offset, age in enumerate(ages_seconds):
        value = _GOOD.replace(b'"h"', b'"h%d"' % offset) + b'"event":{},"context":{}}'
        appended = (TIMESTAMP_LOG_APPEND_TIME, round((time.time() - age) * 1000))
        message = Message(topic=_TP.topic, partition=0, offset=offset, value=value, timestamp=appended)
        made.append(Received(message, _HITS.read(value)))
    return {_TP: made}


async def test_bucket_that_cannot_be_opened_pauses_the_connection() -> None:
    deliverer = files_deliverer("gs://bucket/x", service_account_key="no key")
    failed_for = deadline(0.5)
    guard = stale_when(lambda: "c" in WAITING.connections and failed_for())
    assert await deliverer.deliver(received_at(3600), guard) == {_TP: [None]}
    assert WAITING.connections["c"].misconfigured
    assert "gs://bucket/x cannot be opened" in WAITING.connections["c"].reason


async def test_hits_of_a_full_disk_are_given_up_after_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", disk_is_full)
    outcomes = await files_deliverer(tmp_path).deliver(received_at(3600, 3600), FakeGuard())
    assert [type(outcome) for outcome in outcomes[_TP]] == [Rejected, Rejected]
    assert isinstance(outcomes[_TP][0], Rejected) and outcomes[_TP][0].reason == "gave_up"
    assert "No space left" in outcomes[_TP][0].message


async def test_file_is_given_up_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its first hits the file would get another name; after a lost response the other hits would be stored twice."""
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", disk_is_full)

        def repair() -> None:
            if "c" in WAITING.connections and time.time() > WAITING.connections["c"].since + 0.5:
                patch.undo()

        outcomes = await files_deliverer(tmp_path).deliver(received_at(3600, -3600), FakeGuard(repair))
    assert outcomes == {_TP: [Delivered(), Delivered()]}


def disk_is_full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def deadline(seconds: float) -> Callable[[], bool]:
    """Return a function that tells whether `seconds` have passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


async def test_connection_is_paused_while_the_registry_is_unavailable() -> None:
    asked: list[int] = []

    def written_by(number: int) -> dict[str, Any]:
        asked.append(number)
        if len(asked) < 3:
            raise RegistryUnavailable("registry unavailable")
        raise ValueError("it has no such schema")

    async def sleep(seconds: float) -> None:
        assert WAITING.connections["c"].reason == "registry unavailable"
        await asyncio.sleep(0)

    hits = RoutedHits(Framing(ROUTED_HIT_SCHEMA, None, written_by))
    received = await read_records("c", hits, {_TP: [record(REGISTRY_MARKER + b"\0\0\0\7x")]}, lambda: None, sleep)
    assert received[_TP][0].read == Rejected("invalid_routed_hit", "it has no such schema")
    assert len(asked) == 3 and "c" not in WAITING.connections


def test_pause_ends_when_the_partitions_are_revoked() -> None:
    WAITING.begin("c", Waiting(True, "401", 1.0))
    _ResetOnRebalance("c", files_deliverer("x")).revoked()
    assert "c" not in WAITING.connections


async def test_hanging_sinks_leave_threads_for_others() -> None:
    enlarge_default_executor()
    repaired = threading.Event()
    stalled = [asyncio.create_task(asyncio.to_thread(repaired.wait, 60)) for _ in range(40)]
    await asyncio.sleep(0)
    try:
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "resolved"), 10) == "resolved"
    finally:
        repaired.set()
        await asyncio.gather(*stalled)


def test_hanging_name_lookups_leave_threads_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    real = socket.getaddrinfo

    def resolve_name(host: str, *rest: Any) -> Any:
        if host.endswith(".invalid"):
            answered.wait(60)
        return real("127.0.0.1", *rest)

    async def resolve() -> Any:
        enlarge_default_executor()
        loop = asyncio.get_running_loop()
        pending = [asyncio.create_task(loop.getaddrinfo(f"{n}.invalid", 80)) for n in range(40)]
        try:
            return await asyncio.wait_for(loop.getaddrinfo("good.example", 80, type=socket.SOCK_STREAM), 10)
        finally:
            answered.set()
            await asyncio.gather(*pending, return_exceptions=True)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_name)
    with asyncio.Runner(loop_factory=Loop) as runner:
        assert [entry[4] for entry in runner.run(resolve())] == [("127.0.0.1", 80)]


def test_prefetch_of_ten_connections_is_at_most_161_mib() -> None:
    connections = {f"hook{n}": {"destination": "Webhook", "settings": {"url": "https://a.example"}} for n in range(8)}
    tables = {
        "files": {"destination": "Files", "settings": {"path": "x"}},
        "rows": {"destination": "PostgreSQL", "settings": {"dsn": "postgresql://a.example/b"}},
    }
    apps = wanted_apps(Config.model_validate({"connections": connections | tables}), 0)
    settings = [cast(Transport, build().transport).settings for _, build in apps.values()]
    properties = [one.consumer_properties() for one in settings]
    # One MiB of it is for hits that are set aside.
    assert sum(one["queued.max.messages.kbytes"] for one in properties) <= 161 * 1024
    # Per partition, compressed, in addition to the above.
    assert max(one["fetch.message.max.bytes"] for one in properties) <= 128 * 1024
