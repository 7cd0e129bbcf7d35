"""`python -m tests.patched MODULE:NAME=NUMBER,... COMMAND`: a command of hitrouter with other constants, such as shorter waits."""

from __future__ import annotations

import importlib
import sys

from pipeline.__main__ import main


def patch(changes: str) -> None:
    """Set the constants, before anything that imports them is imported."""
    for change in filter(None, changes.split(",")):
        place, _, number = change.partition("=")
        module, _, name = place.partition(":")
        made = importlib.import_module(module)
        assert isinstance(getattr(made, name), int | float), f"{place} is no number"
        setattr(made, name, type(getattr(made, name))(number))


if __name__ == "__main__":
    patch(sys.argv.pop(1))
    main()
