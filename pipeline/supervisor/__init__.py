"""Runs `up`: all roles on this machine, each restarted when it ends."""

from __future__ import annotations

from pipeline.supervisor.configuration import OpenConfiguration, open_configuration
from pipeline.supervisor.run import Supervisor

__all__ = ["OpenConfiguration", "Supervisor", "open_configuration"]
