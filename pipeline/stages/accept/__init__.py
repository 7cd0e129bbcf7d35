"""Accept: converts a request's body to records of `hits-raw`, or to a refusal that says what to do. One file per dialect."""

from __future__ import annotations

from pipeline.stages.accept.data_stream import accept_data_stream
from pipeline.stages.accept.hit import accept_collected, accept_hit
from pipeline.stages.accept.origins import CollectRules, Origins, not_allowed
from pipeline.stages.accept.pixel import accept_pixel
from pipeline.stages.accept.records import Accepted, Code, Outcome, Refusal, Request, Sender, sender_of
from pipeline.stages.accept.segment import accept_batch, accept_message, batch_steps
from pipeline.stages.accept.sender_in_body import project_id_in, write_key_in

__all__ = [
    "Accepted",
    "Code",
    "CollectRules",
    "Origins",
    "Outcome",
    "Refusal",
    "Request",
    "Sender",
    "accept_batch",
    "accept_collected",
    "accept_data_stream",
    "accept_hit",
    "accept_message",
    "accept_pixel",
    "batch_steps",
    "not_allowed",
    "project_id_in",
    "sender_of",
    "write_key_in",
]
