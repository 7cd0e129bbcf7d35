"""Tests of which number of partitions an assignment uses, and of assignments without a number."""

from __future__ import annotations

from typing import Any

import pytest
from faust.types import TP

from pipeline.config import Config
from pipeline.errors import StaleBatch
from pipeline.kafka.transport.batch import Batch
from pipeline.router import seen_hits
from pipeline.router.prepare import Preparer
from pipeline.router.seen_hits import SeenHits
from pipeline.stages.deduplicate import Deduplicator
from pipeline.stages.seen_rebuild import SeenRebuild

CONFIG = Config.model_validate({"projects": {"shop": {}}, "connections": {}})


class Group:
    """The answers of the group coordinator, the metadata and seen-hits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.assigned: int | None = 4
        self.present = 4
        self.in_blocks = 0
        monkeypatch.setattr(seen_hits, "assigned_count", lambda *_: self.assigned)
        monkeypatch.setattr(seen_hits, "partition_count", lambda *_: self.present)
        monkeypatch.setattr(seen_hits, "window_start", lambda *_: None)
        monkeypatch.setattr(seen_hits, "read_seen_hits", self._read)
        self.deduplicator = Deduplicator()
        self._listener = SeenHits(CONFIG, "route", self.deduplicator)

    def _read(self, config: Config, topic: str, owned: list[int], partitions: int, since_ms: int | None) -> SeenRebuild:
        rebuilt = SeenRebuild(1000, owned, partitions)
        rebuilt.most_partitions = max(partitions, self.in_blocks)
        return rebuilt

    def assign(self, *partitions: int) -> int | None:
        """Return the installed number of partitions."""
        self._listener.rebuild([TP("hits-raw", number) for number in partitions])()
        return self.deduplicator.partitions


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    return Group(monkeypatch)


def test_the_number_that_the_group_reads_is_installed_with_the_stores(group: Group) -> None:
    group.present = 8
    assert group.assign(0, 1) == 4
    assert sorted(group.deduplicator.stores) == [0, 1]


def test_nothing_is_accepted_while_the_group_is_rebalancing(group: Group) -> None:
    group.assigned = None
    assert group.assign(0, 1) is None
    preparer = Preparer(CONFIG, group.deduplicator)
    records: Any = [object()]
    with pytest.raises(StaleBatch):
        preparer.prepare(Batch(1, {TP("hits-raw", 0): records}, {TP("hits-raw", 0): 1}))


def test_nothing_is_accepted_with_an_outdated_number(group: Group) -> None:
    """The leader has metadata without the new partitions; newer metadata triggers the next rebalance."""
    group.assigned = group.present = 8
    assert group.assign(0) == 8
    group.assigned = 4
    assert group.assign(0) is None
    group.assigned = 8
    assert group.assign(0) == 8


def test_a_new_worker_detects_an_outdated_number_from_the_blocks(group: Group) -> None:
    group.in_blocks = group.present = 8
    assert group.assign(0) is None


def test_a_topic_recreated_with_fewer_partitions_is_accepted(group: Group) -> None:
    group.assigned = group.present = 8
    assert group.assign(0) == 8
    group.assigned = group.present = 4
    assert group.assign(0) == 4


def test_a_revocation_removes_the_number(group: Group) -> None:
    assert group.assign(0) == 4
    assert group.assign() is None
    assert group.deduplicator.stores == {}
