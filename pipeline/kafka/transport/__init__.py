"""A Faust transport on confluent-kafka: one Faust message per batch of records, one Kafka transaction per batch.

It imports nothing here: what only needs a type of it, such as a command that reads, must not load Faust.
"""
