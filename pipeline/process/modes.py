"""Makes the files of a role readable by their owner only, unless HITROUTER_UMASK is set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

VARIABLE = "HITROUTER_UMASK"
_PRIVATE = 0o077


def umask_of(environment: Mapping[str, str]) -> int:
    """Return the umask that `environment` sets, or the default. Raises ValueError for an invalid HITROUTER_UMASK."""
    text = environment.get(VARIABLE)
    if text is None:
        return _PRIVATE
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"{VARIABLE}={text!r} is not a umask: set three octal digits, such as 027, or unset it")
    return int(text, 8)


def set_private_umask(environment: Mapping[str, str] = os.environ) -> None:
    """Set the umask of this process: by default new files are 0600, folders 0700. Raises ValueError for an invalid HITROUTER_UMASK."""
    os.umask(umask_of(environment))
