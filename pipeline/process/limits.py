"""Limits of a process that the system keeps low by default."""

from __future__ import annotations

import resource
from contextlib import suppress

_MACOS_OPEN_FILES = 10_240
"""OPEN_MAX of macOS: the hard limit says infinity there, and setrlimit refuses more than this (setrlimit(2))."""


def allow_open_files() -> None:
    """As many open files as the system permits: each HTTP connection is one. Never fewer than before."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (most, _MACOS_OPEN_FILES):
        if soft == resource.RLIM_INFINITY or (limit != resource.RLIM_INFINITY and limit <= soft):
            return
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            return
