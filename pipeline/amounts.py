"""Amounts as people and shops write them: "1 299,50", "1,299.50", "1299.5"."""

from __future__ import annotations

import math
import re

_LONGEST = 40
_GROUP = re.compile(r"[\s\u2019]")
"""Separators of thousands that are never a decimal sign: any space (also no-break and thin ones) and apostrophes."""
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
    """The number that `text` is; None where it is none, or could be two.

    "1,299" and "1.299" could be a thousand or a little more than one, so they are not read. "0.125" and "1299.500" have one
    reading. A currency's sign is not read either: nobody checks that it is the currency of the event.
    """
    text = text.strip().replace("\u2212", "-")
    if len(text) > _LONGEST:
        return None
    digits = text[1:] if text[:1] in ("-", "+") else text
    number = _read_digits(_GROUP.sub("'", digits))
    return None if number is None or math.isinf(number) else -number if text[:1] == "-" else number


def _read_digits(digits: str) -> int | float | None:
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
