"""Tests of the files sink: one suite on a local folder and on buckets of S3, Google Cloud Storage and Azure."""

from __future__ import annotations

import base64
import errno
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import msgspec
import obstore
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.cli import load_checked
from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.delivery.deliverers import ReadHit, RoutedHits
from pipeline.destination import Delivered, Files, Misconfigured, Retry
from pipeline.kafka.embedded.broker import free_port
from pipeline.registry import declared_destinations, read_settings
from pipeline.sinks.files import FileRecord, FilesSink, Format, outcome_of_error
from pipeline.sinks.folders import BucketFolder, Folder, LocalFolder, open_folder
from tests.azure import new_container, running_azure
from tests.buckets import new_bucket, running_s3
from tests.google_storage import new_google_bucket, running_google_storage, service_account

DOCS = Path(__file__).parent.parent.parent / "docs"
_HITS = RoutedHits(Framing(ROUTED_HIT_SCHEMA))
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    with running_google_storage() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def az() -> Iterator[str]:
    with running_azure() as endpoint:
        yield endpoint


Bucket = tuple[str, dict[str, str]]
NewBucket = Callable[[str], Bucket]
_NEW = {"s3": new_bucket, "gs": new_google_bucket, "az": new_container}


@pytest.fixture(params=list(_NEW))
def new(request: pytest.FixtureRequest) -> NewBucket:
    """A function that creates a bucket, and returns the address of a prefix in it and the options to open it."""
    return partial(_NEW[request.param], request.getfixturevalue(request.param))


@pytest.fixture(params=["local", *_NEW])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Folder]:
    """A function that opens the same folder at each call, as consecutive workers do."""
    if request.param == "local":
        return lambda: open_folder(str(tmp_path / "out"), {})
    url, options = _NEW[request.param](request.getfixturevalue(request.param), f"bucket-{next(_numbers)}")
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


def rows(first: int, last: int) -> list[FileRecord]:
    """Return records whose events span several lines and contain Unicode line ends, as clients can send them."""
    made = []
    for offset in range(first, last + 1):
        value = (
            b'{"hitId":"h%d","projectId":"p","receivedAt":"R","sentAt":"S","userId":"u",'
            b'"event":{\r\n "a":"\xe2\x80\xa8 \xe2\x80\xa9 \xc2\x85"\n},"context":{}}' % offset
        )
        read = _HITS.read(value)
        assert isinstance(read, ReadHit)
        made.append(FileRecord(offset, read.value, read.hit))
    return made


def offsets(folder: Folder, format: str) -> list[int]:
    found: list[int] = []
    for name in sorted(folder.names("topic-")):
        content = folder.read(name)
        if format == "parquet":
            found += pq.read_table(io.BytesIO(content))["_offset"].to_pylist()
        else:
            found += [json.loads(line, parse_int=float)["_offset"] for line in content.decode().splitlines()]
    return found


Sink = Callable[[], FilesSink]
Stored = Callable[[], list[int]]


def test_repeated_batch_is_stored_once(sink: Sink, stored: Stored) -> None:
    sink().write(0, rows(0, 4))
    sink().write(0, rows(0, 4))
    assert stored() == [0, 1, 2, 3, 4]


def test_repeated_batch_of_another_size_is_stored_once(sink: Sink, stored: Stored) -> None:
    sink().write(0, rows(0, 9))
    restarted = sink()
    restarted.write(0, rows(0, 4))
    restarted.write(0, rows(5, 12))
    assert stored() == list(range(13))


def test_restart_from_an_older_commit_stores_nothing_twice(sink: Sink, stored: Stored) -> None:
    sink().write(0, rows(0, 9))
    sink().write(0, rows(5, 12))
    assert stored() == list(range(13))


def test_concurrent_writers_make_one_chain(sink: Sink, stored: Stored) -> None:
    zombie, next_instance = sink(), sink()
    for writer in (zombie, next_instance):
        writer.write(0, rows(0, 0))
    zombie.write(0, rows(1, 6))
    next_instance.write(0, rows(1, 3))
    next_instance.write(0, rows(4, 8))
    zombie.write(0, rows(7, 9))
    assert stored() == list(range(10))


def test_each_partition_has_its_own_chain(sink: Sink, stored: Stored) -> None:
    writer = sink()
    for partition in (0, 1, 10):
        writer.write(partition, rows(0, 1))
    sink().write(1, rows(0, 2))
    assert sorted(stored()) == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    "member", [b'"_offset":99', b'"_offset":"x"', b'"_partition":7', b'"a":' + b"1" * 5000, b'"a":1e999']
)
def test_members_of_a_hit_cannot_change_the_end_of_the_chain(sink: Sink, stored: Stored, member: bytes) -> None:
    (row,) = rows(0, 0)
    sink().write(0, [row._replace(value=row.value[:-1] + b"," + member + b"}")])
    sink().write(0, rows(0, 2))
    assert stored() == [0, 1, 2]


def test_recreated_topic_is_not_taken_for_a_repeat(sink: Sink, stored: Stored) -> None:
    sink().write(0, rows(0, 9))
    (row,) = rows(4, 4)
    hit = msgspec.structs.replace(row.hit, hitId="another")
    outcome = sink().write(0, [row._replace(hit=hit), *rows(5, 9)])
    assert isinstance(outcome, Misconfigured) and "topic was recreated" in outcome.message
    assert stored() == list(range(10))


def test_old_files_are_not_read(sink: Sink, opened: Callable[[], Folder], format: str) -> None:
    sink().write(0, rows(0, 1))
    sink().write(0, rows(3_000_000, 3_000_002))
    prefix = "topic-0-"
    found = opened().names(prefix, f"{prefix}{2_000_000:020d}")
    assert found == [f"{prefix}{3_000_000:020d}.{format}"]
    sink().write(0, rows(3_000_000, 3_000_004))
    assert offsets(opened(), format) == [0, 1, *range(3_000_000, 3_000_005)]


def test_unreadable_file_pauses_connection(sink: Sink, opened: Callable[[], Folder], format: str) -> None:
    opened().create(f"topic-0-{3:020d}.{format}", b"{")
    outcome = sink().write(0, rows(0, 4))
    assert isinstance(outcome, Misconfigured) and "move it away" in outcome.message


def test_existing_name_is_never_replaced(opened: Callable[[], Folder]) -> None:
    assert opened().create("a", b"first")
    assert not opened().create("a", b"second")
    assert opened().read("a") == b"first"


def test_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    sink = FilesSink(LocalFolder(tmp_path), "parquet", "topic")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert sink.write(0, rows(0, 1)) == Retry("[Errno 28] No space left on device")
    assert list(tmp_path.iterdir()) == []
    sink.write(0, rows(0, 1))
    assert offsets(LocalFolder(tmp_path), "parquet") == [0, 1]


def test_two_writers_with_one_process_id_do_not_mix_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, sync, others = LocalFolder(tmp_path), os.fsync, [b"from another container"]

    def meanwhile(file: int) -> None:
        if others:
            assert LocalFolder(tmp_path).create("f", others.pop())
        sync(file)

    monkeypatch.setattr(os, "fsync", meanwhile)
    assert folder.create("f", b"from this one") is False
    assert folder.read("f") == b"from another container"
    assert os.listdir(tmp_path) == ["f"]


def test_unusable_path_is_misconfigured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        outcome = FilesSink(LocalFolder(path), "jsonl", "topic").write(0, rows(0, 1))
        assert isinstance(outcome, Misconfigured) and str(path) in outcome.message


@pytest.mark.parametrize("code", ["ENOSYS", "EMLINK", "EXDEV", "EPERM", "EOPNOTSUPP", "ENOTSUP", "EINVAL"])
def test_file_system_without_hard_links_pauses_connection_with_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """The codes are those of link(2) on rclone, gcsfuse, exFAT and network shares."""

    def link(*_: object) -> None:
        raise OSError(getattr(errno, code), "link")

    monkeypatch.setattr(os, "link", link)
    outcome = FilesSink(LocalFolder(tmp_path / "f"), "jsonl", "topic").write(0, rows(0, 1))
    assert isinstance(outcome, Misconfigured)
    assert str(tmp_path / "f") in outcome.message and "without hard links" in outcome.message
    assert os.listdir(tmp_path / "f") == []


@pytest.mark.parametrize("code", ["ENOSYS", "EMLINK", "EXDEV", "EINVAL"])
def test_unsupported_file_system_operation_is_misconfigured(code: str) -> None:
    assert isinstance(outcome_of_error(OSError(getattr(errno, code), "fsync", "/mnt/bucket/f")), Misconfigured)


def test_folder_is_listed_again_after_an_error(opened: Callable[[], Folder], format: str) -> None:
    """A failed write may have stored its file. The next write can begin at a later offset, if the first hits were given up."""
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


def test_earlier_names_do_not_hide_listed_names(opened: Callable[[], Folder]) -> None:
    """Some stores ignore the offset of a list: Azurite lists from the start."""
    folder = opened()
    for number in range(60):
        folder.create(f"earlier-{number}", b"")
    folder.create("topic-0-1", b"")
    assert folder.names("topic-") == ["topic-0-1"]


def test_directory_bucket_is_refused() -> None:
    with pytest.raises(ValidationError, match="in no order"):
        declared_destinations()["Files"].settings.model_validate({"path": "s3://hits--euc1-az1--x-s3/a"})


def test_bucket_without_conditional_puts_is_refused_before_a_hit_is_written(
    new: NewBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = obstore.put
    monkeypatch.setattr(
        obstore, "put", lambda store, name, content, **_: put(store, name, content, use_multipart=False)
    )
    folder = BucketFolder(*new("careless"))
    outcome = FilesSink(folder, "jsonl", "topic").write(0, rows(0, 1))
    assert isinstance(outcome, Misconfigured) and "ignores conditional puts" in outcome.message
    assert folder.names("topic-") == []


def test_missing_bucket_is_misconfigured(new: NewBucket) -> None:
    url, options = new("present")
    url = url.replace("present", "absent")
    outcome = FilesSink(open_folder(url, options), "jsonl", "topic").write(0, rows(0, 1))
    assert isinstance(outcome, Misconfigured) and f"{url}: the store answers 404" in outcome.message


@pytest.mark.parametrize(
    ("kind", "wrong", "status"),
    [
        ("az", {"account_key": base64.b64encode(b"s3cret").decode()}, 403),
        ("gs", {"service_account_key": service_account(strange=True)}, 401),
    ],
)
def test_wrong_key_is_misconfigured_and_not_shown(
    request: pytest.FixtureRequest, kind: str, wrong: dict[str, str], status: int
) -> None:
    url, options = _NEW[kind](request.getfixturevalue(kind), "locked")
    outcome = FilesSink(open_folder(url, {**options, **wrong}), "jsonl", "topic").write(0, rows(0, 1))
    assert isinstance(outcome, Misconfigured) and f"answers {status}" in outcome.message
    assert not any(value in outcome.message for value in [*wrong.values(), "key", "BEGIN"])
    assert FilesSink(open_folder(url, options), "jsonl", "topic").write(0, rows(0, 1)) == Delivered()


def test_unreachable_store_is_retried(new: NewBucket) -> None:
    url, options = new("away")
    away = {**options, "endpoint": f"http://127.0.0.1:{free_port()}"}
    outcome = FilesSink(open_folder(url, away), "jsonl", "topic").write(0, rows(0, 1))
    assert isinstance(outcome, Retry) and url in outcome.reason


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "s3",
            {
                "access_key_id": "AWS_ACCESS_KEY_ID",
                "secret_access_key": "AWS_SECRET_ACCESS_KEY",
                "region": "AWS_REGION",
            },
        ),
        ("gs", {"service_account_key": "GOOGLE_SERVICE_ACCOUNT_KEY"}),
        ("gs", {"service_account_key": "GOOGLE_SERVICE_ACCOUNT"}),
        ("gs", {"service_account_key": "GOOGLE_APPLICATION_CREDENTIALS"}),
        ("az", {"account_name": "AZURE_STORAGE_ACCOUNT_NAME", "account_key": "AZURE_STORAGE_ACCOUNT_KEY"}),
    ],
)
def test_keys_can_come_from_the_environment(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, names: dict[str, str]
) -> None:
    url, options = _NEW[kind](request.getfixturevalue(kind), f"environment-{next(_numbers)}")
    for setting, name in names.items():
        value = options.pop(setting)
        if name in ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"):  # the path of a file
            (tmp_path / "key.json").write_text(value)
            value = str(tmp_path / "key.json")
        monkeypatch.setenv(name, value)
    assert FilesSink(open_folder(url, options), "jsonl", "topic").write(0, rows(0, 1)) == Delivered()


def test_example_of_the_docs_writes_to_each_store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only addresses and keys are replaced by those of the emulators."""
    page = (DOCS / "how-to" / "write-files.md").read_text()
    file = tmp_path / "hitrouter.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    for name in ("AWS_KEY_ID", "AWS_SECRET", "GCS_KEY", "AZURE_KEY"):
        monkeypatch.setenv(name, "given")
    connections = load_checked(file).connections
    assert {urlsplit(c.settings["path"]).scheme for c in connections.values()} == {"", *_NEW}
    for connection in connections.values():
        destination, settings = read_settings(connection)
        assert isinstance(destination.sink, Files)
        path, options = destination.sink.folder(settings), destination.sink.options(settings)
        kind = urlsplit(path).scheme
        if kind:
            _, keys = _NEW[kind](request.getfixturevalue(kind), urlsplit(path).netloc)
            assert keys.keys() - {"endpoint", "region"} <= options.keys()
            options = {**options, **keys}
        else:
            path = str(tmp_path / path)
        folder = open_folder(path, options)
        format = cast(Format, destination.sink.format(settings))
        assert FilesSink(folder, format, "topic").write(0, rows(0, 1)) == Delivered()
        assert offsets(folder, format) == [0, 1]
