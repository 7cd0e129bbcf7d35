"""The deliver role: routed hits to their sinks, one consumer group and one Faust app per connection."""

from __future__ import annotations

from pipeline.delivery.app import run_deliver

__all__ = ["run_deliver"]
