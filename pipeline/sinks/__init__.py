"""Sinks: each writes hits to one kind of backend, and returns one outcome per hit."""

from __future__ import annotations

from pipeline.process.imports import stub_module

stub_module("httpx._main")  # must run before any module of this package imports httpx
