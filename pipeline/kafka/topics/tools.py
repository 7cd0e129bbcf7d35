"""Returns command lines of Kafka's own tools for the configured cluster. Pure."""

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
    """Return the start of a command line of `tool`, such as kafka-topics.sh, with address and client settings."""
    client = f" --command-config {CLIENT_FILE}" if _needs_client_file(kafka) else ""
    return f"{tool} --bootstrap-server {shlex.quote(kafka.servers)}{client}"


def grant_command(kafka: KafkaConfig, topic: str, operations: Iterable[str]) -> str:
    """Return the command that grants `operations` on `topic`; the reader replaces NAME by the principal."""
    granted = " ".join(f"--operation {operation}" for operation in operations)
    return f"{tool_command('kafka-acls.sh', kafka)} --add --allow-principal User:NAME {granted} --topic {topic}"


def client_file_hint(kafka: KafkaConfig) -> list[str]:
    """Return a line that explains CLIENT_FILE, if the commands use it."""
    if not _needs_client_file(kafka):
        return []
    return [f"({CLIENT_FILE}: the security settings of kafka.client, with the names that Kafka's Java clients use)"]


def tool_hints(kafka: KafkaConfig, lines: Iterable[str]) -> list[str]:
    """Return notes on Kafka's commands in `lines`: where the scripts are, and what CLIENT_FILE is."""
    if not any(".sh --bootstrap-server" in line for line in lines):
        return []
    return [_SCRIPTS_HINT, *client_file_hint(kafka)]


def _needs_client_file(kafka: KafkaConfig) -> bool:
    return any(name.startswith(_SECURITY) for name in kafka.client)
