"""Types of the values in the configuration file: how each is parsed, and the error for an invalid one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, ValidationInfo

from pipeline.codec.ip_address import parse_network

_SHORTEST_RETENTION_SECONDS = 60.0
_LONGEST_RETENTION_SECONDS = 36_500 * 86_400.0
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _is_bare_number_in_file(value: object, info: ValidationInfo) -> bool:
    """Return whether `value` is a number without a unit in the file; its author might have meant hours."""
    return isinstance(value, int | float) and FOLDER in (info.context or {})


def _seconds(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str) or _is_bare_number_in_file(value, info):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", str(value).strip())
        if match is None:
            raise ValueError("a duration must be a number and a unit: 500ms, 30s, 15m, 24h or 7d")
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    return value


def _retention(seconds: float) -> float:
    if seconds < _SHORTEST_RETENTION_SECONDS:
        raise ValueError("a retention must be at least 1m, because Kafka removes whole segments")
    if seconds > _LONGEST_RETENTION_SECONDS:
        raise ValueError("a retention must be at most 36500d")
    return seconds


def _per_second(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str) or _is_bare_number_in_file(value, info):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*/\s*(s|m|h)", str(value).strip())
        if match is None:
            raise ValueError("a rate must be a number per unit: 100/s, 30/m or 1000/h")
        return float(match[1]) / _UNIT_SECONDS[match[2]]
    return value


def _plain(number: float) -> float | int:
    return int(number) if number.is_integer() else number


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?", value):
        raise ValueError(
            "a name must be 1-64 lower-case letters, digits and hyphens, since it becomes part of topic names"
        )
    return value


def address(value: object) -> str:
    """Return `value` as text. Raises ValueError if it is not host:port."""
    host, separator, port = str(value).rpartition(":")
    if not separator or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("an address must be host:port, such as 127.0.0.1:8080")
    return str(value)


def trimmed(value: str) -> str:
    """Return `value`. Raises ValueError if it begins or ends with white space, such as the line break at the end of a secret's file.

    The message does not show the value, which can be a secret.
    """
    if value != value.strip():
        raise ValueError(
            "begins or ends with white space, such as a line break; remove it from the file or variable that holds the value"
        )
    return value


def _secret(value: str) -> str:
    trimmed(value)
    if value.startswith(HASHED):
        if not re.fullmatch(r"[0-9a-f]{64}", value.removeprefix(HASHED)):
            raise ValueError(f"after {HASHED} write the 64 hex digits of the token's SHA-256")
    elif not value:
        raise ValueError("a token must have at least one character")
    return value


def _token(value: str) -> str:
    if ":" in value.removeprefix(HASHED):
        raise ValueError("a token must not have a colon, since the user name of Basic authentication ends there")
    return value


def digest_of(secret: str) -> bytes:
    """Return the SHA-256 that identifies a token or data stream; `secret` is its text in the file."""
    if secret.startswith(HASHED):
        return bytes.fromhex(secret.removeprefix(HASHED))
    return sha256(secret.encode()).digest()


_PATH_MARKS = str.maketrans("/?#%", "    ")


def _path_part(value: str) -> str:
    if not value.startswith(HASHED) and not re.fullmatch(r"[!-~]+", value.translate(_PATH_MARKS)):
        raise ValueError("an id is part of a path: it must be ASCII, without spaces and / ? # %")
    return value


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(?:\*\.)?(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)


def _origin(value: str) -> str:
    if value == "*":
        return value
    match = _ORIGIN.fullmatch(value.lower())
    if match is None:
        raise ValueError(
            "an origin must be scheme://host or scheme://host:port without a path, such as https://shop.example; "
            "https://*.shop.example means its subdomains, * every page"
        )
    if match[2] and _DEFAULT_PORTS.get(match[1]) == match[2]:
        raise ValueError(f"browsers leave out the default port; write it without {match[2]}")
    return value


def _network(value: object) -> IPv4Network | IPv6Network:
    try:
        return parse_network(str(value))
    except ValueError as error:
        raise ValueError(f"a network must be an address or address/bits, such as 10.0.0.0/8: {error}") from None


_PEM = "-----BEGIN "
"""Marks a property that holds a whole file, which ends with a line break."""


def _property(value: object) -> object:
    if not isinstance(value, str | int | float | bool):
        raise ValueError("a property must be a text, a number, true or false")
    if isinstance(value, str) and _PEM not in value:
        trimmed(value)
    return value


def _prefix(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]*", value):
        raise ValueError(
            "a prefix must be lower-case letters, digits and hyphens, since it becomes part of topic names"
        )
    return value


def _relative_to_file(value: Path, info: ValidationInfo) -> Path:
    folder: Path | None = (info.context or {}).get(FOLDER)
    return folder / value if folder is not None else value


def _copy_of(file: Path, info: ValidationInfo) -> Path:
    copies: Mapping[Path, Path] = (info.context or {}).get(COPIES, {})
    return copies.get(file, file)


_PUBLIC_URL = re.compile(
    r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?(?:/[a-z0-9._~-]+)*", re.ASCII | re.IGNORECASE
)


def http_url(value: str) -> str:
    """Return `value`. Raises ValueError if it is not an HTTP URL."""
    if not re.fullmatch(r"https?://[^\s/]\S*", value):
        raise ValueError("must be a URL that begins with http:// or https://")
    try:
        _ = urlsplit(value).port
    except ValueError as error:
        raise ValueError(f"must be a URL: {str(error)[:1].lower()}{str(error)[1:]}") from None
    return value


def _public_url(value: str) -> str:
    if not _PUBLIC_URL.fullmatch(value):
        raise ValueError("must be http:// or https:// with a host, optionally a port and a path; no slash at the end")
    return value


FOLDER = "folder"
"""Key of the validation context: the folder of the configuration file."""
COPIES = "copies"
"""Key of the validation context: maps the path of an input file to the copy to read instead."""
HASHED = "sha256:"
"""Prefix of a token of which the file holds only the hash."""
Seconds = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=str),
    Field(ge=0, allow_inf_nan=False),
    PlainSerializer(lambda seconds: f"{_plain(seconds)}s", return_type=str, when_used="json-unless-none"),
]
"""A duration in seconds; written `24h`, `15m`, `500ms` in the file."""
Retention = Annotated[Seconds, AfterValidator(_retention)]
"""Minimum time that a topic keeps its records, in seconds; written `7d`, `30m`."""
Rate = Annotated[
    float,
    BeforeValidator(_per_second, json_schema_input_type=str),
    Field(gt=0, allow_inf_nan=False),
    PlainSerializer(lambda rate: f"{_plain(rate)}/s", return_type=str, when_used="json-unless-none"),
]
"""Events per second; written `100/s` in the file."""
Name = Annotated[str, AfterValidator(_name)]
Address = Annotated[str, BeforeValidator(address)]
Token = Annotated[str, AfterValidator(_secret), AfterValidator(_token)]
"""The token itself, or `sha256:` and its hash."""
DataStream = Annotated[str, AfterValidator(_secret), AfterValidator(_path_part)]
"""The id of a data stream, or `sha256:` and its hash."""
Origin = Annotated[str, AfterValidator(_origin)]
"""Origin of web pages in the form of browsers, `https://shop.example`; `*` means any."""
Property = Annotated[str | int | float | bool, BeforeValidator(_property)]
"""Value of a librdkafka property."""
Prefix = Annotated[str, AfterValidator(_prefix)]
Network = Annotated[
    IPv4Network | IPv6Network, PlainValidator(_network, json_schema_input_type=str), PlainSerializer(str)
]
PublicUrl = Annotated[str, AfterValidator(_public_url)]
"""The URL at which others reach the intake."""
HttpUrl = Annotated[str, AfterValidator(http_url)]
"""A URL that begins with http:// or https://."""
PlanFile = Annotated[Path, AfterValidator(_relative_to_file)]
"""The main file of a tracking plan, which can refer to others in its folder; see plan_files.py."""
InputFile = Annotated[Path, AfterValidator(_relative_to_file), AfterValidator(_copy_of)]
"""A file to read, or its copy. The path is relative to the configuration file.

Folders to write to are relative to the working directory of the process instead.
"""
