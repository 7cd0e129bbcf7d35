"""Loads, checks and follows the YAML configuration file."""

from __future__ import annotations

from pipeline.config.last_good import VARIABLE as LAST_GOOD_VARIABLE
from pipeline.config.last_good import LastGood, find_last_good, load_or_last_good, state_folder
from pipeline.config.load import load_config
from pipeline.config.models import Config, ConnectionConfig, KafkaConfig, ProjectConfig
from pipeline.config.watched import Watched

__all__ = [
    "LAST_GOOD_VARIABLE",
    "Config",
    "ConnectionConfig",
    "KafkaConfig",
    "LastGood",
    "ProjectConfig",
    "Watched",
    "find_last_good",
    "load_config",
    "load_or_last_good",
    "state_folder",
]
