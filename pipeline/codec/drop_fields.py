"""`drop_fields`: a routed hit without some of its members; all other bytes stay the client's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

NEEDED = ("hitId", "projectId", "door", "receivedAt", "sentAt", "event", "context")
"""Members that readers of a routed hit rely on; only what is below the last two may go."""

Tree = dict[str, "Tree | None"]


class FieldDropper:
    """`paths` are member names with dots between them, such as `event.user.emailHash`; a list stands for each of its items.

    Raises ValueError for a path that may not go.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._tree: Tree = {}
        for path in paths:
            steps = path.split(".")
            if not all(steps):
                raise ValueError("a path is names with dots between them, such as event.user.emailHash")
            if any(step in ("$", "*") or step.endswith("]") for step in steps):
                raise ValueError(
                    "a path is names with dots between them, and a list stands for its items: event.items.cost"
                )
            if len(steps) == 1 and path in NEEDED:
                raise ValueError(f"{path} is part of every routed hit and can't be dropped")
            holder: Any = self._tree
            for step in steps[:-1]:
                holder = holder.setdefault(step, {}) if holder is not None else None
            if holder is not None:
                holder[steps[-1]] = None

    def drop(self, value: bytes) -> bytes:
        """`value`, a JSON object, without the fields; the same bytes when it has none of them."""
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
