"""The intake role: the HTTP server that accepts hits."""

from __future__ import annotations

from pipeline.intake.server import run_intake

__all__ = ["run_intake"]
