"""Stop signals in a process of its own: at each stage of a role's life, during calls that block, and the second one."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.process.stop import STOP_SIGNALS, Action, Stage, on_signal
from tests.faults.stops import signals_blocked


def start(body: str, *, blocked: bool = False) -> subprocess.Popen[str]:
    code = "import ctypes, os, sys, threading, time\nfrom pipeline.process.stop import SIGNALS\n" + textwrap.dedent(
        body
    )
    command = [sys.executable, "-u", "-c", code]
    if not blocked:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with signals_blocked():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    text, _ = process.communicate(timeout=20)
    return process.returncode, text


def test_only_a_running_role_has_something_to_finish() -> None:
    assert [on_signal(stage) for stage in Stage] == [
        (Stage.STOPPING, Action.EXIT),
        (Stage.STOPPING, Action.STOP),
        (Stage.STOPPING, Action.EXIT),
    ]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_role_that_starts_ends_at_once(number: signal.Signals) -> None:
    process = start("SIGNALS.take(); print('up'); time.sleep(60)")
    said(process, "up")
    process.send_signal(number)
    code, text = end_of(process)
    assert code == 0
    assert text.endswith("hitrouter: stopped\n") and text.count("\n") == 1


def test_a_blocking_call_in_c_does_not_keep_it() -> None:
    """As librdkafka's calls do: the main thread is not in Python, so no Python handler could run."""
    process = start("SIGNALS.take(); print('up'); ctypes.CDLL(None).sleep(60)")
    said(process, "up")
    process.terminate()
    assert end_of(process)[0] == 0


def test_a_signal_before_the_first_instruction_waits_for_it() -> None:
    process = start("SIGNALS.take(); time.sleep(60)", blocked=True)
    process.terminate()
    assert end_of(process)[0] == 0


def test_a_running_role_is_asked_once_and_ends_as_it_likes() -> None:
    process = start(
        """
        SIGNALS.take()
        stopping = threading.Event()
        with SIGNALS.running(stopping.set, 30):
            print('up')
            stopping.wait(60)
            print('finishing', SIGNALS.is_stopping)
        SIGNALS.exit(0)
        """
    )
    said(process, "up")
    process.terminate()
    code, text = end_of(process)
    assert code == 0
    assert text.startswith("finishing True\n") and text.endswith("hitrouter: stopped\n")


def test_the_second_signal_ends_it_at_once() -> None:
    process = start(
        """
        SIGNALS.take()
        with SIGNALS.running(lambda: print('asked')):
            print('up')
            time.sleep(60)
        """
    )
    said(process, "up")
    process.terminate()
    said(process, "asked")
    process.terminate()
    assert end_of(process)[0] == 0


def test_a_role_that_hangs_ends_at_its_deadline_with_exit_code_0() -> None:
    process = start(
        """
        SIGNALS.take()
        with SIGNALS.running(lambda: None, 0.2):
            print('up')
            time.sleep(60)
        """
    )
    said(process, "up")
    process.terminate()
    code, text = end_of(process)
    assert code == 0
    assert "stopped without a clean end: waited_seconds=0.2" in text


def test_threads_that_hang_do_not_keep_an_ended_role() -> None:
    process = start(
        """
        from concurrent.futures import ThreadPoolExecutor
        SIGNALS.take()
        ThreadPoolExecutor(1).submit(time.sleep, 60)
        SIGNALS.exit(3)
        """
    )
    assert end_of(process) == (3, "")


def test_a_hang_up_that_was_ignored_stays_ignored() -> None:
    """`nohup hitrouter up &` must outlive its terminal."""
    process = start(
        """
        import signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        SIGNALS.take()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.SIGHUP not in signal.sigpending()
        print('still here')
        """
    )
    assert end_of(process) == (0, "still here\n")


def test_nobody_reads_its_output_and_it_ends_all_the_same(tmp_path: Path) -> None:
    process = start("SIGNALS.take(); print('up'); os.set_blocking(2, True); time.sleep(60)")
    said(process, "up")
    assert process.stdout is not None
    process.stdout.close()
    process.terminate()
    assert process.wait(20) == 0
