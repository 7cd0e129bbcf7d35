"""Exceptions, named by what has to happen next.

What happens to one hit is data (an outcome, a dead letter), never one of these.
"""

from __future__ import annotations


class HitrouterError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(HitrouterError):
    """The operator must change the configuration. `problems` holds one line each, ready to print.

    `rest` is the configuration without what is wrong, where there is one: the files that it names may be what is wrong.
    """

    def __init__(self, problems: list[str], rest: object = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.rest = rest


class InvalidHit(HitrouterError):
    """The sender must change the hit (contract.md, sections 1 and 3).

    `reason` is a code of the contract's table (`invalid_json`, `invalid_hit`, ...), `path` the place in the
    document, such as `integrations.Webhook`, or "" for the document itself.
    """

    def __init__(self, reason: str, message: str, path: str = "") -> None:
        super().__init__(f"{reason} at {path or 'the document'}: {message}")
        self.reason = reason
        self.message = message
        self.path = path


class StaleBatch(HitrouterError):
    """The batch's partitions were revoked, or its transaction's predecessor was aborted: forget it and go on.

    Its records are read again, here or by another worker.
    """


class TransactionAborted(HitrouterError):
    """The open transaction was aborted; its records are read again from the committed offsets."""


class RecordsRefused(TransactionAborted):
    """As TransactionAborted, because the broker refuses a record for what it holds: it would do so again."""


class RecordTooLarge(HitrouterError):
    """A record is larger than the producer takes. It was not queued, and the transaction stays usable."""


class ContentError(HitrouterError):
    """A batch fails for what its records hold, so it would fail again: find the record at fault in smaller batches."""


class OutcomeUnknown(HitrouterError):
    """The producer was replaced during a commit; the group's committed offsets say whether the transaction was committed."""


class WorkerMustRestart(HitrouterError):
    """This process can't go on safely (fenced, fatal client error): end it; its supervisor starts it again."""


class Stopping(HitrouterError):
    """This process is being stopped: what takes long is given up."""


class BrokerUnavailable(HitrouterError):
    """Kafka did not answer, or could not be started; the message says where and what to do."""


class KafkaRefuses(BrokerUnavailable):
    """Kafka answers and refuses, such as without a permission; the message says what to grant or to do."""


class IntakeUnavailable(HitrouterError):
    """No intake answers on its admin address; the message says where and what to do."""


class TopicMismatch(HitrouterError):
    """An existing topic breaks the promise; nothing was changed, and the message holds the command for each difference."""


class RegistryUnavailable(HitrouterError):
    """The schema registry did not answer; the batch is tried again, nothing is lost."""
