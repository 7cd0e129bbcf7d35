"""Tests that children end with their parent, without features that only Linux has."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.process import parent as tie
from pipeline.process.parent import TiedChild, release_guard, tied_command
from tests.processes import children_of, is_alive
from tests.roles import wait_until

CHILD = "import time; from pipeline.process.parent import exit_with_parent; exit_with_parent(); print('up', flush=True); time.sleep(60)"


def parent_of(body: str) -> subprocess.Popen[str]:
    code = (
        f"import subprocess, sys, time\nfrom pipeline.process.parent import *\n{textwrap.dedent(body)}\ntime.sleep(60)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_tied_child_ends_with_its_parent_however_the_parent_ends(number: signal.Signals) -> None:
    parent = parent_of(f"child = TiedChild(['-c', {CHILD!r}])")
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    (child,) = children_of(parent.pid)
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not is_alive(child), "the end of the child", 10)


def test_tied_command_ends_with_its_parent_even_if_it_ignores_signals() -> None:
    program = "trap '' TERM INT HUP; echo up; sleep 61"
    parent = parent_of(f"subprocess.Popen(tied_command(['sh', '-c', {program!r}]), stdin=subprocess.PIPE)")
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    (child,) = [pid for pid in children_of(parent.pid, "trap") if pid in direct_children(parent.pid)]
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(child), "the end of the program", 10)


def direct_children(pid: int) -> list[int]:
    below = children_of(pid)
    return [child for child in below if not any(child in children_of(other) for other in below)]


def test_process_id_of_a_tied_command_is_that_of_the_program(tmp_path: Path) -> None:
    process = subprocess.Popen(tied_command(["sh", "-c", "echo $$"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    process.wait()
    release_guard(process)


def test_guard_of_an_ended_program_kills_no_process(tmp_path: Path) -> None:
    """The process id can belong to another process by then. A stub of `kill` creates a file."""
    (tmp_path / "kill").write_text(f"#!/bin/sh\ntouch {tmp_path / 'killed'}\n")
    (tmp_path / "kill").chmod(0o700)
    command = [part.replace("kill -9", f"{tmp_path / 'kill'}") for part in tied_command(["true"])]
    ended, released = (subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2))
    for process in (ended, released):
        process.wait()
    release_guard(released)
    assert released.stdout is not None
    assert released.stdout.read() == b"", "the guard has ended, too, and has closed its output"
    assert not (tmp_path / "killed").exists()
    assert ended.stdin is not None and ended.stdout is not None
    ended.stdin.close()
    ended.stdout.read()
    assert (tmp_path / "killed").exists(), "the stub works"


def test_parent_gets_the_exit_reason_and_other_children_do_not_inherit_the_socket() -> None:
    code = (
        "import os; from pipeline.process.parent import *; exit_with_parent();"
        "assert 'HITROUTER_PARENT' not in os.environ; report_exit_reason('the reason'); report_exit_reason('another')"
    )
    child = TiedChild(["-c", code])
    assert child.process.wait(20) == 0
    assert child.exit_reason() == "the reason"


def test_missing_or_too_long_exit_reason_blocks_neither_process() -> None:
    silent = TiedChild(["-c", "pass"])
    loud = TiedChild(
        ["-c", "from pipeline.process.parent import *; exit_with_parent(); report_exit_reason('x' * 10_000_000)"]
    )
    assert (silent.process.wait(20), loud.process.wait(20)) == (0, 0)
    assert silent.exit_reason() == ""
    assert set(loud.exit_reason()) == {"x"}


def test_process_without_a_tie_keeps_running(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "words", "987654"):
        monkeypatch.setenv(tie.VARIABLE, value)
        tie.exit_with_parent()
        assert tie._parent is None
