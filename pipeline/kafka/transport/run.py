"""Running Faust apps in the foreground, through Faust's own worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faust


class _Worker(faust.Worker):
    """Faust's worker without its own logging set-up and without its banner: the command line has done that."""

    def _setup_logging(self) -> None:
        pass

    def on_init_dependencies(self) -> Any:
        return self.services


def run_apps(apps: Sequence[faust.App]) -> None:
    """Run `apps` until SIGTERM or SIGINT; each finishes the transaction at work and leaves its group.

    Returns after a clean stop; an app that crashed ends the process with a non-zero code.
    """
    first, *others = apps
    worker = faust.Worker(
        first,
        *others,
        debug=False,
        loglevel=None,
        redirect_stdouts=False,
        quiet=True,
        console_port=0,
    )
    worker.execute_from_commandline()
