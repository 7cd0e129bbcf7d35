"""A role that was alive and no longer answers is ended by `up`; one that starts, or is paused for a moment, is not."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.supervisor import hangs
from pipeline.supervisor.hangs import HANG_SECONDS, HangWatch, end_what_hangs, why_not_alive
from pipeline.telemetry.admin_port import HOLDER_HEADER


def test_only_what_was_alive_can_hang() -> None:
    watch = HangWatch()
    assert not any(watch.observe(1, "no answer", float(second)) for second in range(600))
    assert not watch.observe(1, None, 600.0)
    assert [watch.observe(1, "no answer", 601.0 + second) for second in range(62)].index(True) == HANG_SECONDS


def test_a_pause_of_up_between_two_answers_is_no_hang() -> None:
    watch = HangWatch()
    watch.observe(1, None, 0.0)
    assert not watch.observe(1, "no answer", 10.0)
    assert not watch.observe(1, "no answer", 4000.0)


def test_one_answer_is_enough_to_stay_and_a_successor_begins_anew() -> None:
    watch = HangWatch()
    watch.observe(1, None, 0.0)
    assert not any(watch.observe(1, None if second == 50 else "no answer", float(second)) for second in range(1, 110))
    assert not any(watch.observe(2, "no answer", 200.0 + second) for second in range(600))


@dataclass
class Role:
    name: str
    admin_address: str
    pid: int | None


def test_a_hanging_process_is_killed_once_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hangs, "_ASK_EVERY_SECONDS", 0.001)
    stopping, killed = threading.Event(), []
    roles = [Role("route-0", "127.0.0.1:1", 11), Role("deliver-0", "127.0.0.1:2", 12), Role("intake-0", "x:3", None)]
    now = iter(range(10_000))
    asked = {"127.0.0.1:1": 0, "127.0.0.1:2": 0}

    def ask(address: str, pid: int) -> str | None:
        asked[address] += 1
        if asked[address] >= 200:
            stopping.set()
        return "not alive hits-raw: hangs" if address.endswith(":1") and asked[address] > 10 else None

    def kill(pid: int, number: int) -> None:
        killed.append((pid, number))
        roles[0].pid = None
        raise ProcessLookupError

    end_what_hangs(roles, stopping, kill, ask, lambda: float(next(now)))
    assert killed == [(11, signal.SIGKILL)]
    assert asked["127.0.0.1:2"] == 200


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
def test_healthz_is_asked(name: str, problem: str | None) -> None:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.server_name = name
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert why_not_alive(f"127.0.0.1:{server.server_port}", 11) == problem
        thread.join()
        address = f"127.0.0.1:{server.server_port}"
    assert "no answer from http://127.0.0.1" in (why_not_alive(address, 11) or "")


def test_an_answer_of_another_process_is_no_life() -> None:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.server_name = "alive"
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        assert "is answered by route-0, process 11" in (why_not_alive(f"127.0.0.1:{server.server_port}", 12) or "")
        thread.join()
