"""Output of the commands that read topics."""

from __future__ import annotations

import json
import socket
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from confluent_kafka import TopicPartition

from pipeline.cli.dead_letters import command
from pipeline.cli.destinations import command as destinations_command
from pipeline.cli.explain import command as explain_command
from pipeline.cli.fault_server import command as fault_server_command
from pipeline.cli.replay import command as replay_command
from pipeline.cli.tail import command as tail_command
from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA
from pipeline.config.models import ConnectionConfig
from pipeline.delivery.deliverers import RoutedHits
from pipeline.operations import dead_letters, refused_requests, tail
from pipeline.operations.connection_trace import ConnectionTrace
from pipeline.operations.dead_letters import StoredDeadLetter
from pipeline.operations.explain import HitTrace, Received, skip_reason
from pipeline.operations.unknown_names import unknown_name


def letter(value: bytes) -> StoredDeadLetter:
    return StoredDeadLetter(
        0, 0, "route", "invalid_json", "", "", "", "shop", TopicPartition("hits-raw", 0, 0), 0, None, value
    )


def test_dead_letters_list_keeps_one_example_per_group_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "read_dead_letters", lambda *_: (letter(bytes(1_000_000)) for _ in range(100)))
    file = tmp_path / "hitrouter.yaml"
    file.write_text("projects: {}")
    tracemalloc.start()
    try:
        said = CliRunner().invoke(command, ["list", "-c", str(file)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert said.output.split()[:5] == ["100", "route", "-", "invalid_json", "last"]
    assert peak < 20_000_000


def test_dead_letters_show_escapes_control_characters_of_the_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        dead_letters, "read_dead_letters", lambda *_: [letter("ä\n\x1b]0;x\x07\x9b2J\r".encode() + b"\xff")]
    )
    file = tmp_path / "hitrouter.yaml"
    file.write_text("projects: {}")
    said = CliRunner().invoke(command, ["show", "0-0", "-c", str(file)])
    assert said.output.endswith("ä\n\\x1b]0;x\\x07\\x9b2J\\r\\xff\n")


def test_tail_escapes_control_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tail.TailedHit("2026", "shop", "h\x9b2J", "a\n\x1b]0;x\x07", b"{}")
    monkeypatch.setattr(tail, "tail", lambda *_: iter([seen]))
    file = tmp_path / "hitrouter.yaml"
    file.write_text("projects: {}")
    said = CliRunner().invoke(tail_command, ["-c", str(file)])
    assert said.output.split() == ["2026", "shop", "a\\n\\x1b]0;x\\x07", "h\\x9b2J"]


def test_tail_refused_reports_an_empty_list_on_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused_requests.RefusedReader, "read", lambda _: [])
    file = tmp_path / "hitrouter.yaml"
    file.write_text("projects: {}")
    said = CliRunner().invoke(tail_command, ["--refused", "--once", "-c", str(file)])
    assert (said.exit_code, said.stdout, said.stderr) == (0, "", "no refused requests\n")


_HOSTILE = "\x1b[2J\x9b\x7f\u202e\nforged"
_SHOWN = r"\x1b[2J\x9b\x7f\u202e\nforged"


def _config(folder: Path) -> str:
    file = folder / "hitrouter.yaml"
    file.write_text("projects: {shop: {}}\nconnections: {crm: {destination: Kafka}}")
    return str(file)


def _only_printable(output: str) -> bool:
    return all(line.isprintable() for line in output.split("\n")) and "\nforged" not in output


@pytest.mark.parametrize("arguments", [["list"], ["show", "0-0"], ["replay", "--yes"]])
def test_dead_letter_commands_escape_control_characters_and_line_breaks(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = dict.fromkeys(("stage", "reason", "message", "path", "connection", "project"), _HOSTILE)
    hostile = replace(letter(b"{}"), **names, key=_HOSTILE.encode())
    monkeypatch.setattr(dead_letters, "read_dead_letters", lambda *_: [hostile])
    monkeypatch.setattr(dead_letters, "replay_dead_letters", lambda *_: {_HOSTILE: 1})
    said = CliRunner().invoke(command, [*arguments, "-c", _config(tmp_path)])
    assert said.exit_code == 0 and _only_printable(said.output)
    assert _SHOWN in said.output


@pytest.mark.parametrize("name", ["list", "replay"])
@pytest.mark.parametrize(
    ("asked", "hint"),
    [("crmm", "crmm is not a connection of the file; its connections are: crm\n"), ("crm", ""), ("", "")],
)
def test_dead_letter_commands_warn_about_an_unknown_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: str, hint: str
) -> None:
    monkeypatch.setattr(dead_letters, "read_dead_letters", lambda *_: iter(()))
    file = tmp_path / "hitrouter.yaml"
    file.write_text("connections: {crm: {destination: Kafka}}")
    said = CliRunner().invoke(command, [name, "--connection", asked, "-c", str(file)])
    assert said.exit_code == 0 and said.stderr == hint


def test_explain_escapes_control_characters_and_line_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = replace(letter(b"{}"), reason=_HOSTILE, message=_HOSTILE)
    hit_trace = HitTrace(
        project=_HOSTILE,
        hit_id=_HOSTILE,
        received=[Received("hits-raw-0 at 0", "2026", _HOSTILE, _HOSTILE)],
        connection_traces=[ConnectionTrace("crm", _HOSTILE, (_HOSTILE,))],
        notes=[_HOSTILE],
        dead=[dead],
    )
    monkeypatch.setattr("pipeline.operations.explain.explain", lambda *_: [hit_trace])
    said = CliRunner().invoke(explain_command, ["h", "-c", _config(tmp_path)])
    assert said.exit_code == 0 and _only_printable(said.output)
    assert said.output.count(_SHOWN) == 9


def test_tail_json_contains_no_control_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tail.TailedHit("2026", "shop", "h", "e", json.dumps({"a": _HOSTILE}, ensure_ascii=False).encode())
    monkeypatch.setattr(tail, "tail", lambda *_: iter([seen]))
    said = CliRunner().invoke(tail_command, ["--json", "-c", _config(tmp_path)])
    assert _only_printable(said.output) and json.loads(said.output) == {"a": _HOSTILE}


def test_tail_json_keeps_digits_of_numbers_beyond_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = '{"a": 1e999, "b": %s, "c": 1.5}' % ("7" * 5_000)
    monkeypatch.setattr(tail, "tail", lambda *_: iter([tail.TailedHit("2026", "shop", "h", "e", value.encode())]))
    said = CliRunner().invoke(tail_command, ["--json", "-c", _config(tmp_path)])
    assert json.loads(said.output) == {"a": "1e999", "b": "7" * 5_000, "c": 1.5}


def test_fault_server_reports_a_port_in_use_and_an_invalid_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = CliRunner().invoke(fault_server_command, ["--listen", address])
    assert (said.exit_code, said.output) == (
        1,
        f"Error: cannot listen on {address}: Address already in use; choose another address with --listen\n",
    )
    said = CliRunner().invoke(fault_server_command, ["--listen", "9099"])
    assert said.exit_code == 2 and "must be host:port" in said.output


def test_replay_refuses_an_end_before_its_start(tmp_path: Path) -> None:
    file = tmp_path / "hitrouter.yaml"
    file.write_text("connections: {a: {destination: Kafka}}")
    arguments = ["--connection", "a", "--from", "5m", "--to", "10m", "-c", str(file)]
    said = CliRunner().invoke(replay_command, arguments)
    assert said.exit_code == 2 and "must be after --from" in said.output


@pytest.mark.parametrize("name", ["Files", "Slack"])
def test_destination_shows_settings_and_an_example_ready_to_copy(name: str) -> None:
    said = CliRunner().invoke(destinations_command, [name]).output
    assert "${PATH}" not in said, "every shell has it, and it is no folder"
    assert "1 events" not in said and "(default None)" not in said
    if name == "Slack":
        assert "\nexample (" in said and "hooks.slack.com" in said, "the request that a hit becomes"


def test_unknown_names_are_escaped() -> None:
    assert unknown_name("\x1b[2J", ["crm"]).startswith("integrations.\\x1b[2J is not a connection")


def test_skip_reason_is_that_of_the_destination() -> None:
    analytics = ConnectionConfig(destination="Google Analytics", settings={"measurement_id": "G-1", "api_secret": "s"})
    hits = RoutedHits(Framing(ROUTED_HIT_SCHEMA))
    time = "2026-11-24T10:15:30.123Z"
    start = f'{{"hitId":"h","projectId":"p","receivedAt":"{time}","sentAt":"{time}","userId":"u","context":{{}},'
    assert skip_reason(analytics, hits.read((start + '"event":{}}').encode())) == "event_without_name"
    assert skip_reason(analytics, hits.read((start + '"event":{"name":"E"}}').encode())) is None
    assert skip_reason(ConnectionConfig(destination="Files", settings={"path": "x"}), hits.read(b"{")) is None
