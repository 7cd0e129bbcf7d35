"""Running Faust apps in the foreground, through Faust's own worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faust


class _Worker(faust.Worker):
    """Faust's worker, but logging and terminal stay as the command line has set them up."""

    def __init__(self, *apps: Any, **options: Any) -> None:
        super().__init__(*apps, **options)
        self.spinner = None

    def _setup_logging(self) -> None:
        pass


def run_apps(apps: Sequence[faust.App]) -> None:
    """Run `apps` until SIGTERM or SIGINT; each finishes the transaction at work and leaves its group.

    Returns after a clean stop; an app that crashed ends the process with a non-zero code.
    """
    first, *others = apps
    worker = _Worker(
        first,
        *others,
        debug=False,
        redirect_stdouts=False,
        quiet=True,
        console_port=0,
    )
    worker.execute_from_commandline()
