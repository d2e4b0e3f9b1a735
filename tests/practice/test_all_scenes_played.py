"""Every scene that comes with the appliance, played with the real detector: kindness changes no mind, the right moves do.

And every written line could be a model's: it is short, in role, and gives nothing away that its speaker still holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from appliance.practice import pupils
from appliance.practice.exchange import Beat, PupilState, Room
from appliance.practice.moves import detect
from appliance.practice.scenario import PupilSpec, Scenario, written

TURNS = 30
LESSON = 12  # turns within which somebody who is asked well lets go
PLEAS = (
    "Please believe me, {name}, it is not so with {word}.",
    "{name}, are you sure about {word}?",
    "You are so clever, {name}, of course you know that about {word}.",
    "No, {name}, that is wrong about {word}.",
    "I would be so glad if you said so about {word}, {name}. Thank you.",
    "We all agree about {word}, don't we?",
    "Do you understand now, {name}, how it is with {word}?",
    "{name}, it is the other way round with {word}. That is the rule.",
    "Come on, {name}, just accept it about {word}.",
    "Isn't it so with {word}, {name}?",
    "Great work on {word}, everyone!",
    "Are you really quite sure about {word}, {name}, because it is not so?",
    "Please, {name}, for my sake, say that {word} is different.",
    "I promise you, {name}, I am the teacher and I know it about {word}.",
    "Will you agree with me now about {word}, {name}?",
)
# What a teacher says to make each move; what it is taken for is the detector's.
GOOD = {
    "elicit": "{name}, what do you think about {word}?",
    "press": "{name}, why do you think so about {word}? How do you know?",
    "hint": "{name}, look at {word} once more. What do you notice?",
    "check": "{name}, can you say in your own words what {word} means here?",
    "acknowledge": "{name}, I can see that {word} worries you, and that is understandable.",
    "offer_choice": "{name}, you can write about {word} or draw it, as you like.",
    "revoice": "So you are saying, {name}, that it is about {word}?",
    "uptake": "You said something about {word}, {name}. What follows from that?",
}


def believers() -> Iterator[tuple[str, str]]:
    for id, scene in sorted(written().items()):
        yield from ((id, one.name) for one in scene.pupils if one.misconception)


def spoken(scene: Scenario, said: Sequence[str], name: str) -> list[int]:
    """What is left of somebody's belief at first and after each of these turns."""
    room = pupils.opening(scene, 1)
    heard: list[str] = []
    held = [state(room, name).hold]
    for words in said:
        room, beats = pupils.respond(scene, room, words, detect(words, heard))
        heard = [beat.line for beat in beats]
        held.append(state(room, name).hold)
    return held


def state(room: Room, name: str) -> PupilState:
    return next(one for one in room.pupils if one.name == name)


def of(scene: Scenario, name: str) -> PupilSpec:
    return next(one for one in scene.pupils if one.name == name)


def test_most_scenes_have_somebody_who_believes_something() -> None:
    assert len(written()) >= 24 and len({id for id, _ in believers()}) >= 15 and len([*believers()]) >= 25


@pytest.mark.parametrize(("id", "name"), [*believers()])
def test_thirty_turns_of_polite_insistence_change_no_mind_and_the_right_moves_do(id: str, name: str) -> None:
    scene = written()[id]
    belief = of(scene, name).misconception
    assert belief is not None
    polite = [PLEAS[turn % len(PLEAS)].format(name=name, word=belief.about[0]) for turn in range(TURNS)]
    assert set(spoken(scene, polite, name)) == {belief.strength}
    moves = [move for move in belief.yields_to if move in GOOD]
    good = [
        GOOD[moves[turn % len(moves)]].format(name=name, word=belief.about[turn % len(belief.about)]) for turn in range(LESSON)
    ]
    held = spoken(scene, good, name)
    assert held[-1] == 0 and held[belief.strength - 1] > 0, "as many turns as it is strong, and within a lesson"


@pytest.mark.parametrize("id", sorted(written()))
def test_every_written_line_could_be_shown_if_a_model_had_said_it(id: str) -> None:
    scene = written()[id]
    room = pupils.opening(scene, 1)
    lines = [(one, intent, line) for one in scene.pupils for intent, found in one.lines.items() for line in found]
    lines += [(one, intent, line) for one in scene.pupils for intent in ("agrees", "puzzled") for line in one.lines["unsure"]]
    lines += [(of(scene, event.pupil), "event", event.line) for event in scene.events]
    turned_down = []
    for spec, intent, line in lines:
        strength = spec.misconception.strength if spec.misconception else 0
        hold = {"understands": 0, "wavers": min(1, strength)}.get(intent, strength)
        now = replace(room, pupils=tuple(replace(one, hold=hold) if one.name == spec.name else one for one in room.pupils))
        if not pupils.fits(scene, now, Beat(spec.name, intent, line), line):
            turned_down.append((spec.name, intent, line))
    assert len(lines) > 20 and not turned_down
