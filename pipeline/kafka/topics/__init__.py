"""Declares the topics (contract.md, section 2), reads them from Kafka, and handles differences."""

from pipeline.kafka.topics.actual import ActualTopic, topic_retention_ms
from pipeline.kafka.topics.declared import Topic, TopicKind, TopicNames, declare_topics
from pipeline.kafka.topics.ensure import ensure_topics

__all__ = ["ActualTopic", "Topic", "TopicKind", "TopicNames", "declare_topics", "ensure_topics", "topic_retention_ms"]
