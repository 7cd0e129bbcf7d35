"""kill -9 of the deliverer, three times; `make prove` does it twenty times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config.models import Config
from tests.bigquery import running_bigquery
from tests.buckets import new_bucket, running_s3
from tests.faults.delivering import Backends, connections, run_deliver_kills, start_fault_server
from tests.postgres import new_database


def test_kill_9_of_the_deliverer_keeps_the_guarantee_of_each_sink(
    make_config: Callable[..., Config], tmp_path: Path, postgres: Any, clickhouse: str
) -> None:
    server, stop = start_fault_server()
    try:
        with running_s3() as s3, running_bigquery() as bigquery:
            dsn = new_database(postgres, "deliver_kills")
            backends = Backends(server, dsn, clickhouse, new_bucket(s3, "kills"), bigquery)
            config = make_config(connections(backends, tmp_path))
            report = run_deliver_kills(config, backends, tmp_path, kills=3, rate=200, seed=3)
    finally:
        stop()
    assert report.problems == []
    assert report.hits > 500
