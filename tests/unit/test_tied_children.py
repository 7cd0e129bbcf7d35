"""Children end with their parent, on every system: nothing here is Linux' own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.process import parent as tie
from pipeline.process.parent import TiedChild, release, tied_command
from tests.processes import children_of, is_alive
from tests.roles import wait_until

CHILD = "import time; from pipeline.process.parent import follow_parent; follow_parent(); print('up', flush=True); time.sleep(60)"


def parent_of(body: str) -> subprocess.Popen[str]:
    code = (
        f"import subprocess, sys, time\nfrom pipeline.process.parent import *\n{textwrap.dedent(body)}\ntime.sleep(60)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_of_ours_ends_with_its_parent_however_that_ends(number: signal.Signals) -> None:
    parent = parent_of(f"child = TiedChild(['-c', {CHILD!r}])")
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    (child,) = children_of(parent.pid)
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not is_alive(child), "the end of the child", 10)


def test_another_program_ends_with_its_parent_also_when_it_ignores_signals() -> None:
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


def test_the_process_id_of_a_tied_command_is_the_programs_own(tmp_path: Path) -> None:
    process = subprocess.Popen(tied_command(["sh", "-c", "echo $$"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == process.pid
    process.wait()
    release(process)


def test_the_guard_of_a_program_that_has_ended_kills_nobody(tmp_path: Path) -> None:
    """Its process id may belong to another process by then. The stand-in for `kill` leaves a mark."""
    (tmp_path / "kill").write_text(f"#!/bin/sh\ntouch {tmp_path / 'killed'}\n")
    (tmp_path / "kill").chmod(0o700)
    command = [part.replace("kill -9", f"{tmp_path / 'kill'}") for part in tied_command(["true"])]
    ended, released = (subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2))
    for process in (ended, released):
        process.wait()
    release(released)
    assert released.stdout is not None
    assert released.stdout.read() == b"", "the guard has ended, too: nobody holds its output"
    assert not (tmp_path / "killed").exists()
    assert ended.stdin is not None and ended.stdout is not None
    ended.stdin.close()
    ended.stdout.read()
    assert (tmp_path / "killed").exists(), "the stand-in works"


def test_last_words_reach_the_parent_and_no_other_child_inherits_the_tie() -> None:
    code = (
        "import os; from pipeline.process.parent import *; follow_parent();"
        "assert 'HITROUTER_PARENT' not in os.environ; tell_parent('the reason'); tell_parent('another')"
    )
    child = TiedChild(["-c", code])
    assert child.process.wait(20) == 0
    assert child.last_words() == "the reason"


def test_a_child_that_says_nothing_or_too_much_blocks_nobody() -> None:
    silent = TiedChild(["-c", "pass"])
    loud = TiedChild(["-c", "from pipeline.process.parent import *; follow_parent(); tell_parent('x' * 10_000_000)"])
    assert (silent.process.wait(20), loud.process.wait(20)) == (0, 0)
    assert silent.last_words() == ""
    assert set(loud.last_words()) == {"x"}


def test_a_process_that_nobody_tied_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "words", "987654"):
        monkeypatch.setenv(tie.VARIABLE, value)
        tie.follow_parent()
        assert tie._parent is None
