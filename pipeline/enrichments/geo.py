"""Derives the location and network of an address from .mmdb files in the layouts of MaxMind and DB-IP.

The C reader maps its file into memory, and truncating a mapped file kills the process (SIGBUS). So each file is read from a private
copy, and replacing, truncating or removing the original cannot harm a running router.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import maxminddb

from pipeline.config.models import EnrichConfig
from pipeline.enrichments.contract import Derive, Derived, Enrichment, Observed

_Keys = tuple[str | int, ...]

_KEYS_OF_MEMBERS: Mapping[str, Sequence[_Keys]] = {
    # Nested: MaxMind GeoIP2 and GeoLite2, DB-IP. Flat: ip-location-db and IPinfo.
    "city": [("city", "names", "en"), ("city",)],
    "region": [("subdivisions", 0, "names", "en"), ("state1",), ("region",)],
    "country": [("country", "names", "en"), ("country_name",)],
    "countryCode": [("country", "iso_code"), ("country_code",), ("country",)],
    "latitude": [("location", "latitude"), ("latitude",), ("lat",)],
    "longitude": [("location", "longitude"), ("longitude",), ("lng",)],
    "timezone": [("location", "time_zone"), ("timezone",)],
    "asn": [("autonomous_system_number",), ("traits", "autonomous_system_number"), ("asn",)],
    "organization": [
        ("autonomous_system_organization",),
        ("traits", "organization"),
        ("traits", "autonomous_system_organization"),
        ("organization",),
        ("as_name",),
    ],
}
_NUMBERS = frozenset({"latitude", "longitude", "asn"})


def open_database(file: Path) -> maxminddb.Reader:
    """Open a private copy of `file`. Raises ValueError if it is not a database, OSError if it cannot be read."""
    with tempfile.NamedTemporaryFile(prefix="hitrouter-", suffix=".mmdb") as copy:
        with file.open("rb") as original:
            shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        try:
            reader = maxminddb.open_database(copy.name, maxminddb.MODE_MMAP_EXT)
            reader.get("127.0.0.1")
        except (maxminddb.InvalidDatabaseError, ValueError):
            raise ValueError(f"{file} is not a valid MaxMind database (.mmdb)") from None
    return reader


def read_location(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `context.location` from the records of one address; for each key, the first database that has it wins."""
    location: dict[str, Any] = {}
    for key, places in _KEYS_OF_MEMBERS.items():
        for record in records:
            found = next((value for place in places if (value := _at(record, place, key)) is not None), None)
            if found is not None:
                location[key] = found
                break
    return location


def _at(record: Any, place: _Keys, key: str) -> str | int | float | None:
    value = record
    for step in place:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and len(value) > step else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    if key not in _NUMBERS:
        return value if isinstance(value, str) and value else None
    if key == "asn" and isinstance(value, str):
        digits = value.upper().removeprefix("AS")
        return int(digits) if digits.isdigit() else None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) else None


def _prepare(config: EnrichConfig) -> Derive | None:
    opened, problems = [], []
    for file in config.geo.database:
        try:
            opened.append(open_database(file))
        except OSError as error:
            problems.append(f"{file} can't be read: {error.strerror}")
        except ValueError as error:
            problems.append(str(error))
    if problems:  # reported together
        raise ValueError("; ".join(problems))
    if not opened:
        return None
    readers = [(reader, reader.metadata().ip_version == 6) for reader in opened]

    def derive(observed: Observed) -> Derived | None:
        address = observed.ip
        if address is None:
            return None
        found = [reader.get(address) for reader, has_ipv6 in readers if has_ipv6 or ":" not in address]
        location = read_location([record for record in found if isinstance(record, dict)])
        return Derived({"location": location}) if location else None

    return derive


enrichment = Enrichment(
    name="geo",
    summary="context.location from the address: city, region, country, coordinates, time zone, network",
    order=1,
    members=("location",),
    prepare=_prepare,
    reads=("ip",),
)
