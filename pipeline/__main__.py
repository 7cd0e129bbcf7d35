"""`python -m pipeline` and the command `hitrouter`: stop signals are taken over before anything slow is imported."""

from __future__ import annotations

import sys

from pipeline.process.parent import follow_parent
from pipeline.process.stop import SIGNALS

ROLES = frozenset({"intake", "route", "deliver", "kafka", "up", "demo"})
"""Commands that run until they are stopped; all others end at Ctrl-C as any command does."""


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] and sys.argv[1] in ROLES:
        SIGNALS.take()
        follow_parent()
    from pipeline.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
