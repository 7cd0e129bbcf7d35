"""Derives the source of a visit from utm_* parameters, else from a click id, else from the referrer (contract.md, section 4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.codec.percent_encoding import query_fields, unquoted
from pipeline.config.models import EnrichConfig
from pipeline.enrichments.contract import Derive, Derived, Enrichment, Observed

_UTM = {
    "utm_campaign": "name",
    "utm_medium": "medium",
    "utm_source": "source",
    "utm_term": "term",
    "utm_content": "content",
}
_SITE = re.compile(r"[^/?#]*//[^/?#]*")
_LONGEST = 500
"""Longest value in characters; the rest is cut off."""
_REFERRER_CHARACTERS = 2_000
"""Characters of a referrer that are parsed."""


@cache
def _rules() -> tuple[re.Pattern[str], Mapping[str, Mapping[str, str]], Mapping[str, tuple[str, list[str]]]]:
    """Return the pattern of the parameters, the click ids, and (engine, its term parameters) by host, with `google.*` as `google.`."""
    text = resources.files("pipeline.enrichments").joinpath("campaign_rules.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    clicks: dict[str, dict[str, str]] = data["click_ids"]
    hosts = {
        host.removesuffix("*"): (engine, rule["terms"])
        for engine, rule in data["search_engines"].items()
        for host in rule["hosts"]
    }
    names = "|".join(map(re.escape, [*_UTM, *clicks]))
    return re.compile(rf"[?&]({names})=([^&#]+)"), clicks, hosts


def read_campaign(page_url: str | None, referrer: str | None) -> dict[str, str]:
    """Return `context.campaign`; empty if nothing is known, or if the visitor came from the same site."""
    campaign: dict[str, str] = {}
    click: Mapping[str, str] = {}
    page_url = page_url or ""
    if "?" in page_url:
        parameters, clicks, _ = _rules()
        for name, raw in parameters.findall(page_url.partition("#")[0]):
            if name in _UTM:
                value = unquoted(raw).strip()[:_LONGEST]
                if value:
                    campaign.setdefault(_UTM[name], value)
            elif not click:
                click = clicks[name]
    if "source" in campaign or "medium" in campaign:
        return campaign
    if click or not referrer:
        return {**click, **campaign}
    site = _SITE.match(page_url)
    return {
        **_from_referrer(site[0][:_LONGEST] if site is not None else "", referrer[:_REFERRER_CHARACTERS]),
        **campaign,
    }


@lru_cache(maxsize=4096)  # there are many pages, but few sites and referrers
def _from_referrer(page_url: str, referrer: str) -> dict[str, str]:
    """Return the campaign of a referrer; `page_url` is cut after the host."""
    try:
        split = urlsplit(referrer)
        host = _host(split.hostname)
        if not host or split.scheme not in ("http", "https") or host == _host(urlsplit(page_url).hostname):
            return {}
    except ValueError:  # such as an unclosed bracket of an IPv6 address
        return {}
    found = _search_engine(host)
    if found is None:
        return {"source": host[:_LONGEST], "medium": "referral"}
    engine, terms = found
    fields, _ = query_fields(split.query)
    values = {name: value for name, value in reversed(fields) if value}
    term = next((values[name] for name in terms if name in values), None)
    return {"source": engine, "medium": "organic", **({"term": term[:_LONGEST]} if term else {})}


def _host(host: str | None) -> str:
    return (host or "").removeprefix("www.").removeprefix("m.")


def _search_engine(host: str) -> tuple[str, list[str]] | None:
    _, _, hosts = _rules()
    exact = hosts.get(host)
    if exact is not None:
        return exact
    name, _, ending = host.partition(".")
    labels = ending.split(".")
    # A country suffix is `de`, `com.tr` or `co.uk`; a longer one belongs to another host.
    if len(labels) == 1 or (len(labels) == 2 and labels[0] in ("co", "com") and len(labels[1]) == 2):
        return hosts.get(f"{name}.")
    return None


def _derive(observed: Observed) -> Derived | None:
    campaign = read_campaign(observed.page_url, observed.referrer)
    return Derived({"campaign": campaign}) if campaign else None


def _prepare(config: EnrichConfig) -> Derive | None:
    return _derive if config.campaign else None


enrichment = Enrichment(
    name="campaign",
    summary="context.campaign from the page's utm_* parameters, click ids, or the referrer",
    order=3,
    members=("campaign",),
    prepare=_prepare,
    reads=("page_url", "referrer"),
)
