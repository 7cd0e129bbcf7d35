"""Removes the secrets of one connection from texts that are shown or stored: requests, responses, messages.

This is the only redaction. `try`, dead letters, logs, /readyz and the ledger use it.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pipeline.destination import HttpRequest, Settings

HIDDEN = "***"
HARMLESS_HEADERS = frozenset({"content-type", "webhook-id", "webhook-timestamp", "user-agent", "accept"})
"""Names of headers that never hold a secret."""
_SECRET_NAME = re.compile("secret|token|key|password")
_MIN_SUBSTRING_CHARACTERS = 8
"""A secret of at least this length is also hidden inside words, since such a text does not occur by chance."""
_MIN_WORD_CHARACTERS = 2
"""A secret of at least this length is hidden as a whole word; a shorter one only where it is a whole value."""
_CONNINFO_PASSWORD = re.compile(r"password\s*=\s*('(?:[^'\\]|\\.)*'|\S+)")
# Secrets that are in no setting, such as signed URLs and tokens that the destination created. Quantifiers are bounded, because
# strangers write the text.
_ADDRESS = re.compile(r"(https?://)(?:[^\s/@\"'<>]{1,200}@)?([^\s?\"'<>]*)(\?[^\s\"'<>]*)?")
_CREDENTIAL = re.compile(
    r"\b((?:bearer|basic)\s{1,8}|[\w-]{0,40}(?:secret|token|key|password|signature|credential)s?[\"']?\s{0,8}[:=]\s{0,8}[\"']?)"
    r"(?=[\w.~+/%=-]{0,200}[0-9])[\w.~+/%=-]{8,}",
    re.IGNORECASE,
)
_WEB_TOKEN = re.compile(r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?")


@dataclass(frozen=True)
class Redaction:
    """Hides `secrets`. Its methods are pure."""

    secrets: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> Redaction:
        """Return the redaction of a connection: its secret settings, and the credentials in its addresses."""
        return cls(frozenset(filter(None, _setting_secrets(settings))))

    def with_request(self, request: HttpRequest) -> Redaction:
        """Return a redaction that also hides credentials of this `request`, such as a signature."""
        return Redaction(self.secrets | frozenset(filter(None, _request_secrets(request))))

    def text(self, text: str) -> str:
        """Return `text` without the secrets, without queries of URLs, and without texts that look like credentials."""
        text = self._without_secrets(text)
        text = _ADDRESS.sub(lambda found: found[1] + found[2] + ("?" + HIDDEN if found[3] else ""), text)
        text = _CREDENTIAL.sub(lambda found: found[1] + HIDDEN, text)
        return _WEB_TOKEN.sub(HIDDEN, text)

    def value(self, value: Any) -> Any:
        """Return a JSON value without the secrets, otherwise unchanged."""
        if isinstance(value, dict):
            return {name: self.value(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, str):
            return HIDDEN if value in self.secrets else self._without_secrets(value)
        return value

    def address(self, url: str) -> str:
        """Return `url` without user and query; only scheme and host if the URL itself is a secret."""
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if any(url.startswith(secret.rstrip("/")) for secret in self.secrets if "://" in secret):
            return f"{host}/{HIDDEN}"
        return self._without_secrets(f"{host}{parts.path}")

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of a request. Values that may be secret are hidden, all names are shown."""
        return {name: value if name in HARMLESS_HEADERS else HIDDEN for name, value in headers.items()}

    def _without_secrets(self, text: str) -> str:
        for secret, word_pattern in self._encoded_secrets:
            if word_pattern is None:
                text = text.replace(secret, HIDDEN)
            elif secret in text:
                text = word_pattern.sub(HIDDEN, text)
        return text

    @cached_property
    def _encoded_secrets(self) -> list[tuple[str, re.Pattern[str] | None]]:
        """The secrets in all encodings of responses, longest first; short ones with a pattern that matches whole words."""
        encoded = {
            text for secret in self.secrets if len(secret) >= _MIN_WORD_CHARACTERS for text in _encodings(secret)
        }
        return [
            (text, None if len(text) >= _MIN_SUBSTRING_CHARACTERS else re.compile(rf"(?<!\w){re.escape(text)}(?!\w)"))
            for text in sorted(encoded, key=len, reverse=True)
        ]


def _encodings(secret: str) -> Iterator[str]:
    yield secret
    yield quote(secret, safe="")
    yield html.escape(secret)
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1].replace("/", "\\/")


def _setting_secrets(settings: Settings) -> Iterator[str]:
    for name, field in type(settings).model_fields.items():
        is_secret = not field.repr or _SECRET_NAME.search(name) is not None
        for text in _texts(getattr(settings, name)):
            yield from _address_secrets(text, is_secret)
            if is_secret:
                yield text
                yield from _secret_parts(text)


def _request_secrets(request: HttpRequest) -> Iterator[str]:
    yield from _address_secrets(request.url, False)
    for name, value in request.headers.items():
        if name not in HARMLESS_HEADERS:
            yield value
            yield from _secret_parts(value)


def _secret_parts(text: str) -> Iterator[str]:
    """Yield the parts of a secret that are secrets: the token of `Bearer`, the password of `Basic`, the private key in a JSON."""
    if text.lstrip().startswith("{"):
        try:
            members = json.loads(text)
        except ValueError:
            return
        for name, member in members.items() if isinstance(members, dict) else ():
            if _SECRET_NAME.search(name) and "uri" not in name:
                yield from (line for value in _texts(member) for line in (value, *value.split("\n")))
        return
    words = re.split(r"[\s,;]+", text)
    if len(words) > 1:
        yield words[-1]
        yield from (word for word in words if len(word) >= _MIN_SUBSTRING_CHARACTERS)
    if words[0].lower() == "basic":
        yield from _basic_password(words[-1])


def _basic_password(encoded: str) -> Iterator[str]:
    """Yield the password of Basic authentication; the user if it is the only credential."""
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return
    yield password or user


def _address_secrets(text: str, is_secret: bool) -> Iterator[str]:
    """Yield the credentials in an address: its password, values of its query, and the path segments of a secret web address."""
    if "://" not in text:
        found = _CONNINFO_PASSWORD.search(text)
        yield found[1].strip("'") if found else ""
        return
    try:
        parts = urlsplit(text)
        user, password = parts.username, parts.password
    except ValueError:
        return
    is_web = parts.scheme in ("http", "https")
    for credential in (password, user if is_web and not password else None):
        if credential:
            yield from (credential, unquote(credential))
    for name, value in parse_qsl(parts.query) if is_web else ():
        yield value if len(value) >= _MIN_SUBSTRING_CHARACTERS or _SECRET_NAME.search(name.lower()) else ""
    if is_secret and is_web:
        yield from (segment for segment in parts.path.split("/") if len(segment) >= _MIN_SUBSTRING_CHARACTERS)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item)
