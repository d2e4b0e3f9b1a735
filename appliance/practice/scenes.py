"""The scenes that staff may rehearse: those that come with the appliance, and the school's own with their versions and states.

A scene that somebody makes is a draft: listed for its maker and for administrators alone, and readable by a colleague to whom
its maker gives the address, since a teacher's draft is approved by somebody else; an administrator may approve their own, or a
school with one teacher could never use one. A change is another version, a draft again, while the approved one before it goes
on being used; no version is ever removed, since rehearsals name them. What came with the appliance stays as it is: a change to
it is saved as a scene of one's own. Pupils reach nothing here. The audit record holds ids and verbs, never words. Work is
blocking; async callers use a thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.accounts.policy import ADMINISTRATOR, LOCAL
from appliance.audit import unix_name
from appliance.errors import BadInput, Conflict, Forbidden, NotFound, TooLarge
from appliance.practice import scene_file
from appliance.practice.scenario import Scenario, read, written
from appliance.tables import new_id
from appliance.tables.practice import scenarios

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.audit import Audit
    from appliance.db import Database

WRITTEN, DRAFT, APPROVED, ARCHIVED = "written", "draft", "approved", "archived"
AGAIN = "Look at it again, then decide."


@dataclass(frozen=True, slots=True)
class Scene:
    """A scenario and where it stands. state: "written" for one that came with the appliance, else draft, approved, archived.

    author: the maker's id, "" for a written one. generated: a model wrote its first form. created: of this version, in seconds.
    """

    scenario: Scenario
    state: str
    author: str = ""
    generated: bool = False
    created: float = 0.0

    @property
    def draft(self) -> bool:
        return self.state == DRAFT


class Scenes:
    def __init__(self, database: Database, accounts: Accounts, audit: Audit) -> None:
        self._database = database
        self._accounts = accounts
        self._audit = audit

    def require(self, user: User | None) -> None:
        """Raises NotSignedIn, and Forbidden for who is not of the staff."""
        self._accounts.require(user, "practise", "lesson")

    # --- reading -----------------------------------------------------------------------------------------------------------
    def list(
        self,
        user: User | None,
        *,
        category: str = "",
        phase: str = "",
        subject: str = "",
        grade: str = "",
        archived: bool = False,
    ) -> Sequence[Scene]:
        """What the user may rehearse, by title; of each of the school's own the version approved last, and a draft after it.

        Each filter "" lets all through; a scene without a subject or a grade is for every one. archived: those in the archive
        instead. A scene that this release cannot read is left out; `get` says why. Raises NotSignedIn, Forbidden.
        """
        self._accounts.require(user, "practise", "lesson")
        assert user is not None
        found = [Scene(one, WRITTEN) for one in ({} if archived else written()).values()]
        found += self._own(user, archived)
        wanted = ((category, "category"), (phase, "phase"), (subject, "subject"), (grade, "grade"))
        return sorted(
            (one for one in found if all(_passes(one.scenario, name, value) for value, name in wanted)),
            key=lambda one: (one.scenario.title.casefold(), one.scenario.id, one.scenario.version),
        )

    def get(self, user: User | None, id: str, version: int | None = None) -> Scenario:
        """`find` without the state."""
        return self.find(user, id, version).scenario

    def find(self, user: User | None, id: str, version: int | None = None) -> Scene:
        """One scene: the version asked for, archived or not; without one, what is approved last, else the draft.

        Raises NotSignedIn, Forbidden, NotFound (also where it is another's draft), BadInput (this release cannot read it).
        """
        self._accounts.require(user, "practise", "lesson")
        assert user is not None
        if (known := written().get(id)) is not None:
            if version not in (None, known.version):
                raise NotFound(f"Version {version} of this scene came with another release.", "Rehearse the one that is here.")
            return Scene(known, WRITTEN)
        with self._database.read() as connection:
            rows = _of(connection, id)
        if version is not None:
            rows = [row for row in rows if row.version == version]
        else:
            rows = [row for row in rows if row.state != ARCHIVED]
            rows = [row for row in rows if row.state == APPROVED] or rows
        if not rows or not self._sees(user, rows[-1]):
            raise _no_scene()
        return _scene(rows[-1])

    def _own(self, user: User, archived: bool) -> Sequence[Scene]:
        state = scenarios.c.state == ARCHIVED if archived else scenarios.c.state != ARCHIVED
        newest: dict[str, Any] = {}
        approved: dict[str, Any] = {}
        with self._database.read() as connection:
            for row in connection.execute(sa.select(scenarios).where(state).order_by(scenarios.c.version)):
                newest[row.id] = row
                if row.state == APPROVED:
                    approved[row.id] = row
        mine = [row for row in newest.values() if row.author == user.id or _administers(user)]
        scenes = []
        for row in [*approved.values(), *(row for row in mine if row.state != APPROVED)]:
            try:
                scenes.append(_scene(row))
            except BadInput:
                continue
        return scenes

    def _sees(self, user: User, row: Any) -> bool:
        """Whoever may approve opens a draft whose id they were given; it is not listed for them, and no id can be guessed."""
        return bool(row.approved_by) or row.author == user.id or self._accounts.can(user, "approve", "scenario")

    # --- changing ----------------------------------------------------------------------------------------------------------
    def save(
        self, user: User | None, facts: Mapping[str, Any], id: str = "", *, version: int | None = None, generated: bool = False
    ) -> Scenario:
        """A new draft, or with `id` a new version of one's own scene, which is a draft until it is approved as well.

        version: the newest one when the editor began, `facts["version"]` where none is given; raises Conflict where there is a
        newer one. Raises NotSignedIn, Forbidden (not the user's own), NotFound, BadInput (every fault), TooLarge.
        """
        self._accounts.require(user, "practise", "lesson")
        assert user is not None
        seen = facts.get("version") if version is None else version
        number = 1
        with self._database.begin() as connection:
            if id:
                newest = self._newest(connection, user, id)
                if newest.version != seen:
                    raise Conflict("Somebody else has changed this scene meanwhile.", "Open it again, then make your change.")
                number, generated = newest.version + 1, newest.generated
            author = newest.author if id else user.id
            id = id or new_id()
            scenario = read({**_bounded(facts), "version": number, "approved_by": ""}, id, where=_called(facts))
            row = {"id": id, "version": number, "facts": _bounded(scenario.as_facts()), "state": DRAFT, "author": author}
            connection.execute(sa.insert(scenarios).values(**row, generated=generated, created=time.time()))
        self._note("create scenario" if number == 1 else "change scenario", user, id, number, generated=generated)
        return scenario

    def approve(self, user: User | None, id: str, version: int | None = None) -> Scenario:
        """Let all staff rehearse the newest version; `version`: the one that was read, raises Conflict where it is not that.

        Who made a scene cannot approve it, unless they are an administrator. Raises NotSignedIn, Forbidden, NotFound.
        """
        self._accounts.require(user, "approve", "scenario")
        assert user is not None
        if id in written():
            raise Conflict("This scene came with the appliance, and is approved.", "There is nothing to do.")
        with self._database.begin() as connection:
            rows = _of(connection, id)
            row = rows[-1] if rows else None
            if row is None:
                raise _no_scene()
            if row.state != DRAFT:
                archived = row.state == ARCHIVED
                why = "in the archive" if archived else "approved already"
                raise Conflict(f"This scene is {why}.", "Take it out first." if archived else "There is nothing to do.")
            if version not in (None, row.version):
                raise Conflict("This scene was changed after you opened it.", AGAIN)
            if row.author == user.id and not _administers(user):
                raise Forbidden("A scene is approved by somebody else than its maker.", "Ask a colleague to read it.")
            by = f"{unix_name()} at the command line" if user.role == LOCAL else user.name
            connection.execute(_this(row).values(state=APPROVED, approved_by=by))
        self._note("approve scenario", user, id, row.version)
        return self.get(user, id, row.version)

    def archive(self, user: User | None, id: str, on: bool = True) -> None:
        """Put a scene away, or take it out again; rehearsals of it can still be read. Raises Forbidden, NotFound, Conflict."""
        self._accounts.require(user, "practise", "lesson")
        assert user is not None
        with self._database.begin() as connection:
            newest = self._newest(connection, user, id, archived=not on)
            for row in _of(connection, id):
                state = ARCHIVED if on else APPROVED if row.approved_by else DRAFT
                connection.execute(_this(row).values(state=state))
        self._note("archive scenario" if on else "restore scenario", user, id, newest.version)

    def _newest(self, connection: sa.Connection, user: User, id: str, *, archived: bool = False) -> Any:
        """The newest version of a scene that the user may change."""
        if id in written():
            raise Forbidden("This scene came with the appliance and stays as it is.", "Save yours as a new scene.")
        rows = _of(connection, id)
        if not rows or not self._sees(user, rows[-1]):
            raise _no_scene()
        if rows[-1].author != user.id and not _administers(user):
            raise Forbidden("Only its maker or an administrator changes a scene.", "Save yours as a new scene.")
        if (rows[-1].state == ARCHIVED) is not archived:
            where = "not in the archive" if archived else "in the archive"
            raise Conflict(f"This scene is {where}.", "Look at the list again." if archived else "Take it out first.")
        return rows[-1]

    # --- files -------------------------------------------------------------------------------------------------------------
    def export(self, user: User | None, id: str, version: int | None = None) -> str:
        """The text of a TOML file. Raises what `find` does."""
        return scene_file.write(self.get(user, id, version))

    def take_in(self, user: User | None, data: bytes, where: str = "the file") -> Scenario:
        """A new draft from a file called `where`. Raises NotSignedIn, Forbidden, BadInput (every fault), TooLarge."""
        self._accounts.require(user, "practise", "lesson")
        facts = scene_file.read(data, where)
        read({"version": 1, **facts}, "", where=where)
        return self.save(user, facts)

    def _note(self, verb: str, user: User, id: str, version: int, **facts: Any) -> None:
        actor = "" if user.role == LOCAL else user.id
        self._audit.note(verb, id, {"version": version, **facts}, actor=actor)


def _scene(row: Any) -> Scene:
    scenario = replace(read(row.facts, row.id), version=row.version, approved_by=row.approved_by)
    return Scene(scenario, row.state, row.author, row.generated, row.created)


def _of(connection: sa.Connection, id: str) -> list[Any]:
    return [*connection.execute(sa.select(scenarios).where(scenarios.c.id == id).order_by(scenarios.c.version))]


def _this(row: Any) -> sa.Update:
    return sa.update(scenarios).where(scenarios.c.id == row.id, scenarios.c.version == row.version)


def _passes(scenario: Scenario, name: str, value: str) -> bool:
    has = str(getattr(scenario, name)).casefold()
    return not value or has == value.casefold() or (not has and name in ("subject", "grade"))


def _bounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as JSON keeps them. Raises TooLarge, and BadInput for what it cannot hold."""
    try:
        text = json.dumps(facts, ensure_ascii=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError):
        raise BadInput("This scene has something in it that is no text, number or list.", "Type it again.") from None
    if size > scene_file.LARGEST:
        raise TooLarge(f"This scene has {size} bytes; {scene_file.LARGEST} fit.", "Shorten it, or make two scenes of it.")
    kept: dict[str, Any] = json.loads(text)
    return kept


def _called(facts: Mapping[str, Any]) -> str:
    title = facts.get("title")
    return repr(title.strip()[:60]) if isinstance(title, str) and title.strip() else "you wrote"


def _administers(user: User) -> bool:
    return user.role in (ADMINISTRATOR, LOCAL) and not user.scope


def _no_scene() -> NotFound:
    return NotFound("There is no such scene here.", "Look at the list of scenes again.")
