"""The intake role: the HTTP door of the router."""

from __future__ import annotations

from pipeline.intake.server import run_intake

__all__ = ["run_intake"]
