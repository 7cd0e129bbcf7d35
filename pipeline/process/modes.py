"""What a role leaves on the disk is its owner's alone, unless HITROUTER_UMASK says otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

VARIABLE = "HITROUTER_UMASK"
_PRIVATE = 0o077


def umask_of(environment: Mapping[str, str]) -> int:
    """The umask that `environment` asks for. Raises ValueError that says what to do."""
    text = environment.get(VARIABLE)
    if text is None:
        return _PRIVATE
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"{VARIABLE}={text!r} is not a umask: set three octal digits, such as 027, or unset it")
    return int(text, 8)


def make_private(environment: Mapping[str, str] = os.environ) -> None:
    """Files that this process makes are 0600 and folders 0700, by default. Raises ValueError for a wrong HITROUTER_UMASK."""
    os.umask(umask_of(environment))
