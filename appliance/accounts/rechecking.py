"""Whether people of the school's directory are still in it, asked anew while they go on using the box.

A sign-in lasts for hours and a key for years; who is removed or switched off there must not stay in here for so long. So the
directory is asked again a quarter of an hour after it was asked last, when the person is next seen. Who is gone is out, keys
included; of the others the role and the classes are brought up to date. One thread asks, one question at a time: no page
waits for it, and a directory that hangs holds nothing up. While it cannot be asked everything stays as it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from appliance.accounts.sessions import end_everything
from appliance.errors import ApplianceError, BadInput, Conflict, Forbidden, where

if TYPE_CHECKING:
    from appliance.accounts.directory import Directory
    from appliance.accounts.vouched import Vouched
    from appliance.audit import Audit
    from appliance.db import Database

log = logging.getLogger(__name__)

EVERY_SECONDS = 900.0
AGAIN_SECONDS = 60.0  # where it could not be asked
THREAD = "directory"


class Rechecking:
    def __init__(
        self, database: Database, directory: Directory, admit: Callable[[Vouched], str | None], audit: Audit | None
    ) -> None:
        """admit: brings somebody's row up to date, as at a sign-in."""
        self._database, self._directory, self._admit, self._audit = database, directory, admit, audit
        self._lock = threading.Lock()
        self._due: dict[str, float] = {}  # by person; a restart forgets it, and asks anew
        self._waiting: deque[tuple[str, str]] = deque()
        self._at_work = False

    def asked(self, id: str) -> None:
        """The directory has just said that this person is there."""
        with self._lock:
            self._due[id] = time.monotonic() + EVERY_SECONDS

    def saw(self, id: str, external: str) -> None:
        """Somebody of the directory, whom it calls `external`, uses the box. Comes back at once."""
        now = time.monotonic()
        with self._lock:
            if not external or now < self._due.get(id, now):
                return
            self._due[id] = now + EVERY_SECONDS
            self._waiting.append((id, external))
            if self._at_work:
                return
            self._at_work = True
        threading.Thread(target=self._work, name=THREAD, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._at_work = False
                    return
                id, external = self._waiting.popleft()
            try:
                self._look(id, external)
            except ApplianceError:
                with self._lock:
                    self._due[id] = time.monotonic() + AGAIN_SECONDS
            except Exception as error:  # noqa: BLE001 - the others who wait are asked for all the same
                log.error("asking the directory again: %s", where(error))

    def _look(self, id: str, external: str) -> None:
        """Raises what the directory and the database do."""
        try:
            vouched = self._directory.look(external)
        except Forbidden:  # known there, and in no group that may use this box any more
            vouched = None
        if vouched is not None:
            with suppress(Conflict, BadInput):  # a name that is taken here: they stay who they are, for now
                self._admit(vouched)
            return
        with self._database.begin() as connection:
            end_everything(connection, id)
        if self._audit is not None:
            self._audit.note("gone from directory", f"person {id}", {}, actor=id)
