"""Backups: made while the box is used, encrypted, proven by restoring them, and put back without losing what was there.

`Backups` is the door. Below it: `repository` (restic: how bytes are kept), `contents` (what a backup holds, and how it is
compared with what was written down about it), `places` (whether a disk or share is there), `retention` (what is kept how
long), `switching` (how a restored state takes the place of the one there), `copies` (that nobody erased comes back) and
`sweeping` (that nobody erased stays in them).
"""

from appliance.backup.backups import Backups, Restored, waiting
from appliance.backup.copies import kept_until
from appliance.backup.known import last_good, last_known
from appliance.backup.repository import Snapshot
from appliance.backup.sweeping import Swept, sweep_alone, sweep_now
from appliance.backup.switching import finish, switch, undo, working

__all__ = [
    "Backups", "Restored", "Snapshot", "Swept", "finish", "kept_until", "last_good", "last_known", "sweep_alone", "sweep_now",
    "switch", "undo", "waiting", "working",
]  # fmt: skip
