"""Sends hits to an intake as a client should: after 503 or no response, it sends the same hit again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import httpx
from httpx_aiohttp import HttpxAiohttpClient

from pipeline.development.sample_hits import SampleHit

_ATTEMPTS = 60
_PAUSE_SECONDS = 0.5
_IN_FLIGHT = 16


async def send_hits(url: str, tokens: Mapping[str, str], hits: Sequence[SampleHit]) -> list[int]:
    """Send all hits, and return the final status of each in order; 0 if there was no response."""
    in_flight = asyncio.Semaphore(_IN_FLIGHT)
    async with HttpxAiohttpClient(timeout=10, trust_env=False) as client:

        async def send(hit: SampleHit) -> int:
            async with in_flight:
                status = 0
                for _ in range(_ATTEMPTS):
                    try:
                        answer = await client.post(
                            url,
                            content=hit.body,
                            headers={"content-type": "application/json"},
                            auth=(tokens.get(hit.project, "wrong"), ""),
                        )
                        status = answer.status_code
                    except httpx.HTTPError:
                        status = 0
                    if status not in (0, 503):
                        break
                    await asyncio.sleep(_PAUSE_SECONDS)
                return status

        return list(await asyncio.gather(*map(send, hits)))
