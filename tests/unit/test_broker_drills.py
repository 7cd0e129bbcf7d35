"""The drills of brokers can fail: what delays the answers, fills the disk and measures the flow."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.kafka.embedded.broker import free_port
from tests.faults.brokers import faults_of, fill, small_disk
from tests.faults.slow_proxy import END_TXN, SlowProxy
from tests.faults.whole_pipeline import Pipeline

_FETCH = 1


def request(api_key: int, correlation: int) -> bytes:
    body = struct.pack(">hhi", api_key, 0, correlation) + b"rest"
    return struct.pack(">i", len(body)) + body


@pytest.fixture
def proxy() -> Iterator[SlowProxy]:
    """In front of a broker that answers each request with its correlation id."""
    broker = socket.create_server(("127.0.0.1", free_port()))

    def serve() -> None:
        while True:
            try:
                connection, _ = broker.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                while head := stream.read(4):
                    correlation = stream.read(struct.unpack(">i", head)[0])[4:8]
                    stream.write(struct.pack(">i", 4) + correlation)
                    stream.flush()

    threading.Thread(target=serve, daemon=True).start()
    made = SlowProxy(f"127.0.0.1:{free_port()}", f"127.0.0.1:{broker.getsockname()[1]}")
    yield made
    made.stop()
    broker.close()


def test_only_the_chosen_answers_are_late_and_all_keep_their_order(proxy: SlowProxy) -> None:
    proxy.delays = {END_TXN: 0.5}
    with socket.create_connection((proxy._listen[0], int(proxy._listen[2]))) as client, client.makefile("rb") as stream:
        began, answers = time.monotonic(), []
        client.sendall(request(_FETCH, 1) + request(END_TXN, 2) + request(_FETCH, 3))
        for _ in range(3):
            correlation = struct.unpack(">ii", stream.read(8))[1]
            answers.append((correlation, time.monotonic() - began >= 0.5))
    assert answers == [(1, False), (2, True), (3, True)]


def test_a_full_disk_is_full_until_its_ballast_goes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as mounted:
        if not mounted:
            pytest.skip("this user may not mount a small disk")
        ballast = fill(tmp_path / "disk")
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk" / "more").write_bytes(b"x")
        ballast.unlink()
        (tmp_path / "disk" / "more").write_bytes(b"x")


def test_the_restarts_are_spread_over_the_time_away_and_half_are_kills() -> None:
    faults = faults_of(20, 5, 5, (5.0, 60.0), seed=1)
    restarts = sorted(fault.seconds for fault in faults if fault.kind in ("kill", "terminate"))
    assert (restarts[0], restarts[-1], len(restarts)) == (5.0, 60.0, 20)
    assert sorted({fault.kind: 0 for fault in faults}) == ["broker-disk", "kill", "sink-disk", "terminate"]
    assert sum(fault.kind == "kill" for fault in faults) == 10


def test_the_flow_counts_hits_that_were_accepted_and_arrived_after_the_moment() -> None:
    pipeline = Pipeline.__new__(Pipeline)
    pipeline.traffic = SimpleNamespace(answered_at={"m1": 5.0, "m2": 11.0, "m3": 12.0})  # type: ignore[assignment]
    came = {
        "topic": {"1": 10.5, "2": 13.0, "3": 12.5},
        "webhook": {"1": 11.0, "3": 14.0},
        "files": {"1": 11.0},
    }
    pipeline.arrivals = lambda: came  # type: ignore[method-assign]
    assert pipeline.flow_since(10.0) == {"topic": 2.5, "webhook": 4.0}
