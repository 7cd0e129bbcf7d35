"""Ties child processes to `up`: they end when it ends, however it ends, and report why they end themselves.

Parent and child each hold one end of a socket pair. On every system, the kernel closes the parent's end with the parent.
prctl(PR_SET_PDEATHSIG) exists on Linux only, and fires when the thread that started the child ends. The exit reason of a child
waits in the socket until the parent reads it: the child does not block, and the reason is not lost if the log is not kept.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:  # a child imports this before everything else
    import subprocess
    from collections.abc import Mapping, Sequence

VARIABLE = "HITROUTER_PARENT"
"""Environment variable that gives a child the file descriptor of its end of the socket pair."""
_REASON_BYTES = 4096
_EXIT_ORPHANED = 70

_parent: socket.socket | None = None
_is_reported = False


class TiedChild:
    """A child process, run by the same Python, that ends with this process."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start `python arguments` in a new session, so that Ctrl-C does not reach it. Raises OSError."""
        import subprocess

        self._link, theirs = socket.socketpair()
        with theirs:
            tied = {**os.environ, **(environment or {}), VARIABLE: str(theirs.fileno())}
            try:
                self.process = subprocess.Popen(
                    [sys.executable, *arguments],
                    stdin=subprocess.DEVNULL,
                    env=tied,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError:
                self._link.close()
                raise
        self._link.setblocking(False)

    def exit_reason(self) -> str:
        """Return the exit reason that the child reported, or "". Call once, after its end."""
        with self._link, contextlib.suppress(OSError):
            return self._link.recv(_REASON_BYTES).decode(errors="replace")
        return ""


def exit_with_parent() -> None:
    """End this process when its parent ends. Does nothing if this process is not a TiedChild."""
    global _parent
    number = os.environ.pop(VARIABLE, "")
    if not number.isdigit():
        return
    try:
        _parent = socket.socket(fileno=int(number))
    except OSError:  # the variable was inherited without the socket
        return
    _parent.set_inheritable(False)
    threading.Thread(target=_wait_for_end, args=(_parent,), name="parent", daemon=True).start()


def report_exit_reason(reason: str) -> None:
    """Send the parent, if there is one, why this process ends. Only the first call has an effect."""
    global _is_reported
    if _parent is not None and not _is_reported:
        _is_reported = True
        with contextlib.suppress(OSError):
            _parent.send(reason.encode()[:_REASON_BYTES], socket.MSG_DONTWAIT)


def _wait_for_end(parent: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while parent.recv(64):
            pass
    os._exit(_EXIT_ORPHANED)


def tied_command(command: Sequence[str]) -> list[str]:
    """Wrap `command`, any program, so that it is killed when this process ends. For `Popen(..., stdin=PIPE)`.

    The shell replaces itself by the program, so the process id is that of the program. Its stdin is empty.
    Call `release_guard` after its end.
    """
    guard = 'exec 3<&0 </dev/null; (read -r _ <&3 || kill -9 $$) & exec 3<&-; exec "$@"'
    return ["/bin/sh", "-c", guard, "sh", *command]


def exit_name(code: int) -> str:
    """Return how a process ended: `exit code 70`, or the name of the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def release_guard(process: subprocess.Popen[bytes]) -> None:
    """End the guard of a tied command after the command's end, since the system can give its process id to another process."""
    if process.stdin is not None and not process.stdin.closed:
        with contextlib.suppress(OSError):
            process.stdin.write(b"\n")
            process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()
