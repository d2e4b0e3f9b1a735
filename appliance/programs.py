"""Optimised prompt programs: kept as candidates, promoted, rolled back; and which of them serves a question.

A program serves its module, or its module in one subject, in one grade, or in both. The nearest is taken: subject and grade,
subject, grade, any; where there is none, the module as its file has it. (Subject before grade: what a good question is differs
more between history and mathematics than between two school years.) What is promoted serves with the next question, in every
process: each question asks the table, what was read is kept in memory. A program that cannot be read is passed over, and the
record says so once; no answer fails for it. Hides the table. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance import prompts
from appliance.accounts.policy import LOCAL
from appliance.errors import ApplianceError, BadInput, GateNotPassed, NotFound
from appliance.tables import new_id, programs

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.audit import Audit
    from appliance.db import Database
    from appliance.prompts import Module

CANDIDATE, ACTIVE, PREVIOUS, RETIRED = "candidate", "active", "previous", "retired"
KEPT = 64  # programs in memory
LONGEST = 120  # of a subject, a grade, a maker
_ABOUT = (
    programs.c.id, programs.c.module, programs.c.subject, programs.c.grade, programs.c.state, programs.c.maker,
    programs.c.created, programs.c.promoted, sa.type_coerce(programs.c.report, sa.String).label("report"),
)  # fmt: skip
_FACTS = sa.type_coerce(programs.c.facts, sa.String)  # as it stands: a damaged one is a fault of its own, not of the query


@dataclass(frozen=True, slots=True)
class Program:
    """A row of `programs` without its words. `subject`, `grade`: "" for any. `report`: how it did, as its maker told it."""

    id: str
    module: str
    subject: str
    grade: str
    state: str
    maker: str
    created: float
    promoted: float | None
    report: Mapping[str, Any] = field(default_factory=dict)


class Programs:
    def __init__(self, database: Database, accounts: Accounts, audit: Audit) -> None:
        self._database = database
        self._accounts = accounts
        self._audit = audit
        self._read: dict[str, Module] = {}
        self._damaged: set[str] = set()

    # --- which one serves ---------------------------------------------------------------------------------------------
    def module(self, name: str, subject: str = "", grade: str = "") -> Module:
        """The module as it serves now. Raises NotFound for a name that is none."""
        default = prompts.load(name)
        chosen = sa.select(programs.c.id, programs.c.subject, programs.c.grade)
        with self._database.read() as connection:
            rows = connection.execute(chosen.where(programs.c.module == name, programs.c.state == ACTIVE)).all()
        mine = [row for row in rows if row.subject in ("", key(subject)) and row.grade in ("", grade_key(grade))]
        for row in sorted(mine, key=lambda row: (row.subject == "", row.grade == "")):
            found = self._loaded(row.id)
            if found is not None and found.name == name:
                return found
        return default

    def _loaded(self, id: str) -> Module | None:
        """A program's module; None where it cannot be read, which the record is told once."""
        if id in self._damaged:
            return None
        if id not in self._read:
            try:
                made = prompts.from_program(self._words(id))
            except ApplianceError as error:
                self._damaged.add(id)
                self._told_once(id, error)
                return None
            while len(self._read) >= KEPT:
                self._read.pop(next(iter(self._read)))
            self._read[id] = made
        return self._read[id]

    def _told_once(self, id: str, error: ApplianceError) -> None:
        """However often a process is started. Where the record cannot be written the answer goes on all the same."""
        with contextlib.suppress(ApplianceError):
            if not any(entry.verb == "program damaged" for entry in self._audit.entries(thing=id)):
                self._audit.note("program damaged", id, {"code": error.code})

    def _words(self, id: str) -> str:
        with self._database.read() as connection:
            found = connection.scalar(sa.select(_FACTS).where(programs.c.id == id))
        if found is None:
            raise NotFound("There is no such program here.", "`appliance modules list` shows them all.")
        return str(found)

    # --- what there is --------------------------------------------------------------------------------------------------
    def list(self, module: str = "") -> Sequence[Program]:
        """Newest first."""
        chosen = sa.select(*_ABOUT).order_by(programs.c.created.desc(), programs.c.id)
        chosen = chosen.where(programs.c.module == module) if module else chosen
        with self._database.read() as connection:
            return [_program(row) for row in connection.execute(chosen)]

    def get(self, id: str) -> Program:
        """Raises NotFound."""
        with self._database.read() as connection:
            return _program(_row(connection, id))

    def export(self, id: str) -> Mapping[str, Any]:
        """A program's JSON, as `add` takes it. Raises NotFound, BadInput for a damaged one."""
        return prompts.from_program(self._words(id)).as_program()

    # --- changing -------------------------------------------------------------------------------------------------------
    def add(
        self,
        user: User,
        facts: str | Mapping[str, Any],
        *,
        subject: str = "",
        grade: str = "",
        report: Mapping[str, Any] | None = None,
        maker: str = "",
    ) -> Program:
        """Keep a program as a candidate: it serves nobody yet. `report["passed"]`: whether it passed its gate.

        Raises Forbidden, BadInput with all faults of the program, NotFound for an unknown module.
        """
        self._accounts.require(user, "change", "model")
        made = prompts.from_program(facts)
        for name, value in (("subject", subject), ("grade", grade), ("maker", maker)):
            if len(value) > LONGEST or not value.isprintable():
                raise BadInput(f"The {name} has to be one line of at most {LONGEST} characters.", "Say it in fewer words.")
        row = {
            "id": new_id(), "module": made.name, "subject": key(subject), "grade": grade_key(grade), "facts": made.as_program(),
            "report": _plain(report or {}), "state": CANDIDATE, "maker": maker, "created": time.time(),
        }  # fmt: skip
        with self._database.begin() as connection:
            connection.execute(sa.insert(programs).values(**row))
        self._audit.note("add program", str(row["id"]), {"module": made.name}, actor=self._actor(user))
        return self.get(str(row["id"]))

    def promote(self, user: User, id: str, *, accept: str = "") -> Program:
        """Let a program serve where it belongs, from the next question on; what served there before can be rolled back to.

        accept: why one that its gate refused, or never judged, serves all the same. Raises Forbidden, NotFound, BadInput for a
        damaged one, GateNotPassed.
        """
        self._accounts.require(user, "change", "model")
        prompts.from_program(self._words(id))
        with self._database.begin() as connection:
            found = _program(_row(connection, id))
            if not accept.strip() and found.report.get("passed") is not True:
                judged = "did not pass its gate" if "passed" in found.report else "was never judged"
                hint = f"Optimise it again, or, knowing that, `appliance modules promote {id} --accept REASON`."
                raise GateNotPassed(f"The program {id} for {found.module} {judged}.", hint)
            if found.state == ACTIVE:
                return found
            before = _take_over(connection, found)
        facts = {"module": found.module, "subject": found.subject, "grade": found.grade, "before": before}
        self._audit.note("promote program", id, facts | ({"accept": accept} if accept else {}), actor=self._actor(user))
        return self.get(id)

    def roll_back(self, user: User, module: str, subject: str = "", grade: str = "") -> Program | None:
        """Let what served before serve again, the module's file where that was it (None). Once more undoes it.

        Raises Forbidden, NotFound where nothing was promoted there.
        """
        self._accounts.require(user, "change", "model")
        prompts.load(module)
        with self._database.begin() as connection:
            rows = connection.execute(sa.select(*_ABOUT).where(_place(module, key(subject), grade_key(grade)))).all()
            now, before = (next((row for row in rows if row.state == state), None) for state in (ACTIVE, PREVIOUS))
            if now is None and before is None:
                raise NotFound(f"No program was promoted for {module} there.", "`appliance modules list` shows them all.")
            for row, state in ((now, PREVIOUS), (before, ACTIVE)):
                if row is not None:
                    _set(connection, row.id, state)
        facts = {"module": module, "before": now.id if now else "", "subject": key(subject), "grade": grade_key(grade)}
        self._audit.note("rollback program", before.id if before else module, facts, actor=self._actor(user))
        return self.get(before.id) if before is not None else None

    def forget(self, ids: Collection[str], by: str) -> Sequence[Program]:
        """Take withdrawn rows out of programs: every one that has words of such a row serves nobody any more, and loses them.

        Which rows those are its maker told in `report["rows"]`. Where one served, the module's file does, until another is
        promoted. What is left cannot be promoted by its verdict. Safe to repeat.
        """
        wanted = frozenset(ids)
        gone: Sequence[Program] = ()
        for one in self.list() if wanted else ():
            rows = one.report.get("rows")
            if not isinstance(rows, list) or wanted.isdisjoint(map(str, rows)) or one.report.get("erased") is True:
                continue
            bare = prompts.load(one.module).as_program()
            values = {"state": RETIRED, "facts": bare, "report": {**one.report, "passed": False, "erased": True}}
            with self._database.begin() as connection:
                connection.execute(sa.update(programs).where(programs.c.id == one.id).values(**values))
            self._read.pop(one.id, None)
            self._audit.note("erase program", one.id, {"module": one.module, "state": one.state}, actor=by)
            gone = (*gone, one)
        if gone:
            self._database.fold_log()
        return gone

    @staticmethod
    def _actor(user: User) -> str:
        return "" if user.role == LOCAL else user.id


def key(subject: str) -> str:
    """A subject as it is compared: without regard to case and spaces."""
    return " ".join(subject.casefold().split())


def grade_key(grade: str) -> str:
    """A grade as it is compared: "Grade 7", "7" and "07" are one; one without a number is compared by its words."""
    number = re.search(r"\d{1,3}", grade)
    return str(int(number[0])) if number else key(grade)


def _take_over(connection: sa.Connection, found: Program) -> str:
    """Make a program the active one of its place; the id of the one before it, "" for none."""
    here = _place(found.module, found.subject, found.grade)
    before = connection.scalar(sa.select(programs.c.id).where(here, programs.c.state == ACTIVE))
    older = sa.update(programs).where(here, programs.c.state == PREVIOUS).values(state=RETIRED)
    connection.execute(older)
    if before is not None:
        _set(connection, before, PREVIOUS)
    _set(connection, found.id, ACTIVE)
    return before or ""


def _place(module: str, subject: str, grade: str) -> sa.ColumnElement[bool]:
    return sa.and_(programs.c.module == module, programs.c.subject == subject, programs.c.grade == grade)


def _set(connection: sa.Connection, id: str, state: str) -> None:
    values: dict[str, Any] = {"state": state} | ({"promoted": time.time()} if state == ACTIVE else {})
    connection.execute(sa.update(programs).where(programs.c.id == id).values(**values))


def _row(connection: sa.Connection, id: str) -> Any:
    row = connection.execute(sa.select(*_ABOUT).where(programs.c.id == id)).first()
    if row is None:
        raise NotFound("There is no such program here.", "`appliance modules list` shows them all.")
    return row


def _program(row: Any) -> Program:
    try:
        report = json.loads(row.report)
    except (TypeError, ValueError, RecursionError):
        report = {}
    told = report if isinstance(report, dict) else {}
    return Program(row.id, row.module, row.subject, row.grade, row.state, row.maker, row.created, row.promoted, told)


def _plain(report: Mapping[str, Any]) -> dict[str, Any]:
    """Raises BadInput for what is no small JSON."""
    try:
        text = json.dumps(report, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise BadInput("The report of the program is no JSON.", "Give figures and words.") from None
    if len(text) > prompts.LONGEST_PROGRAM:
        raise BadInput("The report of the program is too long.", "Leave the single rows out.")
    return dict(json.loads(text))
