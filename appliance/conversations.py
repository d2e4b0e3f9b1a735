"""Conversations on disk: every question, every answer, and whose they are.

Each call is one transaction and touches only the user's own rows; another's conversation looks like one that does not exist.
An answer is handed out without the text of documents that the user may no longer see, as `accounts` decides at that moment;
where they stood, and a model's own words, stay. It knows nothing of models: `chat` decides what an answer is. Work is blocking;
async callers use a thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.errors import BadInput, NotFound
from appliance.knowledge import quoted
from appliance.tables import conversations, documents, gone_documents, new_id, turns

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.db import Database

LONGEST_TITLE = 60


@dataclass(frozen=True, slots=True)
class Turn:
    """A question or an answer. `state`: done, streaming, stopped, failed, blocked.

    Of an answer, `facts` holds `lead` (Markdown that stands above a starter's words), `starter`, `nearest`, `lexical_only`,
    `finish`, `notice` and `error`, beside the token counts.
    """

    id: str
    conversation: str
    role: str
    text: str
    state: str
    model: str = ""
    handler: str = ""
    covered: bool | None = None
    passages: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Times in UTC seconds since 1970."""

    id: str
    title: str
    created: float
    updated: float


class Conversations:
    def __init__(self, database: Database, accounts: Accounts) -> None:
        self._database = database
        self._accounts = accounts

    def list(self, user: User, limit: int = 100) -> list[Conversation]:
        """The user's own, latest first."""
        mine = sa.select(conversations).where(conversations.c.user == user.id)
        with self._database.read() as connection:
            rows = connection.execute(mine.order_by(conversations.c.updated.desc()).limit(limit)).all()
        return [Conversation(row.id, row.title, row.created, row.updated) for row in rows]

    def load(self, user: User, id: str) -> tuple[Conversation, Sequence[Turn]]:
        """A conversation and its turns in order. Raises NotFound."""
        with self._database.read() as connection:
            row = self._own(connection, user, id, "read")
            rows = connection.execute(sa.select(turns).where(turns.c.conversation == id).order_by(turns.c.ordinal)).all()
        return Conversation(row.id, row.title, row.created, row.updated), self._shown(user, rows)

    def turn(self, user: User, id: str) -> Turn:
        """Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(turns).where(turns.c.id == id)).first()
            if row is None:
                raise NotFound("There is no such answer here.", "It may have been deleted.")
            self._own(connection, user, row.conversation, "read")
        return self._shown(user, [row])[0]

    def rename(self, user: User, id: str, title: str) -> None:
        """Raises NotFound, BadInput."""
        title = short_title(title)
        if not title:
            raise BadInput("The new name is empty.", "Write at least one letter.")
        with self._database.begin() as connection:
            self._own(connection, user, id, "change")
            connection.execute(sa.update(conversations).where(conversations.c.id == id).values(title=title))

    def delete(self, user: User, id: str) -> None:
        """With all its turns. Raises NotFound."""
        with self._database.begin() as connection:
            self._own(connection, user, id, "delete")
            connection.execute(sa.delete(conversations).where(conversations.c.id == id))

    def add_question(self, user: User, question: str, id: str | None) -> tuple[dict[str, str], Sequence[Turn]]:
        """Store a question and the place of its answer, in a new conversation where `id` is None. Raises NotFound.

        Gives the ids ("conversation", "question", "turn": the answer's) and the turns before them.
        """
        now = time.time()
        ids = {"conversation": id or new_id(), "question": new_id(), "turn": new_id()}
        with self._database.begin() as connection:
            if id is None:
                row = {
                    "id": ids["conversation"],
                    "user": user.id,
                    "title": short_title(question),
                    "created": now,
                    "updated": now,
                }
                connection.execute(sa.insert(conversations).values(**row))
            else:
                self._own(connection, user, id, "change")
                connection.execute(sa.update(conversations).where(conversations.c.id == id).values(updated=now))
            of_this = turns.c.conversation == ids["conversation"]
            earlier = connection.execute(sa.select(turns).where(of_this).order_by(turns.c.ordinal)).all()
            ordinal = earlier[-1].ordinal + 1 if earlier else 1
            common = {"conversation": ids["conversation"], "passages": [], "facts": {}, "created": now}
            asked = {"id": ids["question"], "ordinal": ordinal, "role": "user", "text": question, "state": "done"}
            reply = {"id": ids["turn"], "ordinal": ordinal + 1, "role": "assistant", "text": "", "state": "streaming"}
            connection.execute(sa.insert(turns), [common | asked, common | reply])
        return ids, self._shown(user, earlier)

    def save_answer(self, turn: str, columns: dict[str, Any]) -> None:
        """Write down an answer under way; once its state is another than "streaming" it no longer changes.

        A thread whose waiter was cancelled may come late: it must not undo the final words. Nor does an answer bring back the
        text of a document that was taken out while it was being written.
        """
        cited = [passage["document"] for passage in columns.get("passages", ())]
        with self._database.begin() as connection:
            if cited and (gone := self._taken_out(connection, turn, cited)):
                columns = columns | quoted.without(columns, gone)
            connection.execute(sa.update(turns).where(turns.c.id == turn, turns.c.state == "streaming").values(**columns))

    @staticmethod
    def _taken_out(connection: sa.Connection, turn: str, cited: Sequence[str]) -> set[str]:
        """Which of these documents are gone: by their traces, which go with their collection, or by what is stored already."""
        gone = set(connection.scalars(sa.select(gone_documents.c.id).where(gone_documents.c.id.in_(cited))))
        stored = connection.scalar(sa.select(turns.c.passages).where(turns.c.id == turn))
        return gone | {passage["document"] for passage in stored or () if not passage["text"]}

    def mark_blocked(self, turn: str) -> None:
        """A question that was judged unsafe: it goes into no prompt and no example."""
        with self._database.begin() as connection:
            connection.execute(sa.update(turns).where(turns.c.id == turn).values(state="blocked"))

    def fail_unfinished(self, running: Sequence[str]) -> None:
        """Answers that nobody writes any more (all but `running`) keep what they had and are marked failed."""
        with self._database.begin() as connection:
            lost = sa.and_(turns.c.state == "streaming", turns.c.id.not_in(running))
            connection.execute(sa.update(turns).where(lost).values(state="failed"))

    def _shown(self, user: User, rows: Sequence[Any]) -> Sequence[Turn]:
        """Rows as turns that the user may read today, whatever they could read when they asked."""
        cited = {passage["document"] for row in rows for passage in row.passages}
        if not cited:
            return [_turn(row._mapping) for row in rows]
        visible = self._accounts.visible(user, "collection")
        chosen = sa.select(documents.c.id, documents.c.collection).where(documents.c.id.in_(cited))
        with self._database.read() as connection:
            hidden = {row.id for row in connection.execute(chosen) if row.collection not in visible}
        return [_turn({**row._mapping, **(quoted.without(row._mapping, hidden) if hidden else {})}) for row in rows]

    def _own(self, connection: sa.Connection, user: User, id: str, verb: str) -> Any:
        row = connection.execute(sa.select(conversations).where(conversations.c.id == id)).first()
        self._accounts.require(user, verb, "conversation", owner=row.user if row is not None else None)
        return row


def short_title(text: str) -> str:
    """One line that names a conversation in a list."""
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text[:1000].encode("utf-8", "ignore").decode()).strip()
    return line if len(line) <= LONGEST_TITLE else line[: LONGEST_TITLE - 1].rsplit(" ", 1)[0].rstrip(" ,.;:") + "…"


def _turn(row: Mapping[str, Any]) -> Turn:
    return Turn(**{one.name: row[one.name] for one in fields(Turn)})
