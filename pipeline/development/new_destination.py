"""Writes the first files of a new destination in a clone of the repository: code, examples and a section in the docs."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import ConfigurationError

_FILE = '''"""{name}: describe in one line what it does with hits."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from pipeline.destination import Delivery, Destination, Event, Http, HttpRequest, HttpUrl, Settings, encode_json


class {cls}Settings(Settings):
    """The settings that the operator writes in the file."""

    url: HttpUrl = Field(description="The URL that receives the events.")


def event(delivery: Delivery) -> Event:
    """Return the event for one hit."""
    return Event(delivery.hit.hitId, encode_json({{"id": delivery.hit.hitId, "name": delivery.name, **delivery.properties}}))


def request(events: Sequence[Event], settings: {cls}Settings, now_seconds: float) -> HttpRequest:
    """Return one request for the events; `Limits` sets how many it has at most."""
    return HttpRequest("POST", settings.url, events[0].body, {{"content-type": "application/json"}})


destination = Destination(
    name="{name}",
    summary="Describe it in one line.",
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
- name: accepted
  response: {{status: 200}}
  outcomes: [delivered]
"""


_SECTION = """## {name}

[Documentation](https://example.com/the-vendors-documentation).

- List the vendor's rules that the file follows, in the vendor's words.
"""


def slug_of(name: str) -> str:
    """Return the name of a destination's files, without extension."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def new_destination(name: str, root: Path) -> list[Path]:
    """Write the files of the destination `name` below `root`, and return them. Raises ConfigurationError before it writes."""
    slug = slug_of(name)
    # A quote in the name would make its file invalid, and every command would fail.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 .&+()-]*", name):
        rule = "it must begin with a letter, and may contain letters, digits, spaces and .&+()-"
        raise ConfigurationError([f"{name!r} cannot be the name of a destination: {rule}"])
    docs = root / "docs" / "reference" / "destinations.md"
    for needed in (root / "destinations" / "__init__.py", docs):
        if not needed.exists():
            raise ConfigurationError(
                [f"{root} is not a clone of hitrouter: it has no {needed.relative_to(root)}; change to a clone first"]
            )
    made = {
        root / "destinations" / f"{slug}.py": _FILE.format(name=name, cls="".join(map(str.title, slug.split("_")))),
        root / "tests" / "destinations" / f"{slug}.yaml": _EXAMPLES.format(),
    }
    there = [file for file in made if file.exists()]
    if there:
        raise ConfigurationError([f"{there[0]} already exists, nothing was written; choose another name"])
    for file, text in made.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    docs.write_text(_with_section(docs.read_text(), name))
    return [*made, docs]


def _with_section(text: str, name: str) -> str:
    """Return `text` with a section for `name`, in alphabetical order."""
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    own = _SECTION.format(name=name)
    sections = sorted([*(section.rstrip() + "\n" for section in sections), own], key=str.lower)
    return head + "\n".join(sections)
