"""A Faust transport on confluent-kafka: one Faust message per batch of records, one Kafka transaction per batch.

This module imports nothing, so that code that needs only a type of this package does not load Faust.
"""
