"""The beginning of a new destination: its file, its examples and its place in the docs, in a clone of the repository."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import ConfigurationError

_FILE = '''"""{name}: say here in a line what it does with hits."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from pipeline.destination import Delivery, Destination, Event, Http, HttpRequest, HttpUrl, Settings, encode_json


class {cls}Settings(Settings):
    """What the operator says."""

    url: HttpUrl = Field(description="Where the events go.")


def event(delivery: Delivery) -> Event:
    """What one hit becomes."""
    return Event(delivery.hit.hitId, encode_json({{"id": delivery.hit.hitId, "name": delivery.name, **delivery.properties}}))


def request(events: Sequence[Event], settings: {cls}Settings, now_seconds: float) -> HttpRequest:
    """One request; `Limits` says of how many events."""
    return HttpRequest("POST", settings.url, events[0].body, {{"content-type": "application/json"}})


destination = Destination(
    name="{name}",
    summary="What it is, in a line.",
    settings={cls}Settings,
    sink=Http(event, request),
    documentation="https://example.com/the-vendors-documentation",
    delivery_guarantee="At least once; id is the hitId.",
)
'''
_EXAMPLES = """settings:
  url: https://api.example/events
examples:
- name: a hit
  hits:
  - hitId: hit-1
    event: {{name: Signed Up, user: {{userId: u}}, plan: free}}
  requests:
  - method: POST
    url: https://api.example/events
    body: {{id: hit-1, name: Signed Up, plan: free}}
    headers: {{content-type: application/json}}
answers:
- name: taken
  response: {{status: 200}}
  outcomes: [delivered]
"""


_SECTION = """## {name}

[Documentation](https://example.com/the-vendors-documentation).

- Say here which rules of the vendor the file keeps, each as the vendor has it.
"""


def slug_of(name: str) -> str:
    """What the files of a destination are called, without their ends."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def new_destination(name: str, root: Path) -> list[Path]:
    """Write the files of destination `name` below `root`; returns them. Raises ConfigurationError when that can't be."""
    slug = slug_of(name)
    if not re.fullmatch(
        r"[A-Za-z][A-Za-z0-9 .&+()-]*", name
    ):  # a quote in it would break the file, and with it every command
        raise ConfigurationError(
            [
                f"{name!r} can't be a destination: a name begins with a letter; letters, digits, spaces and .&+()- may follow"
            ]
        )
    docs = root / "docs" / "reference" / "destinations.md"
    for needed in (root / "destinations" / "__init__.py", docs):
        if not needed.exists():
            raise ConfigurationError(
                [f"{root} is no clone of hitrouter: it has no {needed.relative_to(root)}; go there first"]
            )
    made = {
        root / "destinations" / f"{slug}.py": _FILE.format(name=name, cls="".join(map(str.title, slug.split("_")))),
        root / "tests" / "destinations" / f"{slug}.yaml": _EXAMPLES.format(),
    }
    there = [file for file in made if file.exists()]
    if there:
        raise ConfigurationError([f"{there[0]} exists already; nothing was written"])
    for file, text in made.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    docs.write_text(_with_section(docs.read_text(), name))
    return [*made, docs]


def _with_section(text: str, name: str) -> str:
    """`text` with a section for `name` where the alphabet has it."""
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    own = _SECTION.format(name=name)
    sections = sorted([*(section.rstrip() + "\n" for section in sections), own], key=str.lower)
    return head + "\n".join(sections)
