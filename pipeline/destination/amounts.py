"""Parses amounts in the formats of people and shops: "1 299,50", "1,299.50", "1299.5"."""

from __future__ import annotations

import math
import re

_MAX_CHARACTERS = 40
_GROUP_SEPARATOR = re.compile(r"[\s\u2019]")
"""Thousands separators that are never a decimal separator: all spaces (also no-break and thin ones) and apostrophes."""
_INTEGER = re.compile(r"\d+", re.ASCII)
_ONE_SEPARATOR = re.compile(r"(\d+)[.,](\d+)", re.ASCII)
_COULD_BE_THOUSANDS = re.compile(r"[1-9]\d{0,2}[.,]\d{3}", re.ASCII)
_SCIENTIFIC = re.compile(r"\.\d+|\d+(?:\.\d+)?[eE][+-]?\d{1,3}", re.ASCII)
_GROUPED = re.compile(
    r"(?P<whole>[1-9]\d{0,2}(?:'\d{3})+)(?:[.,](?P<fraction>\d+))?"
    r"|(?P<us>[1-9]\d{0,2}(?:,\d{3})+)\.(?P<us_fraction>\d+)"
    r"|(?P<eu>[1-9]\d{0,2}(?:\.\d{3})+),(?P<eu_fraction>\d+)"
    r"|(?P<long>[1-9]\d{0,2}(?:(?:,\d{3}){2,}|(?:\.\d{3}){2,}))",
    re.ASCII,
)


def read_amount(text: str) -> int | float | None:
    """Return the number in `text`; None if it is not a number or is ambiguous.

    "1,299" and "1.299" are ambiguous: 1299 or 1.299. "0.125" and "1299.500" have one reading. Text with a currency sign gives None,
    because the sign could contradict the event's currency.
    """
    text = text.strip().replace("\u2212", "-")
    if len(text) > _MAX_CHARACTERS:
        return None
    digits = text[1:] if text[:1] in ("-", "+") else text
    number = _read_unsigned(_GROUP_SEPARATOR.sub("'", digits))
    return None if number is None or math.isinf(number) else -number if text[:1] == "-" else number


def _read_unsigned(digits: str) -> int | float | None:
    if _INTEGER.fullmatch(digits):
        return int(digits)
    if one := _ONE_SEPARATOR.fullmatch(digits):
        return None if _COULD_BE_THOUSANDS.fullmatch(digits) else float(f"{one[1]}.{one[2]}")
    if _SCIENTIFIC.fullmatch(digits):
        return float(digits)
    grouped = _GROUPED.fullmatch(digits)
    if grouped is None:
        return None
    parts = grouped.groupdict()
    whole = re.sub(r"\D", "", parts["whole"] or parts["us"] or parts["eu"] or parts["long"])
    fraction = parts["fraction"] or parts["us_fraction"] or parts["eu_fraction"]
    return float(f"{whole}.{fraction}") if fraction else int(whole)
