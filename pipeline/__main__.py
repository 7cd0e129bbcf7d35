"""Entry point of `hitrouter` and `python -m pipeline`. Installs the stop signals before slow imports."""

from __future__ import annotations

import os
import sys

from pipeline.process.log_format import VARIABLE, take_option
from pipeline.process.parent import exit_with_parent
from pipeline.process.stop import SIGNALS

ROLES = frozenset({"intake", "route", "deliver", "kafka", "up", "demo"})
"""Commands that run until they are stopped. All others keep Python's own handling of Ctrl-C."""


def main() -> None:
    """Run the command of `sys.argv`."""
    log_format, sys.argv[1:] = take_option(sys.argv[1:])
    if log_format is not None:
        os.environ[VARIABLE] = log_format
    if sys.argv[1:2] and sys.argv[1] in ROLES:
        SIGNALS.install()
        exit_with_parent()
    from pipeline.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
