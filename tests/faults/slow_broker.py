"""Slows each commit of the broker to 2 s under load. No worker may end, and larger batches must keep the throughput.

python -m tests.faults.prove --slow-broker 300
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.kafka.embedded import EmbeddedBroker
from pipeline.kafka.embedded import broker as embedded_broker
from pipeline.kafka.embedded.broker import free_port
from tests.faults.slow_proxy import ADD_OFFSETS_TO_TXN, END_TXN, SlowProxy
from tests.faults.whole_pipeline import Pipeline, Report, judge, keep_logs

_BEFORE_SECONDS = 10.0
_KEEPS_UP = 0.9


@dataclass(slots=True)
class SlowReport(Report):
    """A Report with the rates of hits while the broker is slow: answered with 204, and at the read_committed reader.

    `longest_to_...` are the longest times from the 204 to the reader and to the webhook.
    """

    accepted_per_second: float = 0.0
    slow_per_second: float = 0.0
    longest_to_topic_seconds: float = 0.0
    longest_to_webhook_seconds: float = 0.0


@contextmanager
def slowed_broker(folder: Path) -> Iterator[tuple[EmbeddedBroker, SlowProxy]]:
    """Start a broker that clients reach through a proxy."""
    direct, proxied = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    plain = embedded_broker.server_properties
    embedded_broker.server_properties = lambda node, nodes: (
        plain(node, nodes) + f"advertised.listeners=PLAINTEXT://{proxied}\n"
    )
    proxy = SlowProxy(proxied, direct)
    broker = EmbeddedBroker(direct, folder / "kafka")
    try:
        broker.start()
        yield broker, proxy
    finally:
        broker.stop()
        proxy.stop()
        embedded_broker.server_properties = plain


def run_slow_broker(
    seconds: float, commit_seconds: float, rate: float, seed: int, told: Callable[[str], None] = lambda text: None
) -> SlowReport:
    """Slow each commit to `commit_seconds` for `seconds`, under `rate` hits per second."""
    report = SlowReport()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hitrouter-brokers-")))
        broker, proxy = stack.enter_context(slowed_broker(folder))
        pipeline = Pipeline(folder, broker, rate, seed, max_in_flight=256)
        pipeline.start()
        stack.callback(pipeline.stop)
        time.sleep(_BEFORE_SECONDS)
        proxy.delays = {ADD_OFFSETS_TO_TXN: commit_seconds / 2, END_TXN: commit_seconds / 2}
        began = time.time()
        told(f"each commit takes {commit_seconds:.1f} s from now on")
        while time.time() < began + seconds:
            time.sleep(min(10.0, seconds))
            told(f"{len(pipeline.arrivals()['topic'])} hits routed; {', '.join(pipeline.ended()) or 'no worker ended'}")
        proxy.delays = {}
        ended = time.time()
        judge(pipeline, report)
        settled = began + 3 * commit_seconds
        accepted = pipeline.traffic.answered_at.values()
        # Both rates use the same span. The time before it has a burst, while the first hits catch up.
        report.accepted_per_second = _per_second(accepted, settled, ended)
        report.slow_per_second = _per_second(pipeline.arrivals()["topic"].values(), settled, ended)
        arrivals = pipeline.arrivals()
        report.longest_to_topic_seconds = _longest(pipeline, arrivals["topic"])
        report.longest_to_webhook_seconds = _longest(pipeline, arrivals["webhook"])
        if report.slow_per_second < report.accepted_per_second * _KEEPS_UP:
            report.problems.append("the router did not keep up with the traffic while the broker was slow")
        if report.problems:
            keep_logs(folder, report)
    return report


def _per_second(moments: Iterable[float], begin: float, end: float) -> float:
    return sum(begin <= at < end for at in moments) / (end - begin)


def _longest(pipeline: Pipeline, came: dict[str, float]) -> float:
    accepted = pipeline.traffic.answered_at
    return max((at - accepted[f"m{number}"] for number, at in came.items() if f"m{number}" in accepted), default=0.0)


def prove_slow_broker(seconds: float, rate: float, seed: int) -> bool:
    """Return whether the guarantee held."""
    began = time.monotonic()
    report = run_slow_broker(seconds, 2.0, rate, seed, _told)
    report.show(
        f"2 s per commit for {seconds:.0f} s (seed {seed}, {time.monotonic() - began:.0f} s) at {rate:.0f} hits/s"
    )
    print(f"  while slow: {report.accepted_per_second:.0f} hits/s accepted, {report.slow_per_second:.0f} at the reader")
    print(f"  longest way from 204 to the topic {report.longest_to_topic_seconds:.1f} s", end="")
    print(f", to the webhook {report.longest_to_webhook_seconds:.1f} s", flush=True)
    return not report.problems


def _told(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
