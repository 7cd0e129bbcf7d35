"""Tests of the redaction of texts before they are shown or stored."""

from __future__ import annotations

import base64
import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from pipeline.delivery.redaction import Redaction
from pipeline.destination import HttpRequest
from pipeline.registry import declared_destinations


def redaction_of(destination: str, settings: dict[str, Any]) -> Redaction:
    return Redaction.of(declared_destinations()[destination].settings.model_validate(settings))


KEY = 'k/3y "with" all&that'


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        json.dumps({"error": f"no such key {KEY}"}),
        json.dumps({"error": KEY}).replace("/", "\\/"),
        quote(KEY, safe=""),
        "<p>k/3y &quot;with&quot; all&amp;that</p>",
    ],
)
def test_key_is_hidden_in_every_encoding(echo: str) -> None:
    redacted = redaction_of("PostHog", {"api_key": KEY}).text(echo)
    assert "***" in redacted and "k/3y" not in redacted and "k%2F3y" not in redacted and "k\\/3y" not in redacted


@pytest.mark.parametrize(
    ("destination", "settings", "secrets"),
    [
        ("Mixpanel", {"project_id": "1", "username": "me", "secret": "s3cret"}, ["s3cret"]),
        ("Webhook", {"url": "https://me:pass%2Fword@a.example/in?sig=abcdef12"}, ["pass%2Fword", "pass/word", "abcdef12"]),
        ("Webhook", {"url": "https://apikey12@a.example/in"}, ["apikey12"]),
        ("Slack", {"url": "https://hooks.slack.com/services/T0000000/B0000000/XXXXXXXX"}, ["XXXXXXXX", "T0000000"]),
        ("PostgreSQL", {"dsn": "postgresql://app:pa55@h.example/db"}, ["pa55"]),
        ("PostgreSQL", {"dsn": "host=h user=app password='pa 55'"}, ["pa 55"]),
        (
            "Google BigQuery",
            {
                "project": "my-project",
                "dataset": "d",
                "credentials": json.dumps(
                    {"client_email": "a@b.example", "private_key": "-----BEGIN\nAAAABBBB\n-----END", "token_uri": "https://t"}
                ),
            },
            ["AAAABBBB"],
        ),
        ("Files", {"path": "s3://b/p", "secret_access_key": "abcd/efgh+ijkl"}, ["abcd/efgh+ijkl"]),
    ],
)  # fmt: skip
def test_every_secret_of_the_settings_is_hidden(destination: str, settings: dict[str, Any], secrets: list[str]) -> None:
    redaction = redaction_of(destination, settings)
    for secret in secrets:
        assert redaction.text(f"refused: {secret}, sorry") == "refused: ***, sorry"


def test_credentials_of_one_request_are_hidden_in_its_response() -> None:
    basic = base64.b64encode(b"me:pass-of-me").decode()
    request = HttpRequest(
        "POST",
        "https://a.example/in?api_secret=abc123",
        b"",
        {"authorization": f"Basic {basic}", "x-own": "Token qwerty"},
    )
    redaction = Redaction(frozenset()).with_request(request)
    for secret in (basic, "pass-of-me", "abc123", "qwerty"):
        assert secret not in redaction.text(f"you sent {secret}!")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("moved to https://u:p@b.example/x?X-Amz-Signature=ab12&a=1 now", "moved to https://b.example/x?*** now"),
        ("Authorization: Bearer abcdef1234567", "Authorization: Bearer ***"),
        ('{"access_token": "abcdef1234567"}', '{"access_token": "***"}'),
        ("signature=9f86d081884c7d65", "signature=***"),
        ("bad token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNry", "bad token ***"),
        # Words about a token are not a token.
        ('{"error": "invalid_token", "api_key": ["is missing"]}', '{"error": "invalid_token", "api_key": ["is missing"]}'),
        ("token: expired. Bearer authentication is needed", "token: expired. Bearer authentication is needed"),
    ],
)  # fmt: skip
def test_text_that_looks_like_a_credential_is_hidden(text: str, redacted: str) -> None:
    assert Redaction(frozenset()).text(text) == redacted


def test_short_secret_hides_no_part_of_another_word() -> None:
    redaction = redaction_of("PostHog", {"api_key": "test"})
    assert redaction.text("the test of a contest: test") == "the *** of a contest: ***"
    assert redaction_of("PostHog", {"api_key": "s"}).text("it's") == "it's"


def test_names_of_database_and_user_are_not_hidden() -> None:
    redaction = redaction_of("PostgreSQL", {"dsn": "postgresql://application:pa55@h.example/analytics"})
    assert redaction.text('database "analytics" is not there for "application"').count("***") == 0


@pytest.mark.parametrize(
    "bad", ["key:" * 2_000, "http://" * 1_200, "Bearer " * 1_200, "a" * 8_192, "token=" + "=" * 8_000]
)
def test_redaction_of_hostile_text_is_fast(bad: str) -> None:
    redaction = redaction_of("PostHog", {"api_key": KEY})
    begun = time.process_time()
    redaction.text(bad)
    assert time.process_time() - begun < 1.0
