"""The tie between `up` and its children: they end when it ends, however it ends, and say why when they end themselves.

Both hold one end of a socket pair. The kernel closes the parent's end with the parent, on every system; prctl(PR_SET_PDEATHSIG) is
Linux alone, and fires when the thread that started the child ends. A child's last words wait in the socket until the parent
reads them, so none of them blocks, and none is lost when the log is not kept.
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
"""In the environment of a child: the number of its end of the socket pair."""
_REASON_BYTES = 4096
_EXIT_ORPHANED = 70

_parent: socket.socket | None = None
_told = False


class TiedChild:
    """A child process of this interpreter's kind that ends with this one."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start `python arguments`. Ctrl-C does not reach it: it has a session of its own. Raises OSError."""
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

    def last_words(self) -> str:
        """Why it has ended, by its own account; "" when it said nothing. Call once, after its end."""
        with self._link, contextlib.suppress(OSError):
            return self._link.recv(_REASON_BYTES).decode(errors="replace")
        return ""


def follow_parent() -> None:
    """In a child: end when the parent ends. Does nothing in a process that nobody tied."""
    global _parent
    number = os.environ.pop(VARIABLE, "")
    if not number.isdigit():
        return
    try:
        _parent = socket.socket(fileno=int(number))
    except OSError:  # the variable came without its socket
        return
    _parent.set_inheritable(False)
    threading.Thread(target=_end_with_parent, args=(_parent,), name="parent", daemon=True).start()


def tell_parent(reason: str) -> None:
    """Leave the reason of this process's end to the parent, if there is one. Only the first one counts."""
    global _told
    if _parent is not None and not _told:
        _told = True
        with contextlib.suppress(OSError):
            _parent.send(reason.encode()[:_REASON_BYTES], socket.MSG_DONTWAIT)


def _end_with_parent(parent: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while parent.recv(64):
            pass
    os._exit(_EXIT_ORPHANED)


def tied_command(command: Sequence[str]) -> list[str]:
    """`command`, for `Popen(..., stdin=PIPE)`, as a child that is killed when this process ends: for programs that are not ours.

    The shell becomes the program, so the process id is the program's own. Its stdin is empty. Call `release` after its end.
    """
    guard = 'exec 3<&0 </dev/null; (read -r _ <&3 || kill -9 $$) & exec 3<&-; exec "$@"'
    return ["/bin/sh", "-c", guard, "sh", *command]


def exit_name(code: int) -> str:
    """How a process has ended: `exit code 70`, or the name of the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def release(process: subprocess.Popen[bytes]) -> None:
    """Send the guard of a tied command home after the command's end: its process id may belong to another process by now."""
    if process.stdin is not None and not process.stdin.closed:
        with contextlib.suppress(OSError):
            process.stdin.write(b"\n")
            process.stdin.flush()
        with contextlib.suppress(OSError):
            process.stdin.close()
