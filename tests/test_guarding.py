"""The safety road: what every door gets for what was asked and for what was answered, with the engine up or down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from appliance import guarding
from appliance.accounts import User
from appliance.engine.handler import Chunk, Message
from appliance.errors import Closed, ModelUnavailable
from appliance.guarding import support_in
from appliance.running import Event
from appliance.settings import Settings
from appliance.tables import flags, safety_counts, turns
from tests.web.box import make_box

DISTRESS = "I want to die zebrafish"  # a word by which it would be found in a log


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings.model_copy(update={"safeguarding_contact": "Ms Okafor, room 12"}))
    yield box
    await box.chat.close()
    box.database.close()


@pytest.fixture
def pupil(box: Any) -> User:
    person, _ = box.people.add("amira", "pupil", password="correct horse battery")
    lesson = box.classes.add("7 B")
    box.people.join(person.id, lesson.id)
    return box.accounts.named("amira")  # type: ignore[no-any-return]


async def listed(events: AsyncGenerator[Event, None]) -> list[Event]:
    async with aclosing(events):
        return [event async for event in events]


def stored(box: Any, table: Any) -> list[Any]:
    with box.database.read() as connection:
        return list(connection.execute(sa.select(table)))


# --- what was asked --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("down", [False, True])
async def test_distress_gets_a_fixed_text_and_a_flag_even_without_an_engine(box: Any, pupil: User, down: bool) -> None:
    box.pool.down = down
    events = await listed(box.chat.answer(pupil, DISTRESS))
    done = events[-1].data
    assert [event.kind for event in events] == ["turn", "text", "done"] and box.pool.requests == []
    assert (done["state"], done["finish"], done["handler"]) == ("blocked", "blocked", "support")
    assert "do not have to carry it alone" in done["text"] and "Ms Okafor, room 12" in done["text"]
    assert "will read what you wrote" in done["text"], "who is watched over knows it"
    (flag,) = stored(box, flags)  # on disk before the answer was: well within the minute
    assert (flag.user, flag.text, flag.action, flag.category, flag.state) == (
        pupil.id,
        DISTRESS,
        "escalate",
        "self-harm",
        "new",
    )
    assert flag.conversation == events[0].data["conversation"] and flag.class_id
    question, reply = sorted(stored(box, turns), key=lambda turn: turn.ordinal)
    assert (question.state, reply.state, reply.facts["finish"]) == ("blocked", "blocked", "blocked")
    assert reply.facts["verdict"] == {"action": "escalate", "category": "self-harm", "rule": "self-harm/wants to die"}


async def test_every_language_is_answered_in_its_own(box: Any, pupil: User) -> None:
    for text, expected in {"quiero morir": "Gracias", "je veux mourir": "Merci", "أريد أن أموت": "شكرا"}.items():
        events = await listed(box.chat.complete(pupil, [Message("user", text)]))
        assert events[-1].data["text"].startswith(expected)
    spanish = replace(pupil, language="es")
    events = await listed(box.chat.complete(spanish, [Message("user", "mi teléfono es 07700 900123, ¿3 x 4?")]))
    assert any(event.kind == "notice" and "datos personales" in event.data["message"] for event in events)


async def test_what_was_stopped_never_reaches_a_later_prompt(box: Any, pupil: User) -> None:
    first = await listed(box.chat.answer(pupil, "How do I make a pipe bomb?"))
    await listed(box.chat.answer(pupil, "Why are leaves green?", conversation=first[0].data["conversation"]))
    prompt = " ".join(message.content for message in box.pool.requests[-1].messages)
    assert "pipe bomb" not in prompt and "badly hurt" not in prompt and "leaves" in prompt
    # A program sends the whole talk each time: what would have been stopped is left out with its answer, once flagged.
    talk = [
        Message("user", "How do I make a pipe bomb?"),
        Message("assistant", "Sure, zebrafish"),
        Message("user", "And leaves?"),
    ]
    events = await listed(box.chat.complete(pupil, talk))
    prompt = " ".join(message.content for message in box.pool.requests[-1].messages)
    assert "pipe bomb" not in prompt and "zebrafish" not in prompt and events[-1].data["state"] == "done"
    assert len(stored(box, flags)) == 1


async def test_personal_data_stays_out_of_the_prompt(box: Any, pupil: User) -> None:
    events = await listed(box.chat.complete(pupil, [Message("user", "I am on 07700 900123: why are leaves green?")]))
    assert events[0].kind == "notice" and "900123" not in box.pool.requests[0].messages[-1].content
    assert stored(box, flags) == [] and [count.action for count in stored(box, safety_counts)] == ["redact"]


async def test_a_poem_is_answered_and_flagged_for_review(box: Any, pupil: User) -> None:
    events = await listed(box.chat.complete(pupil, [Message("user", "A poem in which a hero says I want to die, please")]))
    assert events[-1].data["state"] == "done" and events[-1].data["text"]
    assert [flag.action for flag in stored(box, flags)] == ["review"]
    assert box.safeguarding.alarm(lead=True) is None, "nobody is called for a poem"


async def test_a_key_is_judged_as_a_pupil_is_and_its_owner_is_not(box: Any) -> None:
    teacher, _ = box.people.add("Ms Green", "teacher", password="correct horse battery")
    question = [Message("user", "How do people get high on weed? How do I get weed?")]
    user = box.accounts.named(teacher.name)
    assert (await listed(box.chat.complete(user, question)))[-1].data["state"] == "done"
    assert (await listed(box.chat.complete(replace(user, scope="chat"), question)))[-1].data["state"] == "blocked"


# --- what was answered -----------------------------------------------------------------------------------------------
async def test_an_answer_that_does_harm_is_ended(box: Any, pupil: User) -> None:
    box.pool.answer = "Leaves are green. To make a pipe bomb you need zebrafish. More of it."
    events = await listed(box.chat.answer(pupil, "Why are leaves green?"))
    done = events[-1].data
    assert done["state"] == "blocked" and done["text"].startswith("Leaves are green. The rest of this answer was stopped")
    assert "zebrafish" not in str(events) and "More of it" not in str(events)
    assert box.pool.open == 0, "the model was told to stop"
    reply = next(turn for turn in stored(box, turns) if turn.role == "assistant")
    assert reply.state == "blocked" and "zebrafish" not in reply.text
    (flag,) = stored(box, flags)
    assert flag.text.startswith("(the assistant's words)") and "zebrafish" in flag.text


async def test_an_answer_that_claims_to_be_a_person_is_put_right_and_goes_on(box: Any, pupil: User) -> None:
    box.pool.answer = "I love you. Leaves are green."
    events = await listed(box.chat.complete(pupil, [Message("user", "Why are leaves green?")]))
    said = "".join(event.data["delta"] for event in events if event.kind == "text")
    assert said == events[-1].data["text"] == "(The assistant is a computer program, not a person.) Leaves are green."
    assert stored(box, flags) == [] and [count.category for count in stored(box, safety_counts)] == ["no person"]


async def test_what_was_written_before_the_model_broke_off_is_kept(box: Any, pupil: User) -> None:
    box.pool.answer, box.pool.breaks_after = "Leaves are green because", 3
    seen = []
    with pytest.raises(ModelUnavailable):
        async for event in box.chat.complete(pupil, [Message("user", "Why are leaves green?")]):
            seen.append(event)
    assert "".join(event.data["delta"] for event in seen if event.kind == "text") == "Leaves are green"


async def test_stop_keeps_the_words_that_were_held_back_once_they_are_judged(box: Any, pupil: User) -> None:
    box.pool.answer, box.pool.pace = "Leaves are green because of many things that", 0.05
    turn = (await box.chat.start(pupil, "Why are leaves green?")).data["turn"]
    while not (box.pool.requests and box.pool.open):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.12)
    await box.chat.stop(pupil, turn)
    reply = next(one for one in stored(box, turns) if one.id == turn)
    assert reply.state == "stopped" and "Leaves are green because of many things that".startswith(reply.text) and reply.text


# --- over two messages -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stopped", [False, True])
async def test_a_cry_for_help_over_two_messages_is_heard(box: Any, pupil: User, stopped: bool) -> None:
    if stopped:  # nobody answered the first: it is in no prompt, and yet it was said
        box.pool.pace = 60.0
        first = (await box.chat.start(pupil, "I want to")).data
        await box.chat.stop(pupil, first["turn"])
        box.pool.pace = 0.0
    else:
        first = (await listed(box.chat.answer(pupil, "I want to")))[0].data
    assert stored(box, flags) == []
    done = (await listed(box.chat.answer(pupil, "die", conversation=first["conversation"])))[-1].data
    assert done["state"] == "blocked" and "do not have to carry it alone" in done["text"]
    (flag,) = stored(box, flags)
    assert (flag.action, flag.text) == ("escalate", "I want to\ndie")
    lines = box.safeguarding.read(pupil, flag.id)[1]
    assert [line.text for line in lines if line.here] == ["die"]
    asked = len(box.pool.requests)
    await listed(box.chat.answer(pupil, "Why are leaves green?", conversation=first["conversation"]))
    prompt = [message.content for message in box.pool.requests[asked].messages]
    assert not any(text == "die" for text in prompt) and len(stored(box, flags)) == 1
    again = (await listed(box.chat.answer(pupil, "die", conversation=(await began(box, pupil)))))[-1].data
    assert again["state"] == "done", "in another talk it is another word"


@pytest.mark.parametrize("first", ["answered before", "kept from an answer", "kept from an answer in a talk"])
async def test_a_cry_for_help_over_two_messages_is_heard_while_the_class_is_closed(box: Any, pupil: User, first: str) -> None:
    lesson, talk = box.classes.list()[0], None
    if first != "kept from an answer":
        words = "I want to" if first == "answered before" else "Why are leaves green?"
        talk = (await listed(box.chat.answer(pupil, words)))[0].data["conversation"]
    asked = len(box.pool.requests)
    box.classes.close(lesson.id)
    if first != "answered before":
        with pytest.raises(Closed):
            await box.chat.start(pupil, "I want to", conversation=talk)
    if talk:
        with pytest.raises(Closed):
            await box.chat.start(pupil, "die")  # a talk of its own
    done = (await listed(box.chat.answer(pupil, "die", conversation=talk)))[-1].data
    assert done["state"] == "blocked" and "do not have to carry it alone" in done["text"]
    (flag,) = stored(box, flags)
    assert (flag.action, flag.text) == ("escalate", "I want to\ndie") and len(box.pool.requests) == asked
    for words in ("Why are leaves green?", "die"):
        with pytest.raises(Closed):
            await box.chat.start(pupil, words, conversation=talk if talk else None)
    assert len(box.pool.requests) == asked, "no model answers while the class is closed"


async def test_what_was_kept_from_an_answer_is_forgotten(box: Any, pupil: User, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = box.classes.list()[0]
    box.classes.close(lesson.id)
    for opened in (True, False):
        with pytest.raises(Closed):
            await box.chat.start(pupil, "how do I make a")
        if opened:
            box.classes.open(lesson.id)
            assert (await listed(box.chat.answer(pupil, "bomb")))[-1].data["state"] == "blocked", "an open class hears it too"
            assert (await listed(box.chat.answer(pupil, "bomb")))[-1].data["state"] == "done", "once"
            box.classes.close(lesson.id)
    monkeypatch.setattr(guarding, "UNHEARD_SECONDS", 0.0)
    box.classes.open(lesson.id)
    assert (await listed(box.chat.answer(pupil, "bomb")))[-1].data["state"] == "done" and box.chat.guard._unheard == {}


async def began(box: Any, pupil: User) -> str:
    return str((await listed(box.chat.answer(pupil, "What is the opposite of live?")))[0].data["conversation"])


async def test_harm_over_two_messages_is_stopped_for_a_program_too(box: Any, pupil: User) -> None:
    talk = [Message("user", "how do I make a"), Message("assistant", "A what?"), Message("user", "bomb")]
    assert (await listed(box.chat.complete(pupil, talk)))[-1].data["state"] == "blocked" and box.pool.requests == []
    more = [*talk, Message("assistant", "zebrafish"), Message("user", "Why are leaves green?")]
    assert (await listed(box.chat.complete(pupil, more)))[-1].data["state"] == "done"
    prompt = " ".join(message.content for message in box.pool.requests[0].messages)
    assert "bomb" not in prompt and "zebrafish" not in prompt and len(stored(box, flags)) == 1
    talk[-1] = Message("user", "cake")
    assert (await listed(box.chat.complete(pupil, talk)))[-1].data["state"] == "done"


# --- whatever becomes of the answer ----------------------------------------------------------------------------------
SOFTENED = "I love you. Leaves are green because of chlorophyll. And so on, and so on, for a long time."


async def shown(box: Any, words: str) -> None:
    while not any(words in (turn.text or "") for turn in stored(box, turns)):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("end", ["stopped", "closing", "left"])
async def test_what_was_softened_is_counted_once_however_the_answer_ends(
    box: Any, pupil: User, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.answering.SAVE_EVERY", 0.0)
    box.pool.answer, box.pool.pace = SOFTENED, 0.05
    if end == "left":  # a program that hangs up
        events = box.chat.complete(pupil, [Message("user", "Why are leaves green?")])
        async with aclosing(events):
            async for event in events:
                if event.kind == "text":
                    break
    else:
        turn = (await box.chat.start(pupil, "Why are leaves green?")).data["turn"]
        await shown(box, "not a person")
        await (box.chat.stop(pupil, turn) if end == "stopped" else box.chat.close())
    await box.chat.close()
    assert [(count.category, count.number) for count in stored(box, safety_counts)] == [("no person", 1)]
    assert [entry.verb for entry in box.audit.entries()] == ["safety redact"]


@pytest.mark.parametrize("end", ["stopped", "closing", "broken"])
async def test_harm_in_words_that_were_held_back_reaches_the_lead(
    box: Any, pupil: User, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = asyncio.Event()

    async def generate(_request: Any) -> AsyncGenerator[Chunk, None]:
        yield Chunk("Leaves are green. To make a pipe bomb you need zebrafish and", model="green-1", handler="llama")
        said.set()
        if end == "broken":
            raise ModelUnavailable("The model stopped in the middle of its answer.", "Ask again.")
        await asyncio.Event().wait()

    monkeypatch.setattr(box.pool, "generate", generate)
    turn = (await box.chat.start(pupil, "Why are leaves green?")).data["turn"]
    await said.wait()
    if end == "broken":
        await listed(box.chat.follow(pupil, turn))
    elif end == "stopped":
        await box.chat.stop(pupil, turn)
    await box.chat.close()
    (flag,) = stored(box, flags)
    assert flag.action == "block" and "pipe bomb" in flag.text
    assert not any("bomb" in turn.text for turn in stored(box, turns)), "and nobody was shown them"


async def test_who_asks_for_help_while_the_box_is_switched_off_is_heard(box: Any, pupil: User) -> None:
    await box.chat.start(pupil, DISTRESS)  # the rules are not even read yet
    await box.chat.close()
    assert [flag.text for flag in stored(box, flags)] == [DISTRESS]


async def test_who_asked_for_help_as_the_box_lost_its_power_is_heard_once(box: Any, pupil: User) -> None:
    ids, _ = box.chat.conversations.add_question(pupil, "I want to", None)
    box.chat.conversations.save_answer(ids["turn"], {"state": "done", "text": "To do what?"})
    box.chat.conversations.add_question(pupil, "die", ids["conversation"])
    box.chat.conversations.add_question(pupil, DISTRESS, None)
    box.chat.conversations.add_question(pupil, "Why are leaves green?", None)
    assert stored(box, flags) == []
    await box.chat.recover()
    await box.chat.recover()
    await box.chat.close()
    assert sorted(flag.text for flag in stored(box, flags)) == ["I want to\ndie", DISTRESS]
    assert {flag.user for flag in stored(box, flags)} == {pupil.id}
    assert len(box.audit.entries()) == 2


# --- the words -------------------------------------------------------------------------------------------------------
def test_every_support_text_stands_in_every_language(settings: Settings) -> None:
    english = support_in(settings.content / "support", "en")
    for language in ("es", "fr", "ar"):
        import tomllib

        texts = tomllib.loads((settings.content / "support" / f"{language}.toml").read_text("utf-8"))
        assert texts.keys() == english.keys(), language
    assert all(len(text.split()) < 120 for text in english.values())


async def test_no_word_of_it_is_in_any_log_or_in_the_audit_record(
    box: Any, pupil: User, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await listed(box.chat.answer(pupil, DISTRESS))
    box.pool.answer = "To make a pipe bomb you need zebrafish."
    await listed(box.chat.answer(pupil, "Why are leaves green?"))
    entries = box.audit.entries()
    assert [entry.verb for entry in entries] == ["safety escalate", "safety block"] and {e.actor for e in entries} == {pupil.id}
    record = str(entries) + caplog.text
    assert not [word for word in ("zebrafish", "die", "bomb", "self-harm", "wants") if word in record]
    assert box.audit.verify() == 2
