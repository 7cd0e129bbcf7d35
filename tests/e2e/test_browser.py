"""Tests hits from a page of another origin in a real browser, which applies its own security rules."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.models import Config
from pipeline.kafka.topics import TopicNames
from pipeline.operations.read_topic import read_topic
from tests.npm import HAS_BROWSER, browser
from tests.roles import wait_until

pytestmark = pytest.mark.skipif(not HAS_BROWSER, reason="the packaged browser is for Linux")

# Each attempt reports what the page could see of it; a fetch that the browser refused throws.
PAGE = """<!doctype html><script>
const intake = "http://%s";
const body = (id) => JSON.stringify({hitId: "page-" + id, projectId: "shop", userId: "u", event: {name: id}});
const send = (path, type, body, more) =>
  fetch(intake + path, {method: "POST", credentials: "include", headers: {"content-type": type, ...more}, body});
const seen = {};
const attempt = async (name, promise) => {
  try { const answer = await promise; seen[name] = {status: answer.status, text: await answer.text()}; }
  catch (error) { seen[name] = {refused: error.name}; }
};
(async () => {
  await attempt("plain", send("/collect", "text/plain", body("plain")));
  await attempt("preflighted", send("/collect", "application/json", body("preflighted")));
  await attempt("bad", send("/collect", "text/plain", "{}"));
  await attempt("segment", send("/v1/t", "application/json",
    JSON.stringify({messageId: "page-segment", userId: "u", event: "E"}), {authorization: "Basic " + btoa("shop-token:")}));
  await attempt("track", send("/track", "application/json", body("track"), {authorization: "Basic " + btoa("shop-token:")}));
  await attempt("other header", send("/collect", "text/plain", body("other-header"), {"x-other": "1"}));
  seen.beacons = [
    navigator.sendBeacon(intake + "/collect", body("beacon-plain")),
    navigator.sendBeacon(intake + "/collect", new Blob([body("beacon-json")], {type: "application/json"})),
  ];
  await fetch("/report", {method: "POST", body: JSON.stringify(seen)});
})();
</script>"""


class Page:
    """The origin of the page: serves the page and receives its report."""

    def __init__(self, html: str) -> None:
        self.report: dict[str, Any] = {}
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, html.encode())

            def do_POST(self) -> None:
                page.report = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self._answer(204, b"")

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"


@pytest.mark.timeout(700)  # the first session fetches the browser
def test_page_of_another_origin_sends_hits(intake_for_clients: Config, tmp_path: Path) -> None:
    config = intake_for_clients
    page = Page(PAGE % config.intake.listen)
    topic = TopicNames(config.kafka.topic_prefix).hits_raw

    def stored() -> list[str]:
        keys = ((record.key() or b"").decode() for record in read_topic(config.kafka, topic))
        return sorted(key.removeprefix("shop/page-") for key in keys if key.startswith("shop/page-"))

    process = browser(tmp_path / "profile", page.url)
    try:
        seen = wait_until(lambda: page.report, "the page's report")
        assert [seen[name].get("status") for name in ("plain", "preflighted", "segment")] == [204, 204, 200]
        assert (seen["bad"]["status"], json.loads(seen["bad"]["text"])["error"]["code"]) == (400, "invalid_hit")
        # /track is for servers: the browser may not even ask. A header that nobody allowed is refused, too.
        assert seen["track"] == seen["other header"] == {"refused": "TypeError"}
        assert seen["beacons"] == [True, True]
        wait_until(lambda: len(stored()) >= 5, "the beacons")
    finally:
        process.kill()
        process.wait()
        page.server.shutdown()
        page.server.server_close()
    assert stored() == ["beacon-json", "beacon-plain", "plain", "preflighted", "segment"]
