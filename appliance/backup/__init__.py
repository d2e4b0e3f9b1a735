"""Backups: made while the box is used, encrypted, proven by restoring them, and put back without losing what was there.

`Backups` is the door. Below it: `repository` (restic: how bytes are kept), `contents` (what a backup holds, and how it is
compared with what was written down about it) and `switching` (how a restored state takes the place of the one that is there).
"""

from appliance.backup.backups import Backups, Restored, last_known, waiting
from appliance.backup.repository import Snapshot
from appliance.backup.switching import finish, switch, undo

__all__ = ["Backups", "Restored", "Snapshot", "finish", "last_known", "switch", "undo", "waiting"]
