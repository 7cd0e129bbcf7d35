"""User agent: browser, operating system, kind of device, and whether it is a bot, which means a crawler.

Names and versions are uap-core's (through ua-parser), bots the list of crawler-user-agents without its HTTP libraries and
webhooks: these are apps and back ends that send hits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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


_CRAWLING_LIBRARY = re.compile("HTTrack|colly|echanize|larbin|newspaper|opengraph|trafilatura|Download Ninja")
"""Patterns among the list's `http-library` that are for reading sites, and for nothing else."""
_NAMED_CRAWLER = re.compile(r"bot\b|crawl|spider|scrap|checker", re.IGNORECASE)
"""Of a crawler that is known by its library alone, such as `LinkChecker/1.0 libwww-perl/6.03`."""
_WEBHOOK = re.compile(
    r"webhook|-hook|IFTTT|Zapier|Stripe|PayPal|Mollie|SendGrid|Google-Apps-Script|WordPress|Indy Library", re.IGNORECASE
)
"""Patterns outside of `http-library` whose systems call an address that they were given."""
_GROUP = 25


@cache
def _parser() -> ua_parser.Parser:
    """Made when it is first needed: its tables take a tenth of a second."""
    return ua_parser.Parser.from_matchers(ua_parser.loaders.load_builtins())


@cache
def _crawlers() -> list[re.Pattern[str]]:
    """In groups: one pattern for all of them is slower."""
    patterns = [entry["pattern"] for entry in crawleruseragents.CRAWLER_USER_AGENTS_DATA if _crawls(entry)]
    return [re.compile("|".join(patterns[at : at + _GROUP])) for at in range(0, len(patterns), _GROUP)]


def _is_crawler(text: str) -> bool:
    if not crawleruseragents.is_crawler(text):
        return False
    return _NAMED_CRAWLER.search(text) is not None or any(group.search(text) for group in _crawlers())


def _crawls(entry: Mapping[str, Any]) -> bool:
    if entry["tags"] == ["http-library"]:
        return _CRAWLING_LIBRARY.search(entry["pattern"]) is not None
    return _WEBHOOK.search(entry["pattern"]) is None


def parse_user_agent(text: str) -> Derived:
    """`context.browser`, `os`, `device` and `bot`; a blank text says nothing, and is no crawler's."""
    text = text[:_LONGEST]
    if not text.strip():
        return Derived({"bot": False})
    result = _parser().parse(text)
    members: dict[str, Any] = {}
    browser, system, device = result.user_agent, result.os, result.device
    if browser is not None and browser.family != "Other":
        version = _version(browser.major, browser.minor, browser.patch, browser.patch_minor)
        members["browser"] = _known(name=browser.family, version=version, major=browser.major)
    if system is not None and system.family != "Other":
        version = _version(system.major, system.minor, system.patch, system.patch_minor)
        members["os"] = _known(name=system.family, version=version)
    bot = _is_crawler(text)
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
        # A browser on Android without "Mobile" (developers.google.com, "User-agent strings"); apps, as on Dalvik, say neither.
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
