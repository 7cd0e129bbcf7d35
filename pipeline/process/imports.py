"""Skips imports that roles never use, such as a library's own command line, which takes 0.2 to 0.5 s of a start."""

from __future__ import annotations

import sys
from types import ModuleType


def stub_module(module: str) -> None:
    """Make `import module` return an empty module, unless it is imported already. Call before its package is imported.

    The package must work with an empty module: `cel` only refers to its `cli`, `httpx` replaces `main` with an error message.
    """
    sys.modules.setdefault(module, ModuleType(module))
