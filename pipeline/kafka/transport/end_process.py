"""Exits the process at once, after a fence or a bug."""

from __future__ import annotations

import logging
import os
from typing import NoReturn

from pipeline.process.parent import report_exit_reason
from pipeline.process.stop import SIGNALS

logger = logging.getLogger(__name__)

EXIT_MUST_RESTART = 70


def end_process(reason: str) -> NoReturn:
    """Exit at once with code 70, or with 0 while stopping. The next instance of this slot aborts an open transaction."""
    if SIGNALS.is_stopping:
        logger.warning("error while stopping: reason=%s", reason)
        SIGNALS.exit()
    logger.critical("exiting for restart by the supervisor: reason=%s", reason)
    report_exit_reason(reason)
    logging.shutdown()
    os._exit(EXIT_MUST_RESTART)
