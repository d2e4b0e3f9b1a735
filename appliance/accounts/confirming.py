"""That it is really this person, before what a page left open must not do, such as turning the second step on or off.

Whoever says at the sign-in that somebody is who they say is asked once more: the box for its own passwords, the school's
directory for its people, and for the others the school's sign-in service, whose answer counts for ten minutes and for the very
session it was asked from. Wrong passwords are slowed down.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from appliance.accounts.credentials import digest
from appliance.accounts.guessing import count_attempt, forgive
from appliance.accounts.people import People
from appliance.errors import Conflict, NotSignedIn

if TYPE_CHECKING:
    from appliance.accounts.directory import Directory
    from appliance.db import Database

GOOD_SECONDS = 600.0


class Confirming:
    """Call it with a person's id, the password they typed, and the token of the session that asks."""

    def __init__(self, database: Database, directory: Directory | None) -> None:
        self._database, self._directory = database, directory
        self._people = People(database)
        # Digests of tokens, and until when: a restart forgets them, and people sign in there once more.
        self._seen: dict[str, float] = {}

    def __call__(self, id: str, password: str, token: str) -> None:
        """Raises NotSignedIn, Busy, Conflict, and what the directory does."""
        person = self._people.get(id)
        if person.source == "ldap":
            self._by_directory(id, person.external, password)
        elif person.source == "oidc":
            if not self.seen(token):
                raise NotSignedIn(
                    "It is not certain any more that it is you.", "Sign in again at the school's sign-in service, then do this."
                )
        else:
            self._people.confirm(id, password)

    def saw(self, token: str) -> None:
        """The school's sign-in service has just let the person of this session sign in anew."""
        now = time.monotonic()
        self._seen = {one: ends for one, ends in self._seen.items() if ends > now} | {digest(token): now + GOOD_SECONDS}

    def seen(self, token: str) -> bool:
        """Whether that was within the last ten minutes."""
        return self._seen.get(digest(token), 0.0) > time.monotonic()

    def _by_directory(self, id: str, external: str, password: str) -> None:
        if self._directory is None:
            raise Conflict("The school's directory is not set up on this box any more.", "Ask the administrator.")
        attempt = f"confirm:{id}"
        count_attempt(self._database, attempt)
        vouched = self._directory.again(external, password)
        if vouched is None or vouched.external != external:
            raise NotSignedIn("The password is not right.", "Type the one that you signed in with.")
        with self._database.begin() as connection:
            forgive(connection, attempt)
