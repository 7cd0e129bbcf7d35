"""Citations and links name documents, sections and headings that exist."""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
_FOLDERS = ("bench", "deploy", "destinations", "docs", "examples", "pipeline", "schemas", "tests")
_SUFFIXES = frozenset({".py", ".avsc", ".json", ".md", ".yaml"})
_FOREIGN = frozenset({"JSONTestSuite", "node_modules", "uap-core"})
"""Folders with files of others."""

_URL = re.compile(r"https?://\S+")
_CITATION = re.compile(
    r"(?<![\w./-])(?P<document>[\w./-]+\.md)\b"
    r"(?:#(?P<anchor>[\w-]+)|,?\s+sections?\s+(?P<sections>\d+(?:(?:,\s+|\s+and\s+)\d+)*)|,\s+\"(?P<heading>[^\"]+)\")?"
)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_CODE_BLOCK = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_INDENTED_CODE = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n)+", re.MULTILINE)
_LINK_ALONE = re.compile(r"\s*\(?\[[^]]+\]\(\S+\)\)?[.,:;]*")
LINE_CHARACTERS = 99
_KINDS = ("how-to", "reference", "explanation")
"""Folders of docs, beside tutorial.md and decisions."""
_PATH = re.compile(rf"`((?:{'|'.join(_FOLDERS)})/[\w./-]*)`")


def _files(suffixes: frozenset[str]) -> list[Path]:
    found = [file for file in ROOT.iterdir() if file.is_file()]
    for folder in _FOLDERS:
        for parent, folders, names in os.walk(ROOT / folder):
            folders[:] = [name for name in folders if name not in _FOREIGN]
            found += [Path(parent, name) for name in names]
    return sorted(file for file in found if file.suffix in suffixes and file != Path(__file__))


DOCUMENTS = _files(frozenset({".md"}))


@cache
def headings(document: Path) -> tuple[str, ...]:
    """Return the headings without their marks, in order."""
    return tuple(heading.strip() for heading in _HEADING.findall(_CODE_BLOCK.sub("", document.read_text())))


@cache
def anchors(document: Path) -> frozenset[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    counts: Counter[str] = Counter()
    found = set()
    for heading in headings(document):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
        counts[slug] += 1
    return frozenset(found)


def linked_files(document: Path) -> set[Path]:
    """Return the files that the links of a document lead to."""
    targets = (link["target"].partition("#")[0] for link in _LINK.finditer(document.read_text()))
    return {Path(os.path.normpath(document.parent / target)) for target in targets if target and ":" not in target}


def faults_of_citations(text: str, file: Path) -> Iterator[str]:
    """Yield what `text` of `file` cites and does not exist. A path begins beside `file`, at the root, or in docs or a folder of it."""
    if ".md" not in text:
        return
    for citation in _CITATION.finditer(_URL.sub("", text)):
        name = citation["document"]
        folders = (file.parent, ROOT, ROOT / "docs", *(ROOT / "docs" / kind for kind in _KINDS))
        places = [folder / name for folder in folders if (folder / name).is_file()]
        if not places:
            yield f"{name} does not exist"
            continue
        document = places[0]
        for section in re.findall(r"\d+", citation["sections"] or ""):
            if not any(heading.startswith(f"{section} ") for heading in headings(document)):
                yield f"{name} has no section {section}"
        if citation["anchor"] and citation["anchor"] not in anchors(document):
            yield f"{name} has no anchor {citation['anchor']}"
        if citation["heading"] and citation["heading"] not in headings(document):
            yield f'{name} has no heading "{citation["heading"]}"'


def faults_of_links(text: str, file: Path) -> Iterator[str]:
    """Yield the relative links of the document `file` that lead nowhere."""
    for link in _LINK.finditer(_CODE_BLOCK.sub("", text)):
        path, _, anchor = link["target"].partition("#")
        if ":" in path:
            continue
        target = file.parent / path if path else file
        if not target.exists():
            yield f"{link['target']}: no such file"
        elif anchor and anchor not in anchors(target):
            yield f"{link['target']}: no such heading"


def test_citations_name_what_exists() -> None:
    faults = [
        f"{file.relative_to(ROOT)}: {fault}"
        for file in _files(_SUFFIXES)
        for fault in faults_of_citations(file.read_text(errors="replace"), file)
    ]
    assert not faults, "\n".join(faults)


def test_links_between_documents_lead_somewhere() -> None:
    faults = [
        f"{file.relative_to(ROOT)}: {fault}" for file in DOCUMENTS for fault in faults_of_links(file.read_text(), file)
    ]
    assert not faults, "\n".join(faults)


def test_paths_in_documents_exist() -> None:
    faults = [
        f"{file.relative_to(ROOT)}: {path}"
        for file in DOCUMENTS
        for path in _PATH.findall(_CODE_BLOCK.sub("", file.read_text()))
        if not (ROOT / path).exists()
    ]
    assert not faults, "\n".join(faults)


def long_lines(text: str) -> Iterator[str]:
    """Yield the lines of prose that are too long. A row of a table and a line of code cannot be broken, a link not either."""
    for line in _INDENTED_CODE.sub("", _CODE_BLOCK.sub("", text)).splitlines():
        if len(line) > LINE_CHARACTERS and not line.startswith("|") and not _LINK_ALONE.fullmatch(line):
            yield line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_lines_of_prose_are_short(document: Path) -> None:
    assert list(long_lines(document.read_text())) == []


def test_the_readme_lists_every_document() -> None:
    linked = linked_files(ROOT / "README.md")
    indexes = {file for file in linked if file.name == "README.md" and file.is_relative_to(ROOT / "docs")}
    listed = linked.union(*map(linked_files, indexes))
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert [file.name for file in documents if file not in {ROOT / "README.md", *listed}] == []


def test_the_index_lists_every_document() -> None:
    docs = ROOT / "docs"
    listed = linked_files(docs / "README.md")
    documents = {*docs.glob("*.md"), *(file for kind in _KINDS for file in (docs / kind).glob("*.md"))}
    assert documents - listed == {docs / "README.md"}


def test_the_documents_name_the_present_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = next(heading for heading in headings(ROOT / "CHANGELOG.md") if heading[0].isdigit())
    assert newest.split()[0] == version
    assert set(
        re.findall(r"hitrouter-([\d.]+)-py3", (ROOT / "docs" / "reference" / "dependencies.md").read_text())
    ) == {version}


def test_the_architecture_names_every_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = [file.parent.name for file in (ROOT / "pipeline").glob("*/__init__.py")]
    assert [name for name in packages if f"`pipeline/{name}`" not in text] == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("(contract.md, section 7)", "contract.md has no section 7"),
        ("contract.md, section 1, and contract.md, sections 2, 3 and 9", "contract.md has no section 9"),
        ("docs/contract.md, section\n    70", "docs/contract.md has no section 70"),
        ("docs/reference/health.md#no-such-place", "docs/reference/health.md has no anchor no-such-place"),
        ('docs/reference/health.md, "No such place"', 'docs/reference/health.md has no heading "No such place"'),
        ("see no-such-document.md", "no-such-document.md does not exist"),
    ],
)
def test_a_citation_of_nothing_is_found(text: str, fault: str) -> None:
    assert list(faults_of_citations(text, ROOT / "pipeline" / "errors.py")) == [fault]


@pytest.mark.parametrize(
    "text",
    [
        "contract.md, sections 1 and 6; docs/reference/processes.md#ports",
        'bench/README.md; docs/how-to/size-and-grow-topics.md, "Growing partitions"',
        "https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md",
    ],
)
def test_a_citation_of_something_passes(text: str) -> None:
    assert not list(faults_of_citations(text, ROOT / "pipeline" / "errors.py"))


def test_a_link_to_nothing_is_found() -> None:
    text = "[a](health.md) [b](#ports) [c](../contract.md#7-nothing) [d](gone.md) [e](https://example.com/x.md)"
    assert list(faults_of_links(text, ROOT / "docs" / "reference" / "processes.md")) == [
        "../contract.md#7-nothing: no such heading",
        "gone.md: no such file",
    ]
