"""`when` of a connection: a CEL condition (Common Expression Language, github.com/google/cel-spec) on the enriched hit."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec

from pipeline.process.imports import stub_module

VARIABLES = (
    *("hitId", "projectId", "receivedAt", "sentAt", "userId", "anonymousId"),
    *("event", "context", "integrations", "door"),
)
"""Names that a condition can use: members of the routed hit."""

_DEFAULTS = {"door": "secret"}
"""Values of members that a routed hit omits."""

_FUNCTIONS = (
    *("size", "contains", "startsWith", "endsWith", "matches", "has", "all", "exists", "exists_one", "map", "filter"),
    *("string", "bytes", "bool", "int", "uint", "double", "duration", "timestamp", "type", "dyn"),
    *("getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"),
    *("getHours", "getMinutes", "getSeconds", "getMilliseconds"),
)
"""The standard functions and macros (cel-spec, "Standard Definitions")."""

_UNDEFINED = re.compile(r"Undefined variable or function: '(\w+)'")
_OPERATOR = re.compile(r"\W|_.*_|_$")
_LOCAL = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,")
_OF_OTHER_LANGUAGES = re.compile(r"[^=!<>]=[^=]|\s(and|or|not|AND|OR|NOT)\s")
_SYNTAX = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")


@cache
def _cel() -> Any:
    """Import the library only when a connection has a condition."""
    stub_module("cel.cli")
    import cel

    return cel


class ConditionFailed(Exception):
    """The condition can't be evaluated for this hit: a type mismatch, a division by zero."""


class Condition:
    """One compiled condition. Raises ValueError with the reason if it does not compile."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._program = _cel().compile(text)
        except ValueError as error:
            raise ValueError(_explain(str(error), text)) from None
        local = set(_LOCAL.findall(text))
        for name in self._program.variables():
            if name not in VARIABLES and name not in local:
                raise ValueError(f"unknown name {name!r}{_nearest(name, VARIABLES)}")
        for name in self._program.functions():
            if not _OPERATOR.match(name) and name not in _FUNCTIONS:
                raise ValueError(f"unknown function {name!r}{_nearest(name, _FUNCTIONS)}")
        self.variables = frozenset(self._program.variables()) & set(VARIABLES)

    def holds(self, inputs: Any) -> bool:
        """Return whether the condition is true; a missing field makes it false. Raises ConditionFailed.

        `inputs` comes from `ConditionInputs.read`.
        """
        try:
            answer = self._program.execute(inputs)
        except (KeyError, IndexError):
            return False
        except Exception as error:
            # All names are known, so an undefined variable is a member that this hit lacks. CEL also reports a function
            # without an overload for the value's type as undefined.
            undefined = _UNDEFINED.match(str(error))
            if undefined is not None and undefined[1] in VARIABLES:
                return False
            raise ConditionFailed(str(error)) from None
        if not isinstance(answer, bool):
            raise ConditionFailed(f"the condition is {type(answer).__name__}, not true or false")
        return answer


class ConditionInputs:
    """Decodes the members of a routed hit that any of the conditions uses, once for all conditions."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        names = sorted(frozenset[str]().union(*(condition.variables for condition in conditions)))
        # Any: decoded without a type check; UNSET if the hit lacks the member.
        self._names = names
        fields: list[tuple[str, Any, Any]] = [(name, Any, _DEFAULTS.get(name, msgspec.UNSET)) for name in names]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("ConditionInputs", fields, gc=False))

    def read(self, routed_hit: bytes) -> Any:
        """Return the inputs of `Condition.holds`. A number beyond a float, such as 1e999 or one of 400 digits, becomes null.

        Raises ConditionFailed for any other value that CEL can't represent.
        """
        try:
            seen = self._decoder.decode(routed_hit)
            return _cel().Context(
                variables={name: value for name in self._names if (value := getattr(seen, name)) is not msgspec.UNSET}
            )
        except (msgspec.ValidationError, ValueError):
            # The number is too large for msgspec, or an integer beyond 64 bits, which CEL takes as a float.
            values = _DEFAULTS | json.loads(routed_hit, parse_int=_integer, parse_float=_float)
        try:
            return _cel().Context(variables={name: values[name] for name in self._names if name in values})
        except ValueError as error:
            raise ConditionFailed(str(error)) from None


def _integer(digits: str) -> int | None:
    return int(digits) if math.isfinite(float(digits)) else None


def _float(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _explain(message: str, text: str) -> str:
    found = _SYNTAX.search(message)
    hint = "; CEL compares with ==, and joins with && and ||" if _OF_OTHER_LANGUAGES.search(text) else ""
    return (
        f"does not compile: column {found[2]}: {found[3].partition(' expecting ')[0]}{hint}"
        if found
        else f"does not compile: {message}"
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
