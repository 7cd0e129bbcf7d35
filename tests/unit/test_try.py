"""The output of `hitrouter try`."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from rich.console import Console

from pipeline.cli.try_hit import command
from pipeline.codec.avro import Framing
from pipeline.codec.routed_avro import ROUTED_HIT_SCHEMA, avro_to_routed
from pipeline.config import Config
from pipeline.console.trial_view import print_trial
from pipeline.operations.try_hit import Preview, Trial, try_hit
from pipeline.operations.unknown_names import unknown_name


def tried(connections: dict[str, Any], **hit: Any) -> Trial:
    config = Config.model_validate({"projects": {"shop": {}}, "connections": connections})
    body = {"hitId": "h", "event": {"name": "Order", "user": {"userId": "u"}}, **hit}
    return try_hit(config, json.dumps(body).encode(), None, "192.0.2.1", None)


def test_avro_connection_shows_the_bytes_and_the_framing_of_its_record() -> None:
    trial = tried({"columns": {"destination": "Kafka", "format": "avro"}, "plain": {"destination": "Kafka"}})
    columns, plain = trial.previews
    assert columns.avro is not None
    value = base64.b64decode(columns.avro["base64"])
    assert json.loads(avro_to_routed(value, Framing(ROUTED_HIT_SCHEMA))) == columns.record == trial.enriched
    assert value[:10].hex(" ") in columns.avro["framing"]
    assert plain.avro is None


def test_option_public_treats_the_hit_as_public(tmp_path: Path) -> None:
    file, hit = tmp_path / "hitrouter.yaml", tmp_path / "hit.json"
    connections = {"orders": {"destination": "Kafka", "when": "door == 'secret'"}}
    file.write_text(json.dumps({"projects": {"shop": {}}, "connections": connections}))
    hit.write_text('{"hitId": "h", "door": "secret", "event": {"user": {"userId": "u"}}}')
    for options, door, reason in (([], None, None), (["--public"], "public", "when_false")):
        shown = json.loads(CliRunner().invoke(command, [str(hit), "-c", str(file), "--json", *options]).stdout)
        assert (shown["enriched"].get("door"), shown["outlooks"][0]["reason"]) == (door, reason)


def test_number_beyond_float_is_shown_by_its_digits() -> None:
    config = Config.model_validate({"projects": {"shop": {}}, "connections": {"all": {"destination": "Kafka"}}})
    trial = try_hit(config, b'{"event": {"value": 1e999, "user": {"userId": "u"}}}', None, None, None)
    assert trial.enriched["event"]["value"] == trial.previews[0].record["event"]["value"] == "1e999"


def test_integer_with_5000_digits_is_shown_by_its_digits() -> None:
    config = Config.model_validate({"projects": {"shop": {}}, "connections": {"all": {"destination": "Kafka"}}})
    body = b'{"event": {"value": ' + b"7" * 5000 + b', "n": 12, "user": {"userId": "u"}}}'
    assert try_hit(config, body, None, None, None).enriched["event"] == {
        "value": "7" * 5000,
        "n": 12,
        "user": {"userId": "u"},
    }


def test_secret_in_the_body_is_redacted() -> None:
    context = {"userAgent": "curl", "page": {"url": "https://a.example/"}}
    keys = {
        "Amplitude": {"api_key": "s3cret"},
        "PostHog": {"api_key": "s3cret"},
        "Meta Conversions API": {"pixel_id": "1", "access_token": "s3cret"},
    }
    trial = tried(
        {f"c{n}": {"destination": name, "settings": s} for n, (name, s) in enumerate(keys.items())}, context=context
    )
    for preview in trial.previews:
        assert "***" in repr(preview.sends) and "s3cret" not in repr(preview), preview


def test_query_and_user_of_a_url_are_not_shown() -> None:
    trial = tried({"crm": {"destination": "Webhook", "settings": {"url": "https://me:s3cret@a.example/in?key=s3cret"}}})
    assert trial.previews[0].sends["url"] == "https://a.example/in"


def test_only_the_host_of_a_secret_url_is_shown() -> None:
    url = "https://hooks.slack.com/services/T0/B0/s3cret"
    trial = tried({"chat": {"destination": "Slack", "settings": {"url": url}}})
    assert trial.previews[0].sends["url"] == "https://hooks.slack.com/***"


def test_secret_within_a_text_of_the_body_is_redacted() -> None:
    settings = {"pixel_id": "1", "access_token": "a-l0ng-s3cret"}
    page = {"page": {"url": "https://a.example/?t=a-l0ng-s3cret"}, "userAgent": "curl"}
    trial = tried({"meta": {"destination": "Meta Conversions API", "settings": settings}}, context=page)
    assert trial.previews[0].sends["body"]["data"][0]["event_source_url"] == "https://a.example/?t=***"


def test_long_lines_are_not_wrapped_on_a_narrow_terminal() -> None:
    """A script that searches for a message must find it on a terminal of any width."""
    trial = Trial(
        "shop", None, {}, ("a note " * 20,), (Preview("crm", "Webhook", "invalid_options", "a message " * 20),)
    )
    stream = io.StringIO()
    for shown in (trial, Trial("shop", "invalid_hit: " + "a reason " * 20)):
        print_trial(Console(file=stream, width=40), shown)
    written = stream.getvalue()
    assert all(text in written for text in ("a note " * 20, "a message " * 20, "a reason " * 20))


def test_control_characters_are_escaped_and_json_stays_valid() -> None:
    hostile = "\x1b[2J\x9b\x7f\u202e\U000e0001\nforged"
    previews = (
        Preview("crm", "Webhook", "rejected", hostile),
        Preview("all", "Kafka", None, topic="deliveries-all", record=[hostile], sends={hostile: "ä"}),
    )
    stream = io.StringIO()
    print_trial(Console(file=stream), Trial("shop", hostile))
    print_trial(Console(file=stream), Trial("shop", None, {"a": hostile}, (hostile,), previews))
    written = stream.getvalue()
    assert all(line.isprintable() for line in written.split("\n")) and "\nforged" not in written
    assert "note: \\x1b[2J\\x9b\\x7f\\u202e\\U000e0001\\nforged" in written
    record, sends = re.split(r"\n  (?:record|sends):\n", written)[1:]
    assert json.loads(record) == [hostile]
    assert json.loads(sends) == {hostile: "ä"} and "ä" in sends


def test_records_and_requests_are_shown_as_json() -> None:
    trial = tried(
        {"crm": {"destination": "Webhook", "settings": {"url": "https://a.example/"}, "drop_fields": ["x"]}},
        integrations={"Slack": False},
        x=None,
    )
    stream = io.StringIO()
    print_trial(Console(file=stream), trial)
    _, record, sends = re.split(r"\n  (?:record|sends):\n", stream.getvalue())
    assert json.loads(record) == trial.previews[0].record
    assert json.loads(sends) == {**trial.previews[0].sends, "body": "(the record)"}


def test_only_secret_headers_of_a_webhook_are_redacted() -> None:
    secret = "whsec_" + base64.b64encode(bytes(range(24))).decode()
    trial = tried({"crm": {"destination": "Webhook", "settings": {"url": "https://a.example/", "secrets": [secret]}}})
    headers = trial.previews[0].sends["headers"]
    assert headers["webhook-timestamp"].isdigit()
    assert headers["webhook-signature"] == "***"


def test_unknown_integration_is_shown_with_the_most_similar_name() -> None:
    trial = tried(
        {"crm": {"destination": "Webhook", "settings": {"url": "https://a.example/"}}}, integrations={"Webhok": True}
    )
    assert trial.notes == ("integrations.Webhok is not a connection or destination; did you mean 'Webhook'?",)
    assert unknown_name("Slack", ["crm"]) == "integrations.Slack: no connection has this destination"
    assert unknown_name("cmr", ["crm"]).endswith("did you mean 'crm'?")


def test_hit_too_old_for_its_destination_is_shown_as_rejected() -> None:
    settings = {"measurement_id": "G-1", "api_secret": "s"}
    trial = tried({"ga": {"destination": "Google Analytics", "settings": settings}}, sentAt="2020-01-01T00:00:00Z")
    assert trial.previews[0].sends["rejected"] == "too_old"


def test_refused_hit_is_shown_with_its_result_over_http_and_kafka(tmp_path: Path) -> None:
    (tmp_path / "hitrouter.yaml").write_text("{projects: {shop: {tokens: [t]}}}")
    (tmp_path / "hit.json").write_text('{"hitId": "h"}')
    arguments = [str(tmp_path / "hit.json"), "-c", str(tmp_path / "hitrouter.yaml")]
    said = CliRunner().invoke(command, arguments)
    assert said.exit_code == 1
    assert "the intake responds with 400" in said.output and ": invalid_hit: event is missing" in said.output
    said = CliRunner().invoke(command, [*arguments, "--ip", "192.0.2"])
    assert said.exit_code == 2 and "is not an IP address" in said.output


def test_note_names_a_dropped_field_that_the_hit_lacks() -> None:
    trial = tried({"a": {"destination": "Kafka", "drop_fields": ["evnt.user.email", "event.user.userId", "options.x"]}})
    assert trial.notes == ("drop_fields of a: this hit has no evnt.user.email",)


def test_note_names_members_that_the_tracking_plan_removes(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(
        '{"properties": {"name": {}, "user": {}, "value": {"type": "number"}}, "additionalProperties": false}'
    )
    project = {"tracking_plan": {"schema": str(plan), "on_violation": "strip"}}
    config = Config.model_validate({"projects": {"shop": {**project}}, "connections": {"a": {"destination": "Kafka"}}})
    body = b'{"event": {"name": "E", "user": {"userId": "u"}, "value": "5", "colour": {"a": 1}}}'
    notes = try_hit(config, body, None, None, None).notes
    assert "the tracking plan removes event.value, event.colour" in notes
