"""Backups: made while the box is used, encrypted, proven by restoring them, and put back without losing what was there.

`Backups` is the door. Below it: `repository` (restic: how bytes are kept), `contents` (what a backup holds, and how it is
compared with what was written down about it), `places` (whether a disk or share is there), `retention` (what is kept how
long), `switching` (how a restored state takes the place of the one there) and `copies` (that nobody erased comes back).
"""

from appliance.backup.backups import Backups, Restored, waiting
from appliance.backup.copies import kept_until, last_copy, sweep
from appliance.backup.known import last_good, last_known
from appliance.backup.repository import Snapshot
from appliance.backup.switching import finish, switch, undo, working

__all__ = [
    "Backups", "Restored", "Snapshot", "finish", "kept_until", "last_copy", "last_good", "last_known", "sweep", "switch",
    "undo", "waiting", "working",
]  # fmt: skip
