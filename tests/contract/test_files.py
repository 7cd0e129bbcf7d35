"""The files sink: one suite on a local folder and on an S3 bucket."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import obstore
import pyarrow.parquet as pq
import pytest

from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.delivery.deliverers import ReadHit, RoutedHits
from pipeline.destination import Delivered, Misconfigured, Retry
from pipeline.sinks.files import FilesSink, Row
from pipeline.sinks.folders import BucketFolder, Folder, LocalFolder, open_folder
from tests.buckets import new_bucket, running_s3

_HITS = RoutedHits(Framing(ROUTED_HIT_SCHEMA))
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture(params=["local", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Folder]:
    """Opens the same folder again and again, as workers do that follow one another."""
    if request.param == "local":
        return lambda: open_folder(str(tmp_path / "out"), {})
    url, options = new_bucket(request.getfixturevalue("s3"), f"bucket-{next(_numbers)}")
    return lambda: open_folder(url, options)


@pytest.fixture(params=["jsonl", "parquet"])
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sink(opened: Callable[[], Folder], format: str) -> Callable[[], FilesSink]:
    return lambda: FilesSink(opened(), format, "topic")  # type: ignore[arg-type]


@pytest.fixture
def stored(opened: Callable[[], Folder], format: str) -> Callable[[], list[int]]:
    return lambda: offsets(opened(), format)


def rows(first: int, last: int) -> list[Row]:
    """Their events are as a client may print them: over several lines."""
    made = []
    for offset in range(first, last + 1):
        value = (
            b'{"hitId":"h%d","projectId":"p","receivedAt":"R","sentAt":"S","userId":"u",'
            b'"event":{\r\n "a":1\n},"context":{}}' % offset
        )
        read = _HITS.read(value)
        assert isinstance(read, ReadHit)
        made.append(Row(offset, read.value, read.hit))
    return made


def offsets(folder: Folder, format: str) -> list[int]:
    found: list[int] = []
    for name in sorted(folder.names("topic-")):
        content = folder.read(name)
        if format == "parquet":
            found += pq.read_table(io.BytesIO(content))["_offset"].to_pylist()
        else:
            found += [json.loads(line, parse_int=float)["_offset"] for line in content.splitlines()]
    return found


Sink = Callable[[], FilesSink]
Stored = Callable[[], list[int]]


def test_a_repeated_batch_is_stored_once(sink: Sink, stored: Stored) -> None:
    sink().write(0, rows(0, 4))
    sink().write(0, rows(0, 4))
    assert stored() == [0, 1, 2, 3, 4]


def test_a_repeated_batch_of_another_size_is_stored_once(sink: Sink, stored: Stored) -> None:
    sink().write(0, rows(0, 9))
    restarted = sink()
    restarted.write(0, rows(0, 4))
    restarted.write(0, rows(5, 12))
    assert stored() == list(range(13))


def test_a_restart_after_a_shorter_commit_stores_nothing_twice(sink: Sink, stored: Stored) -> None:
    sink().write(0, rows(0, 9))
    sink().write(0, rows(5, 12))
    assert stored() == list(range(13))


def test_two_writers_at_once_make_one_chain(sink: Sink, stored: Stored) -> None:
    zombie, successor = sink(), sink()
    for writer in (zombie, successor):
        writer.write(0, rows(0, 0))
    zombie.write(0, rows(1, 6))
    successor.write(0, rows(1, 3))
    successor.write(0, rows(4, 8))
    zombie.write(0, rows(7, 9))
    assert stored() == list(range(10))


def test_partitions_have_chains_of_their_own(sink: Sink, stored: Stored) -> None:
    writer = sink()
    for partition in (0, 1, 10):
        writer.write(partition, rows(0, 1))
    sink().write(1, rows(0, 2))
    assert sorted(stored()) == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    "member", [b'"_offset":99', b'"_offset":"x"', b'"_partition":7', b'"a":' + b"1" * 5000, b'"a":1e999']
)
def test_no_hit_can_say_how_far_the_chain_goes(sink: Sink, stored: Stored, member: bytes) -> None:
    (row,) = rows(0, 0)
    sink().write(0, [row._replace(value=row.value[:-1] + b"," + member + b"}")])
    sink().write(0, rows(0, 2))
    assert stored() == [0, 1, 2]


def test_a_topic_that_was_made_anew_is_told_from_a_repeat(sink: Sink, stored: Stored) -> None:
    sink().write(0, rows(0, 9))
    (row,) = rows(4, 4)
    hit = msgspec.structs.replace(row.hit, hitId="another")
    outcome = sink().write(0, [row._replace(hit=hit), *rows(5, 9)])
    assert isinstance(outcome, Misconfigured) and "made anew" in outcome.message
    assert stored() == list(range(10))


def test_what_lies_long_behind_is_not_looked_at(sink: Sink, opened: Callable[[], Folder], format: str) -> None:
    sink().write(0, rows(0, 1))
    sink().write(0, rows(3_000_000, 3_000_002))
    prefix = "topic-0-"
    found = opened().names(prefix, f"{prefix}{2_000_000:020d}")
    assert found == [f"{prefix}{3_000_000:020d}.{format}"]
    sink().write(0, rows(3_000_000, 3_000_004))
    assert offsets(opened(), format) == [0, 1, *range(3_000_000, 3_000_005)]


def test_a_file_that_can_not_be_read_is_waited_for(sink: Sink, opened: Callable[[], Folder], format: str) -> None:
    opened().create(f"topic-0-{3:020d}.{format}", b"{")
    outcome = sink().write(0, rows(0, 4))
    assert isinstance(outcome, Misconfigured) and "move it away" in outcome.message


def test_a_name_is_never_replaced(opened: Callable[[], Folder]) -> None:
    assert opened().create("a", b"first")
    assert not opened().create("a", b"second")
    assert opened().read("a") == b"first"


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    sink = FilesSink(LocalFolder(tmp_path), "parquet", "topic")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert sink.write(0, rows(0, 1)) == Retry("[Errno 28] No space left on device")
    assert list(tmp_path.iterdir()) == []
    sink.write(0, rows(0, 1))
    assert offsets(LocalFolder(tmp_path), "parquet") == [0, 1]


def test_a_path_that_can_not_be_used_is_the_operators_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        outcome = FilesSink(LocalFolder(path), "jsonl", "topic").write(0, rows(0, 1))
        assert isinstance(outcome, Misconfigured) and str(path) in outcome.message


def test_after_a_failure_the_folder_is_looked_at_again(opened: Callable[[], Folder], format: str) -> None:
    """What a write that failed has done is not known; and the next one may begin later, where the first hits were given up."""
    folder = opened()
    sink, create = FilesSink(folder, format, "topic"), folder.create  # type: ignore[arg-type]
    sink.write(0, rows(0, 0))

    def answer_lost(name: str, content: bytes) -> bool:
        create(name, content)
        raise OSError("the answer was lost")

    folder.create = answer_lost  # type: ignore[method-assign]
    assert sink.write(0, rows(1, 6)) == Retry("the answer was lost")
    folder.create = create  # type: ignore[method-assign]
    assert sink.write(0, rows(4, 8)) == Delivered()
    assert offsets(folder, format) == list(range(9))


def test_a_bucket_that_ignores_conditions_is_refused_before_a_hit_is_written(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, name, content, **_: put(store, name, content))
    folder = BucketFolder(*new_bucket(s3, "careless"))
    outcome = FilesSink(folder, "jsonl", "topic").write(0, rows(0, 1))
    assert isinstance(outcome, Misconfigured) and "no conditional writes" in outcome.message
    assert folder.names("topic-") == []


def test_a_bucket_that_is_not_there_is_waited_for_and_its_keys_stay_secret(s3: str) -> None:
    _, options = new_bucket(s3, "other")
    with pytest.raises(OSError) as caught:
        BucketFolder("s3://absent/x", options).create("a", b"")
    assert "s3://absent/x" in str(caught.value) and "s3cret" not in str(caught.value)
