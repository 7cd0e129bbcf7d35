"""The configuration file as typed values; pipeline/file_schema.py publishes their JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.config.plan_files import PlanFiles
from pipeline.config.values import (
    COPIES,
    Address,
    DataStream,
    HttpUrl,
    InputFile,
    Name,
    Network,
    Origin,
    PlanFile,
    Prefix,
    Property,
    PublicUrl,
    Rate,
    Retention,
    Seconds,
    Token,
)


def _takes_number(annotation: Any) -> bool:
    within = () if get_origin(annotation) is dict else get_args(annotation)
    return annotation in (int, float) or any(map(_takes_number, within))


def _listed(value: object) -> object:
    if value is None:
        return []
    return [value] if isinstance(value, str | Path) else value


class Strict(BaseModel):
    """A section of the file: unknown keys are refused, values don't change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_word_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        # pydantic takes True for 1.
        if isinstance(value, bool) and _takes_number(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("must be a number; YAML reads yes, no, on and off as true or false")
        return value


_RECORD_BYTES = 600_000
"""A message of half a megabyte that a batch brought, with its headers: it becomes a dead letter."""
_DAY_SECONDS = 86_400.0


class RetentionConfig(Strict):
    """How long each kind of topic keeps its records at least; Kafka removes them later, by whole segments.

    `hits_raw` is never shorter than `dedupe.window`. `seen-hits` is not here: its retention follows from that window.
    """

    hits_raw: Retention = 7 * _DAY_SECONDS
    deliveries: Retention = 7 * _DAY_SECONDS
    dead_letters: Retention = 30 * _DAY_SECONDS
    ledger: Retention = 30 * _DAY_SECONDS


class KafkaConfig(Strict):
    """How to reach Kafka; `embedded` starts one on this machine."""

    bootstrap_servers: str = "embedded"
    listen: Address = "127.0.0.1:9092"
    data: Path = Path("./data/kafka")
    topic_prefix: Prefix = ""
    partitions: Annotated[int, Field(ge=1, le=1000)] = 4
    replication_factor: Annotated[int, Field(ge=1, le=9)] = 1
    retention: RetentionConfig = RetentionConfig()
    client: dict[str, Property] = {}
    schema_registry: HttpUrl | None = None

    @field_validator("client")
    @classmethod
    def _takes_every_record(cls, client: dict[str, Property]) -> dict[str, Property]:
        limit = str(client.get("message.max.bytes", _RECORD_BYTES))
        if limit.isdigit() and int(limit) < _RECORD_BYTES:
            # A hit that can't be produced would be answered 503 for ever, and keep the spilled ones behind it.
            raise ValueError(f"message.max.bytes is at least {_RECORD_BYTES}: so large a record can be")
        return client

    @property
    def servers(self) -> str:
        """The bootstrap servers that clients connect to: `host:port,host:port`."""
        return self.listen if self.bootstrap_servers == "embedded" else self.bootstrap_servers


class SpillConfig(Strict):
    """Where hits wait with `on_kafka_failure: spill`; each slot of the intake has a folder of its own below `folder`."""

    folder: Path = Path("./data/spill")
    max_bytes: Annotated[int, Field(ge=1_000_000)] = 2 * 1024**3


class IntakeConfig(Strict):
    """The public HTTP door; `up` starts `workers` processes that share the port."""

    listen: Address = "127.0.0.1:8080"
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    on_kafka_failure: Literal["reject", "spill"] = "reject"
    spill: SpillConfig = SpillConfig()
    trusted_proxies: list[Network] = []
    connections_per_address: Annotated[int, Field(ge=1)] = 1_000
    public_url: PublicUrl | None = None


class AdminConfig(Strict):
    """Health and metrics, never on the public port; see pipeline/config/addresses.py for the port of each worker."""

    listen: Address = "127.0.0.1:8081"


class DedupeConfig(Strict):
    """How long a hitId is remembered (contract.md, section 5)."""

    window: Annotated[Seconds, Field(ge=1)] = 86400.0


class IpConfig(Strict):
    """Where `context.ip` comes from, and how it is cut (contract.md, section 4)."""

    from_request: bool = True
    anonymize: bool = False


class GeoConfig(Strict):
    """`database` names .mmdb files, one or several (a city's and an ASN's); none switches it off."""

    database: Annotated[list[InputFile], BeforeValidator(_listed, json_schema_input_type=str | list[str] | None)] = []


class EnrichConfig(Strict):
    """Switches of the enrichments (contract.md, section 4)."""

    ip: IpConfig = IpConfig()
    geo: GeoConfig = GeoConfig()
    user_agent: bool = True
    campaign: bool = True


class TrackingPlanConfig(Strict):
    """`schema` names a JSON Schema of `event`, or one per event name; what to do with an event that breaks it."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    file: Annotated[PlanFile, Field(alias="schema")]
    on_violation: Literal["warn", "strip", "quarantine"] = "warn"
    _copies: Mapping[Path, Path] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        self._copies = (context or {}).get(COPIES, {})

    @cached_property
    def files(self) -> PlanFiles:
        """The plan's own file, and those that it refers to."""
        return PlanFiles(self.file, self._copies)


class CollectConfig(Strict):
    """Which pages may send by the public doors: /collect, and `public_keys` in browsers. `enabled` is about /collect alone."""

    enabled: bool = True
    origins: Annotated[list[Origin], Field(min_length=1)] = ["*"]


_PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
_Burst = Annotated[int, Field(ge=1)] | None


class RateLimitConfig(Strict):
    """How much one project may send through one kind of door. None: no limit; a burst is ten seconds' worth unless given."""

    hits_per_second: _PerSecond = None
    hits_burst: _Burst = None
    bytes_per_second: _PerSecond = None
    bytes_burst: _Burst = None

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> RateLimitConfig:
        for name in ("hits", "bytes"):
            if getattr(self, f"{name}_burst") is not None and getattr(self, f"{name}_per_second") is None:
                raise ValueError(f"{name}_burst does nothing without {name}_per_second; give both, or neither")
        return self


class PublicRateLimitConfig(RateLimitConfig):
    """The same with defaults, since anybody may send through a public door."""

    hits_per_second: _PerSecond = 1_000.0
    bytes_per_second: _PerSecond = 5_000_000.0


class LimitsConfig(Strict):
    """Of all intake workers of one machine together; each takes its part."""

    public: PublicRateLimitConfig = PublicRateLimitConfig()
    secret: RateLimitConfig = RateLimitConfig()


class ProjectConfig(Strict):
    """Who sends: servers by `tokens`, which are secret; browsers and apps by `public_keys`, which anybody may read."""

    tokens: list[Token] = []
    public_keys: list[Token] = []
    collect: CollectConfig = CollectConfig()
    data_streams: list[DataStream] = []
    limits: LimitsConfig = LimitsConfig()
    tracking_plan: TrackingPlanConfig | None = None


class DeliveryConfig(Strict):
    """How a connection's deliverer behaves (contract.md, section 6).

    `give_up_misconfigured_after`: a hit that was answered 401, 403 or 410 for so long is a dead letter; None: the operator's turn.
    `longest_backoff`: so long at most a destination that has come back is left alone. `allow_private` lets requests go to
    private networks and to this machine.
    """

    max_in_flight: Annotated[int, Field(ge=1, le=256)] = 32
    rate: Rate | None = None
    give_up_after: Seconds = 86400.0
    give_up_misconfigured_after: Seconds | None = None
    longest_backoff: Annotated[Seconds, Field(ge=1)] = 300.0
    allow_private: bool = False


class ConnectionConfig(Strict):
    """A configured destination with its own topic. `settings` are checked by the destination's own model.

    `events`, `when` and `sample` choose hits (contract.md, section 3); `drop_fields` are paths that its hits go without.
    """

    destination: str
    projects: Annotated[list[Name], Field(min_length=1)] | None = None
    settings: dict[str, Any] = {}
    events: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    when: str | None = None
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    drop_fields: list[str] = []
    format: Literal["json", "avro"] = "json"
    partitions: Annotated[int, Field(ge=1, le=1000)] | None = None
    retention: Retention | None = None
    delivery: DeliveryConfig = DeliveryConfig()


class Config(Strict):
    """The whole file."""

    kafka: KafkaConfig = KafkaConfig()
    intake: IntakeConfig = IntakeConfig()
    admin: AdminConfig = AdminConfig()
    dedupe: DedupeConfig = DedupeConfig()
    enrich: EnrichConfig = EnrichConfig()
    projects: dict[Name, ProjectConfig] = {}
    connections: dict[Name, ConnectionConfig] = {}

    @cached_property
    def version(self) -> str:
        """12 hex digits of a hash of what decides about hits, plans and databases too; each routed hit bears it.

        Files count by what is in them when this is first asked, wherever they are.
        """
        left_out: Any = {
            "projects": {"__all__": {"tracking_plan": {"file"}, "limits": True}},
            "enrich": {"geo"},
            "connections": {"__all__": {"retention"}},
        }
        decides = self.model_dump(mode="json", include={"enrich", "projects", "connections"}, exclude=left_out)
        digest = blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=6)
        for file in self.input_files:
            digest.update(_content_digest(file))
        return digest.hexdigest()

    @property
    def input_files(self) -> list[Path]:
        """The plans, what they refer to, and the databases: they decide about hits, too."""
        plans = [project.tracking_plan.files for _, project in sorted(self.projects.items()) if project.tracking_plan]
        return [*(plan.copy_of(path) for plan in plans for path in plan.paths), *self.enrich.geo.database]


def _content_digest(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return file_digest(stream, blake2b).digest()
    except OSError:  # gone since it was checked
        return b"-"
