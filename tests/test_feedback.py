"""What readers say of answers: whose word counts for what, and what becomes of a correction that may be learned from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from appliance.accounts import PUPIL, SAFEGUARDING, TEACHER, User
from appliance.errors import BadInput, Conflict, Forbidden, NotFound, TooLarge
from appliance.feedback import Given
from appliance.settings import Settings
from appliance.tables import classes, conversations, feedback
from appliance.tuning.store import ExampleStore
from tests.web.box import ANSWER, make_box

QUESTION = "Why are leaves green?"
BETTER = "Which colours does a leaf take in?"


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings)
    yield box
    await box.chat.close()
    box.database.close()


def person(box: Any, role: str) -> User:
    made, _ = box.people.add(f"{role} person", role, password="correct horse battery")
    return User(made.id, made.name, role)


@pytest.fixture
def teacher(box: Any) -> User:
    return person(box, TEACHER)


async def answered(box: Any, user: User, question: str = QUESTION, **options: Any) -> dict[str, str]:
    async with aclosing(box.chat.answer(user, question, **options)) as events:
        ids: dict[str, str] = [event async for event in events][0].data  # noqa: RUF015 - to its end
    return ids


async def test_a_correction_with_consent_waits_for_review_with_the_talk_before_it(box: Any, teacher: User) -> None:
    first = await answered(box, teacher)
    second = await answered(box, teacher, "And in autumn, the leaves?", conversation=first["conversation"])
    await answered(box, teacher, "And in winter?", conversation=first["conversation"])
    lesson = {"id": "c1", "name": "7B", "subject": "science", "grade": "7", "created": 1.0}
    with box.database.begin() as connection:
        connection.execute(classes.insert().values(**lesson))
        connection.execute(conversations.update().values(class_id="c1"))
    given = box.feedback.give(teacher, second["turn"], Given("down", "wrong", "too much", BETTER, True))
    store = ExampleStore(box.database)
    (row,) = store.pending()
    said = ANSWER.replace(" [9]", "")
    assert [(one.role, one.content) for one in row.messages] == [
        ("user", QUESTION), ("assistant", said), ("user", "And in autumn, the leaves?"), ("assistant", said),
    ]  # fmt: skip
    assert (row.id, row.correction, row.rating, row.consent) == (given.example, BETTER, "down", True)
    assert (row.author, row.user_role, row.class_name, row.subject, row.grade) == (
        teacher.name,
        "teacher",
        "7B",
        "science",
        "7",
    )
    assert box.feedback.of(teacher, [second["turn"]]) == {second["turn"]: given}
    (noted,) = box.audit.entries(thing=second["turn"])
    assert noted.actor == teacher.id and BETTER not in str(box.audit.entries())


async def test_taking_out_the_tick_takes_the_example_back_and_a_new_one_is_new(box: Any, teacher: User) -> None:
    turn = (await answered(box, teacher))["turn"]
    first = box.feedback.give(teacher, turn, Given("up", better=BETTER, consent=True))
    changed = box.feedback.give(teacher, turn, Given("up", better="Look at the light.", consent=True))
    store = ExampleStore(box.database)
    assert changed.example == first.example and store.get(first.example).correction == "Look at the light."
    back = box.feedback.give(teacher, turn, Given("up", better="Look at the light."))
    assert (back.better, back.consent, back.example) == ("Look at the light.", False, "")
    assert store.withdrawn() == {first.example} and store.list() == []
    again = box.feedback.give(teacher, turn, Given("up", better="Look at the light.", consent=True))
    assert again.example not in ("", first.example) and [row.id for row in store.pending()] == [again.example]
    assert box.feedback.give(teacher, turn, Given()) == Given() and store.list() == []
    with box.database.read() as connection:
        assert connection.execute(feedback.select()).all() == []


@pytest.mark.parametrize(
    "new", [Given("up", consent=True), Given("up", better=BETTER), Given("down", "wrong", "x", BETTER, True)]
)
async def test_a_pupils_thumb_is_never_a_consent(box: Any, new: Given) -> None:
    pupil = person(box, PUPIL)
    turn = (await answered(box, pupil))["turn"]
    box.feedback.give(pupil, turn, Given("down", "unclear", "Too hard."))
    with pytest.raises(Forbidden):
        box.feedback.give(pupil, turn, new)
    assert box.feedback.of(pupil, [turn]) == {turn: Given("down", "unclear", "Too hard.")}
    assert ExampleStore(box.database).list(withdrawn=True) == []


async def test_who_is_no_longer_staff_can_still_take_back_what_they_gave(box: Any) -> None:
    lead = person(box, SAFEGUARDING)
    turn = (await answered(box, lead))["turn"]
    given = box.feedback.give(lead, turn, Given("up", consent=True))
    box.feedback.give(User(lead.id, lead.name, PUPIL), turn, Given("up"))
    assert ExampleStore(box.database).withdrawn() == {given.example}


async def test_only_ones_own_finished_answers_and_known_choices(box: Any, teacher: User) -> None:
    other = person(box, PUPIL)
    ids = await answered(box, other)
    with pytest.raises(NotFound):
        box.feedback.give(teacher, ids["turn"], Given("up"))
    ids = await answered(box, teacher)
    for new in (Given("great"), Given("up", "because"), Given(consent=True)):
        with pytest.raises(BadInput):
            box.feedback.give(teacher, ids["turn"], new)
    for new in (Given(words="x" * 501), Given(better="x" * 20_001)):
        with pytest.raises(TooLarge):
            box.feedback.give(teacher, ids["turn"], new)
    with pytest.raises(BadInput):
        box.feedback.give(teacher, ids["question"], Given("up"))
    box.pool.breaks_after = 0
    with pytest.raises(BadInput):
        box.feedback.give(teacher, (await answered(box, teacher))["turn"], Given("up"))
    assert box.feedback.of(teacher, [ids["turn"]]) == {}


async def test_who_has_withdrawn_hears_so_and_keeps_what_they_wrote(box: Any, teacher: User) -> None:
    ExampleStore(box.database).withdraw(teacher.name, by="office")
    turn = (await answered(box, teacher))["turn"]
    with pytest.raises(Conflict):
        box.feedback.give(teacher, turn, Given("down", better=BETTER, consent=True))
    assert box.feedback.of(teacher, [turn]) == {turn: Given("down", better=BETTER)}
    assert ExampleStore(box.database).list(withdrawn=True) == []
