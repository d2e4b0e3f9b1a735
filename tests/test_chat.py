"""The road from a person to a model: sources, budget, what leads, what is kept, and who may see it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance import openings, running
from appliance.accounts import User
from appliance.chat import LONGEST_QUESTION, clean_question
from appliance.classes import Classes
from appliance.conversations import short_title
from appliance.engine.handler import Message, Request
from appliance.engine.pool import Active, Pool
from appliance.engine.quotes import NOT_COVERED, Quotes
from appliance.errors import BadInput, Conflict, Forbidden, ModelUnavailable, NotFound, NotSignedIn, TooLarge
from appliance.knowledge.library import Found
from appliance.openings import NONE_ASKED, NOT_FROM_THEM, ONLY_DOCUMENTS
from appliance.running import Event
from appliance.settings import Settings
from tests.engine.serving import engine_on_a_socket
from tests.web.box import ANSWER, LEAVES, make_box

LEAF_QUESTION = "Why are leaves green?"


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


def said(events: list[Event]) -> str:
    return "".join(event.data["delta"] for event in events if event.kind == "text")


def stranger(box: Any) -> User:
    code = box.accounts.ensure_setup_code()
    return box.accounts.create_first_administrator(code, "Stranger", "correct horse battery")  # type: ignore[no-any-return]


# --- one answer ------------------------------------------------------------------------------------------------------
async def test_an_answer_cites_what_was_found(box: Any, me: User) -> None:
    events = await listed(box.chat.complete(me, [Message("user", LEAF_QUESTION)]))
    assert [event.kind for event in events if event.kind != "text"] == ["sources", "done"]
    done = events[-1].data
    assert [passage["id"] for passage in events[0].data["passages"]] == [12, 13]
    assert done["text"] == said(events) == ANSWER.replace(" [9]", "")
    assert (done["model"], done["handler"], done["starter"], done["covered"]) == ("green-1", "llama", False, True)
    assert done["tokens"]["prompt"] == 20 and LEAVES in box.pool.requests[0].messages[-1].content


async def test_what_the_documents_do_not_cover_is_said(box: Any, me: User) -> None:
    events = await listed(box.chat.complete(me, [Message("user", "What is the capital of Peru?")]))
    assert events[0].data["covered"] is False and events[0].data["passages"] == []
    assert [event.data for event in events if event.kind == "opening"] == [
        {"code": openings.NOT_COVERED_OWN, "nearest": ["The water cycle"]}
    ]
    opening = f"{NOT_COVERED} Nearest in the library: The water cycle. {NOT_FROM_THEM}\n\n"
    own = ANSWER.replace(" [1]", "").replace(" [2]", "").replace(" [9]", "")
    assert said(events) == own and events[-1].data["opening"] == openings.NOT_COVERED_OWN
    assert (await box.chat.ask(me, "What is the capital of Peru?"))["answer"] == opening + own
    assert "Sources:" not in box.pool.requests[0].messages[-1].content
    for model in ("quotes", "default"):
        box.pool.model = None
        answer = await box.chat.ask(me, "What is the capital of Peru?", model=model)
        assert (answer["answer"], answer["handler"]) == (f"{NOT_COVERED} Nearest in the library: The water cycle.", "quotes")


async def test_nearest_titles_are_at_most_three_and_only_words(box: Any, me: User, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = ["[see](http://elsewhere.example) <b>*this*</b> [1]", "  \n ", "Rivers\nand seas", "A fourth"]

    async def nothing(text: str, **_options: Any) -> Found:
        return Found(False, False, [], titles if "rivers" in text else [])

    monkeypatch.setattr(box.library, "search", nothing)
    answer = await box.chat.ask(me, "Of rivers?", model="quotes")
    assert answer["answer"] == f"{NOT_COVERED} Nearest in the library: see elsewhere.example b this /b 1, Rivers and seas."
    assert (await box.chat.ask(me, "Of stars?", model="quotes"))["answer"] == NOT_COVERED
    box.pool.starter = True
    assert (await box.chat.ask(me, "Of rivers?"))["answer"].startswith(f"{NOT_COVERED} Nearest in the library: see")


async def test_no_collections_means_no_documents(box: Any, me: User) -> None:
    answer = await box.chat.ask(me, LEAF_QUESTION, collections=[])
    assert answer["covered"] is None and answer["passages"] == [] and NOT_FROM_THEM not in answer["answer"]
    assert (await box.chat.ask(me, LEAF_QUESTION, collections=[], model="quotes"))["answer"] == NONE_ASKED
    box.pool.starter = True
    assert (await box.chat.ask(me, LEAF_QUESTION, collections=[]))["answer"].startswith(NONE_ASKED)


# --- a class that is answered from documents only --------------------------------------------------------------------
@pytest.fixture
def pupil(box: Any, me: User) -> User:
    Classes(box.database).set_strict("7 B", True)
    Classes(box.database).set_strict("Chess club", False)
    return replace(me, classes=frozenset({"Chess club", "7b"}))


async def test_what_a_pupil_writes_stays_in_the_building_unless_the_school_says_otherwise(box: Any, me: User) -> None:
    inside = box.pool.requests
    for user in (me, replace(me, role="pupil"), replace(me, role="teacher"), replace(me, role="unheard of")):
        with contextlib.suppress(Forbidden):
            await listed(box.chat.complete(user, [Message("user", LEAF_QUESTION)]))
    assert [request.inside for request in inside] == [False, True, False]
    inside.clear()
    box.chat._settings = box.settings.model_copy(update={"hosted_for": "everyone"})
    await listed(box.chat.complete(replace(me, role="pupil"), [Message("user", LEAF_QUESTION)]))
    assert [request.inside for request in inside] == [False]
    assert Request([]).inside, "who does not say otherwise stays inside"


@pytest.mark.parametrize("how", [{}, {"starter": True}, {"down": True}, {"model": None}])
async def test_a_strict_class_gets_what_the_documents_say_or_hears_that_they_do_not(box: Any, pupil: User, how: Any) -> None:
    for name, value in how.items():
        setattr(box.pool, name, value)
    events = await listed(box.chat.complete(pupil, [Message("user", "What is the capital of Peru?")]))
    expected = f"{NOT_COVERED} Nearest in the library: The water cycle. {ONLY_DOCUMENTS}"
    assert (
        [event.kind for event in events] == ["sources", "opening", "done"]
        and openings.words(**events[1].data) == expected
        and events[-1].data["text"] == ""
    )
    assert events[-1].data["handler"] == "quotes" and events[-1].data["covered"] is False and box.pool.requests == []
    for more in ({"collections": []}, {"model": "green-1"}, {"model": "quotes"}):
        answer = await box.chat.ask(pupil, "What is the capital of Peru?", **more)
        assert answer["answer"].endswith(ONLY_DOCUMENTS) and box.pool.requests == [], "no model is called, whoever asks how"
    covered = await box.chat.ask(pupil, LEAF_QUESTION)
    assert covered["covered"] and "[1]" in covered["answer"] and ONLY_DOCUMENTS not in covered["answer"]


async def test_a_strict_classs_answer_is_stored_like_any_other(box: Any, pupil: User) -> None:
    events = await listed(box.chat.answer(pupil, "What is the capital of Peru?"))
    turn = box.chat.conversations.turn(pupil, events[0].data["turn"])
    assert turn.state == "done" and turn.said.endswith(ONLY_DOCUMENTS) and turn.handler == "quotes" and turn.seconds is not None


async def test_a_strict_classs_answer_never_goes_without_its_last_passage(box: Any, me: User, pupil: User) -> None:
    """A question so long that no source fits beside it: others are answered without, this class hears that it is too long."""
    room = box.pool.context - 200 - await box.pool.count(_prompt(LEAF_QUESTION))
    question = f"{LEAF_QUESTION} {words(room - 10)}"
    await box.chat.ask(me, question)
    assert "source 1" not in box.pool.requests[-1].messages[-1].content
    with pytest.raises(TooLarge):
        await box.chat.ask(pupil, question)


async def test_a_class_without_a_rule_and_who_is_in_none_are_not_strict(box: Any, me: User) -> None:
    rules = Classes(box.database)
    assert not rules.strict([]) and not rules.strict(["7 B"]) and rules.list() == []
    rules.set_strict("7 B", True)
    assert rules.strict(["8", " 7\tb "]) and not rules.strict(["8", "7", ""])
    rules.set_strict("7b", False)
    assert not rules.strict(["7 B"]) and [one.name for one in rules.list()] == ["7 B"], "the later word holds"
    for name in ("", " ", "x" * 81, "a\x00b"):
        with pytest.raises(BadInput):
            rules.set_strict(name, True)
    assert "green" in (await box.chat.ask(me, "What is the capital of Peru?"))["answer"]


@pytest.mark.parametrize("change", [{"model": None}, {"down": True}])
async def test_quotes_serve_when_no_model_can(box: Any, me: User, change: dict[str, Any]) -> None:
    for name, value in change.items():
        setattr(box.pool, name, value)
    answer = await box.chat.ask(me, LEAF_QUESTION)
    assert answer["handler"] == answer["model"] == "quotes" and not answer["starter"]
    assert f"> {LEAVES} [1]" in answer["answer"]


async def test_quotes_lead_while_a_starter_serves(box: Any, me: User) -> None:
    box.pool.starter = True
    events = await listed(box.chat.complete(me, [Message("user", LEAF_QUESTION)]))
    kinds = [event.kind for event in events]
    assert kinds.index("quotes") < kinds.index("text")
    done = events[-1].data
    assert done["starter"] and done["lead"].startswith(f"> {LEAVES} [1]")
    whole = openings.whole(done)
    assert whole.index(LEAVES) < whole.index("do not rely on them") < whole.index("Leaves look")
    box.pool.model, box.pool.starter = "better-2", False
    assert not (await box.chat.ask(me, LEAF_QUESTION))["starter"], "a newly promoted model serves at once"


async def test_a_named_model_is_a_starter_until_someone_knows_better(box: Any) -> None:
    serving, box.chat._starter_of = await box.pool.serving(), None
    assert await box.chat._is_starter("other-3", serving)
    box.chat._starter_of = {"other-3": False}.__getitem__
    assert not await box.chat._is_starter("other-3", serving)


async def test_closing_an_answer_frees_the_model(box: Any, me: User) -> None:
    box.pool.pace = 0.01
    events = box.chat.complete(me, [Message("user", LEAF_QUESTION)])
    async for event in events:
        if event.kind == "text":
            break
    assert box.pool.open == 1
    await events.aclose()
    assert box.pool.open == 0


async def test_who_may_not_ask_gets_nothing(box: Any) -> None:
    with pytest.raises(NotSignedIn):
        await listed(box.chat.complete(None, [Message("user", LEAF_QUESTION)]))
    assert box.pool.requests == []


@pytest.mark.parametrize("messages", [[], [("assistant", "hello")], [("system", "x")], [("user", " ")], [("user", "\ud800")]])
async def test_what_is_no_question_is_refused(box: Any, me: User, messages: list[Any]) -> None:
    with pytest.raises(BadInput):
        await listed(box.chat.complete(me, [Message(*message) for message in messages]))


# --- the budget ------------------------------------------------------------------------------------------------------
def words(number: int) -> str:
    return " ".join(["word"] * number)


async def test_old_turns_go_first_and_the_instructions_never(box: Any, me: User) -> None:
    talk = [Message(role, words(150)) for _ in range(6) for role in ("user", "assistant")]  # type: ignore[arg-type]
    events = await listed(box.chat.complete(me, [*talk, Message("user", LEAF_QUESTION)]))
    assert [event.kind for event in events][:2] == ["sources", "notice"]
    sent = box.pool.requests[0].messages
    assert sent[0].role == "system" and LEAVES in sent[-1].content
    assert 1 < len(sent) < 14 and [message.role for message in sent[1:3]] == ["user", "assistant"]
    assert await box.pool.count(sent) + box.pool.requests[0].max_tokens <= box.pool.context


async def test_then_passages_are_shortened_and_marks_follow(box: Any, me: User) -> None:
    room = box.pool.context - 200 - await box.pool.count(_prompt(LEAF_QUESTION))
    events = await listed(box.chat.complete(me, [Message("user", f"{LEAF_QUESTION} {words(room - 60)}")]))
    assert "[1]" in events[-1].data["text"] and "[2]" not in events[-1].data["text"]
    assert "notice" not in [event.kind for event in events]


def _prompt(question: str) -> list[Message]:
    from appliance import prompts

    return prompts.render(question)


async def test_a_question_that_cannot_fit_says_by_how_much(box: Any, me: User) -> None:
    with pytest.raises(TooLarge, match=r"takes 1\d\d\d tokens .* fit beside an answer of 200"):
        await listed(box.chat.complete(me, [Message("user", words(1100))]))
    with pytest.raises(TooLarge, match=str(LONGEST_QUESTION)):
        await box.chat.start(me, "x" * (LONGEST_QUESTION + 1))
    assert box.chat.conversations.list(me) == []


async def test_system_messages_stand_after_ours(box: Any, me: User) -> None:
    await listed(box.chat.complete(me, [Message("system", "Answer in French."), Message("user", LEAF_QUESTION)]))
    first = box.pool.requests[0].messages[0].content
    assert first.endswith("Answer in French.") and first.startswith(_prompt("x")[0].content)


# --- what is kept ----------------------------------------------------------------------------------------------------
async def test_the_question_is_stored_before_the_answer(box: Any, me: User) -> None:
    box.pool.pace = 0.05
    ids = (await box.chat.start(me, LEAF_QUESTION)).data
    _, turns = box.chat.conversations.load(me, ids["conversation"])
    assert [(turn.role, turn.text, turn.state) for turn in turns] == [
        ("user", LEAF_QUESTION, "done"),
        ("assistant", "", "streaming"),
    ]


async def test_an_answer_is_kept_with_its_sources(box: Any, me: User) -> None:
    events = await listed(box.chat.answer(me, LEAF_QUESTION))
    assert [events[0].kind, events[-1].kind] == ["turn", "done"]
    chat, turns = box.chat.conversations.load(me, events[0].data["conversation"])
    answer = turns[1]
    assert chat.title == LEAF_QUESTION and answer.text == events[-1].data["text"]
    assert (answer.state, answer.model, answer.handler, answer.covered) == ("done", "green-1", "llama", True)
    assert [passage["id"] for passage in answer.passages] == [12, 13] and answer.facts["completion"] > 0
    again = await listed(box.chat.follow(me, answer.id))
    assert [event.kind for event in again] == ["turn", "done"] and again[1].data["text"] == answer.text


async def test_the_next_question_knows_the_last_answer(box: Any, me: User) -> None:
    first = await listed(box.chat.answer(me, LEAF_QUESTION))
    await listed(box.chat.answer(me, "And in autumn, the leaves?", conversation=first[0].data["conversation"]))
    sent = [message.content for message in box.pool.requests[1].messages]
    assert sent[1] == LEAF_QUESTION and sent[2].startswith("Leaves look")


async def test_who_asks_on_is_answered_from_the_documents_of_the_question_before(box: Any, me: User) -> None:
    first = await listed(box.chat.answer(me, LEAF_QUESTION))
    chat = first[0].data["conversation"]
    for asked_on in ("And why?", "Can you explain that with an example?"):
        events = await listed(box.chat.answer(me, asked_on, conversation=chat))
        (sources,) = [event for event in events if event.kind == "sources"]
        assert sources.data["covered"] and [one["id"] for one in sources.data["passages"]] == [12, 13]
        request = box.pool.requests[-1]
        assert request.messages[-1].content.endswith(f"Question: {asked_on}"), "the model reads what was typed"
        assert request.question == f"{LEAF_QUESTION} {asked_on}", "the quotes are chosen for what was meant"
    alone = await box.chat.ask(me, "And why?")
    assert alone["covered"] is False, "without a question before it there is nothing that it could mean"
    other = await listed(box.chat.answer(me, "And the capital of Peru?", conversation=chat))
    assert other[-1].data["covered"] is False, "a question of its own is searched as it stands"


async def test_a_model_that_breaks_leaves_what_it_said(box: Any, me: User) -> None:
    box.pool.breaks_after = 3
    events = await listed(box.chat.answer(me, LEAF_QUESTION))
    assert events[-1].kind == "error" and events[-1].data["hint"] == "Ask again."
    turn = box.chat.conversations.turn(me, events[0].data["turn"])
    assert (turn.state, turn.text) == ("failed", "Leaves look **green**")
    assert [event.kind for event in await listed(box.chat.follow(me, turn.id))] == ["turn", "error"]


async def test_an_unforeseen_fault_is_told_without_its_words(box: Any, me: User, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_request: Any) -> AsyncGenerator[Any, None]:
        raise RuntimeError(f"could not parse {LEAF_QUESTION}")
        yield

    box.pool.generate = broken
    events = await listed(box.chat.answer(me, LEAF_QUESTION))
    assert events[-1].kind == "error" and "RuntimeError" not in events[-1].data["message"]
    assert "RuntimeError at" in caplog.text and "leaves" not in caplog.text


async def test_stop_keeps_what_was_written(box: Any, me: User) -> None:
    box.pool.pace = 0.02
    seen: list[Event] = []
    async for event in box.chat.answer(me, LEAF_QUESTION):
        seen.append(event)
        if event.kind == "text" and len(said(seen)) > 12:
            await box.chat.stop(me, seen[0].data["turn"])
    assert seen[-1].kind == "done" and seen[-1].data["state"] == "stopped"
    turn = box.chat.conversations.turn(me, seen[0].data["turn"])
    assert turn.state == "stopped" and turn.text == seen[-1].data["text"] and box.pool.open == 0
    assert turn.text.startswith(said(seen).strip()), "and the words that were still being judged"
    await box.chat.stop(me, turn.id)


async def test_stop_at_the_first_moment(box: Any, me: User) -> None:
    ids = (await box.chat.start(me, LEAF_QUESTION)).data
    await asyncio.wait_for(box.chat.stop(me, ids["turn"]), 5)
    assert box.chat.conversations.turn(me, ids["turn"]).state in ("stopped", "done")


async def test_a_reader_who_comes_back_misses_nothing(box: Any, me: User) -> None:
    box.pool.pace = 0.01
    ids = (await box.chat.start(me, LEAF_QUESTION)).data
    first: list[Event] = []
    async with aclosing(box.chat.follow(me, ids["turn"])) as events:
        async for event in events:
            first.append(event)
            if len(first) == 6:
                break
    rest = await listed(box.chat.follow(me, ids["turn"], after=6))
    assert said(first + rest) == ANSWER.replace(" [9]", "") and rest[-1].kind == "done"


async def test_an_answer_nobody_reads_ends(box: Any, me: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE", 0.1)
    box.pool.pace = 0.5
    ids = (await box.chat.start(me, LEAF_QUESTION)).data
    for _ in range(100):
        if box.chat.conversations.turn(me, ids["turn"]).state == "stopped":
            break
        await asyncio.sleep(0.02)
    assert box.chat.conversations.turn(me, ids["turn"]).state == "stopped" and box.pool.open == 0


async def test_after_a_crash_nothing_is_still_being_written(box: Any, me: User) -> None:
    box.pool.pace = 0.05
    ids = (await box.chat.start(me, LEAF_QUESTION)).data
    await box.chat.recover()
    assert box.chat.conversations.turn(me, ids["turn"]).state == "streaming", "this process is still writing it"
    box.chat.conversations.fail_unfinished([])
    assert box.chat.conversations.turn(me, ids["turn"]).state == "failed"


async def test_one_answer_at_a_time_in_a_chat(box: Any, me: User) -> None:
    box.pool.pace = 0.05
    ids = (await box.chat.start(me, LEAF_QUESTION)).data
    with pytest.raises(Conflict):
        await box.chat.start(me, LEAF_QUESTION, conversation=ids["conversation"])


async def test_chats_are_their_owners_alone(box: Any, me: User) -> None:
    ids = (await listed(box.chat.answer(me, LEAF_QUESTION)))[0].data
    other, kept = stranger(box), box.chat.conversations
    for act in (
        lambda: kept.load(other, ids["conversation"]),
        lambda: kept.turn(other, ids["turn"]),
        lambda: kept.rename(other, ids["conversation"], "mine"),
        lambda: kept.delete(other, ids["conversation"]),
    ):
        with pytest.raises(NotFound):
            act()
    for road in (box.chat.start(other, "x", conversation=ids["conversation"]), box.chat.stop(other, ids["turn"])):
        with pytest.raises(NotFound):
            await road
    with pytest.raises(NotFound):
        await listed(box.chat.follow(other, ids["turn"]))
    assert kept.list(other) == [] and len(kept.list(me)) == 1


async def test_rename_and_delete(box: Any, me: User) -> None:
    ids = (await listed(box.chat.answer(me, LEAF_QUESTION)))[0].data
    box.chat.conversations.rename(me, ids["conversation"], "Leaves\n in   autumn")
    assert box.chat.conversations.list(me)[0].title == "Leaves in autumn"
    with pytest.raises(BadInput):
        box.chat.conversations.rename(me, ids["conversation"], " \x00 ")
    await box.chat.delete(me, ids["conversation"])
    with pytest.raises(NotFound):
        box.chat.conversations.turn(me, ids["turn"])


async def test_deleting_a_chat_ends_its_answer(box: Any, me: User) -> None:
    box.pool.pace = 0.05
    ids = (await box.chat.start(me, LEAF_QUESTION)).data
    await box.chat.delete(me, ids["conversation"])
    assert box.pool.open == 0 and box.chat.conversations.list(me) == []


async def test_a_model_asked_for_by_name_does_not_fall_back(box: Any, me: User) -> None:
    box.pool.breaks_after = 0
    with pytest.raises(ModelUnavailable):
        await box.chat.ask(me, LEAF_QUESTION, model="green-1")


def test_small_words() -> None:
    assert clean_question("  a\x00b\r\nc\x1b[31m ") == "a b\nc [31m"
    assert short_title("word " * 40).endswith("word…") and len(short_title("word " * 40)) <= 60
    assert len(short_title("x" * 500)) == 60


# --- a chat that grows longer than the model can read --------------------------------------------------------------------
async def test_a_chat_that_outgrows_the_model_says_so_and_keeps_the_instructions_word_for_word(box: Any, me: User) -> None:
    """Turn after turn in a stored chat: what is left out is said, the instructions never go, and no answer fails."""
    box.pool.answer = words(60)
    chat, dropped = None, 0
    for turn in range(1, 26):
        events = await listed(box.chat.answer(me, f"Question {turn}: {words(20)}", conversation=chat))
        chat = events[0].data["conversation"]
        assert events[-1].kind == "done" and events[-1].data["state"] == "done"
        request = box.pool.requests[-1]
        assert request.messages[0] == _prompt("x")[0], "the instructions, word for word"
        assert f"Question {turn}:" in request.messages[-1].content
        assert await box.pool.count(request.messages) + request.max_tokens <= box.pool.context
        seen = [message.content for message in request.messages[1:-1] if message.role == "user"]
        assert [text.split(":")[0] for text in seen] == [f"Question {n}" for n in range(turn - len(seen), turn)], "the newest"
        notices = [event.data["message"] for event in events if event.kind == "notice"]
        assert len(notices) == (len(seen) < turn - 1), "left out without a word, or a word for nothing"
        dropped += bool(notices)
        kept = box.chat.conversations.turn(me, events[0].data["turn"])
        assert (kept.facts.get("notice") or "") == "".join(notices), "a page that is opened later shows it too"
    assert 10 < dropped < 24


@pytest.mark.llama
async def test_a_real_model_answers_in_a_chat_that_outgrew_it(settings: Settings, starter_gguf: Path) -> None:
    async def nothing(_text: str) -> list[Any]:
        return []

    async with engine_on_a_socket(starter_gguf) as engine:
        await engine.load("starter")
        pool = Pool(engine, Quotes(nothing), lambda _task: Active("starter", "Starter", False, 1024))
        box = make_box(settings, pool=pool)
        user, chat, notices = box.accounts.local_administrator(), None, []
        for turn in range(9):
            question = f"{turn} " + "Why is one half more than one third of it? " * 12
            events = await listed(box.chat.answer(user, question, conversation=chat, collections=[]))
            chat = events[0].data["conversation"]
            assert events[-1].kind == "done" and events[-1].data["handler"] == "llama", events[-1]
            assert events[-1].data["tokens"]["prompt"] + events[-1].data["tokens"]["completion"] <= 1024
            notices.append("notice" in [event.kind for event in events])
        assert notices[0] is False and notices[-1] is True
        with pytest.raises(TooLarge, match=r"takes \d+ tokens"):
            await listed(box.chat.complete(user, [Message("user", "word " * 3000)], collections=[]))
        await box.chat.close()
        box.database.close()
