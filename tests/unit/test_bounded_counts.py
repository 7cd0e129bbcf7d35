"""Values that senders choose do not make ledger entries, or sums over them, exceed their bounds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec.bounded_counts import OTHERS, CountsFolder, fold_rare
from pipeline.codec.dead_letter import DeadLetter
from pipeline.codec.ledger_entry import (
    MOST_REASONS,
    REASON_BYTES,
    Entry,
    LedgerEntry,
    decode_ledger_entry,
    encode_ledger_entry,
)
from pipeline.codec.printable import shorten_bytes
from pipeline.config import Config
from pipeline.kafka.transport.batch import Batch
from pipeline.operations.ledger_sums import sum_ledger
from pipeline.operations.unknown_names import unknown_name
from pipeline.router.prepare import Preparer, Work
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_store import SeenStore
from tests.unit.test_prepare import _TP, Raw, names

ENTRY_BYTES = 256 * 1024


class Hostile(Raw):
    """A record with any body below the hitId, and any headers."""

    def __init__(self, name: str, number: int, body: dict[str, Any], *headers: tuple[str, bytes]) -> None:
        super().__init__(name, number)
        self._body = body
        self._headers = headers

    def value(self) -> bytes:
        return json.dumps({"hitId": self.name, **self._body}, ensure_ascii=False).encode(errors="surrogatepass")

    def headers(self) -> list[tuple[str, bytes]]:
        return [*super().headers(), *self._headers]


class Bench:
    """A Preparer of a project whose plan allows no member that it does not name."""

    def __init__(self, folder: Path) -> None:
        plan = folder / "plan.json"
        plan.write_text(
            json.dumps({"properties": {"name": {}, "user": {}}, "additionalProperties": {"type": "number"}})
        )
        config = Config.model_validate(
            {
                "projects": {"shop": {"tracking_plan": {"schema": str(plan), "on_violation": "warn"}}},
                "connections": {"a": {"destination": "Kafka"}},
            }
        )
        self._deduplicator = Deduplicator()
        self._preparer = Preparer(config, self._deduplicator)

    def route(self, *records: Raw) -> Work:
        """Route with a new store, so that examples are independent."""
        self._deduplicator.install({0: SeenStore(86_400_000)}, 4)
        work = self._preparer.prepare(cast(Batch, Batch.of(0, {_TP: cast(list[Message], records)})))
        work.claim.commit()
        return work

    def entry(self, work: Work) -> bytes:
        (found,) = (output.value for output in work.others if output.topic == "ledger")
        return found or b""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def event(**more: Any) -> dict[str, Any]:
    return {"name": "E", "user": {"userId": "u"}, **more}


def sum_of(entry: LedgerEntry, outcome: str) -> int:
    return sum(count for e, count in entry.counts.items() if e.outcome == outcome)


def test_invented_names_do_not_fill_the_ledger(bench: Bench) -> None:
    """Unbounded, they made a record over 1 MB, which Kafka refuses at each attempt, and routing stopped."""
    made_up = [
        Hostile(name, n, {"event": event(), "integrations": {f"n{n}-{k}": True for k in range(1950)} | {"Gogle": True}})
        for n, name in enumerate(names(40))
    ]
    encoded = bench.entry(bench.route(*made_up))
    entry = decode_ledger_entry(encoded)
    assert len(encoded) < 10_000
    assert sum_of(entry, "unknown_integration") == 40 * 1951
    assert entry.counts[Entry("shop", "", "unknown_integration", "Gogle")] == 40, "the most frequent name is kept"
    assert len([e for e in entry.counts if e.outcome == "unknown_integration"]) <= MOST_REASONS + 1


def test_invented_paths_do_not_fill_ledger_or_headers(bench: Bench) -> None:
    made_up = [Hostile(name, n, {"event": event(**{f"{n}" + "é" * 5_000: "no"})}) for n, name in enumerate(names(150))]
    work = bench.route(*made_up)
    entry = decode_ledger_entry(bench.entry(work))
    assert sum_of(entry, "plan_violation") == 150
    assert len(bench.entry(work)) < 20_000
    paths = [dict(output.headers or ())["plan-violation"] for output in work.others if output.topic == "deliveries-a"]
    assert len(paths) == 150 and all(len(str(path).encode()) <= REASON_BYTES for path in paths)


_texts = st.builds(lambda text, times: text * times, st.text(max_size=4), st.sampled_from([1, 1, 1, 90, 5_000]))
_trees = st.recursive(
    st.one_of(st.none(), st.integers(), _texts), lambda inner: st.dictionaries(_texts, inner, max_size=3), max_leaves=4
)
_bodies = st.fixed_dictionaries(
    {"event": _trees.map(lambda tree: event(**{"x": tree}) if not isinstance(tree, dict) else {**tree, **event()})},
    optional={
        "integrations": st.one_of(
            st.dictionaries(_texts, st.sampled_from([True, False, None, {}, {"o": 1}, 7]), max_size=6),
            st.integers(1, 1950).map(lambda count: {f"{count}-{n}": True for n in range(count)}),
        ),
        "context": st.dictionaries(st.sampled_from(["ip", "userAgent", "page"]), _trees),
        "sentAt": _texts,
    },
)
_refused = st.tuples(_texts, _texts, _texts).map(lambda said: [("refused", json.dumps(said).encode())])
_headers = st.one_of(st.just([]), _refused, _texts.map(lambda text: [("replay-to", text.encode())]))


@settings(max_examples=60, deadline=None)
@given(drawn=st.lists(st.tuples(_bodies, _headers), min_size=1, max_size=12))
def test_any_hits_make_a_small_entry_with_exact_sums(
    bench: Bench, drawn: list[tuple[dict[str, Any], list[tuple[str, bytes]]]]
) -> None:
    found = names(len(drawn))
    records = [Hostile(name, n, *drawn[n][:1], *drawn[n][1]) for n, name in enumerate(found)]
    work = bench.route(*records)
    encoded = bench.entry(work)
    assert len(encoded) <= ENTRY_BYTES
    ledger = sum_ledger([decode_ledger_entry(encoded)], topic_only=["a"])
    replays = sum(1 for _, headers in drawn if headers and headers[0] == ("replay-to", headers[0][1]) and headers[0][1])
    assert ledger.hits.adds_up and len(drawn) - replays <= ledger.hits.received <= len(drawn)
    assert not ledger.problems
    for output in (*work.others, *work.dead_letters):
        assert sum(len(str(value).encode()) for _, value in output.headers or ()) < 12_000


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 9), max_size=80), st.integers(1, 20))
def test_a_fold_keeps_the_sum_and_the_most_frequent(found: dict[str, int], most: int) -> None:
    counts = Counter(found)
    top = {name for name, _ in counts.most_common(most)} - {OTHERS}
    least = min((counts[name] for name in top), default=0)
    fold_rare(counts, most, lambda name: OTHERS)
    assert counts.total() == sum(found.values())
    assert len(counts.keys() - {OTHERS}) <= most
    assert all(counts[name] == found[name] for name in counts if name != OTHERS)
    assert all(name in counts for name in found if name != OTHERS and found[name] > least)


def test_a_counter_stays_small_while_it_is_filled() -> None:
    counts: Counter[str] = Counter()
    folder = CountsFolder(counts, 10, lambda name: OTHERS)
    largest = 0
    for number in range(5_000):
        counts.update([f"n{number}", "often"])
        folder.fold()
        largest = max(largest, len(counts))
    assert counts["often"] == 5_000 and counts.total() == 10_000 and largest <= 40


def test_sums_over_many_entries_keep_few_names() -> None:
    entries = [
        LedgerEntry(
            *("route", "hits-raw", 0, n, n + 1, 0),
            Counter(
                {
                    Entry("shop", "", "received"): 1,
                    Entry("shop", "", "dead", f"reason-{n}"): 1,
                    Entry("shop", "", "unknown_integration", f"name-{n}"): 2,
                    Entry("shop", "", "plan_violation", f"event.{n}"): 3,
                }
            ),
        )
        for n in range(20_000)
    ]
    ledger = sum_ledger(entries)
    assert ledger.unknown_names.total() == 40_000 and ledger.notes.total() == 60_000
    assert ledger.reasons.total() == ledger.hits.dead == 20_000
    assert max(len(ledger.unknown_names), len(ledger.notes), len(ledger.reasons)) < 2_100
    assert ledger.notes["plan_violation", OTHERS] > 50_000
    assert "other" in unknown_name(OTHERS, ["a"])


def test_many_connections_keep_their_reasons_beside_flooded_projects() -> None:
    """Reasons from the configuration are few per connection, but many in total."""
    counts = Counter(
        {Entry("shop", f"c{n}", "filtered", reason): 1 for n in range(300) for reason in ("when_false", "disabled")}
    )
    flood = {Entry(f"p{p}", "", "unknown_integration", f"{n}" * 40): 1 for p in range(60) for n in range(100)}
    entry = LedgerEntry("route", "hits-raw", 0, 0, 1, 0, counts + Counter(flood))
    encoded = encode_ledger_entry(entry)
    assert len(encoded) < ENTRY_BYTES
    read = decode_ledger_entry(encoded).counts
    assert all(read[e] == 1 for e in counts) and read.total() == 600 + 6_000


def test_a_reason_is_cut_between_characters() -> None:
    assert shorten_bytes("é" * 64, 128) == "é" * 64
    assert shorten_bytes("é" * 65, 128) == "é" * 62 + "…"
    assert len(shorten_bytes("😀" * 400, 128).encode()) <= 128


def test_a_dead_letter_bounds_every_header() -> None:
    """Headers of a record of hits-raw can hold reason and connection."""
    long = "é" * 100_000
    letter = DeadLetter("route", long, long, "hits-raw", 0, 0, 0, long, long, long)
    assert sum(len(value or b"") for _, value in letter.headers()) < 4_000
