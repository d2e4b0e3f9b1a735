"""What is remembered of the last backups, for pages and commands that must not wait for a disk or a share.

Hides the file, `HOME/backups/known.json`. It may be lost: then less is said, and nothing else changes.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from appliance.errors import ApplianceError
from appliance.files import write_atomically
from appliance.settings import Settings


def last_known(settings: Settings) -> dict[str, Any]:
    """Of the last backups: `last` {id, at, where, mount, own_disk, bytes}, `proven` {id, at}, `failed` {at, message, hint},
    `kept`: when those were made that are there now; `ahead`: {id: when it was noticed that its date had not come yet}.
    """
    try:
        told = json.loads((settings.backups / "known.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def remember(settings: Settings, **facts: Any) -> None:
    with contextlib.suppress(ApplianceError):  # a full disk: the backup is what counts
        known = last_known(settings) | facts
        write_atomically(settings.backups / "known.json", json.dumps(known, ensure_ascii=False))
