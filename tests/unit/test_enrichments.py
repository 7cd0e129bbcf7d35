"""Each enrichment, and how its results are merged into `context` (contract.md, section 4)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from pipeline.config.models import EnrichConfig, GeoConfig
from pipeline.enrichments.campaign import read_campaign
from pipeline.enrichments.contract import Derived, Enrichment, Observed
from pipeline.enrichments.geo import open_database
from pipeline.enrichments.user_agent import parse_user_agent
from pipeline.registry import declared_enrichments
from pipeline.stages.decide.condition import Condition, ConditionInputs
from pipeline.stages.enrich import Enricher, RequestFacts

GOLDEN = Path(__file__).parent.parent / "golden"
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"

# Records in the layouts that vendors publish (MaxMind-DB/source-data, db-ip.com/db/format, IPinfo's documentation).
MAXMIND_CITY = {
    "city": {"names": {"en": "London", "de": "London"}},
    "country": {"iso_code": "GB", "names": {"en": "United Kingdom"}},
    "location": {"latitude": 51.5142, "longitude": -0.0931, "time_zone": "Europe/London"},
    "subdivisions": [{"iso_code": "ENG", "names": {"en": "England"}}],
}
MAXMIND_ASN = {"autonomous_system_number": 1221, "autonomous_system_organization": "Telstra Pty Ltd"}
FLAT = {"city": "Lyon", "state1": "Rhone", "country_code": "FR", "latitude": 45.75, "longitude": 4.85}
IPINFO = {"country": "DE", "country_name": "Germany", "asn": "AS3320", "as_name": "Telekom"}
LONDON = {
    "city": "London",
    "region": "England",
    "country": "United Kingdom",
    "countryCode": "GB",
    "latitude": 51.5142,
    "longitude": -0.0931,
    "timezone": "Europe/London",
}


def database(file: Path, networks: dict[str, dict[str, Any]], ip_version: int = 6) -> Path:
    writer = MMDBWriter(ip_version=ip_version, ipv4_compatible=ip_version == 6, float_type="f64")
    for network, record in networks.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(file))
    return file


def enricher(*databases: Path, **switches: Any) -> Enricher:
    config = EnrichConfig(geo=GeoConfig(database=list(databases)), **switches)
    return Enricher(config, list(declared_enrichments().values()))


def enriched(run: Enricher, context: dict[str, Any], ip: str | None = None, agent: str | None = None) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(run(json.dumps(context).encode(), RequestFacts(ip, agent)).context)
    return result


def test_every_enrichment_is_found_and_has_a_unique_order() -> None:
    found = declared_enrichments()
    assert sorted(found) == ["campaign", "geo", "user_agent"]
    assert len({enrichment.order for enrichment in found.values()}) == 3


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (MAXMIND_CITY, LONDON),
        (MAXMIND_ASN, {"asn": 1221, "organization": "Telstra Pty Ltd"}),
        (FLAT, {"city": "Lyon", "region": "Rhone", "countryCode": "FR", "latitude": 45.75, "longitude": 4.85}),
        (IPINFO, {"country": "Germany", "countryCode": "DE", "asn": 3320, "organization": "Telekom"}),
        ({"latitude": "45.5", "longitude": "x"}, {"latitude": 45.5}),
    ],
    ids=["maxmind city", "maxmind asn", "db-ip flat", "ipinfo", "numbers as text"],
)
def test_geo_reads_vendor_layouts(tmp_path: Path, record: dict[str, Any], expected: Any) -> None:
    run = enricher(database(tmp_path / "x.mmdb", {"81.2.69.160/27": record}))
    assert enriched(run, {}, "81.2.69.165")["location"] == expected
    assert "location" not in enriched(run, {}, "9.9.9.9")
    assert "location" not in enriched(run, {"ip": "8.8.8.888"}, "81.2.69.165")


def test_geo_takes_each_key_from_the_first_database_that_has_it(tmp_path: Path) -> None:
    city = database(tmp_path / "city.mmdb", {"81.2.69.160/27": MAXMIND_CITY}, ip_version=4)
    asn = database(tmp_path / "asn.mmdb", {"81.2.69.160/27": MAXMIND_ASN, "2001:db8::/32": MAXMIND_ASN})
    run = enricher(city, asn)
    assert enriched(run, {}, "81.2.69.161")["location"] == {**LONDON, "asn": 1221, "organization": "Telstra Pty Ltd"}
    assert enriched(run, {"ip": "::ffff:81.2.69.161"})["location"]["city"] == LONDON["city"]
    assert enriched(run, {}, "2001:db8::1")["location"]["asn"] == 1221  # the first database has only IPv4


def test_geo_reads_a_packaged_database() -> None:
    import _maxminddb_geolite2

    file = Path(str(_maxminddb_geolite2.__file__)).parent / "GeoLite2-City.mmdb"
    found = enriched(enricher(file), {"ip": "81.2.69.142"})["location"]
    assert (found["countryCode"], found["timezone"]) == ("GB", "Europe/London")


@pytest.mark.parametrize("content", [b"", b"no database", b"\x00" * 5000], ids=["empty", "text", "zeros"])
def test_invalid_database_raises_value_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.mmdb"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.mmdb is not a valid MaxMind database"):
        open_database(file)


def test_database_truncated_or_removed_while_in_use_is_still_read(tmp_path: Path) -> None:
    file = database(tmp_path / "x.mmdb", {"81.2.69.160/27": MAXMIND_CITY})
    run = enricher(file)
    with file.open("r+b") as stream:
        stream.truncate(10)
    assert enriched(run, {}, "81.2.69.161")["location"]["city"] == "London"
    file.unlink()
    assert enriched(run, {}, "81.2.69.162")["location"]["city"] == "London"


def test_corrupt_database_flags_the_hit_and_keeps_other_members(tmp_path: Path) -> None:
    file = database(tmp_path / "x.mmdb", {"81.2.69.160/27": MAXMIND_CITY})
    broken = tmp_path / "y.mmdb"
    shutil.copy(file, broken)
    content = bytearray(broken.read_bytes())
    start, end = content.index(b"London") - 60, content.rindex(b"\xab\xcd\xefMaxMind.com")
    content[start:end] = b"\xff" * (end - start)
    broken.write_bytes(content)
    run = enricher(broken)
    result = run(b'{"a":1,"userAgent":"curl/8.0"}', RequestFacts("81.2.69.161"))
    context = json.loads(result.context)
    assert result.failed == ["geo"]
    assert (context["a"], context["flags"], context["browser"]["name"]) == (1, ["geo_failed"], "curl")


def test_hit_passes_when_every_enrichment_fails() -> None:
    def broken(observed: Observed) -> Derived | None:
        raise RuntimeError("broken")

    run = Enricher(
        EnrichConfig(), [Enrichment(name, "", order, (name,), lambda c: broken) for order, name in enumerate("xyz")]
    )
    result = run(b'{"a": 1}', RequestFacts("192.0.2.1"))
    assert result.failed == ["x", "y", "z"]
    assert json.loads(result.context) == {
        "a": 1,
        "ip": "192.0.2.1",
        "flags": ["x_failed", "y_failed", "z_failed"],
    }


def test_results_are_cached_by_the_members_read_and_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.enrich.REMEMBERED", 4)
    asked: list[str | None] = []

    def derive(observed: Observed) -> Derived | None:
        assert observed.ip is None, "the enrichment does not read the address"
        asked.append(observed.user_agent)
        if len(asked) == 1:
            raise RuntimeError("not now")
        return Derived({"x": observed.user_agent})

    run = Enricher(EnrichConfig(), [Enrichment("x", "", 0, ("x",), lambda c: derive, reads=("user_agent",))])
    agents = ["a", "a", "a", "b", "c", "d", "e", "e", "a"]
    results = [enriched(run, {}, f"192.0.2.{number}", agent) for number, agent in enumerate(agents)]
    assert [result.get("x") for result in results] == [None, *agents[1:]]
    assert asked == ["a", "a", "b", "c", "d", "e", "a"]


@pytest.mark.parametrize(
    "agent",
    [
        *("okhttp/4.12.0", "Go-http-client/1.1", "axios/1.7.2", "node-fetch", "curl/8.5.0", "Wget/1.21.4"),
        *("python-requests/2.32.3", "python-httpx/0.27.0", "Python/3.11 aiohttp/3.9.5", "Python-urllib/3.11"),
        *("Apache-HttpClient/4.5.14 (Java/17.0.8)", "Jersey/2.25.1 (HttpUrlConnection 1.8.0_141)", "AHC/2.1"),
        *("got (https://github.com/sindresorhus/got)", "libwww-perl/6.72", "HTTPie/3.2.2", "GuzzleHttp/7"),
        *("Dart/3.3 (dart:io)", "PostmanRuntime/7.39.0", "analytics-node/6.3.0", "Amazon CloudFront", "Zapier"),
        *(
            "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Shopify-Captain-Hook",
            "WordPress/6.5.3; https://a.example",
        ),
    ],
)
def test_libraries_and_systems_that_send_hits_are_not_crawlers(agent: str) -> None:
    found = parse_user_agent(agent)
    assert found is not None
    assert found.members["bot"] is False and "device" not in found.members


@pytest.mark.parametrize(
    "agent",
    [
        "phpcrawl",
        "HTTrack 3.0x",
        "crawler4j",
        "colly - https://github.com/gocolly/colly",
        "rawweb-bot/1.0",
        "larbin_2.6.2",
    ],
)
def test_libraries_that_only_crawl_are_crawlers(agent: str) -> None:
    found = parse_user_agent(agent)
    assert found is not None and found.members["bot"] is True


def test_hit_without_user_agent_is_not_from_a_crawler() -> None:
    assert json.loads(enricher()(b"{}", RequestFacts()).context)["bot"] is False
    condition = Condition("event.value > 0 && !context.bot")  # of docs/how-to/route-hits.md
    routed = json.dumps({"event": {"value": 5}, "context": enriched(enricher(), {})}).encode()
    assert condition.holds(ConditionInputs([condition]).read(routed))


@pytest.mark.parametrize("name", ["test_ua", "test_os"])
def test_browsers_and_systems_match_the_tests_of_uap_core(name: str) -> None:
    cases = yaml.load((GOLDEN / "uap-core" / f"{name}.yaml").read_text(), Loader=yaml.CSafeLoader)["test_cases"]
    wrong = [case for case in cases if not _as_expected(case, "browser" if name == "test_ua" else "os")]
    share = 1 - len(wrong) / len(cases)
    print(f"{name}: {len(cases) - len(wrong)} of {len(cases)} cases, {share:.4%}")
    assert len(cases) > 250
    assert share >= 0.99, (share, wrong[:5])


def _as_expected(case: dict[str, Any], member: str) -> bool:
    derived = parse_user_agent(case["user_agent_string"])
    found = dict(derived.members.get(member, {})) if derived is not None else {}
    parts = []
    for part in ("major", "minor", "patch", "patch_minor"):
        if not case.get(part):
            break
        parts.append(case[part])
    expected = {"name": case["family"]} if case["family"] != "Other" else {}
    if expected and parts:
        expected["version"] = ".".join(parts)
        if member == "browser":
            expected["major"] = parts[0]
    if "patch_minor" not in case and "version" in found:  # the case does not specify a fourth part
        found["version"] = ".".join(found["version"].split(".")[: max(len(parts), 3)])
    return found == expected


@pytest.mark.parametrize(
    "case", yaml.safe_load((GOLDEN / "user_agents.yaml").read_text()), ids=lambda case: case["name"].replace(" ", "_")
)
def test_user_agent(case: dict[str, Any]) -> None:
    derived = parse_user_agent(case["user_agent"])
    assert (dict(derived.members) if derived is not None else None) == case["expect"]


@pytest.mark.parametrize(
    "case", yaml.safe_load((GOLDEN / "campaigns.yaml").read_text()), ids=lambda case: case["name"].replace(" ", "_")
)
def test_campaign(case: dict[str, Any]) -> None:
    assert read_campaign(case.get("url"), case.get("referrer")) == case["expect"]


def test_client_values_take_precedence_key_by_key() -> None:
    context = {
        "userAgent": CHROME,
        "browser": {"name": "Mine", "version": None},
        "os": "mine",
        "device": None,
        "bot": 1,
    }
    result = enriched(enricher(), context)
    assert result["browser"] == {"name": "Mine", "version": "126.0.0.0", "major": "126"}
    assert (result["os"], result["device"], result["bot"]) == ("mine", {"type": "desktop"}, 1)


def test_request_user_agent_is_the_fallback_and_enrichments_can_be_disabled() -> None:
    page = {"page": {"url": "https://a.example/?utm_source=s&utm_medium=m"}}
    assert enriched(enricher(), page, agent=CHROME)["browser"]["name"] == "Chrome"
    assert enriched(enricher(), {**page, "userAgent": "curl/8.0"}, agent=CHROME)["browser"]["name"] == "curl"
    assert enriched(enricher(user_agent=False, campaign=False), page, agent=CHROME) == page
    assert enriched(enricher(user_agent=False), page)["campaign"] == {"source": "s", "medium": "m"}


@pytest.mark.parametrize(
    "context",
    [
        {"userAgent": 7, "page": {"url": 8, "referrer": "https://www.google.com/"}},
        {"userAgent": {"a": 1}, "page": "x"},
        {"userAgent": [], "page": []},
        {"ip": 5, "userAgent": True},
    ],
)
def test_members_with_unexpected_types_are_kept_unchanged(context: dict[str, Any]) -> None:
    result = enriched(enricher(), context)
    assert {name: result[name] for name in context} == context
    assert "browser" not in result
