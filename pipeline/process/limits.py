"""Raises limits of a process that the system sets low by default."""

from __future__ import annotations

import resource
from contextlib import suppress

_MACOS_OPEN_FILES = 10_240
"""OPEN_MAX of macOS: its hard limit is infinity, but setrlimit refuses more than this (setrlimit(2))."""


def raise_open_file_limit() -> None:
    """Raise the limit of open files to the system's maximum, since each HTTP connection is an open file. Never lowers it."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (most, _MACOS_OPEN_FILES):
        if soft == resource.RLIM_INFINITY or (limit != resource.RLIM_INFINITY and limit <= soft):
            return
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            return
