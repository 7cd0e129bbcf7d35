"""Sending hits to an intake, as a front end should: an answer of 503, or none, means the same hit again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import httpx
from httpx_aiohttp import HttpxAiohttpClient

from pipeline.operations.sample_hits import SampleHit

_ATTEMPTS = 60
_PAUSE_SECONDS = 0.5
_IN_FLIGHT = 16


async def send_hits(url: str, tokens: Mapping[str, str], hits: Sequence[SampleHit]) -> list[int]:
    """The final status of each hit, in order; 0 where there was none."""
    room = asyncio.Semaphore(_IN_FLIGHT)
    async with HttpxAiohttpClient(timeout=10, trust_env=False) as client:

        async def send(hit: SampleHit) -> int:
            async with room:
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
