"""Tests of the properties file, class path and ports of the embedded Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import BrokerUnavailable
from pipeline.kafka.embedded import broker
from pipeline.kafka.embedded.jars import fetch_jars
from pipeline.kafka.embedded.properties import Node, server_properties


def test_a_value_with_other_than_visible_ascii_is_escaped() -> None:
    node = Node(1, "h\u00f6st\\n\U0001f600:9092", "127.0.0.1:1", Path("caf\u00e9, here"))
    text = server_properties(node, [node])
    assert text.isascii() and "caf" not in text
    assert "\nadvertised.listeners=PLAINTEXT://h\\u00f6st\\u005cn\\ud83d\\ude00:9092\n" in text


def test_a_cache_folder_that_would_split_the_class_path_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HITROUTER_CACHE", str(tmp_path / "a:b"))
    with pytest.raises(BrokerUnavailable, match="set HITROUTER_CACHE to another folder"):
        fetch_jars()
    assert not (tmp_path / "a:b").exists()


def test_free_ports_are_not_returned_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "_GIVEN", set())
    rows = [broker.free_ports(count) for count in (1, 12) * 40]
    given = [port for first, count in zip(rows, (1, 12) * 40, strict=True) for port in range(first, first + count)]
    assert len(set(given)) == len(given) == 40 * 13
