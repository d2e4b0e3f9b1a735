"""The second step of a sign-in: a code from the person's phone (TOTP, RFC 6238), or a recovery code from a sheet of paper.

Each code works once, wrong ones are slowed down, and until a right one comes the session that waits signs nobody in. Hides how
time steps are counted. It draws no picture: web does.
"""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING

import sqlalchemy as sa

from appliance.accounts.credentials import LONGEST_SECRET, digest, digest_of_code, new_code
from appliance.accounts.guessing import count_attempt, forgive
from appliance.accounts.sessions import CLOCK_SLACK, STEP, end_sessions, open_session
from appliance.errors import BadInput, NotFound, NotSignedIn
from appliance.tables import recovery_codes, sessions, users

if TYPE_CHECKING:
    from appliance.db import Database
    from appliance.settings import Settings

CODES = 10
FREE_WRONG = 5
STEP_LENGTH = 30


class SecondStep:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    # --- setting it up ----------------------------------------------------------------------------------------------------
    @staticmethod
    def new_secret() -> str:
        import pyotp

        return pyotp.random_base32()

    def address(self, secret: str, name: str) -> str:
        """What the QR code says to the phone."""
        import pyotp

        return pyotp.TOTP(secret).provisioning_uri(name=name, issuer_name=self._settings.school)

    def turn_on(self, user: str, secret: str, code: str, but: str = "") -> list[str]:
        """From now on sign-in asks for a code. Gives the recovery codes, which are nowhere else. Raises BadInput, Busy.

        `code`: the phone's, as proof that it has the secret. All of the person's sessions end but the one of the token `but`:
        whoever had come in by the password alone is out.
        """
        count_attempt(self._database, f"step on:{user}")
        step = _step_of(secret, code, 0) if _is_secret(secret) else None
        if step is None:
            raise BadInput(
                "That code does not fit.", "Wait for the next one on the phone and type that; check the phone's clock."
            )
        with self._database.begin() as connection:
            forgive(connection, f"step on:{user}")
            connection.execute(sa.update(users).where(users.c.id == user).values(totp=secret, totp_step=step))
            end_sessions(connection, user, but)
            return _new_codes(connection, user)

    def turn_off(self, user: str, but: str = "") -> None:
        """Sign-in asks for the password alone again. All sessions end but the one of the token `but`. Raises NotFound."""
        with self._database.begin() as connection:
            if not connection.execute(sa.update(users).where(users.c.id == user).values(totp="", totp_step=0)).rowcount:
                raise NotFound("There is no such person here.", "They may have been removed.")
            connection.execute(sa.delete(recovery_codes).where(recovery_codes.c.user == user))
            end_sessions(connection, user, but)

    def fresh_codes(self, user: str) -> list[str]:
        """Ten new recovery codes in place of the older ones."""
        with self._database.begin() as connection:
            return _new_codes(connection, user)

    def codes_left(self, user: str) -> int:
        with self._database.read() as connection:
            count = sa.select(sa.func.count()).select_from(recovery_codes).where(recovery_codes.c.user == user)
            return connection.scalar(count) or 0

    # --- signing in -------------------------------------------------------------------------------------------------------
    def waits(self, token: str) -> bool:
        """Whether this is the token of a sign-in whose password was right and whose second step is missing."""
        with self._database.read() as connection:
            return _waiting(connection, token) is not None

    def finish(self, token: str, code: str, about: str = "") -> str:
        """The token of the session that this sign-in becomes. Raises NotSignedIn (the code, or it took too long), Busy."""
        with self._database.read() as connection:
            row = _waiting(connection, token)
        if row is None:
            raise NotSignedIn("Signing in took too long.", "Type your name and password once more.")
        attempt = f"step:{row.id}"
        count_attempt(self._database, attempt, FREE_WRONG)
        with self._database.begin() as connection:
            if _waiting(connection, token) is None or not _spend(connection, row.id, code):
                raise NotSignedIn("That code is not right, or was used already.", "Wait for the next one, then type it.")
            forgive(connection, attempt)
            connection.execute(sa.delete(sessions).where(sessions.c.hash == digest(token)))
            return open_session(connection, row.id, self._settings.session_hours * 3600, about=about)


def _waiting(connection: sa.Connection, token: str) -> sa.Row[tuple[str]] | None:
    if not token or len(token) > LONGEST_SECRET:
        return None
    now = time.time()
    query = (
        sa.select(users.c.id)
        .join(sessions, sessions.c.user == users.c.id)
        .where(sessions.c.hash == digest(token), sessions.c.kind == STEP, ~users.c.disabled)
        .where(sessions.c.expires > now, sessions.c.created < now + CLOCK_SLACK)
    )
    return connection.execute(query).first()


def _spend(connection: sa.Connection, user: str, code: str) -> bool:
    """Whether the code is right and new; then it is used up. Within a transaction that writes: no two can spend one code."""
    row = connection.execute(sa.select(users.c.totp, users.c.totp_step).where(users.c.id == user)).one()
    step = _step_of(row.totp, code, row.totp_step) if row.totp else None
    if step is not None:
        connection.execute(sa.update(users).where(users.c.id == user).values(totp_step=step))
        return True
    this = sa.and_(recovery_codes.c.hash == digest_of_code(code), recovery_codes.c.user == user)
    return connection.execute(sa.delete(recovery_codes).where(this)).rowcount == 1


def _step_of(secret: str, code: str, used: int) -> int | None:
    """The time step whose code this is, of the one before, this one and the next, where it is later than the last one used.

    A last one far in the future was used before the clock was set back; it is forgotten, or nobody would get in until then.
    """
    import pyotp

    digits = "".join(code.split())
    if not digits.isascii() or not digits.isdigit():
        return None
    now = int(time.time()) // STEP_LENGTH
    phone = pyotp.TOTP(secret)
    for step in (now - 1, now, now + 1):
        if (step > used or used > now + 1) and hmac.compare_digest(phone.generate_otp(step), digits):
            return step
    return None


def _is_secret(secret: str) -> bool:
    return len(secret) == 32 and all(letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" for letter in secret)


def _new_codes(connection: sa.Connection, user: str) -> list[str]:
    codes = [new_code(2) for _ in range(CODES)]
    connection.execute(sa.delete(recovery_codes).where(recovery_codes.c.user == user))
    connection.execute(sa.insert(recovery_codes), [{"hash": digest_of_code(code), "user": user} for code in codes])
    return codes
