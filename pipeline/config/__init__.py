"""Configuration: models of the YAML file and the loading of it."""

from __future__ import annotations

from pipeline.config.load import load_config
from pipeline.config.models import Config, ConnectionConfig, KafkaConfig, ProjectConfig
from pipeline.config.watched import Watched

__all__ = ["Config", "ConnectionConfig", "KafkaConfig", "ProjectConfig", "Watched", "load_config"]
