"""User agent: browser, operating system, kind of device, and whether it is a bot.

Names and versions are uap-core's (through ua-parser), bots the list of crawler-user-agents.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import crawleruseragents
import ua_parser

from pipeline.config.models import EnrichConfig
from pipeline.enrichment import Derive, Derived, Enrichment, Observed

_LONGEST = 1_000
"""Characters that are looked at; real user agents end long before."""

_DESKTOPS = frozenset({"Windows", "Mac OS X", "Linux", "Ubuntu", "Fedora", "Debian", "Chrome OS", "FreeBSD", "OpenBSD"})
_DEVICES = (
    # The first whose word stands in the user agent or in the device's name.
    (
        "tv",
        ("smarttv", "smart-tv", "appletv", "apple tv", "googletv", "bravia", "roku", "crkey", "hbbtv", "web0s"),
    ),
    ("console", ("playstation", "xbox", "nintendo")),
    ("wearable", ("apple watch", "watchos", "sm-r8", "sm-r9", "wear os")),
    ("tablet", ("ipad", "tablet", "kindle", "silk/", "playbook")),
    ("mobile", ("iphone", "ipod", "windows phone", "mobile", "opera mini", "blackberry")),
)


_FIRE_TV = re.compile(r"\bAFT[A-Z]{1,4}\d{0,3}\b")
"""Amazon's models, such as AFTKA (developer.amazon.com, "Identify Fire TV Devices"); not the app of Aftonbladet."""


@cache
def _parser() -> ua_parser.Parser:
    """Made when it is first needed: its tables take a tenth of a second."""
    return ua_parser.Parser.from_matchers(ua_parser.loaders.load_builtins())


def parse_user_agent(text: str) -> Derived | None:
    """`context.browser`, `os`, `device` and `bot`; None for a blank text."""
    text = text[:_LONGEST]
    if not text.strip():
        return None
    result = _parser().parse(text)
    members: dict[str, Any] = {}
    browser, system, device = result.user_agent, result.os, result.device
    if browser is not None and browser.family != "Other":
        version = _version(browser.major, browser.minor, browser.patch, browser.patch_minor)
        members["browser"] = _known(name=browser.family, version=version, major=browser.major)
    if system is not None and system.family != "Other":
        version = _version(system.major, system.minor, system.patch, system.patch_minor)
        members["os"] = _known(name=system.family, version=version)
    bot = crawleruseragents.is_crawler(text)
    brand, model = (device.brand, device.model) if device is not None else (None, None)
    kind = _kind(text, device.family if device is not None else "", system.family if system is not None else "", bot)
    if brand is not None and (brand.startswith("Generic") or brand == "Spider"):
        brand = model = None
    described = _known(type=kind, vendor=brand, model=model)
    if described:
        members["device"] = described
    members["bot"] = bot
    return Derived(members)


def _version(*parts: str | None) -> str | None:
    known = []
    for part in parts:
        if not part:
            break
        known.append(part)
    return ".".join(known) or None


def _known(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _kind(text: str, device: str, system: str, bot: bool) -> str | None:
    if bot:
        return "bot"
    if _FIRE_TV.search(text):
        return "tv"
    words = f"{text} {device}".lower()
    for kind, signs in _DEVICES:
        if any(sign in words for sign in signs):
            return kind
    if system == "Android":
        return "tablet"  # Android without "Mobile" (developers.google.com, "User-agent strings")
    return "desktop" if system in _DESKTOPS else None


def _prepare(config: EnrichConfig) -> Derive | None:
    if not config.user_agent:
        return None

    def derive(observed: Observed) -> Derived | None:
        return parse_user_agent(observed.user_agent) if observed.user_agent is not None else None

    return derive


enrichment = Enrichment(
    name="user_agent",
    summary="context.browser, os, device and bot from context.userAgent, else from the request",
    order=2,
    members=("browser", "os", "device", "bot"),
    prepare=_prepare,
    reads=("user_agent",),
)
