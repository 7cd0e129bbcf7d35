"""Tests that `up` kills a role that was alive and hangs, but not a role that is starting or was paused for a moment."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.supervisor import hangs
from pipeline.supervisor.hangs import HANG_SECONDS, HangWatch, kill_hung_roles, liveness_problem
from pipeline.telemetry.admin_port import HOLDER_HEADER


def test_only_a_process_that_was_alive_can_hang() -> None:
    watch = HangWatch()
    assert not any(watch.observe(1, "no answer", float(second)) for second in range(600))
    assert not watch.observe(1, None, 600.0)
    assert [watch.observe(1, "no answer", 601.0 + second) for second in range(62)].index(True) == HANG_SECONDS


def test_pause_of_up_between_two_probes_is_not_a_hang() -> None:
    watch = HangWatch()
    watch.observe(1, None, 0.0)
    assert not watch.observe(1, "no answer", 10.0)
    assert not watch.observe(1, "no answer", 4000.0)


def test_one_success_resets_the_watch_and_so_does_a_new_process() -> None:
    watch = HangWatch()
    watch.observe(1, None, 0.0)
    assert not any(watch.observe(1, None if second == 50 else "no answer", float(second)) for second in range(1, 110))
    assert not any(watch.observe(2, "no answer", 200.0 + second) for second in range(600))


@dataclass
class Role:
    name: str
    admin_address: str
    pid: int | None


def test_hanging_process_is_killed_once_and_other_roles_keep_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hangs, "_PROBE_INTERVAL_SECONDS", 0.001)
    stopping, killed = threading.Event(), []
    roles = [Role("route-0", "127.0.0.1:1", 11), Role("deliver-0", "127.0.0.1:2", 12), Role("intake-0", "x:3", None)]
    now = iter(range(10_000))
    probes = {"127.0.0.1:1": 0, "127.0.0.1:2": 0}

    def probe(address: str, pid: int) -> str | None:
        probes[address] += 1
        if probes[address] >= 200:
            stopping.set()
        return "not alive hits-raw: hangs" if address.endswith(":1") and probes[address] > 10 else None

    def kill(pid: int, number: int) -> None:
        killed.append((pid, number))
        roles[0].pid = None
        raise ProcessLookupError

    kill_hung_roles(roles, stopping, kill, probe, lambda: float(next(now)))
    assert killed == [(11, signal.SIGKILL)]
    assert probes["127.0.0.1:2"] == 200


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        alive = self.server.server_name == "alive"
        self.send_response(200 if alive else 503)
        self.send_header(HOLDER_HEADER, "route-0, process 11")
        self.end_headers()
        self.wfile.write(b"ok\n" if alive else b"not alive\nevent loop: hangs\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("name", "problem"), [("alive", None), ("hangs", "not alive event loop: hangs")])
def test_healthz_is_probed(name: str, problem: str | None) -> None:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.server_name = name
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert liveness_problem(f"127.0.0.1:{server.server_port}", 11) == problem
        thread.join()
        address = f"127.0.0.1:{server.server_port}"
    assert "no response from http://127.0.0.1" in (liveness_problem(address, 11) or "")


def test_response_of_another_process_does_not_count() -> None:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.server_name = "alive"
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert "is served by route-0, process 11" in (liveness_problem(f"127.0.0.1:{server.server_port}", 12) or "")
        thread.join()
