"""How Kafka's own tools are called for the cluster of the configuration. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pipeline.config.models import KafkaConfig

CLIENT_FILE = "client.properties"
_SCRIPTS_HINT = (
    "(kafka-*.sh: in bin/ of Kafka's download, https://kafka.apache.org/downloads; "
    "any version that is not older than the broker's)"
)
_SECURITY = ("security.", "sasl.", "ssl.")


def tool_command(tool: str, kafka: KafkaConfig) -> str:
    """Return the beginning of a call of `tool`, such as kafka-topics.sh, with the address and the client's settings."""
    client = f" --command-config {CLIENT_FILE}" if _needs_client_file(kafka) else ""
    return f"{tool} --bootstrap-server {shlex.quote(kafka.servers)}{client}"


def grant_command(kafka: KafkaConfig, topic: str, operations: Iterable[str]) -> str:
    """Return the command that grants `operations` on `topic`; the reader fills the principal in."""
    granted = " ".join(f"--operation {operation}" for operation in operations)
    return f"{tool_command('kafka-acls.sh', kafka)} --add --allow-principal User:NAME {granted} --topic {topic}"


def client_file_hint(kafka: KafkaConfig) -> list[str]:
    """Return a line that says what CLIENT_FILE is, where the commands name it."""
    if not _needs_client_file(kafka):
        return []
    return [f"({CLIENT_FILE}: the security settings of kafka.client, in the names of Kafka's Java clients)"]


def tool_hints(kafka: KafkaConfig, lines: Iterable[str]) -> list[str]:
    """Return what a reader must know about the commands of Kafka among `lines`: where the scripts are, what CLIENT_FILE is."""
    if not any(".sh --bootstrap-server" in line for line in lines):
        return []
    return [_SCRIPTS_HINT, *client_file_hint(kafka)]


def _needs_client_file(kafka: KafkaConfig) -> bool:
    return any(name.startswith(_SECURITY) for name in kafka.client)
