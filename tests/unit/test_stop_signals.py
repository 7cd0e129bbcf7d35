"""Tests of stop signals in a separate process: at each stage of a role, during blocking calls, and a second signal."""

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


def test_only_a_running_role_is_stopped_gracefully() -> None:
    assert [on_signal(stage) for stage in Stage] == [
        (Stage.STOPPING, Action.EXIT),
        (Stage.STOPPING, Action.STOP),
        (Stage.STOPPING, Action.EXIT),
    ]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_starting_role_ends_at_once(number: signal.Signals) -> None:
    process = start("SIGNALS.install(); print('up'); time.sleep(60)")
    said(process, "up")
    process.send_signal(number)
    code, text = end_of(process)
    assert code == 0
    assert text.endswith("stop: stopped\n") and text.count("\n") == 1


def test_blocking_c_call_does_not_delay_the_end() -> None:
    """As in a call of librdkafka, the main thread does not run Python, so a Python signal handler could not run."""
    process = start("SIGNALS.install(); print('up'); ctypes.CDLL(None).sleep(60)")
    said(process, "up")
    process.terminate()
    assert end_of(process)[0] == 0


def test_signal_before_the_first_instruction_stays_pending() -> None:
    process = start("SIGNALS.install(); time.sleep(60)", blocked=True)
    process.terminate()
    assert end_of(process)[0] == 0


def test_running_role_is_asked_to_stop_once_and_finishes_its_work() -> None:
    process = start(
        """
        SIGNALS.install()
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
    assert text.startswith("finishing True\n") and text.endswith("stop: stopped\n")


def test_second_signal_ends_the_role_at_once() -> None:
    process = start(
        """
        SIGNALS.install()
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


def test_hanging_role_ends_at_its_deadline_with_exit_code_0() -> None:
    process = start(
        """
        SIGNALS.install()
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


def test_hanging_threads_do_not_delay_the_end() -> None:
    process = start(
        """
        from concurrent.futures import ThreadPoolExecutor
        SIGNALS.install()
        ThreadPoolExecutor(1).submit(time.sleep, 60)
        SIGNALS.exit(3)
        """
    )
    assert end_of(process) == (3, "")


def test_ignored_sighup_stays_ignored() -> None:
    """`nohup hitrouter up &` must keep running when its terminal is closed."""
    process = start(
        """
        import signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        SIGNALS.install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.SIGHUP not in signal.sigpending()
        print('still here')
        """
    )
    assert end_of(process) == (0, "still here\n")


def test_role_ends_even_if_its_output_is_not_read(tmp_path: Path) -> None:
    process = start("SIGNALS.install(); print('up'); os.set_blocking(2, True); time.sleep(60)")
    said(process, "up")
    assert process.stdout is not None
    process.stdout.close()
    process.terminate()
    assert process.wait(20) == 0
