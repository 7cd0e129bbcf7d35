"""The exceptions of this package. Their docstrings state what must happen next.

The result of one hit is data (an outcome, a dead letter), never one of these exceptions.
"""

from __future__ import annotations


class HitrouterError(Exception):
    """Base class of all errors that this package raises deliberately."""


class ConfigurationError(HitrouterError):
    """The operator must change the configuration. `problems` holds one printable line per problem.

    `rest` is the configuration without its invalid parts, or None. The files that it names can be the cause of the problems.
    """

    def __init__(self, problems: list[str], rest: object = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.rest = rest


class InvalidHit(HitrouterError):
    """The sender must change the hit (contract.md, sections 1 and 3).

    `reason` is a code of the contract's table (`invalid_json`, `invalid_hit`, ...). `path` is the path in the document, such as
    `integrations.Webhook`; "" is the document itself.
    """

    def __init__(self, reason: str, message: str, path: str = "") -> None:
        super().__init__(f"{reason} at {path or 'the document'}: {message}")
        self.reason = reason
        self.message = message
        self.path = path


class StaleBatch(HitrouterError):
    """The batch's partitions were revoked, or the previous transaction was aborted. Drop the batch and continue.

    Its records are read again, by this worker or another one.
    """


class TransactionAborted(HitrouterError):
    """The open transaction was aborted; its records are read again from the committed offsets."""


class RecordsRefused(TransactionAborted):
    """The transaction was aborted because the broker refuses the content of a record. A retry of the same batch would fail again."""


class RecordTooLarge(HitrouterError):
    """A record is larger than the producer's limit. It was not queued, and the transaction stays usable."""


class ContentError(HitrouterError):
    """The content of a record makes its batch fail, so a retry would fail again. Find the faulty record with smaller batches."""


class OutcomeUnknown(HitrouterError):
    """The producer was replaced during a commit. Read the group's committed offsets to learn whether the transaction was committed."""


class WorkerMustRestart(HitrouterError):
    """This process cannot continue safely (fenced, fatal client error). Exit; the supervisor restarts it."""


class Stopping(HitrouterError):
    """This process is shutting down, so a long operation was cancelled."""


class BrokerUnavailable(HitrouterError):
    """Kafka did not respond, or could not be started. The message states the address and what to do."""


class KafkaRefuses(BrokerUnavailable):
    """Kafka responds, but refuses the request, for example for lack of permission. The message states what to grant or do."""


class IntakeUnavailable(HitrouterError):
    """No intake responds on its admin address. The message states the address and what to do."""


class TopicMismatch(HitrouterError):
    """An existing topic has settings that break the guarantees. Nothing was changed; the message has a command per difference."""


class RegistryUnavailable(HitrouterError):
    """The schema registry did not respond. The batch is retried, and no hit is lost."""
