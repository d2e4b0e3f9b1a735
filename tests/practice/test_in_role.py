"""Which of a model's lines may be shown: short ones, in a pupil's own part, that give in no sooner than the rules do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.practice import pupils
from appliance.practice.exchange import Beat
from tests.practice.rooms import BELIEF, scene, spec, with_state

SCENE = scene()
ROOM = pupils.opening(SCENE, 1)


def fits(said: str, *, intent: str = "holds", pupil: str = "Amara", hold: int = 3) -> bool:
    room = with_state(ROOM, "Amara", hold=hold)
    return pupils.fits(SCENE, room, Beat(pupil, intent, "written"), said)


@pytest.mark.parametrize(
    "said",
    [
        "An eighth, obviously. Eight is more than four!",
        "It's just bigger. Look at the number.",
        "Yeah but eight is more.",
        "No way. You get eight of them.",
        "I don't get it. Why would it be smaller?",
        "That makes no sense, miss.",
        "I'm not wrong! I counted them.",
        "I agree with Ignacio, it's the eighth.",
        "Why? It's a bigger number.",
        "Can you explain that again?",
        "(shrugs) Eight. I said that.",
        "Eight pieces!! 🍕🍕 That's loads.",
        "Because eight beats four. Eight!",
        "My mum says eight slices is more.",
        "No. I still say the eighth.",
        "Joon's is wrong, mine's right.",
        "Huh? I didn't hear the question.",
        "You can't tell me four is more than eight.",
        "Ocho es más que cuatro, ¿no?",
        "الثمانية أكبر من الأربعة!",
        "八比四大。",
        "שמונה זה יותר 🙂",
    ],
)
def test_a_pupil_who_holds_on_is_heard(said: str) -> None:
    assert fits(said)


@pytest.mark.parametrize(
    ("said", "intent"),
    [
        ("Hm. The eighth strip is small, though. Weird.", "wavers"),
        ("Wait. If eight people share, everyone gets less?", "wavers"),
        ("Okay, if you say so.", "agrees"),
        ("Fine, then it's the quarter. Whatever.", "agrees"),
        ("Can I go to the toilet?", "off_task"),
        ("(draws on her ruler)", "off_task"),
        ("Just leave me alone.", "withdrawn"),
        ("Nobody ever asked me that before.", "warms"),
        ("What do you mean? I'm Amara.", "puzzled"),
    ],
)
def test_other_intents_are_heard_too(said: str, intent: str) -> None:
    assert fits(said, intent=intent)


TEACHERS = [
    "Great question! An eighth is bigger.",
    "Let's look at the strips together.",
    "Well done, Joon.",
    "Can anyone explain why eight is more?",
    "Remember that the bottom number counts the parts.",
    "To compare fractions, you need to look at the denominator first.",
    "In other words, the number is larger.",
    "It is important to fold exactly.",
    "What do you think, class?",
    "Open your books, please.",
    "The correct answer is an eighth.",
    "Therefore, an eighth is greater than a quarter.",
    "Think about the number of pieces.",
    "We can conclude that eight is more.",
    "Good thinking, everybody!",
    "Take your time and try again.",
    "Does that make sense?",
    "I'm so proud of you.",
    "When we divide the cake into eight, the pieces increase.",
    "As we learned yesterday, eight is more.",
    "Raise your hand if you have eight.",
    "Any other questions?",
]
ASSISTANTS = [
    "As an AI, I cannot hold a belief.",
    "As a student, I would say that it is an eighth.",
    "I'm just a language model.",
    "How can I help you today?",
    "Sure! Here is a line for Amara.",
    "I'm sorry, but I can't assist with that.",
    "In this scenario, Amara holds on to her belief.",
    "My character believes in eighths.",
    "This is a simulation.",
    "My misconception is that eight is more.",
]


@pytest.mark.parametrize("said", [*TEACHERS, *ASSISTANTS])
def test_pupils_speak_neither_like_teachers_nor_like_assistants(said: str) -> None:
    assert not fits(said) and not fits(said, intent="answers", pupil="Joon")
    assert not fits(said, intent="understands", hold=0), "nor when they have understood"


CONCEDES = [
    "You're right, a quarter is more.",
    "Oh, I see! So it's smaller.",
    "I was wrong.",
    "Okay, now I get it.",
    "That makes sense.",
    "I changed my mind.",
    "Yes.",
    "Yeah, okay, of course.",
    "I agree with you.",
    "Thank you for explaining it.",
    "That's true, the pieces are small.",
    "I used to think eight is more, but it isn't.",
    "My mistake!",
    "It's the other way round.",
    "So my answer was wrong.",
    "More people at the table, so tiny slices for everybody.",
]


@pytest.mark.parametrize("said", CONCEDES)
def test_nobody_gives_in_while_a_belief_holds(said: str) -> None:
    assert not fits(said) and not fits(said, intent="wavers", hold=1)
    assert fits(said, intent="understands", hold=0), "and whoever has let go may say it"


def test_to_agree_without_being_convinced_is_no_giving_in_but_to_be_convinced_is() -> None:
    assert fits("Okay.", intent="agrees") and not fits("Okay.", intent="holds")
    assert not fits("You are right, now I understand.", intent="agrees")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "   ",
        "...",
        "Eight.\nTeacher: And why?",
        "Eight.\u2028Nine.",
        "eight " * 46,
        "e" * 241,
        "Amara: Eight is more.",
        '"Joon": four.',
        "Teacher: Why?",
        "Eight! Student 2: Four!",
        "**Eight** is more.",
        "- [ ] eight",
        "<b>eight</b>",
        '{"line": "Eight."}',
        "See https://example.org",
        "Eight. (The teacher nods.)",
        "(shrugs) Eight. (sits down)",
        "(she gets up, walks round the room, looks out of the window and comes back again)",
        "Eight\x07",
        "Eight \ud83c",
        "\u202eEight is more.",
    ],
)
def test_a_line_is_one_short_thing_that_one_person_says(said: str) -> None:
    assert not fits(said) and not fits(said, intent="answers", pupil="Joon")


def test_nobody_says_what_another_does() -> None:
    assert not fits("(Joon laughs) Eight.") and not fits("Eight. (to Ignacio)") and fits("(laughs) Joon has eight.")


def test_the_longest_line_still_fits() -> None:
    assert fits("eight " * 39 + "eight.") and len("eight " * 39 + "eight.") == 240
    assert fits("e" * 240) and not fits("e" * 241)


def test_adults_may_speak_like_adults_but_not_like_assistants() -> None:
    scenario = scene(spec("Ms Haddad", who="parent"), spec("Mr Mensah", who="colleague"))
    room = pupils.opening(scenario, 1)
    for said in ("Let's talk about it calmly.", "It is important to me that he sleeps."):
        assert pupils.fits(scenario, room, Beat("Ms Haddad", "answers", "x"), said)
        assert pupils.fits(scenario, room, Beat("Mr Mensah", "answers", "x"), said)
        assert not fits(said, intent="answers", pupil="Joon")
    for said in (*ASSISTANTS[:3], "Great question!"):
        assert not pupils.fits(scenario, room, Beat("Ms Haddad", "answers", "x"), said)


def test_a_model_is_told_who_speaks_in_which_state_and_what_not_to_concede() -> None:
    told = pupils.brief(SCENE, ROOM, Beat("Amara", "holds", "Eight is bigger."))
    assert set(told) == {"scene", "name", "voice", "state", "intent", "line"}, "inputs of the module student_reaction"
    assert (told["name"], told["voice"], told["line"]) == ("Amara", "Short.", "Eight is bigger.")
    assert BELIEF.belief in told["state"] and "does not give the right idea" in told["state"] and "is sure" in told["state"]
    assert told["intent"] == pupils.INTENTS["holds"] and told["scene"].startswith("Strips of paper. Year 4")
    doubting = pupils.brief(SCENE, with_state(ROOM, "Amara", hold=1), Beat("Amara", "wavers", "Hm."))["state"]
    assert "begins to doubt" in doubting and "does not give the right idea" in doubting
    gone = pupils.brief(SCENE, with_state(ROOM, "Amara", hold=0, mood=-2), Beat("Amara", "understands", "Oh."))["state"]
    assert "has let go" in gone and "hurt or angry" in gone and "does not give" not in gone
    assert BELIEF.belief not in pupils.brief(SCENE, ROOM, Beat("Joon", "answers", "x"))["state"]


@settings(deadline=None)
@given(st.text(st.characters(), max_size=300), st.sampled_from([*pupils.INTENTS]), st.sampled_from(["Amara", "Joon"]))
def test_any_line_gets_an_answer_and_what_fits_can_be_shown(said: str, intent: str, pupil: str) -> None:
    if fits(said, intent=intent, pupil=pupil):
        assert 0 < len(said.strip()) <= 240 and len(said.splitlines()) == 1 and said.encode("utf-8")
