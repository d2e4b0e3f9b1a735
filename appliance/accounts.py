"""People and programs that may use the box: users, sign-ins, API keys, and what each may do.

Hides how secrets are kept: passwords as argon2id, everything else that is random (session tokens, setup codes, keys) as
SHA-256, so that a copied database signs nobody in. `can` is the only place that decides; what it does not know it denies.
It knows nothing of HTTP: cookies and headers belong to web/auth. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import sqlalchemy as sa

from appliance.errors import BadInput, Busy, Conflict, Forbidden, NotFound, NotSignedIn
from appliance.tables import attempts, collection_readers, collections, keys, new_id, sessions, setup_codes, users

if TYPE_CHECKING:
    from argon2 import PasswordHasher

    from appliance.db import Database
    from appliance.settings import Settings

CODE_LETTERS = "23456789ABCDEFGHJKMNPQRSTVWXYZ"  # nothing that reads like something else on a printed sheet
CODE_SECONDS = 24 * 3600
KEY_PREFIX = "sk-school-"
SCOPES = ("chat", "embed", "admin")
SHORTEST_PASSWORD = 10
LONGEST_SECRET = 1024
FREE_FAILURES = 10
LONGEST_WAIT = 900.0
FORGET_FAILURES = 24 * 3600
LOCAL_NAME = "(command line)"  # a person's name cannot start with a bracket, so nobody can sign in as this one

ADMINISTRATOR = "administrator"
LOCAL = "local"

# What a role may do: verb and kind of thing. `own` rows need the thing's owner to be the user.
_EVERYTHING = frozenset(
    {
        ("ask", "chat"),
        ("instruct", "chat"),
        ("embed", "text"),
        ("read", "library"),
        ("review", "library"),
        ("read", "status"),
        ("create", "key"),
    }
)
_OWN = frozenset(
    {("read", "conversation"), ("change", "conversation"), ("delete", "conversation"), ("read", "key"), ("delete", "key")}
)
_ROLES = {ADMINISTRATOR: _EVERYTHING, LOCAL: _EVERYTHING}
_CALLED = {"conversation": "chat"}  # what people call a thing, where that is another word
# What a key's scope leaves of its owner's rights. A session has no scope and keeps them all.
_SCOPES: dict[str, frozenset[tuple[str, str]]] = {
    "chat": frozenset({("ask", "chat"), ("instruct", "chat"), ("read", "library"), ("read", "status")}),
    "embed": frozenset({("embed", "text"), ("read", "status")}),
    "admin": _EVERYTHING,
}


@dataclass(frozen=True, slots=True)
class User:
    """`scope` is empty for a person, else the scope of the key that speaks for them. `classes`: those they belong to."""

    id: str
    name: str
    role: str
    scope: str = ""
    classes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Session:
    user: User
    csrf: str


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it may be shown: the secret itself is not kept."""

    id: str
    name: str
    scope: str
    created: float
    used: float | None
    revoked: float | None


class Accounts:
    """Who is asking, and may they."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    # --- policy ------------------------------------------------------------------------------------------------------
    def can(self, user: User | None, verb: str, thing: str, owner: str | None = None) -> bool:
        """Whether `user` may do `verb` to a `thing` (a kind: "chat", "key" ...) that belongs to the user id `owner`."""
        if user is None:
            return False
        asked = (verb, thing)
        if asked in _OWN:
            return owner == user.id and user.role in _ROLES and not user.scope
        allowed = asked in _ROLES.get(user.role, frozenset())
        return allowed and (not user.scope or asked in _SCOPES.get(user.scope, frozenset()))

    def require(self, user: User | None, verb: str, thing: str, owner: str | None = None) -> None:
        """Raises NotSignedIn without a user; NotFound for another's thing (whether it exists is not told); else Forbidden."""
        if self.can(user, verb, thing, owner):
            return
        if user is None:
            raise NotSignedIn("Nobody is signed in.", "Sign in, then try again.")
        if (verb, thing) in _OWN:
            raise NotFound(f"There is no such {_CALLED.get(thing, thing)} here.", "It may have been deleted.")
        raise Forbidden(f"This account may not {verb} {thing}.", "Ask the administrator.")

    def visible(self, user: User | None, kind: str) -> frozenset[str]:
        """The ids of all things of a kind that `user` may see; nobody sees none. Raises Forbidden for all but a "collection".

        A collection is seen by its owner and by its readers: everyone who may read the library, a role, a class, a user. A kind
        of reader that is not one of these lets nobody in, and a key never sees more than the person it speaks for. The box's
        own command line sees all.
        """
        if kind != "collection":
            raise Forbidden(f"Nobody has decided who may see a {kind}.", "Report this as a fault.")
        if user is None or not self.can(user, "read", "library"):
            return frozenset()
        with self._database.read() as connection:
            if user.role == LOCAL and not user.scope:
                return frozenset(connection.scalars(sa.select(collections.c.id)))
            reader = collection_readers.c
            lets_in = sa.or_(
                sa.and_(reader.kind == "everyone", reader.name == ""),
                sa.and_(reader.kind == "role", reader.name == user.role, reader.name != ""),
                sa.and_(reader.kind == "class", reader.name.in_(sorted(user.classes - {""}))),
                sa.and_(reader.kind == "user", reader.name == user.id, reader.name != ""),
            )
            owned = sa.select(collections.c.id).where(collections.c.owner == user.id, collections.c.owner != "")
            return frozenset(connection.scalars(sa.union(sa.select(reader.collection).where(lets_in), owned)))

    def named(self, name: str) -> User:
        """The person of that name. Raises NotFound."""
        name = _normal(name)
        same = sa.or_(users.c.name == name, sa.func.lower(users.c.name) == name.lower())
        with self._database.read() as connection:
            row = connection.execute(sa.select(users).where(same).order_by(users.c.name != name)).first()
        if row is None:
            raise NotFound(f"There is no person named {name[:64]}.", "Check the spelling.")
        return User(row.id, row.name, row.role)

    def names(self, ids: Collection[str]) -> dict[str, str]:
        """What the people of these ids are called; who is no longer there is left out."""
        with self._database.read() as connection:
            chosen = sa.select(users.c.id, users.c.name).where(users.c.id.in_(sorted(ids)))
            return {row.id: row.name for row in connection.execute(chosen)}

    # --- first administrator -----------------------------------------------------------------------------------------
    def has_administrator(self) -> bool:
        with self._database.read() as connection:
            return _has_administrator(connection)

    def ensure_setup_code(self) -> str | None:
        """A fresh one-time code where there is no administrator yet, in place of any older one; else None."""
        letters = "".join(secrets.choice(CODE_LETTERS) for _ in range(12))
        now = time.time()
        with self._database.begin() as connection:
            if _has_administrator(connection):
                return None
            connection.execute(sa.delete(setup_codes))
            connection.execute(sa.insert(setup_codes).values(hash=_digest(letters), created=now, expires=now + CODE_SECONDS))
        return "-".join(letters[i : i + 4] for i in (0, 4, 8))

    def create_first_administrator(self, code: str, name: str, password: str, source: str = "") -> User:
        """Spend the setup code. Raises BadInput (name, password), Forbidden (code), Conflict (not the first), Busy."""
        name, password = clean_name(name), _strong(password)
        digest = _digest("".join(letter for letter in code.upper() if letter.isalnum())[:LONGEST_SECRET])
        attempt = f"setup:{source[:64]}"
        self._count_attempt(attempt)
        with self._database.read() as connection:
            _check_code(connection, digest)  # before the costly hash: a guesser must not keep the processor busy
        hashed = self._hasher.hash(password)
        user = User(new_id(), name, ADMINISTRATOR)
        with self._database.begin() as connection:
            _check_code(connection, digest)
            connection.execute(sa.delete(setup_codes))
            connection.execute(sa.delete(attempts).where(attempts.c.key == attempt))
            connection.execute(
                sa.insert(users).values(id=user.id, name=name, role=user.role, password_hash=hashed, created=time.time())
            )
        return user

    def local_administrator(self) -> User:
        """The person at the box's own command line: may do everything, has no password and cannot sign in on a page."""
        with self._database.begin() as connection:
            row = connection.execute(sa.select(users).where(users.c.name == LOCAL_NAME)).first()
            if row is not None:
                return User(row.id, row.name, row.role)
            user = User(new_id(), LOCAL_NAME, LOCAL)
            connection.execute(
                sa.insert(users).values(id=user.id, name=user.name, role=user.role, password_hash="!", created=time.time())
            )
        return user

    # --- sign-in -----------------------------------------------------------------------------------------------------
    def sign_in(self, name: str, password: str, source: str) -> tuple[str, User]:
        """A new session's token and its user. `source` is where the attempt came from, an address.

        Raises NotSignedIn in the same words and the same time whether the name or the password was wrong, and Busy after
        ten failures for one name from one source, for longer each time.
        """
        if len(name) > LONGEST_SECRET or len(password) > LONGEST_SECRET:
            raise NotSignedIn("The name or the password is not right.", "Check both, then try again.")
        name = _normal(name)
        attempt = f"sign-in:{_digest(name.casefold())[:24]}:{source[:64]}"
        self._count_attempt(attempt)  # counted before it is judged, so that a burst of parallel guesses is one burst
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(users)
                .where(sa.or_(users.c.name == name, sa.func.lower(users.c.name) == name.lower()))
                .where(users.c.role != LOCAL, ~users.c.disabled)
                .order_by(users.c.name != name)
            ).first()
        if not self._verify(row.password_hash if row else self._nobody, password) or row is None:
            raise NotSignedIn("The name or the password is not right.", "Check both, then try again.")
        token = secrets.token_urlsafe(32)
        now = time.time()
        with self._database.begin() as connection:
            connection.execute(sa.delete(attempts).where(attempts.c.key == attempt))
            connection.execute(sa.delete(sessions).where(sessions.c.expires < now))
            connection.execute(
                sa.insert(sessions).values(
                    hash=_digest(token),
                    user=row.id,
                    csrf=secrets.token_urlsafe(24),
                    created=now,
                    expires=now + self._settings.session_hours * 3600,
                )
            )
        return token, User(row.id, row.name, row.role)

    def session(self, token: str) -> Session | None:
        if not token or len(token) > LONGEST_SECRET:
            return None
        query = (
            sa.select(users.c.id, users.c.name, users.c.role, sessions.c.csrf)
            .join(users, users.c.id == sessions.c.user)
            .where(sessions.c.hash == _digest(token), sessions.c.expires > time.time(), ~users.c.disabled)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        return Session(User(row.id, row.name, row.role), row.csrf) if row else None

    def sign_out(self, token: str) -> None:
        with self._database.begin() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.hash == _digest(token)))

    # --- API keys ----------------------------------------------------------------------------------------------------
    def create_key(self, user: User, name: str, scope: str = "chat") -> tuple[str, str]:
        """(id, key). The key is in this answer and nowhere else. Raises BadInput, Forbidden."""
        self.require(user, "create", "key")
        name = clean_name(name, what="name for the key")
        if scope not in SCOPES:
            raise BadInput(f"A key cannot have the scope {scope[:40]!r}.", f"Take one of: {', '.join(SCOPES)}.")
        key, id = KEY_PREFIX + secrets.token_urlsafe(32), new_id()
        with self._database.begin() as connection:
            connection.execute(
                sa.insert(keys).values(id=id, user=user.id, name=name, hash=_digest(key), scope=scope, created=time.time())
            )
        return id, key

    def key(self, token: str) -> User | None:
        """The user for whom a key speaks, narrowed to its scope."""
        if not token.startswith(KEY_PREFIX) or len(token) > LONGEST_SECRET:
            return None
        query = (
            sa.select(keys.c.id.label("key"), keys.c.scope, keys.c.used, users.c.id, users.c.name, users.c.role)
            .join(users, users.c.id == keys.c.user)
            .where(keys.c.hash == _digest(token), keys.c.revoked.is_(None), ~users.c.disabled)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        now = time.time()
        if now - (row.used or 0) > 60:  # a write for each call would cost a disk flush for each call
            with self._database.begin() as connection:
                connection.execute(sa.update(keys).where(keys.c.id == row.key).values(used=now))
        return User(row.id, row.name, row.role, row.scope)

    def revoke_key(self, user: User, id: str) -> None:
        """Raises NotFound where the user has no such key."""
        with self._database.begin() as connection:
            row = connection.execute(sa.select(keys.c.user, keys.c.revoked).where(keys.c.id == id)).first()
            self.require(user, "delete", "key", owner=self._owner(user, row.user if row else None))
            if row is not None and row.revoked is None:
                connection.execute(sa.update(keys).where(keys.c.id == id).values(revoked=time.time()))

    def list_keys(self, user: User) -> list[Key]:
        """The user's keys, newest first; at the command line everybody's."""
        query = sa.select(keys).order_by(keys.c.created.desc())
        if user.role != LOCAL:
            query = query.where(keys.c.user == user.id)
        with self._database.read() as connection:
            return [Key(row.id, row.name, row.scope, row.created, row.used, row.revoked) for row in connection.execute(query)]

    @staticmethod
    def _owner(user: User, owner: str | None) -> str | None:
        return user.id if user.role == LOCAL and owner is not None else owner

    # --- passwords and guessing --------------------------------------------------------------------------------------
    @cached_property
    def _hasher(self) -> PasswordHasher:
        from argon2 import PasswordHasher

        return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's least for argon2id

    @cached_property
    def _nobody(self) -> str:
        """A hash that nothing matches: an unknown name costs the same time as a known one."""
        return self._hasher.hash(secrets.token_urlsafe(32))

    def _verify(self, hashed: str, password: str) -> bool:
        from argon2.exceptions import InvalidHashError, VerificationError

        try:
            return self._hasher.verify(hashed, password.encode("utf-8", "surrogatepass"))
        except (VerificationError, InvalidHashError):
            return False

    def _count_attempt(self, key: str) -> None:
        """Write one failure down in advance; success deletes it. Raises Busy while the key has to wait."""
        now = time.time()
        with self._database.begin() as connection:
            connection.execute(sa.delete(attempts).where(attempts.c.last < now - FORGET_FAILURES))
            row = connection.execute(sa.select(attempts).where(attempts.c.key == key)).first()
            if row is None:
                connection.execute(sa.insert(attempts).values(key=key, failures=1, last=now))
                return
            left = row.last + wait_after(row.failures) - now
            if left > 0:
                raise Busy(
                    "There were too many wrong tries.", f"Wait {max(1, round(left))} seconds, then try again.", retry_after=left
                )
            connection.execute(sa.update(attempts).where(attempts.c.key == key).values(failures=row.failures + 1, last=now))


def wait_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row: none up to ten, then 2, 4, 8 ... up to a quarter of an hour."""
    if failures < FREE_FAILURES:
        return 0.0
    return min(2.0 ** min(failures - FREE_FAILURES + 1, 16), LONGEST_WAIT)


def clean_name(name: str, what: str = "name") -> str:
    """Raises BadInput unless the name is one line of 1 to 64 ordinary characters."""
    name = _normal(name[: LONGEST_SECRET + 1])
    if not name:
        raise BadInput(f"The {what} is empty.", "Write at least one letter.")
    if len(name) > 64:
        raise BadInput(f"The {what} is longer than 64 characters.", "Take a shorter one.")
    if name.startswith("(") or any(unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Co"} for letter in name):
        raise BadInput(f"The {what} has characters that cannot be used.", "Use letters, digits and spaces.")
    return name


def _normal(name: str) -> str:
    written = name.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", written)).strip()


def _strong(password: str) -> str:
    if len(password) < SHORTEST_PASSWORD:
        raise BadInput(
            f"The password has {len(password)} characters; at least {SHORTEST_PASSWORD} are needed.",
            "Three or four words in a row are easy to remember.",
        )
    if len(password) > LONGEST_SECRET:
        raise BadInput(f"The password is longer than {LONGEST_SECRET} characters.", "Take a shorter one.")
    try:
        password.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("The password has characters that cannot be used.", "Take another one.") from None
    return password


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _has_administrator(connection: sa.Connection) -> bool:
    return connection.execute(sa.select(users.c.id).where(users.c.role == ADMINISTRATOR).limit(1)).first() is not None


def _check_code(connection: sa.Connection, digest: str) -> None:
    if _has_administrator(connection):
        raise Conflict("There is an administrator already.", "Sign in with that account.")
    row = connection.execute(sa.select(setup_codes.c.expires).where(setup_codes.c.hash == digest)).first()
    if row is None:
        raise Forbidden("That setup code is not right.", "Copy it from where the box was started, with or without the dashes.")
    if row.expires < time.time():
        raise Forbidden("That setup code has expired.", "Start the box again; it prints a new one.")
