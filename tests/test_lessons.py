"""In which lesson a pupil asks, what the model is told of it, from what it is answered, and when nobody is answered."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import pytest

from appliance import prompts, teaching
from appliance.accounts import User
from appliance.engine.handler import Message
from appliance.errors import Closed, Conflict, NotFound
from appliance.knowledge.library import Found
from appliance.knowledge.shelves import Reader, Shelves
from appliance.running import Event
from appliance.settings import Settings
from tests.web.box import make_box

QUESTION = "Why are leaves green?"


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings)
    yield box
    await box.chat.close()
    box.database.close()


def person(box: Any, name: str, role: str = "pupil", *class_ids: str) -> User:
    with suppress(Conflict):  # there already
        box.people.add(name, role)
    user = box.accounts.named(name)
    for id in class_ids:
        box.people.join(user.id, id, teaches=role != "pupil")
    return box.accounts.named(name)  # type: ignore[no-any-return]


async def listed(events: AsyncGenerator[Event, None]) -> list[Event]:
    async with aclosing(events):
        return [event async for event in events]


async def answer(box: Any, user: User, **options: Any) -> list[Event]:
    return await listed(box.chat.complete(user, [Message("user", QUESTION)], **options))


def test_methods_and_levels_are_words_that_an_educator_can_edit() -> None:
    assert set(teaching.methods()) == {"direct-instruction", "inquiry", "project-based", "montessori", "socratic"}
    assert list(teaching.help_levels()) == ["hints", "examples", "full"]
    for way in [*teaching.methods().values(), *teaching.help_levels().values()]:
        assert way.name and way.about and len(way.instructions.split()) > 15, way.id


async def test_a_whole_class_is_told_the_same_word_for_word_and_first(box: Any) -> None:
    made = box.classes.add(
        "7B", lesson="Photosynthesis", subject="Science", grade="7", method="socratic", help_level="examples"
    )
    ann, ben = (person(box, name, "pupil", made.id) for name in ("ann", "ben"))
    await answer(box, ann)
    await listed(box.chat.complete(ben, [Message("user", "What is evil?")]))
    first, second = (request.messages[0] for request in box.pool.requests)
    assert first == second and first.role == "system"
    told = first.content.removeprefix(prompts.load("teacher_responder").instructions)
    socratic, examples = teaching.methods()["socratic"].instructions, teaching.help_levels()["examples"].instructions
    science, band = teaching.subjects()["sciences"].instructions, teaching.band("7")
    assert band is not None and band.name == "Grades 6 to 8"
    lesson = f"Today's lesson: Photosynthesis.\n{socratic}\n{examples}\n{science}\n{band.instructions}"
    assert told == f"\nSubject: Science. Grade: 7.\n{lesson}"
    assert box.pool.requests[0].task == "teacher_responder/science", "the subject's model answers, where there is one"
    await answer(box, person(box, "carl"))
    assert box.pool.requests[2].messages[0].content == prompts.load("teacher_responder").instructions


async def test_a_method_that_an_educator_has_taken_away_is_left_out(box: Any) -> None:
    made = box.classes.add("7B", method="dancing", help_level="full")
    await answer(box, person(box, "ann", "pupil", made.id))
    assert box.pool.requests[0].messages[0].content.endswith(teaching.help_levels()["full"].instructions)


async def test_closed_answers_no_pupil_by_any_road_and_keeps_no_question(box: Any) -> None:
    made = box.classes.add("7B")
    ann, teacher = person(box, "ann", "pupil", made.id), person(box, "brown", "teacher", made.id)
    box.classes.close(made.id)
    for road in (answer(box, ann), box.chat.start(ann, QUESTION), box.chat.ask(ann, QUESTION)):
        with pytest.raises(Closed, match="closed for 7B") as caught:
            await road
        assert (caught.value.status, caught.value.code) == (403, "closed") and "kept" in caught.value.hint
    assert box.pool.requests == [] and box.chat.conversations.list(ann) == []
    assert (await answer(box, teacher))[-1].kind == "done", "staff are never closed out"
    box.classes.open(made.id, until=1.0)
    with pytest.raises(Closed):
        await box.chat.start(ann, QUESTION)
    box.classes.open(made.id)
    assert (await answer(box, ann))[-1].kind == "done"


async def test_an_exam_of_one_class_closes_the_assistant_everywhere(box: Any) -> None:
    science, chess = box.classes.add("7B"), box.classes.add("Chess")
    ann, ben = person(box, "ann", "pupil", science.id, chess.id), person(box, "ben", "pupil", chess.id)
    box.classes.exam(science.id, True)
    with pytest.raises(Closed, match="7B has an exam"):
        await answer(box, ann)
    with pytest.raises(Closed, match="7B has an exam"):
        await box.chat.start(ann, QUESTION, class_id=chess.id)
    assert (await answer(box, ben))[-1].kind == "done"
    box.classes.archive(science.id)
    assert (await answer(box, ann))[-1].kind == "done", "a class that was put away holds nobody"


async def test_which_class_it_is_of_several(box: Any) -> None:
    art, biology = box.classes.add("Art", help_level="full"), box.classes.add("Biology", help_level="hints")
    chess = box.classes.add("Chess", help_level="full")
    box.classes.add("Drama")
    ann = person(box, "ann", "pupil", art.id, biology.id, chess.id)

    def name(*named: str) -> str:
        return box.chat.lessons.of(ann, None, *named).class_name  # type: ignore[no-any-return]

    assert (name(), name(chess.id), name("nothing")) == ("Biology", "Chess", "Biology"), "the one that is held closest"
    assert [shown for _, shown in box.chat.lessons.of(ann).choice] == ["Art", "Biology", "Chess"]
    box.classes.close(biology.id)
    assert (name(), name(biology.id)) == ("Art", "Art"), "a closed one cannot be named"
    box.classes.close(art.id)
    assert (name(), name(art.id)) == ("Chess", "Chess") and not box.chat.lessons.of(ann).choice
    box.classes.close(chess.id)
    assert box.chat.lessons.of(ann).closed == "closed"


async def test_a_conversation_stays_with_the_class_it_was_begun_for(box: Any) -> None:
    art, biology = box.classes.add("Art"), box.classes.add("Biology", lesson="Leaves")
    ann = person(box, "ann", "pupil", art.id, biology.id)
    begun = (await box.chat.start(ann, QUESTION, class_id=biology.id)).data["conversation"]
    await box.chat.close()
    assert box.chat.lessons.of(ann, begun).class_name == "Biology"
    assert box.chat.lessons.of(ann, begun, art.id).class_name == "Biology", "whatever a page names later"
    stranger = person(box, "sam", "pupil", art.id)
    assert box.chat.lessons.of(stranger, begun).class_name == "Art", "another's conversation names no class of one's own"
    with pytest.raises(NotFound):
        await box.chat.start(stranger, QUESTION, conversation=begun)


async def test_strict_is_whoever_of_their_classes_is(box: Any) -> None:
    strict, free = box.classes.add("7B", strict=True), box.classes.add("Chess")
    ann, ben = person(box, "ann", "pupil", strict.id, free.id), person(box, "ben", "pupil", free.id)
    assert box.chat.lessons.of(ann, None, free.id).strict and not box.chat.lessons.of(ben).strict


async def test_the_classs_sources_limit_the_search_and_open_nothing(box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shelves, seen = Shelves(box.database), []

    async def search(_text: str, *, k: int, within: Any) -> Found:
        del k
        seen.append(within.collections)
        return Found(False, False, [], [])

    monkeypatch.setattr(box.library, "search", search)
    everyone = [Reader("everyone")]
    atlas, books = (shelves.create(name, readers=everyone).id for name in ("Atlas", "Books"))
    staff = shelves.create("Staff", readers=[Reader("role", "teacher")]).id
    made = box.classes.add("7B")
    ann = person(box, "ann", "pupil", made.id)
    await answer(box, ann)
    box.classes.change(made.id, collections=[books, staff])
    await answer(box, ann)
    await answer(box, person(box, "brown", "teacher", made.id))
    assert seen == [{atlas, books}, {books}, {atlas, books, staff}]
