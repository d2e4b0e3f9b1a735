"""Lessons that were rehearsed: begun, spoken, rewound, finished and read again, kept so that nothing that was said is lost.

A teacher's words are on disk before anything is made of them; where the box stopped before the pupils had answered, the next
look lets them answer, with the same state, since pupils follow rules. Turns are a tree: going back leaves what was said as
another branch. A lesson ends by itself at `until`. Each is its maker's alone, and a mentor's by consent (`mentors`) once it is
finished; nobody else reads a word, whoever runs the box, and no record says how often or how well somebody practises. Work is
blocking but for `say`; async callers use a thread for the rest.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance import branches
from appliance.errors import BadInput, Conflict, NotFound, TooLarge
from appliance.practice import feedback, lesson, moves, pupils
from appliance.practice.exchange import Exchange
from appliance.practice.feedback import Change, Feedback
from appliance.practice.lesson import GONE, Rehearsal, Turn
from appliance.tables import new_id, rehearsal_turns, rehearsals

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.db import Database
    from appliance.practice.mentors import Mentors, Note
    from appliance.practice.scenes import Scenes
    from appliance.practice.wording import Wording

LONGEST_TURN = 4000
LONGEST_WAIT = 600.0  # seconds of silence that mean anything
MOST = 200  # of one person's lessons that progress looks at


class Rehearsals:
    """Built once for each process. `wording` words the pupils' lines, `mentors` says who else may read."""

    def __init__(
        self, database: Database, accounts: Accounts, scenes: Scenes, mentors: Mentors, wording: Wording | None = None
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._scenes = scenes
        self._wording = wording
        self.mentors = mentors
        self._answering: set[str] = set()  # turns whose pupils are answering in this process

    # --- reading -----------------------------------------------------------------------------------------------------------
    def list(self, user: User) -> Sequence[Rehearsal]:
        """The user's own, without their turns, those under way first, then the latest."""
        self._accounts.require(user, "practise", "lesson")
        with self._database.begin() as connection:
            lesson.end_late(connection, user.id)
            return lesson.legible(connection.execute(lesson.of(user.id)))

    def load(self, user: User, id: str) -> Rehearsal:
        """A lesson with the turns that are shown. Where pupils have not answered the last words yet, they do now.

        A mentor gets it once it is finished. Raises NotSignedIn, Forbidden, NotFound, BadInput (another release wrote it).
        """
        with self._database.begin() as connection:
            row = self._readable(connection, user, id)
            lesson.end_late(connection, row.user)
            self._settle(connection, row)
            return lesson.whole(connection, id)

    def of_turn(self, user: User, turn: str) -> Rehearsal:
        """The lesson with this turn, as `load` gives it."""
        with self._database.read() as connection:
            id = connection.scalar(sa.select(rehearsal_turns.c.rehearsal).where(rehearsal_turns.c.id == turn))
        return self.load(user, id or "")

    def shared(self, user: User, owner: str) -> Sequence[Rehearsal]:
        """The finished lessons of somebody who lets the user read them, the latest first. Raises NotFound."""
        self._require_mentor(user, owner)
        with self._database.begin() as connection:
            lesson.end_late(connection, owner)
            return lesson.legible(connection.execute(lesson.of(owner).where(rehearsals.c.finished.is_not(None))))

    def feedback(self, user: User, id: str) -> tuple[Rehearsal, Feedback]:
        """What is told of a lesson, of the branch that is shown. Raises as `load` does, Conflict where it is not finished."""
        found = self.load(user, id)
        if found.finished is None:
            raise Conflict("This lesson is not finished yet.", "Finish it, then read the feedback.")
        if found.user != user.id:
            self.mentors.seen(user, id, found.user)
        return found, feedback.assess(found.scenario, found.exchanges)

    def attempts(self, user: User, id: str) -> Sequence[Rehearsal]:
        """All finished lessons of the same scene by the same person, this one among them, the oldest first."""
        this = self.load(user, id)
        same = sa.and_(rehearsals.c.user == this.user, rehearsals.c.scenario == this.scenario.id)
        with self._database.read() as connection:
            query = sa.select(rehearsals).where(same, rehearsals.c.finished.is_not(None)).order_by(rehearsals.c.created)
            return lesson.legible(connection.execute(query))

    def compare(self, user: User, first: str, second: str) -> tuple[Rehearsal, Rehearsal, Sequence[Change]]:
        """Two attempts at one scene, and what changed. Raises as `feedback` does, and BadInput for different scenes."""
        (one, before), (two, after) = self.feedback(user, first), self.feedback(user, second)
        if (one.user, one.scenario.id) != (two.user, two.scenario.id):
            raise BadInput("These lessons are not of one scene.", "Choose two attempts at the same scene.")
        return one, two, feedback.compare(before, after)

    def assessed(self, user: User, owner: str = "") -> Sequence[tuple[Rehearsal, Feedback]]:
        """The finished lessons in which something was said, the oldest first, each with its feedback.

        owner: whose, where it is not the user. Raises NotFound.
        """
        if owner and owner != user.id:
            self._require_mentor(user, owner)
        self._accounts.require(user, "practise", "lesson")
        with self._database.begin() as connection:
            lesson.end_late(connection, owner or user.id)
            ids = connection.scalars(
                lesson.of(owner or user.id)
                .where(rehearsals.c.finished.is_not(None))
                .with_only_columns(rehearsals.c.id)
                .limit(MOST)
            ).all()
            found = [lesson.whole(connection, id) for id in reversed(ids)]
        return [(one, feedback.assess(one.scenario, one.exchanges)) for one in found if one.turns]

    def notes(self, user: User, rehearsal: Rehearsal) -> Mapping[str, Sequence[Note]]:
        """What mentors wrote beside the turns of a lesson that the user has loaded, by turn; to a mentor only their own."""
        found: dict[str, list[Note]] = {}
        for note in self.mentors.notes(rehearsal.id, "" if rehearsal.user == user.id else user.id):
            found.setdefault(note.turn, []).append(note)
        return found

    def note(self, user: User, turn: str, text: str, better: str, *, train: bool = False) -> Rehearsal:
        """Write beside a turn of somebody whose mentor the user is: their lesson. Raises as `mentors.note` does."""
        found = self.of_turn(user, turn)
        said = lesson.heard(found, turn)
        self.mentors.note(user, found.user, turn, text, better, scenario=found.scenario, heard=said, train=train)
        return found

    # --- a lesson ------------------------------------------------------------------------------------------------------------
    def begin(self, user: User, scenario: str, *, version: int | None = None, seed: int | None = None, after: str = "") -> str:
        """The id of a new lesson. seed: the same one and the same words give the same lesson. after: the one tried again.

        Raises NotSignedIn, Forbidden, NotFound.
        """
        self._accounts.require(user, "practise", "lesson")
        scene = self._scenes.get(user, scenario, version)
        seed = secrets.randbelow(2**31) if seed is None else seed
        with self._database.begin() as connection:
            if after:
                self._own(connection, user, after, "read")
            return lesson.begin(connection, user.id, scene, seed, pupils.opening(scene, seed), after)

    async def say(self, user: User, id: str, text: str, *, shown: str | None = None, waited: float | None = None) -> Rehearsal:
        """Speak to the class: the lesson with what the pupils did. `shown`: the last turn that the speaker saw, "" for none.

        waited: seconds of silence before they spoke. The words are stored before anything else happens. Raises BadInput
        (nothing is said), TooLarge, NotFound, Conflict (time is over, it is finished, or it went on in another tab).
        """
        words = spoken(text)
        turn = new_id()
        self._answering.add(turn)
        try:
            await asyncio.to_thread(self._store, user, id, turn, words, shown, waited)
            before, said = await asyncio.to_thread(self._let_answer, turn)
            if self._wording is not None:
                beats, asked = await self._wording.worded(user, before.scenario, said, before.exchanges)
                exchange = replace(said.exchange, beats=beats)
                await asyncio.to_thread(self._write, replace(said, exchange=exchange, asked=asked))
            else:
                await asyncio.to_thread(self._write, said)
        finally:
            self._answering.discard(turn)
        return await asyncio.to_thread(self.load, user, id)

    def rewind(self, user: User, id: str, turn: str) -> str:
        """Go back to before this turn: the id of the lesson in which to go on.

        In a lesson under way the words stay as another branch; a finished one stays as it is, and another attempt begins with
        what came before that turn. Raises NotFound.
        """
        with self._database.begin() as connection:
            row = self._own(connection, user, id, "change")
            lesson.end_late(connection, user.id)
            self._settle(connection, row)
            whole = lesson.whole(connection, id)
            bones = lesson.bones(connection, id)
            here = next((one for one in bones if one.id == turn), None)
            if here is None:
                raise NotFound(*GONE)
            if whole.finished is None:
                lesson.show(connection, id, here.parent)
                return id
            kept = [one.id for one in branches.path(bones, here.parent)] if here.parent else []
            again = lesson.begin(connection, user.id, whole.scenario, whole.seed, whole.opening, id)
            lesson.copy(connection, kept, again)
            return again

    def show(self, user: User, id: str, turn: str) -> None:
        """Go on with the branch of this turn, from its newest one on. Raises NotFound, Conflict (it is finished)."""
        with self._database.begin() as connection:
            lesson.end_late(connection, user.id)
            row = self._own(connection, user, id, "change")
            _require_running(row)
            bones = lesson.bones(connection, id)
            if turn not in {one.id for one in bones}:
                raise NotFound(*GONE)
            lesson.show(connection, id, branches.newest_below(bones, turn))

    def finish(self, user: User, id: str) -> None:
        """End a lesson; one that is finished already stays so. Raises NotFound."""
        with self._database.begin() as connection:
            self._own(connection, user, id, "change")
            lesson.end_late(connection, user.id)
            this = sa.and_(rehearsals.c.id == id, rehearsals.c.finished.is_(None))
            connection.execute(sa.update(rehearsals).where(this).values(finished=time.time()))

    def delete(self, user: User, id: str) -> None:
        """With all that was said, what mentors wrote beside it, and the examples made of that. Raises NotFound."""
        with self._database.read() as connection:
            self._own(connection, user, id, "delete")
        self.mentors.take_back_examples(id, user.id)
        with self._database.begin() as connection:
            connection.execute(sa.delete(rehearsals).where(rehearsals.c.id == id))
        self._database.fold_log()

    # --- one turn ------------------------------------------------------------------------------------------------------------
    def _store(self, user: User, id: str, turn: str, words: str, shown: str | None, waited: float | None) -> None:
        """The teacher's words, in their place, before anything is made of them."""
        with self._database.begin() as connection:
            self._own(connection, user, id, "change")
            lesson.end_late(connection, user.id)
        with self._database.begin() as connection:
            row = self._own(connection, user, id, "change")
            _require_running(row)
            if shown is not None and shown != row.leaf:
                raise Conflict("This lesson went on in another tab.", "Read what was said there, then send your words again.")
            if self._settle(connection, row):
                raise Conflict("The class is still answering.", "Wait a moment, then send your words again.")
            whole = lesson.whole(connection, id)
            silence = None if waited is None or not 0 <= waited <= LONGEST_WAIT else round(waited, 1)
            said = Exchange(len(whole.turns) + 1, words, waited=silence)
            facts = {**said.as_facts(), "open": True, "asked": False}
            values = {"id": turn, "rehearsal": id, "parent": row.leaf, "number": said.number, "created": time.time()}
            connection.execute(sa.insert(rehearsal_turns).values(**values, facts=facts, room=whole.room.as_facts()))
            lesson.show(connection, id, turn)

    def _let_answer(self, turn: str) -> tuple[Rehearsal, Turn]:
        """The lesson before a stored turn, and the turn with the written lines of those who answer, as it is stored now."""
        with self._database.begin() as connection:
            row = connection.execute(sa.select(rehearsal_turns).where(rehearsal_turns.c.id == turn)).first()
            if row is None:
                raise NotFound(*GONE)
            return self._answered(connection, row, still_open=True)

    def _answered(self, connection: sa.Connection, row: Any, *, still_open: bool = False) -> tuple[Rehearsal, Turn]:
        bones = lesson.bones(connection, row.rehearsal)
        before = lesson.path(connection, row.rehearsal, bones, row.parent)
        said = lesson.as_turn(row).exchange
        # The opening tells of the class, in nobody's words: there is nothing yet to build on.
        heard = [beat.said or beat.line for beat in before.exchanges[-1].beats] if before.turns else []
        found = tuple(moves.detect(said.said, heard, said.waited, before.scenario.language))
        room, beats = pupils.respond(before.scenario, before.room, said.said, found, said.waited)
        beats = tuple(replace(beat, said=beat.said or beat.line) for beat in beats)
        turn = Turn(row.id, row.parent, replace(said, moves=found, beats=beats), room)
        lesson.save(connection, turn, still_open=still_open)
        return before, turn

    def _write(self, turn: Turn) -> None:
        with self._database.begin() as connection:
            lesson.save(connection, turn)

    def _settle(self, connection: sa.Connection, row: Any) -> bool:
        """Let pupils answer what the box had no time to; whether one turn is being answered in this process now."""
        chosen = sa.select(rehearsal_turns).where(rehearsal_turns.c.rehearsal == row.id).order_by(rehearsal_turns.c.number)
        under_way = False
        for turn in connection.execute(chosen).all():
            if turn.facts.get("open") and turn.id in self._answering:
                under_way = True
            elif turn.facts.get("open"):
                self._answered(connection, turn)
        return under_way

    # --- rows ----------------------------------------------------------------------------------------------------------------
    def _own(self, connection: sa.Connection, user: User, id: str, verb: str) -> Any:
        """The user's own row. Raises NotSignedIn, Forbidden, and NotFound for another's as for none."""
        self._accounts.require(user, "practise", "lesson")
        row = connection.execute(sa.select(rehearsals).where(rehearsals.c.id == id)).first()
        self._accounts.require(user, verb, "rehearsal", owner=row.user if row is not None else None)
        return row

    def _readable(self, connection: sa.Connection, user: User, id: str) -> Any:
        """The row of one's own lesson, or of a finished one whose maker lets the user read."""
        row = connection.execute(sa.select(rehearsals).where(rehearsals.c.id == id)).first()
        if row is not None and row.finished is not None and self.mentors.reads(connection, user, row.user):
            return row
        return self._own(connection, user, id, "read")

    def _require_mentor(self, user: User, owner: str) -> None:
        self._accounts.require(user, "practise", "lesson")
        with self._database.read() as connection:
            if not self.mentors.reads(connection, user, owner):
                raise NotFound("Nobody of that name shares lessons with you.", "Ask them to choose you as their mentor.")


def spoken(text: str) -> str:
    """What a teacher says, without control characters. Raises BadInput (nothing, or no text), TooLarge."""
    if len(text) > LONGEST_TURN:
        raise TooLarge(f"That is {len(text)} characters; {LONGEST_TURN} can be said at once.", "Say it in parts.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("The text has characters that are not valid Unicode.", "Type it again instead of pasting it.") from None
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text.replace("\r\n", "\n")).strip()
    if not text:
        raise BadInput("Nothing was said.", "Write what you would say to the class.")
    return text


def _require_running(row: Any) -> None:
    if row.finished is not None:
        over = row.finished >= row.until
        raise Conflict(
            "The time of this lesson is over." if over else "This lesson is finished.",
            "Read the feedback, or try again from any turn.",
        )
