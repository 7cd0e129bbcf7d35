"""Authenticates senders by tokens, public keys and data streams of projects (contract.md, section 1)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from hashlib import sha256

from pipeline.config.models import CollectConfig, ProjectConfig
from pipeline.config.values import digest_of
from pipeline.stages.accept import CollectRules, Origins, Refusal, Sender, not_allowed


class Tokens:
    """Keeps and looks up only digests, so that neither memory nor timing reveals a token."""

    def __init__(self, projects: Mapping[str, ProjectConfig]) -> None:
        self.collect_rules: dict[str, CollectRules] = {}
        """By project name. `replace` updates this object in place, because endpoints hold it."""
        self.replace(projects)

    def replace(self, projects: Mapping[str, ProjectConfig]) -> None:
        """Take over a changed configuration."""
        self._senders = dict(_senders(projects))
        self._streams = {digest_of(id_): name for name, project in projects.items() for id_ in project.data_streams}
        self.collect_rules.clear()
        self.collect_rules.update({name: _rules(name, project.collect) for name, project in projects.items()})

    def sender(self, authorization: str | None) -> Sender | None:
        """Return the sender of a Basic `Authorization` header whose user name is a token or public key; else None.

        A password must be empty (contract.md, section 1), as the clients of Segment and RudderStack send it.
        """
        if authorization is None:
            return None
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, separator, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        except (binascii.Error, ValueError):
            return None
        if not separator or password:
            return None
        return self._senders.get(sha256(user).digest())

    def sender_of(self, key: str) -> Sender | None:
        """Return the sender of a token or public key, the write key of a body; None if unknown."""
        return self._senders.get(sha256(key.encode(errors="replace")).digest())

    def address_sender(self, key: str) -> Sender | None:
        """As `sender_of`, for a key in a URL. Logs and proxies store URLs, so even a token counts as public there."""
        sender = self.sender_of(key)
        return None if sender is None else Sender(sender.project, True)

    def page_sender(self, key: str, origin: str) -> Sender | Refusal | None:
        """As `sender_of`, for a page of `origin` ("": no page); a Refusal if that page may not use the public key."""
        return self._on_page(self.sender_of(key), origin)

    def picture_sender(self, key: str, origin: str) -> Sender | Refusal | None:
        """As `address_sender`, for a page of `origin`."""
        return self._on_page(self.address_sender(key), origin)

    def _on_page(self, sender: Sender | None, origin: str) -> Sender | Refusal | None:
        return None if sender is None else self.refused_page(sender, origin) or sender

    def refused_page(self, sender: Sender, origin: str) -> Refusal | None:
        """Return why a page of `origin` may not send with a public key; None if it may. Apps and servers send no origin."""
        if not origin or not sender.is_public:
            return None
        rules = self.collect_rules[sender.project]
        return None if rules.origins.allow(origin) else not_allowed(origin, sender.project)

    def refused_collect(self, origin: str) -> Refusal | None:
        """Return the refusal of a preflight at /collect, which names no project, if no project accepts pages of `origin`."""
        if any(rules.allow(origin) for rules in self.collect_rules.values()):
            return None
        return not_allowed(origin)

    def is_secret(self, text: str) -> bool:
        """Return whether `text` is a token or the id of a data stream. A public key is not secret."""
        sender = self.sender_of(text)
        return (sender is not None and not sender.is_public) or self.data_stream(text) is not None

    def data_stream(self, stream: str) -> Sender | None:
        """Return the sender of a data stream. Its id is part of URLs, which logs and proxies store, so it counts as public."""
        project = self._streams.get(sha256(stream.encode(errors="replace")).digest())
        return None if project is None else Sender(project, True)


def _senders(projects: Mapping[str, ProjectConfig]) -> Iterator[tuple[bytes, Sender]]:
    for name, project in projects.items():
        for is_public, keys in ((True, project.public_keys), (False, project.tokens)):
            sender = Sender(name, is_public)
            yield from ((digest_of(key), sender) for key in keys)


def _rules(project: str, collect: CollectConfig) -> CollectRules:
    return CollectRules(project, collect.enabled, Origins(collect.origins))
