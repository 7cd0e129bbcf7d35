"""Libraries that import their own command line: 0.2 to 0.5 s of a role's start for what a role never uses."""

from __future__ import annotations

import sys
from types import ModuleType


def leave_out(module: str) -> None:
    """Make `import module` give an empty module, unless it has been imported already. Call before its package is imported.

    The package must cope with that: `cel` only names its `cli`, `httpx` defines a `main` that says what is missing.
    """
    sys.modules.setdefault(module, ModuleType(module))
