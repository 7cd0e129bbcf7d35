"""The small parts of the intake: tokens, addresses behind proxies, the watched file."""

from __future__ import annotations

import base64
import logging
import os
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path

import pytest

from pipeline.config import ProjectConfig, Watched, load_config
from pipeline.config.models import IntakeConfig
from pipeline.errors import ConfigurationError
from pipeline.intake.client_address import ClientAddress
from pipeline.intake.tokens import Tokens
from pipeline.stages.accept import Sender

SHOP = Sender("shop", False)
PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def basic(token: str) -> str:
    return "Basic " + base64.b64encode(f"{token}:".encode()).decode()


def test_a_token_can_be_configured_as_a_hash() -> None:
    hashed = "sha256:" + sha256(b"secret").hexdigest()
    tokens = Tokens({"shop": ProjectConfig(tokens=["plain", hashed], data_streams=["stream"])})
    assert [tokens.sender(basic(token)) for token in ("plain", "secret", hashed)] == [SHOP, SHOP, None]
    assert (tokens.data_stream("stream"), tokens.data_stream("plain")) == (Sender("shop", True), None)


@pytest.mark.parametrize(
    "credentials", [b"token:word", b"token: ", b"token::", b"word:token", b":token", b"token", b""]
)
def test_a_password_beside_the_token_is_refused(credentials: bytes) -> None:
    tokens = Tokens({"shop": ProjectConfig(tokens=["token"])})
    assert tokens.sender("Basic " + base64.b64encode(credentials).decode()) is None
    assert tokens.sender(basic("token")) == SHOP


def test_an_invalid_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        ProjectConfig(tokens=["sha256:short"])


def test_replaced_projects_take_effect_at_once() -> None:
    tokens = Tokens({"shop": ProjectConfig(tokens=["old"])})
    known = tokens.collect_rules
    tokens.replace({"blog": ProjectConfig(tokens=["new"])})
    assert (tokens.sender(basic("old")), tokens.sender(basic("new"))) == (None, Sender("blog", False))
    assert list(known) == ["blog"]


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "forwarded", "address"),
    [
        ("203.0.113.5", "198.51.100.1", None, "203.0.113.5"),
        ("10.0.0.1", None, None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", None, "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1, 10.2.2.2", None, "198.51.100.1"),
        ("10.0.0.1", "nonsense, 10.2.2.2", None, "10.2.2.2"),
        ("10.0.0.1", "198.51.100.1:4711", None, "198.51.100.1"),
        ("10.0.0.1", None, 'for=6.6.6.6, for=198.51.100.1;proto=https, for="[fd00::1]:80"', "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1", "for=198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1", "for=6.6.6.6", "10.0.0.1"),  # a client behind a proxy of the other header
        ("10.0.0.1", "6.6.6.6", "for=198.51.100.1", "10.0.0.1"),
        ("fd00::2", None, 'For="[2001:db8::7]"', "2001:db8::7"),
        ("10.0.0.1", None, "for=_hidden", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, ::ffff:10.2.2.2", None, "198.51.100.1"),
        ("10.0.0.1", "::FFFF:c633:6401", None, "198.51.100.1"),
        ("10.0.0.1", "::ffff:198.51.100.1", "for=198.51.100.1", "198.51.100.1"),
    ],
)
def test_forwarded_headers_count_only_from_trusted_proxies(
    peer: str, forwarded_for: str | None, forwarded: str | None, address: str
) -> None:
    assert ClientAddress(PROXIES).read(peer, forwarded_for, forwarded) == address
    assert ClientAddress([]).read(peer, forwarded_for, forwarded) == peer


def test_a_mapped_network_is_the_ipv4_network() -> None:
    intake = IntakeConfig.model_validate({"trusted_proxies": ["::ffff:10.0.0.0/104", "::ffff:192.0.2.1", "fd00::/8"]})
    assert [str(network) for network in intake.trusted_proxies] == ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]


def test_a_valid_change_is_applied_and_an_invalid_one_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "hitrouter.yaml"

    def write(text: str) -> None:
        beside = tmp_path / "new"
        beside.write_text(text)
        os.replace(beside, file)

    write("projects: {shop: {tokens: [a]}}")
    watched = Watched(file, load_config)
    assert watched.changed() is None
    write("projects: {shop: {tokens: [b]}}")
    changed = watched.changed()
    assert changed is not None
    assert changed.projects["shop"].tokens == ["b"]
    write("projects: {shop: {token: [c]}}")
    with caplog.at_level(logging.ERROR):
        assert watched.changed() is None
    assert "did you mean 'tokens'" in caplog.text
    assert watched.config is changed
    file.unlink()
    assert watched.changed() is None
    with pytest.raises(ConfigurationError):
        load_config(file)
