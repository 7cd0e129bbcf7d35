"""Tests of loading the configuration file: every problem is reported at once, with its line."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

import pytest

from pipeline.config import Config, Watched
from pipeline.config.checked import input_files, load_checked
from pipeline.errors import ConfigurationError
from pipeline.registry import declared_destinations
from tests.unit.test_enrichments import MAXMIND_CITY, database

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "hitrouter.yaml"
BROKEN = Path(__file__).parent.parent / "golden" / "configurations"


def test_example_configuration_is_valid() -> None:
    config = load_checked(EXAMPLE, {"SHOP_TOKEN": "a", "BLOG_TOKEN": "b", "WEBHOOK_URL": "http://127.0.0.1/x"})
    assert (len(config.projects), len(config.connections)) == (2, 5)
    assert config.dedupe.window == 86_400


@pytest.mark.parametrize("file", sorted(BROKEN.glob("*.yaml")), ids=lambda file: file.stem)
def test_broken_file_is_refused_with_line_path_and_advice(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is named after its mistake and begins with the expected messages."""
    monkeypatch.chdir(BROKEN)
    expected = [line.removeprefix("# ") for line in file.read_text().splitlines() if line.startswith("# ")]
    assert expected
    with pytest.raises(ConfigurationError) as caught:
        load_checked(Path(file.name), {})
    assert [problem.removeprefix(file.name) for problem in caught.value.problems] == expected


def test_secret_variable_that_ends_with_line_break_is_refused_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text('projects: {shop: {tokens: ["${SHOP_TOKEN}"]}}')
    with pytest.raises(
        ConfigurationError, match=r"h\.yaml:1: projects\.shop\.tokens\.0: begins or ends with white space"
    ) as caught:
        load_checked(file, {"SHOP_TOKEN": "hunter2\n"})
    assert "hunter2" not in str(caught.value)


def test_trailing_white_space_is_allowed_in_texts_that_are_not_secrets(tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text("""\
connections:
  slack:
    destination: Slack
    when: |
      event.value > 0
    settings:
      url: https://hooks.slack.com/services/x
      text: |
        {event.name}
""")
    assert load_checked(file, {}).connections


def test_at_least_forty_broken_files_are_tested() -> None:
    assert len(list(BROKEN.glob("*.yaml"))) >= 40


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be read"):
        load_checked(tmp_path / "none.yaml")


def test_every_file_in_destinations_declares_a_destination() -> None:
    files = {file.stem for file in (EXAMPLE.parent.parent / "destinations").glob("*.py")} - {"__init__"}
    assert len(declared_destinations()) == len(files)


def test_input_files_are_relative_to_the_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "shop.json").write_text('{"type": "object"}')
    file = tmp_path / "h.yaml"
    file.write_text("projects: {shop: {tracking_plan: {schema: plans/shop.json}}}")
    config = load_checked(file, {})
    assert input_files(config) == [tmp_path / "plans" / "shop.json"]


def test_good_change_is_applied_and_bad_change_is_refused(tmp_path: Path) -> None:
    file, plan = tmp_path / "h.yaml", tmp_path / "plan.json"
    plan.write_text("{}")
    file.write_text("projects: {shop: {tracking_plan: {schema: plan.json}}}")
    watched = Watched(file, lambda path: load_checked(path, {}), input_files)
    first = watched.config
    assert watched.changed() is None
    plan.write_text('{"type": "strin"}')
    assert watched.changed() is None and watched.config is first
    plan.write_text('{"type": "object"}')
    assert watched.changed() is not None
    file.write_text("connections: {a: {destination: Nope}}")
    assert watched.refused is None
    assert watched.changed() is None
    assert watched.refused is not None and "h.yaml:1: connections.a.destination" in watched.refused[0]
    assert watched.changed() is None and watched.refused is not None
    file.write_text("kafka: {partitions: 9}\nconnections: {a: {destination: Kafka}}")
    changed = watched.changed()
    assert changed is not None and list(changed.connections) == ["a"]
    assert watched.refused is None
    assert changed.kafka.partitions == first.kafka.partitions, "the kafka section needs a restart"
    assert changed.version != first.version
    assert watched.changed() is None


def test_version_covers_content_but_not_paths_of_plans_and_databases(tmp_path: Path) -> None:
    def version(folder: str, plan: str, city: str, when: str = "true") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "plan.json").write_text(plan)
        database(tmp_path / folder / "x.mmdb", {"192.0.2.0/24": {"city": city}})
        file = tmp_path / folder / "h.yaml"
        file.write_text(
            "{projects: {shop: {tracking_plan: {schema: plan.json}}}, enrich: {geo: {database: x.mmdb}},"
            f" connections: {{a: {{destination: Kafka, when: '{when}'}}}}}}"
        )
        return load_checked(file, {}).version

    first = version("here", "{}", "Leeds")
    others = [
        version("here", '{"type": "object"}', "Leeds"),
        version("here", "{}", "Lyon"),
        version("here", "{}", "Leeds", "false"),
    ]
    assert len({first, *others}) == 4
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert load_checked(tmp_path / "there" / "h.yaml", {}).version == others[-1]


def test_retention_does_not_change_the_version() -> None:
    kept = [Config.model_validate({"connections": {"a": {"destination": "Kafka", **more}}}).version for more in _KEPT]
    assert kept[0] == kept[1] != kept[2]


_KEPT: list[dict[str, str]] = [{}, {"retention": "14d"}, {"when": "true"}]


def test_version_with_missing_plan_is_applied_once_the_plan_exists(tmp_path: Path) -> None:
    file, plan = tmp_path / "h.yaml", tmp_path / "plan.json"
    file.write_text("projects: {shop: {}}")
    watched = Watched(file, lambda path: load_checked(path, {}), input_files)
    file.write_text("projects: {shop: {tracking_plan: {schema: plan.json}}}")
    assert watched.changed() is None
    plan.write_text('{"type": "strin"}')
    assert watched.changed() is None
    assert watched.changed() is None
    plan.write_text('{"type": "string"}')
    changed = watched.changed()
    assert changed is not None and changed.projects["shop"].tracking_plan is not None


def test_files_that_a_plan_refers_to_are_watched_and_part_of_the_version(tmp_path: Path) -> None:
    file, other = tmp_path / "h.yaml", tmp_path / "plans" / "order.json"
    other.parent.mkdir()
    file.write_text("projects: {shop: {tracking_plan: {schema: plans/shop.json}}}")
    (tmp_path / "plans" / "shop.json").write_text('{"$ref": "order.json"}')
    other.write_text('{"type": "object"}')
    watched = Watched(file, lambda path: load_checked(path, {}), input_files)
    assert input_files(watched.config) == [tmp_path / "plans" / "shop.json", other]
    first = watched.config.version
    assert watched.changed() is None
    other.write_text('{"type": "strin"}')
    assert watched.changed() is None and watched.refused is not None
    other.unlink()
    assert watched.changed() is None
    other.write_text('{"required": ["total"]}')
    changed = watched.changed()
    assert changed is not None and changed.version != first


def test_rename_by_an_editor_and_symlink_of_a_config_map_are_changes(tmp_path: Path) -> None:
    """Editors rename a new file over the old one. Kubernetes replaces `..data`, a link in the path of the file."""
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "h.yaml").write_text(f"connections: {{{version}: {{destination: Kafka}}}}")
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "h.yaml").symlink_to("..data/h.yaml")
    watched = Watched(tmp_path / "h.yaml", lambda path: load_checked(path, {}), input_files)
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").replace(tmp_path / "..data")
    swapped = watched.changed()
    assert swapped is not None and list(swapped.connections) == ["two"]
    (tmp_path / "h.yaml~").write_text("connections: {three: {destination: Kafka}}")
    (tmp_path / "h.yaml~").replace(tmp_path / "h.yaml")
    renamed = watched.changed()
    assert renamed is not None and list(renamed.connections) == ["three"]
    (tmp_path / "h.yaml").unlink()
    assert watched.changed() is None and watched.config is renamed


_YAML = re.compile(r"^( *)```yaml\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_ROOT = EXAMPLE.parent.parent
_WITH_YAML = [
    str(page.relative_to(_ROOT))
    for page in [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]
    if _YAML.search(page.read_text())
]


@pytest.mark.parametrize("file", _WITH_YAML)
def test_configurations_in_the_documents_are_valid(file: str, tmp_path: Path) -> None:
    blocks = [textwrap.dedent(block) for _, block in _YAML.findall((_ROOT / file).read_text())]
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "shop.json").write_text("{}")
    for name in ("GeoLite2-City.mmdb", "GeoLite2-ASN.mmdb"):
        database(tmp_path / name, {"192.0.2.0/24": MAXMIND_CITY})
    for block in blocks:
        config = tmp_path / "hitrouter.yaml"
        config.write_text(block)
        assert load_checked(
            config, dict.fromkeys(re.findall(r"\$\{(\w+)\}", block), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        ).connections


SHORT = """\
kafka:
  retention:
    hits_raw: 2d
    deliveries: 3d
    dead_letters: 60d
dedupe: {window: 3d}
connections:
  crm:
    destination: Webhook
    settings: {url: "https://crm.example/hits"}
    retention: 1h
  ads:
    destination: Webhook
    settings: {url: "https://ads.example/hits"}
    delivery: {give_up_after: 7d}
  mail:
    destination: Webhook
    settings: {url: "https://mail.example/hits"}
    retention: 1d
  all: {destination: Kafka, retention: 1h}
"""


def test_too_short_retention_gets_a_warning_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "h.yaml"
    file.write_text(SHORT)
    warnings: list[str] = []
    load_checked(file, {}, warn=warnings.append)
    where = [line.removeprefix(f"{file}:").split(" is shorter than ")[0] for line in warnings]
    assert where == [
        "2: kafka.retention.ledger: 30 d",
        "3: kafka.retention.hits_raw: 2 d",
        "11: connections.crm.retention: 1 h",
        "12: connections.ads.retention: 3 d from kafka.retention.deliveries",
    ]
    assert "kafka.retention.dead_letters, 60 d: " in warnings[0] and warnings[0].endswith("make it at least 60 d")
    assert "dedupe.window, 3 d, which is used instead; set it to at least" in warnings[1]
    assert "delivery.give_up_after, 1 d: waiting hits expire before" in warnings[2]
    assert "delivery.give_up_after, 7 d: " in warnings[3]


@pytest.mark.parametrize(
    ("url", "delivery", "is_warned_of"),
    [
        ("http://127.0.0.1:8000/hits", "{}", True),
        ("http://localhost:8000/hits", "{}", True),
        ("http://[fd00::1]/hits", "{}", True),
        ("http://127.0.0.1:8000/hits", "{allow_private: true}", False),
        ("https://crm.example/hits", "{}", False),
        ("${URL}", "{}", False),
    ],
)
def test_private_address_without_permission_gets_a_warning(
    tmp_path: Path, url: str, delivery: str, is_warned_of: bool
) -> None:
    file = tmp_path / "h.yaml"
    connection = f'crm: {{destination: Webhook, settings: {{url: "{url}"}}, delivery: {delivery}}}'
    file.write_text(f"connections:\n  {connection}\n")
    warnings: list[str] = []
    load_checked(file, {}, warn=warnings.append, secrets_needed=False)
    wanted = "connections.crm.settings.url: the address is in a private network, so every request is refused; "
    assert warnings == ([f"{file}:2: {wanted}set delivery.allow_private to allow it"] if is_warned_of else [])


def test_example_and_defaults_get_no_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    load_checked(
        EXAMPLE, {"SHOP_TOKEN": "a", "BLOG_TOKEN": "b", "WEBHOOK_URL": "http://127.0.0.1/x"}, warn=warnings.append
    )
    (tmp_path / "h.yaml").write_text("{}")
    load_checked(tmp_path / "h.yaml", {}, warn=warnings.append)
    assert warnings == []
