"""The last resort: another process has this slot, or a bug."""

from __future__ import annotations

import logging
import os
from typing import NoReturn

from pipeline.process.parent import tell_parent
from pipeline.process.stop import SIGNALS

logger = logging.getLogger(__name__)

EXIT_MUST_RESTART = 70


def end_process(reason: str) -> NoReturn:
    """Leave at once with exit code 70, or 0 while being stopped; the next instance of this slot ends the open transaction."""
    if SIGNALS.is_stopping:
        logger.warning("error while stopping: %s", reason)
        SIGNALS.exit()
    logger.critical("exiting for restart by the supervisor: %s", reason)
    tell_parent(reason)
    logging.shutdown()
    os._exit(EXIT_MUST_RESTART)
