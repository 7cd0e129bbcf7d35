"""An HTTP destination that fails by script, for tests and for trying out how a connection reacts."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import yaml
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config.problems import describe_problem
from pipeline.config.values import Seconds
from pipeline.errors import ConfigurationError

_BODY_LIMIT = 32 * 1024**2
_MAX_COUNTED = 1_000_000
"""Most different ids that are counted."""


class Rule(BaseModel):
    """The response to some requests. The first matching rule answers a request; without a match the response is 200."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(1.0, ge=0, le=1, description="Share of the requests that match, chosen at random.")
    contains: str = Field("", description="Match only requests whose body contains this text.")
    times: int | None = Field(None, ge=1, description="Match at most this many requests.")
    status: int = Field(200, ge=100, le=599)
    headers: dict[str, str] = {}
    body: str = ""
    delay: Seconds = 0.0
    half_body: bool = Field(False, description="Send only a part of the announced body, then close.")
    close: bool = Field(False, description="Close without a response.")


class FaultServer:
    """Answers requests on any path by its rules. PUT `/_rules` replaces the rules; GET `/_seen` returns the counts."""

    def __init__(self, rules: list[Rule] | None = None, seed: int = 0) -> None:
        self.rules = rules or []
        self.seen: Counter[str] = Counter()
        """All requests by webhook-id, else by hash of the body."""
        self.taken: Counter[str] = Counter()
        """Requests answered with 2xx, by the same ids."""
        self.is_counted: Callable[[str], bool] = lambda request_id: True
        """Selects the ids that are counted."""
        self._used: Counter[int] = Counter()
        self._draw = random.Random(seed)
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on the address, and set `url`."""
        app = web.Application(client_max_size=_BODY_LIMIT)
        app.router.add_put("/_rules", self._replace)
        app.router.add_get("/_seen", self._report)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening, and close all HTTP connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    def replace(self, rules: list[Rule]) -> None:
        """Replace the rules, and reset how often each has matched."""
        self.rules, self._used = rules, Counter()

    async def _replace(self, request: web.Request) -> web.Response:
        try:
            self.replace(read_rules(await request.text()))
        except ConfigurationError as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.Response(text=f"rules: {len(self.rules)}\n")

    async def _report(self, request: web.Request) -> web.Response:
        return web.json_response({"seen": self.seen.total(), "taken": self.taken.total(), "distinct": len(self.taken)})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        request_id = request.headers.get("webhook-id") or hashlib.blake2b(body, digest_size=8).hexdigest()
        is_counted = self.is_counted(request_id)
        if is_counted and len(self.seen) < _MAX_COUNTED:
            self.seen[request_id] += 1
        rule = self._rule(body.decode(errors="replace"))
        if rule.delay:
            await asyncio.sleep(rule.delay)
        if rule.close:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if rule.half_body:
            half = web.StreamResponse(status=rule.status, headers={**rule.headers, "content-length": "1000"})
            await half.prepare(request)
            await half.write(b'{"half":')
            assert request.transport is not None
            request.transport.close()
            return half
        if is_counted and 200 <= rule.status < 300 and len(self.taken) < _MAX_COUNTED:
            self.taken[request_id] += 1
        return web.Response(status=rule.status, headers=rule.headers, text=rule.body)

    def _rule(self, body: str) -> Rule:
        for number, rule in enumerate(self.rules):
            if rule.contains and rule.contains not in body:
                continue
            if rule.times is not None and self._used[number] >= rule.times:
                continue
            if rule.share < 1.0 and self._draw.random() >= rule.share:
                continue
            self._used[number] += 1
            return rule
        return Rule()  # type: ignore[call-arg] # every member has its default


def read_rules(text: str) -> list[Rule]:
    """Return the rules of a YAML list. Raises ConfigurationError with all problems."""
    try:
        data: Any = yaml.safe_load(text) or []
    except yaml.YAMLError as error:
        raise ConfigurationError([f"not YAML: {error}"]) from None
    if not isinstance(data, list):
        raise ConfigurationError(["the rules must be a YAML list, such as: - {share: 0.1, status: 503}"])
    rules, problems = [], []
    for number, item in enumerate(data):
        try:
            rules.append(Rule.model_validate(item))
        except ValidationError as error:
            for problem in error.errors():
                path = tuple(problem["loc"])
                problems.append(
                    f"rule {number + 1}: {'.'.join(map(str, path))}: {describe_problem(problem, path, Rule)}"
                )
    if problems:
        raise ConfigurationError(problems)
    return rules
