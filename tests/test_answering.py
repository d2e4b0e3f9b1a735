"""Answers under way: branches of a talk, two readers, and what a locked or full disk, or a switched-off box, leaves of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from appliance import answering, conversations
from appliance.accounts import User
from appliance.db import Database
from appliance.engine.handler import Chunk, Request
from appliance.errors import ApplianceError, Conflict, NotFound, StorageFull
from appliance.running import Event
from appliance.settings import Settings
from appliance.tables import turns
from tests.web.box import ANSWER, make_box

QUESTION = "Why are leaves green?"
SAID = ANSWER.replace(" [9]", "")


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings)
    yield box
    await box.chat.close()
    box.database.close()


@pytest.fixture
def me(box: Any) -> User:
    return box.accounts.local_administrator()  # type: ignore[no-any-return]


async def listed(events: AsyncGenerator[Event, None]) -> list[Event]:
    async with aclosing(events):
        return [event async for event in events]


async def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := true()):
            await asyncio.sleep(0.01)
        return found


async def asked(box: Any, me: User, question: str, **options: Any) -> dict[str, str]:
    return (await listed(box.chat.answer(me, question, **options)))[0].data


def shown(box: Any, me: User, id: str, at: str = "") -> list[str]:
    return [turn.text for turn in box.chat.conversations.load(me, id, at)[1]]


def sent(box: Any) -> list[str]:
    """What the model was told was said before, and the question."""
    return [message.content for message in box.pool.requests[-1].messages[1:]]


# --- branches --------------------------------------------------------------------------------------------------------
async def test_a_second_answer_stands_beside_the_first(box: Any, me: User) -> None:
    first = await asked(box, me, QUESTION)
    box.pool.answer = "Another answer"
    second = (await box.chat.again(me, first["turn"])).data
    await listed(box.chat.follow(me, second["turn"]))
    assert second["question"] == first["question"] and shown(box, me, first["conversation"]) == [QUESTION, "Another answer"]
    turn = box.chat.conversations.turn(me, first["turn"])
    assert turn.versions == (first["turn"], second["turn"]) and turn.text == SAID
    assert box.pool.requests[0].temperature == 0 < box.pool.requests[1].temperature, "else it would say the same again"
    assert sent(box)[:-1] == [], "the answer beside it is not what was said before"


async def test_an_edited_question_has_answers_of_its_own(box: Any, me: User) -> None:
    first = await asked(box, me, QUESTION)
    chat = first["conversation"]
    await asked(box, me, "And in autumn, the leaves?", conversation=chat)
    edited = await asked(box, me, "Why are apples red?", conversation=chat, edits=first["question"])
    assert shown(box, me, chat)[0] == "Why are apples red?" and len(shown(box, me, chat)) == 2
    assert box.chat.conversations.turn(me, first["question"]).versions == (first["question"], edited["question"])
    assert len(shown(box, me, chat, at=first["turn"])) == 4, "what followed the first one is still there"
    await asked(box, me, "And pears?", conversation=chat)
    said = sent(box)
    assert said[0] == "Why are apples red?" and len(said) == 3 and not any("leaves" in text for text in said[::2])


async def test_who_switches_asks_on_from_what_is_shown(box: Any, me: User) -> None:
    first = await asked(box, me, QUESTION)
    chat = first["conversation"]
    box.pool.answer = "Another answer"
    await listed(box.chat.follow(me, (await box.chat.again(me, first["turn"])).data["turn"]))
    assert box.chat.conversations.show(me, chat, first["turn"]) == first["turn"]
    assert shown(box, me, chat) == [QUESTION, SAID]
    await asked(box, me, "And in autumn?", conversation=chat)
    assert sent(box)[1].startswith("Leaves look")
    with pytest.raises(NotFound):
        box.chat.conversations.show(me, chat, "nothing")
    with pytest.raises(NotFound):
        await box.chat.start(me, "x", conversation=chat, edits="nothing")


async def test_an_older_tab_goes_on_where_the_talk_is_now_and_another_branch_stays_its_own(box: Any, me: User) -> None:
    first = await asked(box, me, QUESTION)
    chat = first["conversation"]
    second = await asked(box, me, "Second?", conversation=chat, shown=first["turn"])
    await asked(box, me, "Third, from a tab that has not seen the second?", conversation=chat, shown=first["turn"])
    assert len(shown(box, me, chat)) == 6, "no question hides behind another one"
    await asked(box, me, "Edited", conversation=chat, edits=second["question"])
    await asked(box, me, "Fourth, from a tab with the other branch", conversation=chat, shown=second["turn"])
    assert list(shown(box, me, chat)[::2])[1:3] == ["Second?", "Third, from a tab that has not seen the second?"]


async def test_an_answer_that_never_came_gives_its_place_to_the_next_try(box: Any, me: User) -> None:
    box.pool.breaks_after = 0
    first = await asked(box, me, QUESTION)
    box.pool.breaks_after = None
    second = (await box.chat.again(me, first["turn"])).data
    await listed(box.chat.follow(me, second["turn"]))
    assert box.chat.conversations.turn(me, second["turn"]).versions == (second["turn"],)
    assert box.pool.requests[-1].temperature == 0, "it is the first answer, not another one"
    with pytest.raises(NotFound):
        await box.chat.again(me, first["turn"])
    with pytest.raises(NotFound):
        await box.chat.again(me, second["question"])


async def test_a_failed_answer_in_the_middle_takes_only_its_own_question_along(box: Any, me: User) -> None:
    """Turns are paired by what follows what: with an answer missing, none moves to another question."""
    chat = (await asked(box, me, "First?"))["conversation"]
    box.pool.breaks_after = 0
    await asked(box, me, "Second?", conversation=chat)
    box.pool.breaks_after = None
    await asked(box, me, "Third?", conversation=chat)
    await asked(box, me, "Fourth?", conversation=chat)
    assert list(sent(box)[::2])[:2] == ["First?", "Third?"]


# --- deleting and bringing back --------------------------------------------------------------------------------------
async def test_a_deleted_chat_can_be_brought_back_for_ten_minutes(box: Any, me: User, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = box.chat.conversations
    ids = await asked(box, me, QUESTION)
    chat = ids["conversation"]
    await box.chat.delete(me, chat)
    assert kept.list(me) == [] and not list(kept.texts(me)) and kept.folders(me) == []
    for act in (
        lambda: kept.load(me, chat), lambda: kept.turn(me, ids["turn"]), lambda: kept.tree(me, chat),
        lambda: kept.rename(me, chat, "x"), lambda: kept.move(me, chat, "x"), lambda: kept.delete(me, chat),
        lambda: kept.show(me, chat, ids["turn"]), lambda: kept.add_question(me, "x", chat),
        lambda: kept.add_answer(me, ids["turn"]),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            act()
    assert kept.purge() == 0 and kept.deleted(me, chat).title == QUESTION
    kept.restore(me, chat)
    assert shown(box, me, chat) == [QUESTION, SAID] and kept.deleted(me, chat) is None
    await box.chat.delete(me, chat)
    monkeypatch.setattr(conversations, "UNDO_SECONDS", -1.0)
    with pytest.raises(NotFound):
        kept.restore(me, chat)
    assert kept.deleted(me, chat) is None and kept.purge() == 1
    with box.database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(turns)) == 0


async def test_what_was_deleted_leaves_the_disk_by_itself(box: Any, me: User, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (conversations, answering):
        monkeypatch.setattr(module, "UNDO_SECONDS", -0.95)
    await box.chat.delete(me, (await asked(box, me, QUESTION))["conversation"])

    def empty() -> bool:
        with box.database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(turns)) == 0

    await until(empty)


# --- the disk --------------------------------------------------------------------------------------------------------
@pytest.fixture
def pragmas(box: Any) -> list[str]:
    """What every transaction of the box begins with: in place from the start, as others run in threads of their own."""
    first: list[str] = []

    def begin(connection: sa.Connection) -> None:
        for pragma in first:
            connection.exec_driver_sql(f"PRAGMA {pragma}")

    sa.event.listen(box.database.engine, "begin", begin, insert=True)
    return first


@contextmanager
def locked(database: Database, pragmas: list[str]) -> Iterator[None]:
    """Another process holds the database, and a writer waits for it a tenth of a second instead of thirty."""
    other = Database(database.path)
    pragmas.append("busy_timeout=100")
    with other.begin():
        yield
    other.close()


@contextmanager
def full(database: Database, pragmas: list[str]) -> Iterator[None]:
    """The file can grow no more, as on a full disk: SQLite itself says so."""
    with database.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    pragmas.append(f"max_page_count={pages}")
    yield
    pragmas[:] = ["max_page_count=1073741823"]


@pytest.mark.parametrize(("trouble", "kind", "words"), [(locked, Conflict, "has held"), (full, StorageFull, "disk is full")])
async def test_a_disk_that_refuses_costs_no_word(
    box: Any,
    me: User,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Any,
    kind: type[ApplianceError],
    words: str,
    pragmas: list[str],
) -> None:
    monkeypatch.setattr(answering, "TRY_AGAIN", 0.05)
    monkeypatch.setattr(answering, "SAVE_EVERY", 0.0)
    box.pool.answer, box.pool.pace = "Leaves are green. " + "word " * 3000 + "end", 0.0
    gate = asyncio.Event()
    make = box.pool.generate

    async def waits(request: Request) -> AsyncGenerator[Chunk, None]:
        async with aclosing(make(request)) as chunks:
            number = 0
            async for chunk in chunks:
                yield chunk
                number += 1
                if number > 6:  # a sentence is shown once it was judged, and the next one has begun
                    await gate.wait()

    box.pool.generate = waits
    ids = (await box.chat.start(me, QUESTION)).data
    stored = box.chat.conversations.turn
    await until(lambda: stored(me, ids["turn"]).text)
    with trouble(box.database, pragmas):
        gate.set()
        events = await listed(box.chat.follow(me, ids["turn"]))
        assert "".join(event.data["delta"] for event in events if event.kind == "text").endswith(" end"), "all of it was shown"
        end = events[-1]
        assert end.kind == "error" and "could not be saved" in end.data["message"] and words in end.data["message"]
        assert "keeps trying" in end.data["hint"]
        kept = stored(me, ids["turn"])
        assert kept.text.endswith(" end") and kept.state == "failed" and kept.facts["error"] == end.data["message"]
        assert box.chat.conversations.load(me, ids["conversation"])[1][-1].text == kept.text, "a reload shows it too"
        with pytest.raises(kind):
            await box.chat.start(me, "And then?", conversation=ids["conversation"])
    done = await until(lambda: (turn := stored(me, ids["turn"])).state == "done" and turn)
    assert done.text.endswith(" end") and not done.facts["error"]
    await listed(box.chat.answer(me, "And then?", conversation=ids["conversation"]))


async def test_a_refusal_in_the_middle_that_ends_is_not_even_told(
    box: Any, me: User, monkeypatch: pytest.MonkeyPatch, pragmas: list[str]
) -> None:
    monkeypatch.setattr(answering, "SAVE_EVERY", 0.0)
    box.pool.pace = 0.01
    ids = (await box.chat.start(me, QUESTION)).data
    await until(lambda: box.chat.conversations.turn(me, ids["turn"]).text)
    with locked(box.database, pragmas), pytest.raises(Conflict):
        box.chat.conversations.rename(me, ids["conversation"], "x")
    events = await listed(box.chat.follow(me, ids["turn"]))
    assert events[-1].kind == "done" and box.chat.conversations.turn(me, ids["turn"]).text == SAID


async def test_a_slow_disk_is_told_and_no_word_waits_for_it(box: Any, me: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "SLOW_SAVE", 0.05)
    kept, slow = box.chat.conversations, asyncio.Event()
    loop, save = asyncio.get_running_loop(), box.chat.conversations.save_answer

    def wait(turn: str, columns: dict[str, Any]) -> None:
        asyncio.run_coroutine_threadsafe(slow.wait(), loop).result()
        save(turn, columns)

    monkeypatch.setattr(kept, "save_answer", wait)
    ids = (await box.chat.start(me, QUESTION)).data
    seen: list[Event] = []
    async with aclosing(box.chat.follow(me, ids["turn"])) as events:
        async for event in events:
            seen.append(event)
            if event.kind == "saving":
                slow.set()
    assert [event.kind for event in seen][-2:] == ["saving", "done"]
    assert kept.turn(me, ids["turn"]).state == "done" and kept.turn(me, ids["turn"]).text == SAID


async def test_an_answer_that_could_not_be_saved_is_saved_as_the_box_closes(
    box: Any, me: User, settings: Settings, pragmas: list[str]
) -> None:
    ids = (await box.chat.start(me, QUESTION)).data
    with locked(box.database, pragmas):
        await listed(box.chat.follow(me, ids["turn"]))
    await box.chat.close()
    again = make_box(settings)
    stored = again.chat.conversations.turn(me, ids["turn"])
    again.database.close()
    assert (stored.state, stored.text) == ("done", SAID)


# --- why it ended ----------------------------------------------------------------------------------------------------
async def test_a_switched_off_box_says_so_and_a_lost_reader_too(box: Any, me: User, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance import running

    box.pool.pace = 0.05
    monkeypatch.setattr(running, "GRACE", 0.0)
    left = (await box.chat.start(me, QUESTION)).data
    await until(lambda: box.chat.conversations.turn(me, left["turn"]).state == "stopped")
    assert box.chat.conversations.turn(me, left["turn"]).facts["why"] == "left"
    monkeypatch.setattr(running, "GRACE", 20.0)
    ids = (await box.chat.start(me, QUESTION)).data
    await until(lambda: box.chat.conversations.turn(me, ids["turn"]).text)
    await box.chat.close()
    turn = box.chat.conversations.turn(me, ids["turn"])
    assert (turn.state, turn.facts["why"]) == ("failed", "closing") and turn.text.startswith("Leaves")
    assert "switched off" in turn.facts["error"]
