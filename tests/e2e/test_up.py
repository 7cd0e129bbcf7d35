"""Tests `up` with a bad edit, a killed role, a killed parent and a restart, and that its files are private."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from pipeline.kafka.embedded.broker import free_port
from tests.processes import children_of, is_alive
from tests.roles import free_admin_listen, hit, wait_until

CONNECTIONS = {
    "everything": {"destination": "Kafka"},
    "archive": {"destination": "Files", "settings": {"path": "./data/archive"}},
}
BAD_LINE = "conections: {}\n"


class Up:
    """`hitrouter up` in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "hitrouter.yaml"
        self.log = folder / "up.log"
        self.intake = f"127.0.0.1:{free_port()}"
        self.file.write_text(
            yaml.safe_dump(
                {
                    "kafka": {"listen": f"127.0.0.1:{free_port()}"},
                    "intake": {"listen": self.intake},
                    "admin": {"listen": free_admin_listen()},
                    "projects": {"shop": {"tokens": ["${SHOP_TOKEN}"]}},
                    "connections": CONNECTIONS,
                }
            )
        )
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start `up`, which appends to the log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "up", "-c", str(self.file)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "SHOP_TOKEN": "shop-token"},
            )
        return self.process

    def said(self, text: str, times: int = 1) -> None:
        """Wait until the log holds `text`."""
        try:
            wait_until(lambda: self.log.read_text(errors="replace").count(text) >= times, f"{text!r} in the log", 90)
        except AssertionError as error:
            raise AssertionError(f"{error}; the log:\n{self.log.read_text(errors='replace')[-20_000:]}") from None
        assert self.process.poll() is None

    def send(self, hit_id: str) -> int:
        """Send one hit and return the status of the answer."""
        headers = {"content-type": "application/json"}
        url = f"http://{self.intake}/track"
        return httpx.post(url, content=hit(hit_id), headers=headers, auth=("shop-token", ""), timeout=20).status_code

    def archived(self) -> str:
        """Return all lines of the file sink."""
        return "".join(file.read_text() for file in (self.folder / "data" / "archive").glob("*.jsonl"))


@contextmanager
def running_up(folder: Path) -> Iterator[Up]:
    up = Up(folder)
    try:
        up.said("partitions assigned: ", 2)
        yield up
    finally:
        up.process.terminate()
        try:
            up.process.wait(60)
        finally:
            up.process.kill()


def test_up_survives_a_bad_edit_a_crash_and_a_restart(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        good = up.file.read_text()
        up.file.write_text(good + BAD_LINE)
        (router,) = children_of(up.process.pid, "pipeline route")
        os.kill(router, signal.SIGKILL)
        up.said("role=route-0 how=SIGKILL")
        up.said("starting with the last good version")
        up.said("partitions assigned: group=route ", 2)
        assert up.send("after-the-crash") == 204
        wait_until(lambda: "after-the-crash" in up.archived(), "the hit in the archive")
        up.process.terminate()
        assert up.process.wait(60) == 0
        up.start()
        up.said("all roles use the last good version until the file is corrected")
        up.said("partitions assigned: ", 5)
        assert up.send("after-the-restart") == 204
        up.file.write_text(good.replace("  everything:", "  more: {destination: Kafka}\n  everything:"))
        up.said("configuration in use")
        up.process.terminate()
        assert up.process.wait(60) == 0
        assert "Traceback" not in up.log.read_text()


def test_failing_role_does_not_affect_others_and_the_operator_gets_advice(tmp_path: Path) -> None:
    """Another process takes the port of the killed intake, so the intake ends with exit code 1."""
    with running_up(tmp_path) as up, socket.socket() as taken:
        host, _, port = up.intake.rpartition(":")
        (intake,) = children_of(up.process.pid, "pipeline intake")
        os.kill(intake, signal.SIGKILL)
        wait_until(lambda: binds(taken, host, int(port)), "the port", 20)
        up.said("role keeps failing: role=intake-0 failures=5 advice=run `hitrouter validate")
        up.said("how=exit code 1 uptime_seconds=")
        up.said(f"reason=can't listen on {up.intake}")
        taken.close()
        up.said("ready: url=http://", 2)
        assert up.send("back") == 204


def binds(taken: socket.socket, host: str, port: int) -> bool:
    try:
        taken.bind((host, port))
        taken.listen()
    except OSError:
        return False
    return True


def test_files_of_up_are_private_and_its_children_end_when_it_is_killed(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with running_up(tmp_path) as up:
            assert up.send("private") == 204
            wait_until(lambda: "private" in up.archived(), "the hit in the archive")
            written = list((tmp_path / "data").rglob("*"))
            below = children_of(up.process.pid)
            up.process.kill()
            up.process.wait()
            wait_until(lambda: not any(is_alive(pid) for pid in below), "the end of all children", 20)
    finally:
        os.umask(before)
    assert len(below) >= 4 and len(written) > 20
    assert [str(path) for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
