"""Which events go together: by group, by count, by bytes; in the order of their arrival."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pipeline.delivery.attempts import Chunk
from pipeline.destination import Event, Limits, Rejected, Skipped

_OVERHEAD_BYTES = 64
"""What a request adds to each event: commas, brackets, and its part of the frame."""


def chunks_of(events: Sequence[Event | Skipped | Rejected], limits: Limits) -> tuple[list[Chunk], dict[int, Rejected]]:
    """Positions by request, and the events that alone are too large for one."""
    chunks: list[Chunk] = []
    open_chunks: dict[Hashable, tuple[Chunk, int]] = {}
    too_large: dict[int, Rejected] = {}
    for position, event in enumerate(events):
        if not isinstance(event, Event):
            continue
        size = len(event.body) + _OVERHEAD_BYTES
        if size > limits.request_bytes:
            message = f"{len(event.body)} bytes; the destination takes {limits.request_bytes} a request"
            too_large[position] = Rejected("too_large", message)
            continue
        chunk, held = open_chunks.get(event.group, (None, 0))
        if chunk is None or len(chunk) >= limits.events or held + size > limits.request_bytes:
            chunk, held = [], 0
            chunks.append(chunk)
        chunk.append(position)
        open_chunks[event.group] = (chunk, held + size)
    return chunks, too_large
