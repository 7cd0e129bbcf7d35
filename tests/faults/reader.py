"""Records when each hit arrives for a read_committed reader."""

from __future__ import annotations

import json
import threading
import time

from confluent_kafka import Consumer, TopicPartition


class ArrivalReader:
    """Reads one deliveries topic in a thread."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int) -> None:
        self.arrived_at: dict[str, float] = {}
        self._stopping = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "arrivals",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "log_level": 0,
                "reconnect.backoff.max.ms": 500,
            }
        )
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopping.is_set():
            for message in self._consumer.consume(500, 0.1):
                if message.error() is None:
                    try:
                        marker = json.loads(message.value() or b"")["event"]["marker"]
                    except (ValueError, KeyError):
                        continue
                    self.arrived_at.setdefault(marker, time.time())
        self._consumer.close()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()
