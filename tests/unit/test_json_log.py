"""Tests of `--log-format json`: one JSON object per line, with the fields of the log call."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.kafka.client import RepeatFilter
from pipeline.process.json_log import JsonFormatter
from pipeline.process.log_format import PROCESS_VARIABLE, VARIABLE, log_format_of, take_option
from pipeline.supervisor.processes import RoleProcess

TEMPLATE = "connection paused: connection=%s retry_in_seconds=%.1f attempts=%d error=%s"


def logged(template: str, *args: object, process: str = "", **members: Any) -> dict[str, Any]:
    record = logging.LogRecord("pipeline.delivery.backoff", logging.WARNING, "", 0, template, args, None)
    record.__dict__.update(members)
    line = JsonFormatter(process).format(record)
    assert line.isascii() and line.isprintable(), "no line break and no terminal escape"
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_fields_keep_their_keys_and_types_and_time_is_in_utc() -> None:
    parsed = logged(TEMPLATE, "crm", 1.26, 3, OSError("gone"), created=1_764_281_655.0625)
    assert list(parsed.items()) == [
        ("time", "2025-11-27T22:14:15.062Z"),
        ("level", "WARNING"),
        ("logger", "pipeline.delivery.backoff"),
        ("event", "connection paused"),
        ("connection", "crm"),
        ("retry_in_seconds", 1.3),
        ("attempts", 3),
        ("error", "gone"),
    ]


def test_event_without_fields_has_no_further_members() -> None:
    assert logged("spilled hits replayed", process="intake-0").keys() == {"time", "level", "logger", "process", "event"}
    assert logged("x", process="intake-0")["process"] == "intake-0"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (None, None), (float("inf"), "inf"), (2**70, 2**70), (Path("a"), "a"), ([1], "[1]")],
)
def test_numbers_booleans_and_none_keep_their_type_and_the_rest_is_text(value: object, expected: object) -> None:
    assert logged("e: key=%s", value)["key"] == expected


def test_repr_placeholder_gives_the_repr() -> None:
    assert logged("error while stopping: error=%r", ValueError("x"))["error"] == "ValueError('x')"


@pytest.mark.parametrize(
    ("template", "args", "fields"),
    [
        ("ready: url=http://%s/track", ("h:80",), {"event": "ready", "url": "http://h:80/track"}),
        ("partitions %s: group=%s", ("lost", "g"), {"event": "partitions lost", "group": "g"}),
        ("batch failed: attempt=%d of %d", (1, 5), {"event": "batch failed", "attempt": "1 of 5"}),
    ],
)
def test_text_around_a_placeholder_is_part_of_the_value(
    template: str, args: tuple[object, ...], fields: dict[str, object]
) -> None:
    assert fields.items() <= logged(template, *args).items()


@pytest.mark.parametrize(
    ("template", "args"),
    [
        ("[^Worker]: Ready", ()),
        ("%s", ("FAIL [rdkafka#producer-1]: connect: error=1",)),
        ("Cannot connect to %s: retries=many", ("x",)),
        ("Unclosed: level=%s", ("x",)),
        ("twice: a=%s a=%s", ("x", "y")),
        ("%(a)s: b=%(a)s", ({"a": 1},)),
    ],
)
def test_templates_of_other_libraries_are_one_event(template: str, args: tuple[Any, ...]) -> None:
    parsed = logged(template, *args)
    assert parsed.keys() == {"time", "level", "logger", "event"}
    assert parsed["event"] == logging.LogRecord("", 0, "", 0, template, args, None).getMessage()


def test_log_call_with_wrong_arguments_is_one_event() -> None:
    assert "e: a=%d b=%s" in logged("e: a=%d b=%s", "x")["event"]
    assert logged("e: a=%d", "text")["a"] == "text"


def test_terminal_escapes_line_breaks_and_lone_surrogates_are_escaped() -> None:
    hostile = 'a"\n\r\x1b[31m\x9b\u2028\udc80'
    assert logged("e: key=%s", hostile)["key"] == hostile


def test_exception_is_text_in_one_member() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        parsed = logged("e: key=%s", 1, exc_info=sys.exc_info())
    assert parsed["exception"].startswith("Traceback") and parsed["exception"].endswith("ValueError: a\nb")


def test_repeated_line_keeps_its_fields() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "poll failed: group=%s error=%s", ("g", "e"), None)
    once = RepeatFilter()
    once._shown["poll failed: group=g error=e"] = (time.monotonic() - 31.0, 9)
    assert once.filter(record)
    parsed = json.loads(JsonFormatter().format(record))
    assert (parsed["group"], parsed["error"]) == ("g", "e (and 9 times more since)")


def test_option_is_accepted_before_and_after_the_command() -> None:
    for arguments in (["--log-format", "json", "up"], ["up", "--log-format", "json"], ["up", "--log-format=json"]):
        assert take_option(arguments) == ("json", ["up"])
    assert take_option(["up"]) == (None, ["up"])
    assert take_option(["tail", "--", "--log-format", "json"]) == (None, ["tail", "--", "--log-format", "json"])
    assert take_option(["up", "--log-format"]) == (None, ["up", "--log-format"])


def test_default_format_is_text_and_unknown_format_is_an_error() -> None:
    assert [log_format_of(e) for e in ({}, {VARIABLE: "json"}, {VARIABLE: "TEXT"})] == ["text", "json", "text"]
    with pytest.raises(
        ValueError, match=r"'xml' is not a log format: set --log-format or HITROUTER_LOG_FORMAT to text"
    ):
        log_format_of({VARIABLE: "xml"})


def hitrouter(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import os, sys; os.environ.update(%r); sys.argv[1:] = %r\nfrom pipeline.__main__ import main; main()"
    command = [sys.executable, "-c", code % (environment, list(arguments))]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("arguments", [("--log-format", "json", "route"), ("route", "--log-format=json")])
def test_role_that_cannot_start_logs_the_reason_in_json(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = hitrouter(*arguments, "-c", str(tmp_path / "h.yaml"), HITROUTER_LOG_FORMAT="text")
    parsed = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [(line["event"], line["level"]) for line in parsed] == [("command failed", "ERROR")]
    assert "h.yaml: can't be read" in parsed[0]["error"]


def test_unknown_format_is_a_usage_error_in_one_line() -> None:
    for done in (hitrouter("destinations", HITROUTER_LOG_FORMAT="xml"), hitrouter("destinations", "--log-format=xml")):
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("hitrouter: 'xml' is not a log format")


def test_role_of_up_inherits_the_format_and_logs_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "json")
    role = RoleProcess("route", 3, tmp_path / "h.yaml", {})
    role.start()
    while role.end() is None:
        time.sleep(0.05)
    (line,) = capfd.readouterr().err.splitlines()
    parsed = json.loads(line)
    assert (parsed["event"], parsed["process"]) == ("command failed", "route-3")


def test_warnings_and_failed_threads_are_json() -> None:
    code = (
        "import logging, threading, warnings; from pipeline.cli import _set_up_logging;"
        "_set_up_logging(None, True, 'json'); warnings.warn('a warning');"
        "thread = threading.Thread(target=lambda: 1 / 0, name='worker'); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    warned, failed = [json.loads(line) for line in done.stderr.splitlines()]
    assert warned["logger"] == "py.warnings" and "a warning" in warned["event"]
    assert (failed["event"], failed["thread"]) == ("unexpected error in a thread", "worker")
    assert "ZeroDivisionError" in failed["exception"]


def test_line_of_a_stop_signal_is_json() -> None:
    code = (
        "import os, signal, time; from pipeline.process.stop import SIGNALS; SIGNALS.install();"
        "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    )
    environment = {VARIABLE: "json", PROCESS_VARIABLE: "route-0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    parsed = json.loads(done.stderr)
    assert done.returncode == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", parsed.pop("time"))
    assert parsed == {"level": "INFO", "logger": "pipeline.process.stop", "process": "route-0", "event": "stopped"}
