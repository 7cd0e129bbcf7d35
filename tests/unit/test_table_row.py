"""Tests of the key of a hit in a table that holds each hit once (contract.md, section 6)."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.delivery.deliverers import ReadHit, RoutedHits
from pipeline.sinks.table_row import keyed_row_of, row_of

_HITS = RoutedHits(Framing(ROUTED_HIT_SCHEMA))
_TIME = "2026-11-24T10:15:30.123Z"


def read(hit_id: str, door: str) -> ReadHit:
    value = {"hitId": hit_id, "projectId": "shop", "receivedAt": _TIME, "sentAt": _TIME, "context": {}, "event": {}}
    found = _HITS.read(json.dumps(value | ({"door": door} if door == "public" else {})).encode())
    assert isinstance(found, ReadHit)
    return found


@pytest.mark.parametrize(
    ("hit_id", "door", "stored"),
    [
        ("a", "secret", "a"),
        ("a", "public", "public/a"),
        ("public/a", "secret", "secret/public/a"),
        ("secret/a", "secret", "secret/secret/a"),
        ("public/a", "public", "public/public/a"),
        ("publica", "secret", "publica"),
    ],
)
def test_public_hit_has_its_own_key(hit_id: str, door: str, stored: str) -> None:
    hit = read(hit_id, door).hit
    assert keyed_row_of(hit) == row_of(hit)._replace(hit_id=stored)


def test_keys_of_different_hits_differ() -> None:
    ids = ["", "a", *(f"{one}{two}" for one in ("public/", "secret/") for two in ("", "a", "public/a", "secret/a"))]
    keys = [keyed_row_of(read(hit_id, door).hit).hit_id for hit_id in ids for door in ("secret", "public")]
    assert all(one != other for one, other in combinations(keys, 2))
