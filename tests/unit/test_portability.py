"""Tests of behaviour on other operating systems, which replace what only Linux has."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from pipeline.process import durable
from pipeline.process.durable import sync_folder, write_private
from pipeline.process.limits import raise_open_file_limit
from pipeline.process.modes import umask_of
from pipeline.supervisor import open_configuration, run

REPOSITORY = Path(__file__).parent.parent.parent


def test_sync_on_macos_also_flushes_the_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(durable, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: calls.append(command))
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    write_private(tmp_path / "x", b"content")
    assert calls == [51, 51], "the file and its folder"


def test_file_system_without_full_sync_is_synced_with_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, command: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    calls: list[object] = []
    monkeypatch.setattr(durable, "_FULL_SYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    sync_folder(tmp_path)
    assert calls == ["fsync"]


def test_failed_write_leaves_the_old_file_and_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "x", b"before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_private(tmp_path / "x", b"after")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x", b"before")]
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("soft", "hard", "refused_above", "wanted"),
    [
        (1024, 524_288, None, 524_288),
        (256, resource.RLIM_INFINITY, 10_240, 10_240),
        (65_536, resource.RLIM_INFINITY, 10_240, None),
        (4096, 4096, None, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, None),
    ],
    ids=["linux", "macos", "macos raised by hand", "nothing to raise", "unlimited"],
)
def test_limit_of_open_files_is_raised_to_the_maximum(
    soft: int, hard: int, refused_above: int | None, wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def setrlimit(which: int, pair: tuple[int, int]) -> None:
        if refused_above is not None and (pair[0] == resource.RLIM_INFINITY or pair[0] > refused_above):
            raise ValueError("current limit exceeds maximum limit")
        limits.append(pair[0])

    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    raise_open_file_limit()
    assert limits == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(("text", "umask"), [(None, 0o077), ("027", 0o027), ("0022", 0o022), ("000", 0)])
def test_files_are_private_unless_the_umask_variable_is_set(text: str | None, umask: int) -> None:
    assert umask_of({} if text is None else {"HITROUTER_UMASK": text}) == umask


@pytest.mark.parametrize("text", ["", "9", "rw", "77", "0o77", "12345"])
def test_invalid_umask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="three octal digits"):
        umask_of({"HITROUTER_UMASK": text})


def test_system_that_does_not_balance_a_port_gets_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run, "BALANCES_PORTS", False)
    monkeypatch.setattr(run, "ensure_topics", lambda config: None)
    monkeypatch.chdir(tmp_path)
    for workers, told in ((2, True), (1, False)):
        file = tmp_path / "h.yaml"
        file.write_text(f"kafka: {{bootstrap_servers: '127.0.0.1:1'}}\nintake: {{workers: {workers}}}\n")
        supervisor = run.Supervisor(open_configuration(file))
        supervisor.stopping.set()
        caplog.clear()
        supervisor.run()
        assert ("gives all HTTP connections of a port to one process" in caplog.text) == told


def test_product_uses_no_linux_only_feature() -> None:
    """`sigtimedwait`, `prctl`, `/proc` and others do not exist on macOS; `preexec_fn` can hang in a process with threads."""
    linux_alone = (
        "/proc/",
        "prctl",
        "preexec_fn",
        "sched_",
        "sigtimedwait",
        "pidfd",
        "epoll(",
        "O_DIRECT",
        "SOCK_CLOEXEC",
    )
    files = [file for folder in ("pipeline", "destinations", "schemas") for file in (REPOSITORY / folder).rglob("*.py")]
    assert files
    texts = {str(file.relative_to(REPOSITORY)): file.read_text() for file in files}
    found = [
        f"{name}: {word}"
        for name, text in texts.items()
        for word in linux_alone
        if word in text and word in without_prose(text)
    ]
    assert found == []


def without_prose(text: str) -> str:
    """Return the code of a module without docstrings and comments."""
    tree: Any = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant("")
    return ast.unparse(tree)
