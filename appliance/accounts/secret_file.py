"""Secrets that another system gave the box: each in a file of its own, named by a setting, for the appliance's user alone.

It reads them anew each time, so that a changed one needs no restart, and keeps none.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from appliance.errors import BadInput


def secret_in(path: Path) -> str:
    """The secret, without the end of its line. Raises BadInput where it cannot be read, is empty, or others can read it."""
    try:
        with open(path, encoding="utf-8") as handle:
            mode = stat.S_IMODE(os.fstat(handle.fileno()).st_mode)
            secret = handle.read(10_000).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}).", "Check the path, and who owns the file.") from None
    if mode & 0o077:
        raise BadInput(f"Others than the appliance may read {path}.", f"chmod 0600 {path}")
    if not secret:
        raise BadInput(f"{path} is empty.", "Write the secret into it.")
    return secret
