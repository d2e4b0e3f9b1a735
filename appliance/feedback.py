"""What readers think of an answer: a thumb, a reason, and from staff a better answer that a model may learn from.

Only an answer of one's own conversations can be rated. A pupil's thumb is never a consent to training: who may correct is asked
of `accounts`, whatever a form holds. With consent an answer becomes an example that waits for review; whoever keeps examples
hands over how (`keep`, `take_back`), and takes names out before anything is learned. Text is never in the audit record. Work is
blocking; async callers use a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from appliance.conversations import Conversations, Turn, talk
from appliance.errors import ApplianceError, BadInput, TooLarge
from appliance.tables import classes, conversations, feedback, new_id

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.audit import Audit
    from appliance.db import Database

RATINGS = ("", "up", "down")
REASONS = ("", "wrong", "sources", "unclear", "off", "unsuitable")
LONGEST_WORDS = 500
LONGEST_BETTER = 20_000


@dataclass(frozen=True, slots=True)
class Given:
    """What one person said of one answer. example: the id of the row that was made of it, "" without one."""

    rating: str = ""
    reason: str = ""
    words: str = ""
    better: str = ""
    consent: bool = False
    example: str = ""


class Feedback:
    def __init__(
        self,
        database: Database,
        conversations: Conversations,
        accounts: Accounts,
        audit: Audit,
        keep: Callable[..., None],
        take_back: Callable[[str, str], None],
    ) -> None:
        """`keep(id, **columns)` makes or changes an example, `take_back(id, by)` empties it."""
        self._database = database
        self._conversations = conversations
        self._accounts = accounts
        self._audit = audit
        self._keep = keep
        self._take_back = take_back

    def of(self, user: User, turns: Sequence[str]) -> dict[str, Given]:
        """What the user said of these answers, by their ids."""
        query = sa.select(feedback).where(feedback.c.user == user.id, feedback.c.turn.in_(turns))
        with self._database.read() as connection:
            return {row.turn: _given(row) for row in connection.execute(query)}

    def give(self, user: User, turn: str, new: Given) -> Given:
        """Say this of an answer, in place of what was said before; nothing at all takes it back.

        Raises NotFound (not the user's own), BadInput, TooLarge, Forbidden (a correction, or consent, by who may not correct).
        """
        answer = self._conversations.turn(user, turn)
        self._accounts.require(user, "rate", "answer")
        _check(new, answer)
        before = self.of(user, [turn]).get(turn, Given())
        if new.better or new.consent:
            self._accounts.require(user, "correct", "answer")
        if before.example and not new.consent:
            self._take_back(before.example, user.id)
        example = (before.example or f"given-{new_id()}") if new.consent else ""
        self._write(user, turn, new, example)
        if new.consent:
            try:
                self._keep(example, by=user.id, **self._columns(user, answer, new))
            except ApplianceError:
                self._write(user, turn, Given(new.rating, new.reason, new.words, new.better), "")
                raise
        if (before.better, before.consent) != (new.better, new.consent):
            facts = {"corrected": bool(new.better), "consent": new.consent, "example": example or before.example}
            self._audit.note("correct answer", turn, facts, actor=user.id)
        return self.of(user, [turn]).get(turn, Given())

    def _write(self, user: User, turn: str, new: Given, example: str) -> None:
        values = {
            "rating": new.rating, "reason": new.reason, "words": new.words, "better": new.better, "consent": new.consent,
            "example": example, "created": time.time(),
        }  # fmt: skip
        this = (feedback.c.turn == turn) & (feedback.c.user == user.id)
        with self._database.begin() as connection:
            if not any((new.rating, new.reason, new.words, new.better, new.consent)):
                connection.execute(sa.delete(feedback).where(this))
                return
            row = upsert(feedback).values(turn=turn, user=user.id, **values)
            connection.execute(row.on_conflict_do_update(index_elements=["turn", "user"], set_=values))

    def _columns(self, user: User, answer: Turn, new: Given) -> dict[str, Any]:
        """An example: the talk up to this answer, and what should have been said."""
        _, path = self._conversations.load(user, answer.conversation, answer.id)
        until = next(at for at, turn in enumerate(path) if turn.id == answer.id)
        query = sa.select(classes.c.name, classes.c.subject, classes.c.grade).join(
            conversations, conversations.c.class_id == classes.c.id
        )
        with self._database.read() as connection:
            lesson = connection.execute(query.where(conversations.c.id == answer.conversation)).first()
        return {
            "messages": talk(path[: until + 1]), "correction": new.better or None, "rating": new.rating or None,
            "author": user.name, "user_role": user.role, "class_name": lesson.name if lesson else "",
            "subject": lesson.subject if lesson else "", "grade": lesson.grade if lesson else "", "origin": f"turn {answer.id}",
        }  # fmt: skip


def _check(new: Given, answer: Turn) -> None:
    if answer.role != "assistant" or answer.state not in ("done", "stopped") or not answer.said:
        raise BadInput("Only a finished answer can be rated.", "Wait until it is written.")
    if new.rating not in RATINGS or new.reason not in REASONS:
        raise BadInput("This choice is not known here.", "Load the page again and choose once more.")
    if len(new.words) > LONGEST_WORDS:
        raise TooLarge(f"That is {len(new.words)} characters; {LONGEST_WORDS} are enough here.", "Say it in fewer words.")
    if len(new.better) > LONGEST_BETTER:
        raise TooLarge(f"That is {len(new.better)} characters; {LONGEST_BETTER} fit into an answer.", "Shorten the answer.")
    if new.consent and not (new.better or new.rating):
        raise BadInput("There is nothing yet to learn from.", "Write a better answer, or say that this one is good.")


def _given(row: Any) -> Given:
    return Given(row.rating, row.reason, row.words, row.better, row.consent, row.example)
