"""Conversations on disk: every question, every answer, and whose they are.

Each call is one transaction and touches only the user's own rows; another's conversation looks like one that does not exist,
and so does a deleted one, which can be brought back for ten minutes. The turns of a conversation are a tree (`branches`);
`load` gives the path that is shown. An answer is handed out without the text of documents that the user may no longer see, as
`accounts` decides at that moment; where they stood, and a model's own words, stay. It knows nothing of models: `chat` decides
what an answer is. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance import branches, openings
from appliance.audit import SLACK, clock_went_back
from appliance.errors import BadInput, NotFound
from appliance.knowledge import quoted
from appliance.tables import conversations, documents, gone_documents, new_id, turns, users

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.db import Database

LONGEST_TITLE = 60
LONGEST_FOLDER = 40
UNDO_SECONDS = 600.0
# What a path is found by, without anybody's words.
_BONES = (turns.c.id, turns.c.parent, turns.c.ordinal, turns.c.role)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question or an answer. `state`: done, streaming, stopped, failed; of either: blocked, where it was judged unsafe.

    Of an answer, `facts` holds `opening` (a code of `openings`), `lead` (Markdown that stands above a starter's words),
    `starter`, `nearest`, `lexical_only`, `finish`, `notice`, `why` (it was stopped) and the fault that ended it (`error`,
    `hint`, `code`, `about`), beside the token counts. versions: the ids of all turns that stand in its place, itself
    among them, oldest first.
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
    created: float = 0.0
    parent: str = ""
    versions: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """What counts as said: the quotations where they led above a starter's words; what opened it where that was all."""
        return self.facts.get("lead") or self.text or self.opening(str)

    def opening(self, say: Callable[[str], str]) -> str:
        """What stands before its own words, in the language of `say`."""
        return openings.words(self.facts.get("opening", ""), self.facts.get("nearest", ()), say)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Times in UTC seconds since 1970."""

    id: str
    title: str
    created: float
    updated: float
    folder: str = ""


class Conversations:
    """`under_way` tells of an answer that is still being written what its row will hold; see `running`."""

    def __init__(self, database: Database, accounts: Accounts) -> None:
        self._database = database
        self._accounts = accounts
        self.under_way: Callable[[str], Mapping[str, Any] | None] = lambda _turn: None

    # --- reading -----------------------------------------------------------------------------------------------------
    def list(self, user: User, limit: int = 100, *, folder: str = "", before: float | None = None) -> list[Conversation]:
        """The user's own, latest first; those of one folder, or that were last written to `before` then."""
        mine = _present().where(conversations.c.user == user.id)
        mine = mine.where(conversations.c.folder == folder) if folder else mine
        mine = mine.where(conversations.c.updated < before) if before is not None else mine
        with self._database.read() as connection:
            rows = connection.execute(mine.order_by(conversations.c.updated.desc()).limit(limit)).all()
        return [_conversation(row) for row in rows]

    def folders(self, user: User) -> Sequence[str]:
        """The names of the user's folders."""
        mine = _present().where(conversations.c.user == user.id, conversations.c.folder != "")
        query = mine.with_only_columns(conversations.c.folder).distinct().order_by(conversations.c.folder)
        with self._database.read() as connection:
            return connection.scalars(query).all()

    def load(self, user: User, id: str, at: str = "") -> tuple[Conversation, Sequence[Turn]]:
        """A conversation and the turns of the branch that is shown, in order; of the one with the turn `at`.

        Raises NotFound.
        """
        with self._database.read() as connection:
            row = self._own(connection, user, id, "read")
            bones = _bones(connection, id)
            leaf = branches.newest_below(bones, at) if at in {one.id for one in bones} else row.leaf
            shown = [one.id for one in branches.path(bones, leaf)]
            rows = connection.execute(sa.select(turns).where(turns.c.id.in_(shown)).order_by(turns.c.ordinal)).all()
        return _conversation(row), self._shown(user, rows, branches.versions(bones))

    def tree(self, user: User, id: str) -> tuple[Conversation, Sequence[Turn]]:
        """A conversation with the turns of all its branches, oldest first. Raises NotFound."""
        with self._database.read() as connection:
            row = self._own(connection, user, id, "read")
            rows = connection.execute(sa.select(turns).where(turns.c.conversation == id).order_by(turns.c.ordinal)).all()
        return _conversation(row), self._shown(user, rows, branches.versions(rows))

    def texts(self, user: User, limit: int = 1000) -> Iterable[tuple[Conversation, Sequence[Turn]]]:
        """The user's latest conversations with all their turns."""
        chats = self.list(user, limit)
        mine = _present().where(conversations.c.user == user.id).with_only_columns(conversations.c.id)
        with self._database.read() as connection:
            rows = connection.execute(sa.select(turns).where(turns.c.conversation.in_(mine)).order_by(turns.c.ordinal)).all()
        of = {chat.id: [] for chat in chats}  # type: dict[str, Any]
        for turn in self._shown(user, rows):
            of.get(turn.conversation, []).append(turn)
        return [(chat, of[chat.id]) for chat in chats]

    def turn(self, user: User, id: str) -> Turn:
        """Raises NotFound."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(turns).where(turns.c.id == id)).first()
            if row is None:
                raise NotFound("There is no such answer here.", "It may have been deleted.")
            self._own(connection, user, row.conversation, "read")
            places = branches.versions(_bones(connection, row.conversation))
        return self._shown(user, [row], places)[0]

    # --- changing ----------------------------------------------------------------------------------------------------
    def rename(self, user: User, id: str, title: str) -> None:
        """Raises NotFound, BadInput."""
        title = short_title(title)
        if not title:
            raise BadInput("The new name is empty.", "Write at least one letter.")
        self._set(user, id, title=title)

    def move(self, user: User, id: str, folder: str) -> None:
        """Into a folder, which is there as long as it holds something; "" takes it out. Raises NotFound."""
        self._set(user, id, folder=short_title(folder, LONGEST_FOLDER))

    def show(self, user: User, id: str, turn: str) -> str:
        """Show the branch with this turn, here and in every other tab from now on: the id of its last turn. Raises NotFound."""
        with self._database.begin() as connection:
            self._own(connection, user, id, "change")
            bones = _bones(connection, id)
            _require_turn(bones, turn)
            leaf = branches.newest_below(bones, turn)
            connection.execute(sa.update(conversations).where(conversations.c.id == id).values(leaf=leaf))
        return leaf

    def delete(self, user: User, id: str) -> None:
        """With all its turns; `restore` brings it back for ten minutes, `purge` ends that. Raises NotFound."""
        with self._database.begin() as connection:
            self._own(connection, user, id, "delete")
            connection.execute(sa.update(conversations).where(conversations.c.id == id).values(deleted=time.time()))

    def restore(self, user: User, id: str) -> None:
        """Undo `delete`. Raises NotFound, also where the ten minutes are over."""
        with self._database.begin() as connection:
            self._own(connection, user, id, "change", deleted=True)
            connection.execute(sa.update(conversations).where(conversations.c.id == id).values(deleted=None))

    def deleted(self, user: User, id: str) -> Conversation | None:
        """A conversation that can still be brought back."""
        try:
            with self._database.read() as connection:
                return _conversation(self._own(connection, user, id, "read", deleted=True))
        except NotFound:
            return None

    def purge(self) -> int:
        """Delete for good what can no longer be brought back: how many. Nothing while the clock stands too early."""
        now = time.time()
        with self._database.begin() as connection:
            if clock_went_back(connection, now):
                return 0
            # Also what was deleted at a time to come, under a clock that ran ahead: it would stay until then.
            over = sa.or_(conversations.c.deleted < now - UNDO_SECONDS, conversations.c.deleted > now + SLACK)
            return connection.execute(sa.delete(conversations).where(over)).rowcount

    def add_question(
        self, user: User, question: str, id: str | None, shown: str = "", edits: str = ""
    ) -> tuple[dict[str, str], Sequence[Turn]]:
        """Store a question and the place of its answer, in a new conversation where `id` is None. Raises NotFound.

        It follows `shown`, the last turn that its writer saw, and whatever was added to that since. `edits`: the question
        beside which it stands, as a branch of its own. Gives the ids ("conversation", "question", "turn": the answer's) and the
        turns before them.
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
                    "leaf": ids["turn"],
                }
                connection.execute(sa.insert(conversations).values(**row))
                earlier: Sequence[Any] = ()
            else:
                row = self._own(connection, user, id, "change")
                bones = _bones(connection, id)
                earlier = _before(bones, row.leaf, shown, edits)
            parent = earlier[-1].id if earlier else ""
            asked = {"id": ids["question"], "role": "user", "text": question, "state": "done", "parent": parent}
            reply = {"id": ids["turn"], "role": "assistant", "text": "", "state": "streaming", "parent": ids["question"]}
            rows = _add(connection, ids, [asked, reply], now, [one.id for one in earlier])
        return ids, self._shown(user, rows)

    def add_answer(self, user: User, turn: str) -> tuple[dict[str, str], Sequence[Turn]]:
        """The place of another answer beside the answer `turn`, which goes if it holds no word. Raises NotFound.

        Gives the ids as `add_question` does, and the turns up to the question.
        """
        now = time.time()
        with self._database.begin() as connection:
            row = connection.execute(sa.select(turns).where(turns.c.id == turn, turns.c.role == "assistant")).first()
            self._own(connection, user, row.conversation if row is not None else "", "change")
            assert row is not None
            bones = _bones(connection, row.conversation)
            earlier = branches.path(bones, row.parent) if row.parent else []
            if not earlier:
                raise NotFound("The question of this answer is not here any more.", "Ask it once more.")
            if row.state in ("failed", "stopped") and not row.text and not row.facts.get("lead"):
                connection.execute(sa.delete(turns).where(turns.c.id == turn))
            ids = {"conversation": row.conversation, "question": row.parent, "turn": new_id()}
            reply = {"id": ids["turn"], "role": "assistant", "text": "", "state": "streaming", "parent": row.parent}
            rows = _add(connection, ids, [reply], now, [one.id for one in earlier])
        return ids, self._shown(user, rows)

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

    def lost(self) -> Sequence[tuple[str, str, Sequence[str]]]:
        """Of each answer that was being written when the box went down: conversation, the name of who asked, and their last two
        questions. To be asked before any answer is begun.
        """
        found = []
        with self._database.read() as connection:
            joined = sa.join(turns, conversations, turns.c.conversation == conversations.c.id).join(
                users, users.c.id == conversations.c.user
            )
            chosen = sa.select(turns.c.conversation, turns.c.parent, users.c.name).select_from(joined)
            for row in connection.execute(chosen.where(turns.c.state == "streaming")).all():
                path = branches.path(_bones(connection, row.conversation), row.parent) if row.parent else []
                asked = [one.id for one in path if one.role == "user"][-2:]
                texts = sa.select(turns.c.text).where(turns.c.id.in_(asked)).order_by(turns.c.ordinal)
                found.append((row.conversation, row.name, connection.scalars(texts).all()))
        return found

    def fail_unfinished(self, running: Sequence[str]) -> None:
        """Answers that nobody writes any more (all but `running`) keep what they had and are marked failed."""
        with self._database.begin() as connection:
            lost = sa.and_(turns.c.state == "streaming", turns.c.id.not_in(running))
            connection.execute(sa.update(turns).where(lost).values(state="failed"))

    def _set(self, user: User, id: str, **columns: Any) -> None:
        with self._database.begin() as connection:
            self._own(connection, user, id, "change")
            connection.execute(sa.update(conversations).where(conversations.c.id == id).values(**columns))

    def _shown(self, user: User, rows: Sequence[Any], places: Mapping[str, tuple[str, ...]] | None = None) -> Sequence[Turn]:
        """Rows as turns that the user may read today, whatever they could read when they asked."""
        found: list[dict[str, Any]] = []
        for row in rows:
            now = self.under_way(row.id) if row.state == "streaming" else None
            found.append({**row._mapping, **(now or {}), "versions": (places or {}).get(row.id, (row.id,))})
        cited = {passage["document"] for row in found for passage in row["passages"]}
        if not cited:
            return [_turn(row) for row in found]
        visible = self._accounts.visible(user, "collection")
        chosen = sa.select(documents.c.id, documents.c.collection).where(documents.c.id.in_(cited))
        with self._database.read() as connection:
            hidden = {row.id for row in connection.execute(chosen) if row.collection not in visible}
        return [_turn({**row, **(quoted.without(row, hidden) if hidden else {})}) for row in found]

    def _own(self, connection: sa.Connection, user: User, id: str, verb: str, *, deleted: bool = False) -> Any:
        """The user's own row: one that is there, or one that was deleted and can still be brought back."""
        row = connection.execute(sa.select(conversations).where(conversations.c.id == id)).first()
        if row is not None and (row.deleted is not None) != deleted:
            row = None
        if row is not None and deleted and row.deleted < time.time() - UNDO_SECONDS:
            row = None
        self._accounts.require(user, verb, "conversation", owner=row.user if row is not None else None)
        return row


def short_title(text: str, most: int = LONGEST_TITLE) -> str:
    """One line that names a conversation in a list, or a folder."""
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text[:1000].encode("utf-8", "ignore").decode()).strip()
    return line if len(line) <= most else line[: most - 1].rsplit(" ", 1)[0].rstrip(" ,.;:") + "…"


def talk(path: Sequence[Turn]) -> list[tuple[str, str]]:
    """(role, text) of the questions of a path with their answers.

    An answer that never came, and one that was judged unsafe, takes its question with it.
    """
    said: list[tuple[str, str]] = []
    asked: Turn | None = None
    for turn in path:
        if turn.role == "user":
            asked = turn if turn.state != "blocked" else None
        elif asked is not None:
            if turn.said and turn.state != "blocked":
                said += [("user", asked.text), ("assistant", turn.said)]
            asked = None
    return said


def _present() -> sa.Select[Any]:
    return sa.select(conversations).where(conversations.c.deleted.is_(None))


def _bones(connection: sa.Connection, id: str) -> Sequence[Any]:
    return connection.execute(sa.select(*_BONES).where(turns.c.conversation == id).order_by(turns.c.ordinal)).all()


def _require_turn(bones: Sequence[Any], id: str) -> Any:
    for one in bones:
        if one.id == id:
            return one
    raise NotFound("There is no such question or answer in this chat.", "Load the page again.")


def _before(bones: Sequence[Any], leaf: str, shown: str, edits: str) -> list[Any]:
    """The path that a new question follows; see `add_question`."""
    if edits:
        edited = _require_turn(bones, edits)
        return branches.path(bones, edited.parent) if edited.parent else []
    here = branches.path(bones, leaf)
    if shown and shown not in {one.id for one in here}:
        _require_turn(bones, shown)
        return branches.path(bones, branches.newest_below(bones, shown))
    return here


def _add(
    connection: sa.Connection, ids: Mapping[str, str], new: Sequence[dict[str, Any]], now: float, earlier: Sequence[str]
) -> Sequence[Any]:
    """Insert turns at the end and show their branch; gives the rows of `earlier`."""
    this, of_this = conversations.c.id == ids["conversation"], turns.c.conversation == ids["conversation"]
    connection.execute(sa.update(conversations).where(this).values(updated=now, leaf=ids["turn"]))
    last = connection.scalar(sa.select(sa.func.max(turns.c.ordinal)).where(of_this)) or 0
    common = {"conversation": ids["conversation"], "passages": [], "facts": {}, "created": now}
    connection.execute(sa.insert(turns), [common | row | {"ordinal": last + at} for at, row in enumerate(new, 1)])
    return connection.execute(sa.select(turns).where(turns.c.id.in_(earlier)).order_by(turns.c.ordinal)).all()


def _conversation(row: Any) -> Conversation:
    return Conversation(row.id, row.title, row.created, row.updated, row.folder)


def _turn(row: Mapping[str, Any]) -> Turn:
    return Turn(**{one.name: row[one.name] for one in fields(Turn)})
