"""In which lesson a person asks: what it is about, how it is taught, from what it is answered, and whether it is open.

A pupil is answered as their class is: in several classes as the one that the page named, else as the only open one, else as the
one that is held closest. An exam of any of their classes closes the assistant to them everywhere. Staff are answered outside
any lesson and are never closed out. Hides how the lesson's words are put together, word for word the same for a whole class. It
asks no model and counts nothing. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from appliance import teaching
from appliance.accounts import PUPIL
from appliance.classes import HELP_LEVELS, Classes, SchoolClass
from appliance.errors import Closed
from appliance.tables import conversations, turns

if TYPE_CHECKING:
    from appliance.accounts import User
    from appliance.db import Database


@dataclass(frozen=True, slots=True)
class Lesson:
    """`class_id`: "" outside any class. `collections`: ids; none is no restriction.

    closed: "" where it is open, else why not: closed, exam. `choice`: the open classes a pupil of several may choose from.
    """

    class_id: str = ""
    class_name: str = ""
    title: str = ""
    subject: str = ""
    grade: str = ""
    method: str = ""
    help_level: str = ""
    strict: bool = False
    collections: frozenset[str] = frozenset()
    closed: str = ""
    until: float | None = None
    choice: tuple[tuple[str, str], ...] = ()

    def words(self) -> str:
        """What the model is told of it beside the names of subject and grade; the same for the whole class."""
        ways = (
            teaching.methods().get(self.method), teaching.help_levels().get(self.help_level), teaching.subject(self.subject),
            teaching.band(self.grade),
        )  # fmt: skip
        title = f"Today's lesson: {self.title}." if self.title else ""
        return "\n".join(part for part in (title, *(way.instructions for way in ways if way)) if part)

    def within(self, visible: frozenset[str]) -> frozenset[str]:
        """Of the collections that a person may see, those that the lesson is answered from."""
        return visible & self.collections if self.collections else visible

    def require_open(self) -> None:
        """Raises Closed."""
        if self.closed == "exam":
            raise Closed(f"{self.class_name} has an exam: the assistant rests until it is over.", "What you wrote is kept.")
        if self.closed:
            raise Closed(
                f"The assistant is closed for {self.class_name} now.", "Your teacher opens it. What you wrote is kept."
            )


class Lessons:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._classes = Classes(database)

    def of(self, user: User, conversation: str | None = None, class_id: str = "") -> Lesson:
        """The lesson in which this person asks, in a `conversation` begun for a class, or for the class that the page named."""
        if user.role != PUPIL:
            return Lesson(strict=self._classes.strict(user.classes))
        mine = self._classes.list(of=user.id)
        if not mine:
            return Lesson()
        exam = next((one for one in mine if one.exam), None)
        if exam is not None:
            return Lesson(exam.id, exam.name, closed="exam")
        now = time.time()
        opened = [one for one in mine if one.is_open(now)]
        named = (self._begun_for(conversation) if conversation else "") or class_id
        chosen = next((one for one in opened if one.id == named), None) or min(opened or mine, key=_looseness)
        strict = any(one.strict for one in mine)  # else who is in two classes could choose the looser one
        choice = tuple((one.id, f"{one.name}: {one.lesson}" if one.lesson else one.name) for one in opened)
        return Lesson(
            chosen.id, chosen.name, chosen.lesson, chosen.subject, chosen.grade, chosen.method, chosen.help_level, strict,
            frozenset(self._classes.collections(chosen.id)), "" if opened else "closed", chosen.until,
            choice if len(choice) > 1 else (),
        )  # fmt: skip

    def begin(self, conversation: str, lesson: Lesson) -> None:
        """Keep for which class a conversation was begun; later questions do not change it."""
        this = sa.and_(conversations.c.id == conversation, conversations.c.class_id == "")
        with self._database.begin() as connection:
            connection.execute(sa.update(conversations).where(this).values(class_id=lesson.class_id))

    def asked(self, class_id: str, since: float) -> tuple[int, int]:
        """How many people have asked in a class since then (UTC seconds), and how many questions. Numbers, no words."""
        counted = (
            sa.select(sa.func.count(conversations.c.user.distinct()), sa.func.count(turns.c.id))
            .join(conversations, conversations.c.id == turns.c.conversation)
            .where(conversations.c.class_id == class_id, turns.c.role == "user", turns.c.created >= since)
        )
        with self._database.read() as connection:
            people, questions = connection.execute(counted).one()
        return people, questions

    def _begun_for(self, conversation: str) -> str:
        with self._database.read() as connection:
            found = connection.scalar(sa.select(conversations.c.class_id).where(conversations.c.id == conversation))
        return found or ""


def _looseness(one: SchoolClass) -> tuple[bool, int, str]:
    """The class that is held closest is the smallest: strict before free, hints before full answers."""
    return not one.strict, HELP_LEVELS.index(one.help_level), one.name
