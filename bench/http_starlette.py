"""What one would write first: Starlette on uvicorn, json, a producer with acks=all. python -m bench.http_starlette SERVERS TOPIC PORT"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
import uuid

import uvicorn
from confluent_kafka import KafkaError, Message, Producer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKENS = {"token": "shop"}


def build(servers: str, topic: str) -> Starlette:
    """The application."""
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True, "linger.ms": 1})

    def poll() -> None:
        while True:
            producer.poll(0.1)

    threading.Thread(target=poll, daemon=True).start()

    async def track(request: Request) -> Response:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        token = base64.b64decode(encoded).decode().partition(":")[0]
        project = TOKENS.get(token) if scheme.lower() == "basic" else None
        if project is None:
            return Response(status_code=401)
        body = await request.body()
        try:
            hit = json.loads(body)
            user = hit["event"]["user"]
            if not (user.get("userId") or user.get("anonymousId")):
                raise ValueError("no identity")
        except (ValueError, KeyError, TypeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[bool] = loop.create_future()

        def delivered(error: KafkaError | None, _: Message) -> None:
            loop.call_soon_threadsafe(acknowledged.set_result, error is None)

        key = f"{project}/{hit.get('hitId') or uuid.uuid4()}"
        producer.produce(topic, body, key, headers=[("project", project)], on_delivery=delivered)
        return Response(status_code=204 if await acknowledged else 503)

    return Starlette(routes=[Route("/track", track, methods=["POST"])])


if __name__ == "__main__":
    uvicorn.run(build(sys.argv[1], sys.argv[2]), port=int(sys.argv[3]), log_level="error", access_log=False)
