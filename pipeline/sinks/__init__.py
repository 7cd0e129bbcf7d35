"""Sinks: one backend each. A sink turns what a destination wants to send into one outcome per hit."""

from __future__ import annotations

from pipeline.process.imports import leave_out

leave_out("httpx._main")  # before one of them imports httpx
