"""Models of the configuration file; pipeline/config/file_schema.py generates its JSON Schema from them."""

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
    """Base of all sections of the file: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_boolean_as_number(cls, value: object, info: ValidationInfo) -> object:
        # pydantic converts True to 1.
        if isinstance(value, bool) and _takes_number(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("must be a number; YAML reads yes, no, on and off as true or false")
        return value


_RECORD_BYTES = 600_000
"""The largest record written: the dead letter of a message of half a megabyte from a batch, with its headers."""
_DAY_SECONDS = 86_400.0


class RetentionConfig(Strict):
    """Minimum time that each kind of topic keeps its records; Kafka removes them later, in whole segments.

    `hits_raw` is never shorter than `dedupe.window`. The retention of `seen-hits` is derived from that window.
    """

    hits_raw: Retention = 7 * _DAY_SECONDS
    deliveries: Retention = 7 * _DAY_SECONDS
    dead_letters: Retention = 30 * _DAY_SECONDS
    ledger: Retention = 30 * _DAY_SECONDS


class KafkaConfig(Strict):
    """How to reach Kafka; `embedded` starts a broker on this machine."""

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
    def _allow_every_record(cls, client: dict[str, Property]) -> dict[str, Property]:
        limit = str(client.get("message.max.bytes", _RECORD_BYTES))
        if limit.isdigit() and int(limit) < _RECORD_BYTES:
            # A hit too large to produce would get 503 for ever, and block the spilled hits behind it.
            raise ValueError(f"message.max.bytes must be at least {_RECORD_BYTES}, the largest record written")
        return client

    @property
    def servers(self) -> str:
        """The bootstrap servers, as `host:port,host:port`."""
        return self.listen if self.bootstrap_servers == "embedded" else self.bootstrap_servers


class SpillConfig(Strict):
    """Where hits wait with `on_kafka_failure: spill`; each slot of the intake has a subfolder of `folder`."""

    folder: Path = Path("./data/spill")
    max_bytes: Annotated[int, Field(ge=1_000_000)] = 2 * 1024**3


class IntakeConfig(Strict):
    """The public HTTP endpoint; `up` starts `workers` processes that share the port."""

    listen: Address = "127.0.0.1:8080"
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    on_kafka_failure: Literal["reject", "spill"] = "reject"
    spill: SpillConfig = SpillConfig()
    trusted_proxies: list[Network] = []
    connections_per_address: Annotated[int, Field(ge=1)] = 1_000
    public_url: PublicUrl | None = None


class AdminConfig(Strict):
    """Health and metrics, separate from the public port; pipeline/config/addresses.py computes the port of each worker."""

    listen: Address = "127.0.0.1:8081"


class DedupeConfig(Strict):
    """How long a hitId is remembered (contract.md, section 5)."""

    window: Annotated[Seconds, Field(ge=1)] = 86400.0


class IpConfig(Strict):
    """Source of `context.ip`, and whether it is anonymized (contract.md, section 4)."""

    from_request: bool = True
    anonymize: bool = False


class GeoConfig(Strict):
    """Locations of addresses. `database` names one or more .mmdb files (city, ASN); without one, this is off."""

    database: Annotated[list[InputFile], BeforeValidator(_listed, json_schema_input_type=str | list[str] | None)] = []


class EnrichConfig(Strict):
    """Switches of the enrichments (contract.md, section 4)."""

    ip: IpConfig = IpConfig()
    geo: GeoConfig = GeoConfig()
    user_agent: bool = True
    campaign: bool = True


class TrackingPlanConfig(Strict):
    """A tracking plan: `schema` names a file with a JSON Schema of `event`, or with one per event name.

    `on_violation` says what to do with an event that violates it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    file: Annotated[PlanFile, Field(alias="schema")]
    on_violation: Literal["warn", "strip", "quarantine"] = "warn"
    _copies: Mapping[Path, Path] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        self._copies = (context or {}).get(COPIES, {})

    @cached_property
    def files(self) -> PlanFiles:
        """The file of the plan, and those that it refers to."""
        return PlanFiles(self.file, self._copies)


class CollectConfig(Strict):
    """Which pages can send by the public doors: /collect, and `public_keys` in browsers. `enabled` applies to /collect only."""

    enabled: bool = True
    origins: Annotated[list[Origin], Field(min_length=1)] = ["*"]


_PerSecond = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
_Burst = Annotated[int, Field(ge=1)] | None


class RateLimitConfig(Strict):
    """How much one project can send through one kind of door. None means no limit; a burst defaults to ten seconds' worth."""

    hits_per_second: _PerSecond = None
    hits_burst: _Burst = None
    bytes_per_second: _PerSecond = None
    bytes_burst: _Burst = None

    @model_validator(mode="after")
    def _burst_needs_rate(self) -> RateLimitConfig:
        for name in ("hits", "bytes"):
            if getattr(self, f"{name}_burst") is not None and getattr(self, f"{name}_per_second") is None:
                raise ValueError(f"{name}_burst has no effect without {name}_per_second; give both or neither")
        return self


class PublicRateLimitConfig(RateLimitConfig):
    """As RateLimitConfig, with default limits, since anybody can send through a public door."""

    hits_per_second: _PerSecond = 1_000.0
    bytes_per_second: _PerSecond = 5_000_000.0


class LimitsConfig(Strict):
    """Limits for all intake workers of one machine together; each worker enforces its share."""

    public: PublicRateLimitConfig = PublicRateLimitConfig()
    secret: RateLimitConfig = RateLimitConfig()


class ProjectConfig(Strict):
    """A sender of hits: servers use `tokens`, which are secret; browsers and apps use `public_keys`, which anybody can read."""

    tokens: list[Token] = []
    public_keys: list[Token] = []
    collect: CollectConfig = CollectConfig()
    data_streams: list[DataStream] = []
    limits: LimitsConfig = LimitsConfig()
    tracking_plan: TrackingPlanConfig | None = None


class DeliveryConfig(Strict):
    """Rate, retries and permitted addresses of a connection's deliverer (contract.md, section 6).

    After `give_up_misconfigured_after` of 401, 403 or 410 a hit becomes a dead letter; None means that it waits for the operator.
    `longest_backoff` is the maximum time until a recovered destination is tried again. `allow_private` permits requests to
    private networks and to this machine.
    """

    max_in_flight: Annotated[int, Field(ge=1, le=256)] = 32
    rate: Rate | None = None
    give_up_after: Seconds = 86400.0
    give_up_misconfigured_after: Seconds | None = None
    longest_backoff: Annotated[Seconds, Field(ge=1)] = 300.0
    allow_private: bool = False


class ConnectionConfig(Strict):
    """A configured destination with its own topic. The destination's model checks `settings`.

    `events`, `when` and `sample` select hits (contract.md, section 3); `drop_fields` are paths to remove from them.
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
        """The configuration's version: 12 hex digits of a hash of all that affects hits, including plans and databases.

        Each routed hit has it as a header. The hash covers the content of files at the first access to this property, and not their paths.
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
        """The plans, the files that they refer to, and the databases."""
        plans = [project.tracking_plan.files for _, project in sorted(self.projects.items()) if project.tracking_plan]
        return [*(plan.copy_of(path) for plan in plans for path in plan.paths), *self.enrich.geo.database]


def _content_digest(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return file_digest(stream, blake2b).digest()
    except OSError:  # removed after the check
        return b"-"
