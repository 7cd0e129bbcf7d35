"""The route role: deduplicate, enrich, decide and encode the hits of `hits-raw`, one transaction per batch."""

from __future__ import annotations

from pipeline.router.app import run_route

__all__ = ["run_route"]
