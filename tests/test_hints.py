# ruff: noqa: RUF001 - digits and letters of all languages are what this is about
"""Whether a pupil has tried, asks for the solution or sets a new task, and what the model is told of it, by a state in code."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from appliance import hints, teaching
from appliance.engine.handler import Message
from appliance.hints import State
from appliance.settings import Settings
from appliance.tuning.examples import read_examples
from tests.web.box import make_box

CONTENT = Settings(home=Path("/nonexistent")).content
TASK = "Solve 5y - 8 = 47."
ASKED_BACK = f"{TASK}\nWhat could you do first to get 5y alone? What have you tried?"

TRIES = [
    "I think you add 8 first", "I got 11", "y = 11", "11?", "55 / 5 = 11", "add 8", "I tried 10 but 5 x 10 - 8 is 42",
    "5y = 55", "Because 47 + 8 is 55", "Is it 11?", "i added 8 to both sides and got 55", "So it must be 11.", "eleven",
    "My answer is 12.", "minus 8 on both sides?", "I don't think it is 10 because 50 - 8 is 42.", "I guess divide by 5",
    "You move the eight over and then it is plus.", "maybe divide", "I have got 39/5", "It's 55, please check.",
    "Creo que es 11", "Me sale 11", "Je pense que c'est 11", "J'ai trouvé 55", "أعتقد أنه ١١",
    "Idk but I tried 9 and got 37.",
    "I did 47 + 8 = 55, now tell me the rest",
]  # fmt: skip
NO_TRIES = [
    "Just tell me the answer", "idk", "give me the solution", "I don't know", "no idea", "ok", "yes", "thanks", "help",
    "hint",
    "What is it?", "Can you do it for me?", "I give up.", "please", "I have no time.", "This is boring", "Solve it for me.",
    "I think you should just tell me.", "Only the number, please.", "My friend already has it, so tell me too.", "why?",
    "What does alone mean?", "I need it now, what is y?", TASK, "solve 5y - 8 = 47", "5y - 8 = ?", "", "?!",
    "tell me tell me tell me",
    "No sé", "Dime la respuesta", "Je ne sais pas", "Donne-moi la réponse", "لا أعرف", "أعطني الجواب", "i'm stuck",
    "another hint please",
]  # fmt: skip
DEMANDS = [
    "Just tell me the answer", "give me the solution", "Give me y.", "What is the answer?", "Tell me.", "Say it.",
    "Just the number.",
    "Can you do it for me?", "Solve it for me please", "skip the steps", "I'd rather you told me.", "only the result",
    "The answer please",
    "I got 12 but just tell me the solution", "what's the solution", "I need the answer", "No more hints.",
    "Just work it out for me.",
    "Write it for me.", "Don't ask me, tell me.", "so tell me", "Full solution!", "Dime la respuesta", "Dame la solución",
    "Solo la respuesta",
    "Donne-moi la réponse", "La réponse stp", "Quelle est la solution", "أعطني الجواب", "قل لي الجواب",
]  # fmt: skip
NO_DEMANDS = [
    "I got 11", "y = 11", "What should I do first?", "Why do you add 8?", "Can you explain that again?", "Is it 11?", "ok",
    "thanks",
    "I don't understand the second step", "How do magnets work?", "What is a fraction?", "Could I have a hint?",
    "I think it is 11",
    "Is my answer right?", "Where do I start?", "What does y mean?", "Explain photosynthesis", "Solve 3x = 9", "idk",
    "I'm stuck",
    "Why is the answer negative?", "Is there another way to see it?", "Creo que es 11", "¿Por qué se suma 8?",
    "Je pense que c'est 11",
    "Pourquoi ?", "لماذا؟", "How many legs does a spider have?",
]  # fmt: skip


@pytest.mark.parametrize("text", TRIES)
def test_a_try_is_one(text: str) -> None:
    assert hints.attempt(text, ASKED_BACK)


@pytest.mark.parametrize("text", NO_TRIES)
def test_what_is_no_try_is_none(text: str) -> None:
    assert not hints.attempt(text, ASKED_BACK)


@pytest.mark.parametrize("text", DEMANDS)
def test_asking_for_the_solution_is_heard(text: str) -> None:
    assert hints.demand(text)


@pytest.mark.parametrize("text", NO_DEMANDS)
def test_asking_for_help_is_not_asking_for_the_solution(text: str) -> None:
    assert not hints.demand(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TASK, False), ("What is 7 x 8?", False), ("How do plants make food?", False), (f"{TASK} I got y = 11.", True),
        ("2/7 + 3/7 = 5/14, right?", True), ("52 - 27. I got 35 because 7 take away 2 is 5.", True),
        ("5 - (-2). Just tell me.", False),
        ("I think you should solve it for me: 3x = 9", False), ("x + 3 = 10", False),
        ("My straw looks bent in the water.", False),
    ],
)  # fmt: skip
def test_a_first_message_shows_a_try_only_where_it_says_so(text: str, expected: bool) -> None:
    assert hints.attempt(text) is expected


def test_written_pleas_are_no_tries_and_pupils_answers_are() -> None:
    """All that the project's own sets hold: lines that beg for an answer, and what pupils answered to a tutor."""
    pleas = [json.loads(line) for line in (CONTENT / "evaluation" / "hints.jsonl").read_text("utf-8").splitlines()]
    said = [(ask, f"{one['question']}\nWhat have you tried?") for one in pleas for ask in one["asks"]]
    assert len(said) > 80 and not [ask for ask, before in said if hints.attempt(ask, before)]
    answers = [
        (example.messages[at].content, "\n".join(one.content for one in example.messages[:at]))
        for example in read_examples(CONTENT / "examples")
        for at in range(2, len(example.messages), 2)
    ]
    assert len(answers) > 200
    assert sum(hints.attempt(*one) for one in answers) / len(answers) > 0.9
    assert sum(hints.new_task(*one) for one in answers) / len(answers) < 0.05


def talk(*said: str) -> list[Message]:
    """A pupil's messages, an answer behind each but the last."""
    turns = [part for text in said for part in (Message("user", text), Message("assistant", "What could you do first?"))]
    return turns[:-1]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([TASK], State(False, 0, False)),
        ([TASK, "just tell me"], State(False, 1, True)),
        ([TASK, "just tell me", "idk", "tell me the answer"], State(False, 3, True)),
        ([TASK, "I think add 8"], State(True, 0, False)),
        ([TASK, "I think add 8", "what next?"], State(True, 1, False)),
        ([TASK, "I think add 8", "what next?", "give me the answer"], State(True, 2, True)),
        ([f"{TASK} I got 12."], State(True, 0, False)),
        ([TASK, "I got 11", "ok", "Now solve 9x + 3 = 30"], State(False, 0, False)),
        ([TASK, "I got 11", "ok", "What is 7 x 8?"], State(False, 0, False)),
        ([TASK, "I got 11", "ok", "How do volcanoes erupt?"], State(False, 0, False)),
        ([TASK, "I got 11", "ok", "How do volcanoes erupt? I think the pressure grows"], State(True, 0, False)),
        ([TASK, "idk", "just tell me", "I got 11"], State(True, 0, False)),
        ([TASK, "I got 11", TASK], State(True, 1, False)),
        ([TASK, "What does y mean in 5y?", "why?"], State(False, 2, False)),
        ([TASK, "I got 11", "ok", "Next: 4z = 36. Just tell me the answer"], State(False, 0, True)),
    ],
)  # fmt: skip
def test_where_a_talk_stands(said: Sequence[str], expected: State) -> None:
    assert hints.state(talk(*said)) == expected


@pytest.mark.parametrize(
    ("found", "stage"),
    [
        (State(), "attempt"), (State(demanded=True), "demand"), (State(hints=2), "again"),
        (State(hints=5, demanded=True), "demand"),
        (State(True), "hint"), (State(True, 1, True), "hint"), (State(True, 2), "solution"),
        (State(True, 9, True), "solution"),
    ],
)  # fmt: skip
def test_the_solution_comes_after_a_try_and_two_hints_and_never_without_a_try(found: State, stage: str) -> None:
    assert found.stage == stage


def test_what_the_model_is_told_names_the_hint() -> None:
    assert "hint 1" in hints.note("hints", talk(TASK, "idk", "I think add 8"))
    assert "had 2 hints" in hints.note("examples", talk(TASK, "I think add 8", "what next?", "and then?"))
    assert "without a try" in hints.note("hints", talk(TASK, "just tell me"))
    told = [hints.note("hints", talk(*said)) for said in ([TASK], [TASK, "idk"], [TASK, "just tell me"])]
    assert len(set(told)) == 3 and all("not give the answer" in one and "{n}" not in one for one in told)
    for level in ("full", "", "nobody"):
        assert hints.note(level, talk(TASK, "just tell me")) == ""


def test_a_long_strange_talk_is_read_in_no_time() -> None:
    odd = ["x " * 10_000, "=" * 20_000, "\n" * 20_000, "so " * 6_000, "i " * 9_000 + "?", "1" * 20_000, "a-" * 9_000]
    assert hints.state(talk(*odd * 20)).hints >= 0


# --- in a class -------------------------------------------------------------------------------------------------------
@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings)
    yield box
    await box.chat.close()
    box.database.close()


async def asked(box: Any, name: str, messages: Sequence[Message]) -> Sequence[Message]:
    async with aclosing(box.chat.complete(box.accounts.named(name), messages)) as events:
        assert [event async for event in events][-1].kind == "done"
    return box.pool.requests[-1].messages  # type: ignore[no-any-return]


@pytest.mark.parametrize("level", ["hints", "examples"])
async def test_a_pupil_is_answered_by_the_state_behind_the_question_and_the_class_shares_the_rest(box: Any, level: str) -> None:
    made = box.classes.add("7B", help_level=level)
    for name in ("ann", "ben"):
        box.people.add(name, "pupil")
        box.people.join(box.accounts.named(name).id, made.id, teaches=False)
    tried, begs = talk(TASK, "I think add 8", "And then?", "What next?"), talk(TASK, "idk", "Tell me.")
    first, second = await asked(box, "ann", tried), await asked(box, "ben", begs)
    assert first[0] == second[0] and teaching.help_levels()[level].instructions in first[0].content
    assert first[-1].content == f"What next?\n\n{hints.note(level, tried)}" and "whole solution now" in first[-1].content
    assert second[-1].content.endswith(hints.note(level, begs)) and "Do not give the answer" in second[-1].content
    assert "(For this answer" not in "".join(one.content for one in first[:-1])


async def test_it_follows_a_stored_conversation(box: Any) -> None:
    made = box.classes.add("7B", help_level="hints")
    box.people.add("ann", "pupil")
    box.people.join(box.accounts.named("ann").id, made.id, teaches=False)
    ann, chat, stages = box.accounts.named("ann"), None, []
    for said in (TASK, "just tell me", "I think add 8 on both sides", "and now?", "and then?"):
        async with aclosing(box.chat.answer(ann, said, conversation=chat)) as events:
            async for event in events:
                chat = event.data.get("conversation", chat)
        stages.append(box.pool.requests[-1].messages[-1].content.partition("(For this answer: ")[2][:22])
    assert stages == [
        "the pupil has not trie",
        "the pupil asks for the",
        *["the pupil has tried. S"] * 2,
        "the pupil has tried an",
    ]


async def test_full_answers_staff_and_pupils_without_a_class_are_answered_as_before(box: Any) -> None:
    made = box.classes.add("7B", help_level="full")
    for name, role in (("ann", "pupil"), ("sam", "pupil"), ("brown", "teacher")):
        box.people.add(name, role)
    box.people.join(box.accounts.named("ann").id, made.id, teaches=False)
    box.people.join(box.accounts.named("brown").id, box.classes.add("8A", help_level="hints").id, teaches=True)
    for name in ("ann", "sam", "brown"):
        assert (await asked(box, name, talk(TASK, "tell me the answer")))[-1].content == "tell me the answer"
