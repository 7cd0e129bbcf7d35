"""Derives browser, operating system, kind of device and `bot` from the user agent. A bot is a crawler.

Names and versions come from uap-core (through ua-parser), and crawlers from the list of crawler-user-agents. Its HTTP libraries and
webhooks are excluded, because apps and back ends send hits with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import crawleruseragents
import ua_parser

from pipeline.config.models import EnrichConfig
from pipeline.enrichments.contract import Derive, Derived, Enrichment, Observed

_PARSED_CHARACTERS = 1_000
"""Characters that are parsed; real user agents are much shorter."""

_DESKTOPS = frozenset({"Windows", "Mac OS X", "Linux", "Ubuntu", "Fedora", "Debian", "Chrome OS", "FreeBSD", "OpenBSD"})
_DEVICES = (
    # The first kind with one of its words in the user agent or in the name of the device.
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
"""Amazon's models, such as AFTKA (developer.amazon.com, "Identify Fire TV Devices"). Does not match the Aftonbladet app."""


_CRAWLING_LIBRARY = re.compile("HTTrack|colly|echanize|larbin|newspaper|opengraph|trafilatura|Download Ninja")
"""Patterns tagged `http-library` in the list whose libraries only crawl sites."""
_NAMED_CRAWLER = re.compile(r"bot\b|crawl|spider|scrap|checker", re.IGNORECASE)
"""Matches a crawler that the list knows only by its library, such as `LinkChecker/1.0 libwww-perl/6.03`."""
_WEBHOOK = re.compile(
    r"webhook|-hook|IFTTT|Zapier|Stripe|PayPal|Mollie|SendGrid|Google-Apps-Script|WordPress|Indy Library", re.IGNORECASE
)
"""Patterns without the tag `http-library` whose systems call an address that a user configured there."""
_GROUP_SIZE = 25


@cache
def _parser() -> ua_parser.Parser:
    """Return the parser, created at the first use: loading its tables takes 0.1 s."""
    return ua_parser.Parser.from_matchers(ua_parser.loaders.load_builtins())


@cache
def _crawlers() -> list[re.Pattern[str]]:
    """Return the patterns of crawlers, joined in groups; one pattern for all of them is slower."""
    patterns = [entry["pattern"] for entry in crawleruseragents.CRAWLER_USER_AGENTS_DATA if _is_crawler_entry(entry)]
    return [re.compile("|".join(patterns[at : at + _GROUP_SIZE])) for at in range(0, len(patterns), _GROUP_SIZE)]


def _is_crawler(text: str) -> bool:
    if not crawleruseragents.is_crawler(text):
        return False
    return _NAMED_CRAWLER.search(text) is not None or any(group.search(text) for group in _crawlers())


def _is_crawler_entry(entry: Mapping[str, Any]) -> bool:
    if entry["tags"] == ["http-library"]:
        return _CRAWLING_LIBRARY.search(entry["pattern"]) is not None
    return _WEBHOOK.search(entry["pattern"]) is None


def parse_user_agent(text: str) -> Derived:
    """Return `context.browser`, `os`, `device` and `bot`; for a blank text only `bot`, which is false."""
    text = text[:_PARSED_CHARACTERS]
    if not text.strip():
        return Derived({"bot": False})
    result = _parser().parse(text)
    members: dict[str, Any] = {}
    browser, system, device = result.user_agent, result.os, result.device
    if browser is not None and browser.family != "Other":
        version = _version(browser.major, browser.minor, browser.patch, browser.patch_minor)
        members["browser"] = _without_blanks(name=browser.family, version=version, major=browser.major)
    if system is not None and system.family != "Other":
        version = _version(system.major, system.minor, system.patch, system.patch_minor)
        members["os"] = _without_blanks(name=system.family, version=version)
    bot = _is_crawler(text)
    brand, model = (device.brand, device.model) if device is not None else (None, None)
    kind = _kind(text, device.family if device is not None else "", system.family if system is not None else "", bot)
    if brand is not None and (brand.startswith("Generic") or brand == "Spider"):
        brand = model = None
    described = _without_blanks(type=kind, vendor=brand, model=model)
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


def _without_blanks(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _kind(text: str, device: str, system: str, bot: bool) -> str | None:
    if bot:
        return "bot"
    if _FIRE_TV.search(text):
        return "tv"
    words = f"{text} {device}".lower()
    for kind, marks in _DEVICES:
        if any(mark in words for mark in marks):
            return kind
    if system == "Android":
        # A browser on an Android tablet omits "Mobile" (developers.google.com, "User-agent strings"). Apps, as on Dalvik, name no kind.
        return "tablet" if text.startswith("Mozilla/") else None
    return "desktop" if system in _DESKTOPS else None


def _prepare(config: EnrichConfig) -> Derive | None:
    if not config.user_agent:
        return None

    def derive(observed: Observed) -> Derived:
        return parse_user_agent(observed.user_agent or "")

    return derive


enrichment = Enrichment(
    name="user_agent",
    summary="context.browser, os, device and bot from context.userAgent, else from the request",
    order=2,
    members=("browser", "os", "device", "bot"),
    prepare=_prepare,
    reads=("user_agent",),
)
