"""People and programs that may use the box: sign-ins, sessions, API keys, and what each may do.

`can` is the only place that decides, by the table in `policy`; what it does not know it denies. Hides how secrets are kept (see
`credentials`). It knows nothing of HTTP: cookies and headers belong to web/auth. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.accounts.class_codes import ClassCodes
from appliance.accounts.confirming import Confirming
from appliance.accounts.credentials import (
    LONGEST_SECRET,
    Passwords,
    as_code,
    clean_name,
    digest,
    digest_of_code,
    new_code,
    normal,
    strong,
)
from appliance.accounts.devices import Devices, forgive_all, limits
from appliance.accounts.guessing import count, count_attempt, forgive
from appliance.accounts.policy import ADMINISTRATOR, LOCAL, OF_A_CLASS, OWN, SCOPES, TEACHER, User, may
from appliance.accounts.rechecking import Rechecking
from appliance.accounts.second_step import SecondStep
from appliance.accounts.sessions import STEP, STEP_SECONDS, SignedIn, alive, end_sessions, open_session, sessions_of, signed_in
from appliance.accounts.vouched import Vouched, admit
from appliance.errors import BadInput, Conflict, Forbidden, NotFound, NotSignedIn
from appliance.tables import (
    classes,
    collection_readers,
    collections,
    folded,
    keys,
    memberships,
    new_id,
    sessions,
    setup_codes,
    users,
)  # fmt: skip

if TYPE_CHECKING:
    from appliance.accounts.directory import Directory
    from appliance.audit import Audit
    from appliance.db import Database
    from appliance.settings import Settings

CODE_SECONDS = 24 * 3600
KEY_PREFIX = "sk-school-"
LOCAL_NAME = "(command line)"  # a person's name cannot start with a bracket, so nobody can sign in as this one
_CALLED = {"conversation": "chat", "rehearsal": "lesson"}  # what people call a thing, where that is another word


@dataclass(frozen=True, slots=True)
class Session:
    """`temporary`: the password was given by somebody else, and the person has to choose one of their own first.

    kind: "class" where it came by a class's code. preferences: text size and spacing, as the person chose.
    """

    user: User
    csrf: str
    temporary: bool = False
    kind: str = ""
    preferences: Mapping[str, Any] = field(default_factory=dict)


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
    """Who is asking, and may they. `second_step` and `class_codes` are two more ways of a sign-in; `confirming` asks once more
    before what a page left open must not do."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        directory: Directory | None = None,
        audit: Audit | None = None,
    ) -> None:
        """directory: who has this name and this password, in the school's directory. audit: is told whom it brought."""
        self._database = database
        self._settings = settings
        self._directory = directory
        self._audit = audit
        self._passwords = Passwords()
        self.second_step = SecondStep(database, settings)
        self.class_codes = ClassCodes(database)
        self.confirming = Confirming(database, directory)
        self.devices = Devices(settings)
        self._rechecking = Rechecking(database, directory, self.admit, audit) if directory is not None else None

    # --- policy ------------------------------------------------------------------------------------------------------
    def can(self, user: User | None, verb: str, thing: str, owner: str | None = None) -> bool:
        """Whether `user` may do `verb` to a `thing` (a kind: "chat", "key" ...) that belongs to the user id `owner`.

        Of a "class" `owner` is the class's own id: it belongs to those who teach it.
        """
        return may(user, verb, thing, owner)

    def require(self, user: User | None, verb: str, thing: str, owner: str | None = None) -> None:
        """Raises NotSignedIn without a user; NotFound for another's thing (whether it exists is not told); else Forbidden."""
        if self.can(user, verb, thing, owner):
            return
        if user is None:
            raise NotSignedIn("Nobody is signed in.", "Sign in, then try again.")
        if (verb, thing) in OWN | OF_A_CLASS:
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
        name = normal(name)
        with self._database.read() as connection:
            row = connection.execute(_named(name)).first()
            if row is None:
                raise NotFound(f"There is no person named {name[:64]}.", "Check the spelling.")
            return as_user(connection, row)

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
        code = new_code()
        now = time.time()
        with self._database.begin() as connection:
            if _has_administrator(connection):
                return None
            connection.execute(sa.delete(setup_codes))
            connection.execute(
                sa.insert(setup_codes).values(hash=digest_of_code(code), created=now, expires=now + CODE_SECONDS)
            )
        return code

    def create_first_administrator(self, code: str, name: str, password: str, source: str = "") -> User:
        """Spend the setup code. Raises BadInput (name, password), Forbidden (code), Conflict (not the first), Busy."""
        name, password = clean_name(name), strong(password)
        digest = digest_of_code(code)
        attempt = f"setup:{source[:64]}"
        count_attempt(self._database, attempt)
        with self._database.read() as connection:
            _check_code(connection, digest)  # before the costly hash: a guesser must not keep the processor busy
        hashed = self._passwords.hash(password)
        user = User(new_id(), name, ADMINISTRATOR)
        with self._database.begin() as connection:
            _check_code(connection, digest)
            connection.execute(sa.delete(setup_codes))
            forgive(connection, attempt)
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
    def sign_in(self, name: str, password: str, source: str, about: str = "", device: str = "") -> tuple[str, User]:
        """A new session's token and its user. `source` is where the attempt came from, an address; `about` the browser, and
        `device` the mark that it sends (see `devices`, which says what is counted as guessing).

        Where the person has a second step, `session` does not know the token: it is for `second_step.finish`. Raises
        NotSignedIn in the same words and the same time whether the name or the password was wrong, and Busy after too many
        failures. Who is not of this box, or of the school's directory, is looked for there; where it cannot be asked,
        Unreachable.
        """
        if len(name) > LONGEST_SECRET or len(password) > LONGEST_SECRET:
            raise NotSignedIn("The name or the password is not right.", "Check both, then try again.")
        name = normal(name)
        with self._database.read() as connection:
            row = connection.execute(_named(name).where(users.c.role != LOCAL)).first()
        elsewhere = row is None or row.source == "ldap"
        row = None if row is not None and row.disabled else row
        known = row.id if row is not None and self.devices.knows(device, row.id) else ""
        counted = limits(name, source, device, known)
        count(self._database, counted)
        typed = as_code(password) if row is not None and row.temporary else password
        fits = self._passwords.fits(row.password_hash if row else None, typed)
        if not fits and elsewhere:
            row = self._by_directory(name, password)
        elif not fits:
            row = None
            if self._directory is not None:
                self._directory.nobody(name, password)  # else its time, or its being away, would tell who is of this box
        if row is None:
            raise NotSignedIn("The name or the password is not right.", "Check both, then try again.")
        with self._database.begin() as connection:
            forgive_all(connection, counted)
            return self._begin(connection, row, about), as_user(connection, row)

    def _by_directory(self, name: str, password: str) -> Any:
        """The row of somebody whom the school's directory knows by this password, or None. Raises what the directory does."""
        vouched = self._directory(name, password) if self._directory is not None else None
        admitted = self.admit(vouched) if vouched is not None else None
        if admitted is None:
            return None
        with self._database.read() as connection:
            return connection.execute(sa.select(users).where(users.c.id == admitted)).first()

    def admit(self, vouched: Vouched) -> str | None:
        """The id of somebody for whom another system vouches; None where the account is disabled here. Raises Conflict."""
        admitted = admit(self._database, vouched)
        if admitted is None:
            return None
        if self._rechecking is not None and vouched.source == "ldap":
            self._rechecking.asked(admitted.id)
        if admitted.changed and self._audit is not None:
            self._audit.note("admit", f"person {admitted.id}", admitted.changed, actor=admitted.id)
        return admitted.id

    def begin(self, id: str, about: str = "") -> str:
        """The token of a new session for a person whom another proof than the password has shown. Raises NotSignedIn."""
        with self._database.begin() as connection:
            known = sa.select(users).where(users.c.id == id, users.c.role != LOCAL, ~users.c.disabled)
            row = connection.execute(known).first()
            if row is None:
                raise NotSignedIn("This account cannot sign in.", "Ask the administrator.")
            return self._begin(connection, row, about)

    def renew(self, id: str, about: str = "") -> str:
        """As `begin`, for somebody who has just changed the password in a session: no second step is asked again."""
        with self._database.begin() as connection:
            return open_session(connection, id, self._settings.session_hours * 3600, about=about)

    def _begin(self, connection: sa.Connection, row: Any, about: str) -> str:
        if row.totp:
            return open_session(connection, row.id, STEP_SECONDS, kind=STEP, about=about)
        return open_session(connection, row.id, self._settings.session_hours * 3600, about=about)

    def session(self, token: str) -> Session | None:
        if not token or len(token) > LONGEST_SECRET:
            return None
        user = (users.c.id, users.c.name, users.c.role, users.c.language, users.c.temporary, users.c.preferences)
        query = (
            sa.select(*user, users.c.source, users.c.external, sessions.c.csrf, sessions.c.kind)
            .join(sessions, users.c.id == sessions.c.user)
            .outerjoin(classes, classes.c.id == sessions.c.class_id)
            .where(sessions.c.hash == digest(token), sessions.c.kind != STEP, ~users.c.disabled, alive())
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
            if row is None:
                return None
            self._saw(row)
            temporary = row.temporary and not row.kind  # who came by a class's code has no password to choose
            return Session(as_user(connection, row), row.csrf, temporary, row.kind, row.preferences or {})

    def _saw(self, row: Any) -> None:
        """Somebody uses the box: where the school's directory says who they are, it is asked whether that still holds."""
        if self._rechecking is not None and row.source == "ldap":
            self._rechecking.saw(row.id, row.external)

    def sessions_of(self, user: User, token: str) -> list[SignedIn]:
        """Where this person is signed in, newest first; `token` is that of the session that asks."""
        with self._database.read() as connection:
            return sessions_of(connection, user.id, token)

    def signed_in(self, ids: Collection[str]) -> frozenset[str]:
        """Which of these people (by id) are signed in anywhere."""
        with self._database.read() as connection:
            return signed_in(connection, ids)

    def end_sessions(self, user: User, but: str = "") -> int:
        """End all of a person's sessions but the one of the token `but`; how many."""
        with self._database.begin() as connection:
            return end_sessions(connection, user.id, but)

    def sign_out(self, token: str) -> None:
        with self._database.begin() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.hash == digest(token)))

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
                sa.insert(keys).values(id=id, user=user.id, name=name, hash=digest(key), scope=scope, created=time.time())
            )
        return id, key

    def key(self, token: str) -> User | None:
        """The user for whom a key speaks, narrowed to its scope."""
        if not token.startswith(KEY_PREFIX) or len(token) > LONGEST_SECRET:
            return None
        query = (
            sa.select(
                keys.c.id.label("key"),
                keys.c.scope,
                keys.c.used,
                users.c.id,
                users.c.name,
                users.c.role,
                users.c.language,
                users.c.source,
                users.c.external,
            )
            .join(users, users.c.id == keys.c.user)
            .where(keys.c.hash == digest(token), keys.c.revoked.is_(None), ~users.c.disabled)
        )
        with self._database.read() as connection:
            row = connection.execute(query).first()
            if row is None:
                return None
            user = as_user(connection, row, row.scope)
        self._saw(row)
        now = time.time()
        if abs(now - (row.used or 0)) > 60:  # a write for each call would cost a disk flush for each call
            with self._database.begin() as connection:
                connection.execute(sa.update(keys).where(keys.c.id == row.key).values(used=now))
        return user

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


def as_user(connection: sa.Connection, row: Any, scope: str = "") -> User:
    """A row of `users` with the classes of that person: an archived one lets nobody read, but its teacher can take it out."""
    chosen = (
        sa.select(classes.c.id, classes.c.name, classes.c.archived, memberships.c.role)
        .join(classes, classes.c.id == memberships.c.class_id)
        .where(memberships.c.user == row.id)
    )
    mine = connection.execute(chosen).all()
    names = frozenset(one.name for one in mine if one.archived is None)
    return User(row.id, row.name, row.role, scope, names, frozenset(o.id for o in mine if o.role == TEACHER), row.language)


def _named(name: str) -> sa.Select[Any]:
    """People of that name, however it is cased. Two of an older release may differ in case alone: who can sign in first, then
    the exact one."""
    return sa.select(users).where(users.c.folded == folded(name)).order_by(users.c.disabled, users.c.name != name)


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
