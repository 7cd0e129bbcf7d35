"""Rate limits of projects: token buckets with a fake clock, and the answers over the limit."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import ValidationError

from pipeline.config.models import Config, ProjectConfig, RateLimitConfig
from pipeline.intake.admission import Admission
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.endpoints import Endpoints
from pipeline.intake.rate_limit import RateLimit, rate_limit
from pipeline.intake.server_state import ServerState
from pipeline.intake.tokens import Tokens
from pipeline.stages.accept.segment import MESSAGES
from pipeline.telemetry import HITS_REFUSED
from schemas import read_schema
from tests.roles import hit
from tests.unit.intake_line import Kept, Line, request


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limit(clock: Clock, workers: int = 1, **configured: float) -> RateLimit:
    return RateLimit(RateLimitConfig.model_validate(configured), workers, clock())


def passed(limit: RateLimit, clock: Clock, requests: int, hits: int = 1, size_bytes: int = 100) -> int:
    count = 0
    for _ in range(requests):
        if limit.exceeded(clock) is None:
            limit.take(hits, size_bytes)
            count += 1
    return count


def test_a_burst_passes_and_then_the_rate_applies(clock: Clock) -> None:
    made = limit(clock, hits_per_second=5, hits_burst=20)
    assert passed(made, clock, 100) == 20
    for _ in range(3):
        clock.now += 1.0
        assert passed(made, clock, 100) == 5
    clock.now += 1e9
    assert passed(made, clock, 100) == 20


def test_a_burst_is_ten_seconds_unless_given(clock: Clock) -> None:
    assert passed(limit(clock, hits_per_second=5), clock, 100) == 50


def test_bytes_count_as_hits_do(clock: Clock) -> None:
    made = limit(clock, bytes_per_second=1_000, bytes_burst=5_000)
    assert passed(made, clock, 100, size_bytes=1_000) == 5
    found = made.exceeded(clock)
    assert found is not None and found[0] == "bytes"


def test_a_request_larger_than_the_burst_passes_and_the_next_wait_for_the_refill(clock: Clock) -> None:
    made = limit(clock, hits_per_second=10, hits_burst=100)
    assert passed(made, clock, 1, hits=2_500) == 1
    found = made.exceeded(clock)
    assert found is not None and found == ("hits", pytest.approx(240.1))
    clock.now += 240.2
    assert made.exceeded(clock) is None


def test_each_worker_has_an_equal_part_of_the_limit(clock: Clock) -> None:
    workers = [limit(clock, workers=4, hits_per_second=40, hits_burst=80) for _ in range(4)]
    assert [passed(worker, clock, 100) for worker in workers] == [20] * 4
    clock.now += 1.0
    assert [passed(worker, clock, 100) for worker in workers] == [10] * 4


def test_a_reload_keeps_the_buckets_of_an_unchanged_limit(clock: Clock) -> None:
    configured = RateLimitConfig(hits_per_second=1, hits_burst=1)
    before = rate_limit(configured, 1, clock(), None)
    assert before is not None and passed(before, clock, 5) == 1
    assert rate_limit(RateLimitConfig(hits_per_second=1, hits_burst=1), 1, clock(), before) is before
    assert rate_limit(RateLimitConfig(hits_per_second=2), 1, clock(), before) is not before
    assert rate_limit(RateLimitConfig(), 1, clock(), before) is None


class TestFile:
    def test_public_doors_have_limits_and_tokens_none(self) -> None:
        limits = ProjectConfig().limits
        assert (limits.public.hits_per_second, limits.public.bytes_per_second) == (1_000, 5_000_000)
        assert (limits.secret.hits_per_second, limits.secret.bytes_per_second) == (None, None)

    def test_setting_one_limit_keeps_the_default_of_the_other(self) -> None:
        project = ProjectConfig.model_validate({"limits": {"public": {"hits_per_second": 3}}})
        assert project.limits.public.bytes_per_second == 5_000_000
        off = ProjectConfig.model_validate({"limits": {"public": {"hits_per_second": None, "bytes_per_second": None}}})
        assert rate_limit(off.limits.public, 1, 0.0, None) is None

    def test_a_burst_without_a_rate_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="hits_burst has no effect without hits_per_second"):
            ProjectConfig.model_validate({"limits": {"secret": {"hits_burst": 3}}})

    def test_limits_decide_nothing_about_hits(self) -> None:
        def version(limits: dict[str, Any]) -> str:
            return Config.model_validate({"projects": {"shop": {"limits": limits}}}).version

        assert version({}) == version({"secret": {"hits_per_second": 3}})


def line(clock: Clock, limits: dict[str, Any], workers: int = 1, **more: Any) -> Line:
    projects = {
        "shop": ProjectConfig.model_validate({"tokens": ["old"], "data_streams": ["stream"], "limits": limits} | more),
        "blog": ProjectConfig(tokens=["blog-token"]),
    }
    tokens = Tokens(projects)
    admission = Admission(projects, workers, clock, soon=lambda call: call())
    made = ServerState(
        Endpoints(tokens), Kept(), b"{}", ClientAddress([]), lambda address: address, admission=admission
    )
    return Line(made)


def collected(hit_id: str, project: str = "shop") -> bytes:
    return request(hit(hit_id, projectId=project), "Origin: https://shop.example", path="/collect")


PUBLIC = {"public": {"hits_per_second": 1, "hits_burst": 2}}


def test_a_browser_over_the_limit_gets_retry_after(clock: Clock) -> None:
    asked = line(clock, PUBLIC)
    before = HITS_REFUSED.labels("shop", "too_many_requests")._value.get()
    assert [asked.ask(collected(str(number))) for number in range(3)] == [b"204", b"204", b"429"]
    head, _, body = asked.wire.written[-1].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    for header in (
        b"Access-Control-Allow-Origin: https://shop.example",
        b"Access-Control-Allow-Credentials: true",
        b"Access-Control-Expose-Headers: Retry-After",
    ):
        assert header in head.split(b"\r\n")
    seconds = re.search(rb"\r\nRetry-After: (\d+)\r\n", head)
    assert seconds is not None and 1 <= int(seconds[1]) <= 10
    error = json.loads(body)["error"]
    assert error["code"] == "too_many_requests" and "Retry-After" in error["message"]
    assert HITS_REFUSED.labels("shop", "too_many_requests")._value.get() == before + 1
    (entry,) = [json.loads(text) for text in asked.state.refused.lines().splitlines()]
    assert (entry["status"], entry["code"], entry["project"]) == (429, "too_many_requests", "shop")
    assert len(asked.store.hits) == 2
    clock.now += 1.0
    assert asked.ask(collected("later")) == b"204"
    assert asked.ask(request(hit("4"))) == b"204", "a token has no limit unless one is given"
    assert asked.ask(collected("other", "blog")) == b"204", "a project pays for its own hits alone"


def test_every_storing_endpoint_documents_429() -> None:
    document = read_schema("openapi.json")
    doors = [
        operation for path in document["paths"].values() for operation in path.values() if isinstance(operation, dict)
    ]
    storing = [operation["responses"] for operation in doors if "503" in operation["responses"]]
    assert len(storing) >= 10
    assert all(answers["429"] == {"$ref": "#/components/responses/TooManyRequests"} for answers in storing)
    assert "Retry-After" in document["components"]["responses"]["TooManyRequests"]["headers"]
    assert document["components"]["schemas"]["Batch"]["properties"]["batch"]["maxItems"] == MESSAGES


def test_a_data_stream_is_a_public_door(clock: Clock) -> None:
    asked = line(clock, PUBLIC)
    sent = [asked.ask(request(b"", path=f"/ds/stream?n={number}")) for number in range(3)]
    assert sent == [b"204", b"204", b"429"]
    assert asked.ask(collected("1")) == b"429", "the limit is that of all public doors together"


def test_a_token_has_its_configured_limit(clock: Clock) -> None:
    asked = line(clock, {"secret": {"bytes_per_second": 1_000, "bytes_burst": 1_000}})
    answers = [asked.ask(request(hit(str(number)))) for number in range(20)]
    assert answers[0] == b"204" and answers[-1] == b"429" and answers == sorted(answers)
    taken = asked.store.hits
    size = sum(len(kept.key) + len(kept.value) + sum(len(n) + len(v or b"") for n, v in kept.headers) for kept in taken)
    assert 800 < size < 1_400, "headers count, too"


def test_a_batch_counts_expanded_and_is_not_expanded_over_the_limit(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = line(clock, {"secret": {"hits_per_second": 1, "hits_burst": 1_000}})
    message = {"type": "track", "event": "E", "userId": "u"}
    bomb = gzip.compress(json.dumps({"projectId": 5, "writeKey": "old", "batch": [message] * 2_000}).encode())
    by_head = request(bomb, "Content-Encoding: gzip", path="/v1/batch")
    by_body = re.sub(rb"Authorization: [^\r]*\r\n", b"", by_head)
    assert b"Authorization" not in by_body
    assert asked.ask(by_body) == b"200"
    monkeypatch.setattr("pipeline.stages.accept.segment._hit", None)  # whoever expands one fails
    assert asked.ask(by_body) == b"429"
    assert asked.ask(by_head) == b"429"
    assert len(asked.store.hits) == 2_000


BOMB = json.dumps({"writeKey": "page-key", "batch": [1] * 100_000}).encode()


def test_a_refused_batch_counts_its_inflated_bytes(clock: Clock) -> None:
    limits = {"public": {"hits_per_second": 100, "bytes_per_second": 100, "bytes_burst": 500_000}}
    asked = line(clock, limits, public_keys=["page-key"])
    body = gzip.compress(BOMB)
    assert len(body) < 600
    bomb = re.sub(rb"Authorization: [^\r]*\r\n", b"", request(body, "Content-Encoding: gzip", path="/v1/batch"))
    assert [asked.ask(bomb) for _ in range(4)] == [b"400", b"400", b"429", b"429"]


def test_a_batch_with_an_unknown_key_is_not_expanded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = line(clock, PUBLIC, public_keys=["page-key"])
    body = gzip.compress(BOMB.replace(b"page-key", b"nobody's"))
    bomb = re.sub(rb"Authorization: [^\r]*\r\n", b"", request(body, "Content-Encoding: gzip", path="/v1/batch"))
    monkeypatch.setattr("pipeline.stages.accept.segment._batch", None)  # whoever takes it apart fails
    assert asked.ask(bomb) == b"401"


@pytest.mark.parametrize("path", ["/v1/track", "/v1/batch"])
def test_a_key_in_the_body_has_the_limit_of_its_own_door(clock: Clock, path: str) -> None:
    asked = line(clock, PUBLIC, public_keys=["page-key"])
    message = {"type": "track", "event": "E", "userId": "u"}

    def answers(key: str) -> list[bytes]:
        body = json.dumps({"writeKey": key, **(message if path == "/v1/track" else {"batch": [message]})}).encode()
        sent = re.sub(rb"Authorization: [^\r]*\r\n", b"", request(body, path=path))
        return [asked.ask(sent) for _ in range(4)]

    assert answers("page-key") == [b"200", b"200", b"429", b"429"]
    assert answers("old") == [b"200"] * 4, "a token is no public door, wherever it stands"


MESSAGE = {"type": "track", "event": "E", "userId": "u"}
OF_PICTURE = "event=E&userId=u"
DATA = quote(json.dumps({**MESSAGE, "writeKey": "page-key"}))
BEACON = request(json.dumps({"batch": [MESSAGE]}).encode(), path="/beacon/v1/batch?writeKey=page-key")


@pytest.mark.parametrize(
    "sent",
    [
        f"GET /v1/pixel/track?{OF_PICTURE}&writeKey=page-key HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        f"GET /pixel/v1/page?{OF_PICTURE}&writeKey=page-key HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        f"GET /v1/pixel/track?data={DATA} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        re.sub(rb"Authorization: [^\r]*\r\n", b"", BEACON).replace(b"application/json", b"text/plain;charset=UTF-8"),
    ],
    ids=["picture", "picture of RudderStack", "picture with data", "beacon"],
)
def test_a_key_in_the_address_has_the_limit_of_public_doors(
    clock: Clock, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = line(clock, PUBLIC, public_keys=["page-key"])
    assert [asked.ask(sent) for _ in range(2)] == [b"200", b"200"]
    with monkeypatch.context() as patch:
        if b"writeKey=" in sent:
            patch.setattr("pipeline.stages.accept.segment._hit", None)  # the head suffices
        assert asked.ask(sent) == b"429"
    head, _, body = asked.wire.written[-1].partition(b"\r\n\r\n")
    assert re.search(rb"\r\nRetry-After: \d+", head)
    assert json.loads(body)["error"]["code"] == "too_many_requests"
    assert len(asked.store.hits) == 2
    assert asked.ask(collected("1")) == b"429", "the limit is that of all public doors together"
    clock.now += 1.0
    assert asked.ask(sent) == b"200"


def test_unknown_projects_and_keys_add_no_entry(clock: Clock) -> None:
    asked = line(clock, PUBLIC)
    for number in range(50):
        assert asked.ask(collected(str(number), f"made-up-{number}")) == b"400"
        key = json.dumps({"writeKey": f"made-up-{number}", "batch": []}).encode()
        for path in ("/v1/batch", "/beacon/v1/batch", f"/beacon/v1/batch?writeKey=made-up-{number}"):
            assert asked.ask(re.sub(rb"Authorization: [^\r]*\r\n", b"", request(key, path=path))) == b"401"
        for query in (f"writeKey=made-up-{number}", f"data={quote(key)}"):
            picture = f"GET /v1/pixel/track?{OF_PICTURE}&{query} HTTP/1.1\r\nHost: x\r\n\r\n"
            assert asked.ask(picture.encode()) == b"401"
    assert not asked.state.admission._traffic and not asked.state.admission._shares
    assert asked.ask(collected("1")) == b"204"
    asked.state.admission.replace({})
    assert not asked.state.admission._traffic and not asked.state.admission._shares


def test_a_changed_limit_applies_to_open_connections(clock: Clock) -> None:
    asked = line(clock, {})
    assert asked.ask(request(hit("1"))) == b"204"
    few = ProjectConfig.model_validate(
        {"tokens": ["old"], "limits": {"secret": {"hits_per_second": 0.1, "hits_burst": 1}}}
    )
    asked.state.admission.replace({"shop": few})
    asked.state.version += 1
    assert [asked.ask(request(hit(name))) for name in "23"] == [b"204", b"429"]
