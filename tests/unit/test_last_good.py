"""Tests of the last good version of the file: what `up` keeps, and what its roles start with."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import cli
from pipeline.config import Config, LastGood, Watched, find_last_good, last_good
from pipeline.config.checked import input_files, load_checked
from pipeline.config.last_good import FIXED_SECTIONS
from pipeline.config.load import KeptVersion
from pipeline.errors import ConfigurationError
from pipeline.stages.tracking_plan import TrackingPlan
from pipeline.supervisor.configuration import OpenConfiguration, open_configuration

GOOD = """\
kafka: {topic_prefix: one-, data: ./var/kafka}
projects: {shop: {tokens: ["${TOKEN}"], tracking_plan: {schema: plans/shop.json}}}
connections: {a: {destination: Kafka}}
"""
BAD = "conections: {}\n"
ENVIRONMENT = {"TOKEN": "secret-of-the-shop"}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as `up` does: data folders are relative to the working directory, plans to the file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", ENVIRONMENT["TOKEN"])
    (tmp_path / "etc" / "plans").mkdir(parents=True)
    (tmp_path / "etc" / "plans" / "shop.json").write_text('{"type": "object"}')
    (tmp_path / "etc" / "h.yaml").write_text(GOOD)


FILE = Path("etc/h.yaml")
PLAN = Path("etc/plans/shop.json")


def load(version: KeptVersion | None) -> Config:
    return load_checked(FILE, kept=version)


def same(one: Config, other: Config) -> bool:
    """Return whether the configurations are equal, apart from the paths of their plans."""
    return one.version == other.version and all(getattr(one, name) == getattr(other, name) for name in FIXED_SECTIONS)


def restarted(opened: OpenConfiguration) -> OpenConfiguration:
    """Return the configuration of another `up` that starts after the end of this one."""
    assert opened.last_good is not None
    opened.last_good.release()
    return open_configuration(FILE)


def as_a_role(opened: OpenConfiguration) -> Watched:
    """Return the configuration of a role that `up` starts now."""
    assert opened.last_good is not None
    kept = LastGood.in_folder(opened.last_good.folder, FILE, load)
    return Watched(FILE, load_checked, input_files, kept, kept.fixed_sections)


def test_role_restarted_after_a_bad_edit_uses_the_last_good_version() -> None:
    opened = open_configuration(FILE)
    FILE.write_text(BAD)
    role = as_a_role(opened)
    assert same(role.config, opened.config)
    assert role.refused == [f"{FILE}:1: conections: unknown key; did you mean 'connections'?"]


def test_restarted_role_applies_the_corrected_file() -> None:
    opened = open_configuration(FILE)
    FILE.write_text(BAD)
    role = as_a_role(opened)
    assert role.changed() is None
    FILE.write_text(GOOD.replace("{a: {", "{b: {"))
    changed = role.changed()
    assert changed is not None and list(changed.connections) == ["b"]
    assert role.refused is None


@pytest.mark.parametrize("damage", ["broken", "vanished"])
def test_broken_or_removed_plan_is_replaced_by_its_copy(damage: str) -> None:
    opened = open_configuration(FILE)
    version = opened.config.version
    if damage == "broken":
        PLAN.write_text("{")
    else:
        PLAN.unlink()
    role = as_a_role(opened)
    assert role.refused is not None and "plans/shop.json" in role.refused[0]
    assert role.config.version == version, "the same plan, read from its copy"
    PLAN.write_text("{}")
    assert role.changed() is not None and role.refused is None


@pytest.mark.parametrize("vanished", [("order.json",), ("order.json", "shop.json")])
def test_files_that_a_plan_refers_to_are_kept_with_it(vanished: tuple[str, ...]) -> None:
    PLAN.write_text('{"$ref": "order.json"}')
    (PLAN.parent / "order.json").write_text('{"required": ["total"]}')
    opened = open_configuration(FILE)
    version = opened.config.version
    for name in vanished:
        (PLAN.parent / name).unlink()
    role = as_a_role(opened)
    assert role.refused is not None
    assert role.config.version == version
    plan = role.config.projects["shop"].tracking_plan
    assert plan is not None and TrackingPlan.read(plan.files, "warn").violation("", b"{}") is not None


def test_standalone_role_refuses_a_bad_file() -> None:
    FILE.write_text(BAD)
    with pytest.raises(ConfigurationError):
        Watched(FILE, load_checked, input_files)


@pytest.mark.parametrize("bad", [BAD, "{not yaml", "kafka: {data: ./var/kafka}\nconections: {}", None])
def test_up_starts_with_the_last_good_version_and_logs_it(
    bad: str | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bad is None or "kafka" not in bad:
        FILE.write_text(GOOD.replace("./var/kafka", "./data/kafka"))
    first = open_configuration(FILE)
    if bad is None:
        FILE.unlink()
    else:
        FILE.write_text(bad)
    caplog.clear()
    again = restarted(first)
    assert same(again.config, first.config)
    assert first.last_good is not None and again.last_good is not None
    assert again.last_good.folder == first.last_good.folder
    said = caplog.text
    assert "starting with the last good version" in said and f"file={FILE}" in said
    assert f"kept_at={first.last_good.kept_at}" in said
    assert again.watched.refused is not None and again.watched.refused[0] in said


def test_up_refuses_a_file_that_was_never_good() -> None:
    FILE.write_text(BAD)
    with pytest.raises(ConfigurationError, match="conections"):
        open_configuration(FILE)


def test_data_folder_is_found_in_invalid_yaml() -> None:
    open_configuration(FILE)
    FILE.write_text(GOOD + "\n- [")
    found = find_last_good(FILE, load)
    assert found is not None and Path("var").absolute() in found.folder.parents


def test_two_files_in_one_folder_have_separate_kept_versions() -> None:
    open_configuration(FILE)
    other = FILE.with_name("other.yaml")
    other.write_text(BAD + "# data: ./var/kafka")
    with pytest.raises(ConfigurationError):
        open_configuration(other)


READING = {
    ("ledger",): "ledger.read_ledger",
    ("explain", "h"): "explain.explain",
    ("topics",): "topics.read_topics",
    ("tail",): "tail.tail",
    ("tail", "--refused"): "refused_requests.intake_addresses",
    ("dead-letters", "list"): "dead_letters.read_dead_letters",
    ("dead-letters", "show", "0-0"): "dead_letters.read_dead_letters",
}
"""Commands that only read, and the function that each calls with the configuration."""
STRICT = {
    ("topics", "--apply"): "topics.apply_safe_changes",
    ("topics", "--partitions", "8"): "topics.grow_partitions",
    ("dead-letters", "replay"): "dead_letters.read_dead_letters",
    ("try", __file__): "try_hit.try_hit",
    ("validate",): "ledger.read_ledger",
}


class Called(Exception):
    """A command called its function with this configuration."""

    def __init__(self, config: Config, *_: object) -> None:
        super().__init__()
        self.config = config


def called(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], function: str) -> Result:
    def call(*given: Config) -> None:
        raise Called(*given)

    monkeypatch.setattr(f"pipeline.operations.{function}", call)
    monkeypatch.delenv("TOKEN")
    return CliRunner().invoke(cli, [*arguments, "-c", str(FILE)])


@pytest.mark.parametrize(("arguments", "function"), READING.items())
def test_read_only_command_uses_the_last_good_version_of_a_bad_file(
    arguments: tuple[str, ...], function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_configuration(FILE)
    FILE.write_text(GOOD.replace("one-", "two-"))
    opened.keep_changes()
    FILE.write_text(GOOD.replace("one-", "three-") + BAD + "alarm: {}\n")
    done = called(monkeypatch, arguments, function)
    assert isinstance(done.exception, Called), done.output
    assert done.exception.config.kafka.topic_prefix == "one-", "the roles have the prefix that `up` started with"
    assert opened.last_good is not None
    assert done.stderr == (
        f"warning: {FILE}:4: conections: unknown key; did you mean 'connections'? (and 1 more); "
        f"using the last good version, kept since {opened.last_good.kept_at}\n"
    )


@pytest.mark.parametrize(("arguments", "function"), STRICT.items())
def test_command_that_writes_or_validates_refuses_a_bad_file(
    arguments: tuple[str, ...], function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_configuration(FILE)
    FILE.write_text(BAD)
    done = called(monkeypatch, arguments, function)
    assert isinstance(done.exception, ConfigurationError) and "conections" in str(done.exception)


@pytest.mark.parametrize(("arguments", "function"), READING.items())
def test_read_only_command_refuses_a_file_that_was_never_good(
    arguments: tuple[str, ...], function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FILE.write_text(BAD)
    done = called(monkeypatch, arguments, function)
    assert isinstance(done.exception, ConfigurationError)
    assert done.exception.problems == [f"{FILE}:1: conections: unknown key; did you mean 'connections'?"]


def test_variable_missing_in_both_versions_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVERS", "127.0.0.1:1")
    FILE.write_text("kafka: {bootstrap_servers: '${SERVERS}'}\n")
    open_configuration(FILE)
    monkeypatch.delenv("SERVERS")
    done = called(monkeypatch, ("ledger",), "ledger.read_ledger")
    assert isinstance(done.exception, ConfigurationError)
    (problem,) = done.exception.problems
    assert "SERVERS is not set" in problem


def test_only_a_version_that_passes_every_check_is_kept() -> None:
    opened = open_configuration(FILE)
    FILE.write_text(BAD)
    opened.keep_changes()
    assert same(as_a_role(opened).config, opened.config)
    FILE.write_text(GOOD.replace("{a: {", "{b: {"))
    opened.keep_changes()
    FILE.write_text(BAD)
    assert list(as_a_role(opened).config.connections) == ["b"]


def test_restarted_role_uses_the_fixed_sections_that_up_started_with() -> None:
    """Otherwise one role would write to topics with the new prefix, and the others read those with the old one."""
    opened = open_configuration(FILE)
    FILE.write_text(GOOD.replace("one-", "two-").replace("{a: {", "{b: {"))
    for _ in range(2):
        role = as_a_role(opened)
        assert role.config.kafka.topic_prefix == "one-"
        assert list(role.config.connections) == ["b"]
        opened.keep_changes()
        FILE.write_text(FILE.read_text() + "conections: {}\n")  # the second role starts with the kept version
    assert restarted(opened).config.kafka.topic_prefix == "two-", "the next start of `up` uses it"


def test_kept_files_hold_no_secret_and_are_private() -> None:
    opened = open_configuration(FILE)
    assert opened.last_good is not None
    files = list(opened.last_good.folder.iterdir())
    assert len(files) == 5, "the text, the plan, two records and the lock"
    for file in files:
        assert ENVIRONMENT["TOKEN"].encode() not in file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0
    assert opened.last_good.folder.stat().st_mode & 0o077 == 0


def test_folder_does_not_grow_with_the_number_of_edits() -> None:
    opened = open_configuration(FILE)
    assert opened.last_good is not None
    for number in range(20):
        PLAN.write_text(json.dumps({"title": str(number)}))
        FILE.write_text(f"# {number}\n{GOOD}")
        opened.keep_changes()
    # Two records, the lock, the first and the last text, the last plan.
    assert len(list(opened.last_good.folder.iterdir())) == 6


def test_damaged_copy_is_reported_beside_the_problems_of_the_file() -> None:
    opened = open_configuration(FILE)
    assert opened.last_good is not None
    FILE.write_text(BAD)
    for copy in opened.last_good.folder.glob("*.yaml"):
        copy.write_text("{")
    with pytest.raises(ConfigurationError) as caught:
        as_a_role(opened)
    own, kept = caught.value.problems
    assert "conections" in own
    assert "the last good version cannot be used" in kept and "is damaged" in kept


def test_truncated_record_is_ignored(tmp_path: Path) -> None:
    opened = open_configuration(FILE)
    assert opened.last_good is not None
    record = opened.last_good.folder / "good.json"
    record.write_bytes(record.read_bytes()[:-10])
    assert opened.last_good.kept_at is None


def test_change_between_reading_and_watching_is_detected() -> None:
    def load_then_edited(file: Path) -> Config:
        config = load_checked(file)
        file.write_text(GOOD.replace("{a: {", "{later: {"))
        return config

    watched = Watched(FILE, load_then_edited, input_files)
    watched._load = load_checked
    changed = watched.changed()
    assert changed is not None and list(changed.connections) == ["later"]


def test_kept_version_lasts_as_long_as_up_if_its_folder_is_not_writable(caplog: pytest.LogCaptureFixture) -> None:
    Path("var").write_text("a file where the folder should be")
    opened = open_configuration(FILE)
    assert opened.last_good is not None and Path("var").absolute() not in opened.last_good.folder.parents
    assert "would be lost by a restart" in caplog.text
    FILE.write_text(BAD)
    assert same(as_a_role(opened).config, opened.config)


def test_copies_are_read_only_for_a_kept_version() -> None:
    copy = Path("copy.json")
    copy.write_text("{}")
    config = load(KeptVersion(FILE.read_bytes(), {PLAN: copy}))
    assert config.input_files == [copy]
    assert partial(load, None)().input_files == [PLAN]


def test_second_up_does_not_change_what_roles_of_the_first_read() -> None:
    first = open_configuration(FILE)
    FILE.write_text(GOOD.replace("one-", "two-"))
    second = open_configuration(FILE)
    assert first.last_good is not None and second.last_good is not None
    assert second.last_good.folder != first.last_good.folder
    assert as_a_role(first).config.kafka.topic_prefix == "one-"


def test_version_not_kept_on_a_full_disk_is_kept_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_configuration(FILE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    FILE.write_text(GOOD.replace("{a: {", "{b: {"))
    with monkeypatch.context() as patch:
        patch.setattr(last_good, "write_private", full)
        opened.keep_changes()
        opened.keep_changes()
    assert caplog.text.count("not kept yet") == 1
    opened.keep_changes()
    FILE.write_text(BAD)
    assert list(as_a_role(opened).config.connections) == ["b"]
