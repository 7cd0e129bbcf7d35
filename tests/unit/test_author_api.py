"""The names that a destination file can import from `pipeline.destination`; authors rely on them."""

from __future__ import annotations

import pipeline.destination

NAMES = """
AnyOptions BigQuery ClickHouse Delivered Delivery Destination Event Files Http HttpRequest HttpResponse HttpUrl Limits
Misconfigured NoSettings Options Outcome Postgres Rejected Retry RoutedHit Settings Sink Skipped Verdict encode_json fitting_id
json_list judge
"""


def test_exported_names_of_the_destination_contract() -> None:
    assert sorted(pipeline.destination.__all__) == sorted(NAMES.split())
    assert all(hasattr(pipeline.destination, name) for name in pipeline.destination.__all__)
