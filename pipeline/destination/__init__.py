"""The contract for destination authors: a destination is one file in `destinations/` with one `Destination`.

The file declares settings, options and limits, and three pure functions: they turn a hit into an event, several events into a request,
and a response into outcomes. The deliverer handles retries, batches, rates, HTTP connections, clocks and dead letters.
"""

from __future__ import annotations

from pipeline.config.values import HttpUrl
from pipeline.destination.declaration import Destination
from pipeline.destination.delivery import Delivery, Event
from pipeline.destination.http import Http, HttpRequest, HttpResponse, Limits, encode_json, fitting_id, json_list, judge
from pipeline.destination.outcomes import Delivered, Misconfigured, Outcome, Rejected, Retry, Skipped, Verdict
from pipeline.destination.routed_hit import RoutedHit
from pipeline.destination.settings import AnyOptions, NoSettings, Options, Settings
from pipeline.destination.sinks import BigQuery, ClickHouse, Files, Postgres, Sink

__all__ = [
    "AnyOptions",
    "BigQuery",
    "ClickHouse",
    "Delivered",
    "Delivery",
    "Destination",
    "Event",
    "Files",
    "Http",
    "HttpRequest",
    "HttpResponse",
    "HttpUrl",
    "Limits",
    "Misconfigured",
    "NoSettings",
    "Options",
    "Outcome",
    "Postgres",
    "Rejected",
    "Retry",
    "RoutedHit",
    "Settings",
    "Sink",
    "Skipped",
    "Verdict",
    "encode_json",
    "fitting_id",
    "json_list",
    "judge",
]
