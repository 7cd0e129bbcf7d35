"""`drop_fields`: removes members from a routed hit, and keeps the values of all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

NEEDED = ("hitId", "projectId", "door", "receivedAt", "sentAt", "event", "context")
"""Members that readers of a routed hit rely on; only members inside `event` and `context` can be dropped."""

Tree = dict[str, "Tree | None"]


class FieldDropper:
    """Drops `paths`: member names separated by dots, such as `event.user.emailHash`. A path through a list covers all its items.

    Raises ValueError for an invalid path or one that can't be dropped.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._tree: Tree = {}
        for path in paths:
            steps = path.split(".")
            if not all(steps):
                raise ValueError("separate member names with dots, such as event.user.emailHash")
            if any(step in ("$", "*") or step.endswith("]") for step in steps):
                raise ValueError(
                    "separate member names with dots, without indexes or wildcards: event.items.cost covers all items of a list"
                )
            if len(steps) == 1 and path in NEEDED:
                raise ValueError(f"{path} is part of every routed hit and can't be dropped")
            holder: Any = self._tree
            for step in steps[:-1]:
                holder = holder.setdefault(step, {}) if holder is not None else None
            if holder is not None:
                holder[steps[-1]] = None

    def drop(self, value: bytes) -> bytes:
        """Return the JSON object `value` without the fields; the same bytes object if it has none of them."""
        return _drop(value, self._tree)


def _drop(value: bytes, tree: Mapping[str, Any]) -> bytes:
    if value.startswith(b"["):
        items = [bytes(item) for item in _decode_list(value)]
        kept = [_drop(item, tree) for item in items]
        return value if kept == items else b"[" + b",".join(kept) + b"]"
    if not value.startswith(b"{"):
        return value
    members = _decode(value)
    changed = False
    for name, below in tree.items():
        found = members.get(name)
        if found is None:
            continue
        if below is None:
            del members[name]
            changed = True
        else:
            raw = bytes(found)
            left = _drop(raw, below)
            if left is not raw:
                members[name] = msgspec.Raw(left)
                changed = True
    return _encode(members) if changed else value
