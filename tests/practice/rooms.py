"""A scene for tests: three pupils of whom two believe something, and a shy one who does not; and one with parents."""

from __future__ import annotations

from dataclasses import replace

from appliance.practice import pupils
from appliance.practice.exchange import Beat, Move, PupilState, Room
from appliance.practice.scenario import Criterion, Happening, Misconception, PupilSpec, Scenario

BELIEF = Misconception("An eighth is more than a quarter.", 3, ("elicit", "press", "hint"), ("eighth", "pieces", "1/8", "cake"))
OTHER = Misconception("You can only share pizza.", 2, ("elicit", "press", "uptake", "wait"), ("eighth", "share"))


def spec(name: str, misconception: Misconception | None = None, who: str = "pupil", **scales: int) -> PupilSpec:
    lines = {one: (f"{name} {one} once.", f"{name} {one} twice.") for one in ("answers", "unsure", "off_task", "warms")}
    lines |= {"withdrawn": ("Leave me.", "(turns away)")}
    if misconception:
        lines |= {
            "holds": ("Eight is bigger than four, so it's more.", "You get eight of them!"),
            "wavers": ("Hm. That strip is small, though.", "Wait. Everyone gets less?"),
            "understands": ("More people at the table means tiny slices for everybody.", "Big number below, small bits."),
        }
    kept = {"knowledge": 2, "mood": 0, "energy": 3, "attention": 3, **scales}
    return PupilSpec(
        name,
        "Somebody.",
        "Short.",
        kept["knowledge"],
        kept["mood"],
        kept["energy"],
        kept["attention"],
        lines,
        misconception,
        who,
    )


def scene(*people: PupilSpec, events: tuple[Happening, ...] = ()) -> Scenario:
    rubric = (Criterion("asks", "Asks", ("elicit",), (), 2, ("Not yet.", "Once.", "Well."), "Ask."),)
    found = people or (spec("Amara", BELIEF), spec("Joon", energy=1, mood=-1), spec("Ignacio", OTHER, attention=2))
    return Scenario(
        "strips", 1, "Strips of paper", "misconception", "primary", "mathematics", "4", 10, "Year 4 folds strips.",
        "Amara calls out.", ("Listen",), found, rubric, events,
    )  # fmt: skip


def moved(said: str, *ids: str) -> tuple[Move, ...]:
    """Moves that the whole of the words make; a pause has no words."""
    return tuple(Move(one) if one == "wait" else Move(one, said, 0, len(said)) for one in ids)


def play(scenario: Scenario, turns: list[tuple[str, tuple[str, ...]]], seed: int = 1) -> tuple[Room, list[tuple[Beat, ...]]]:
    """The room after these turns, each words and ids of moves, and what was done after each."""
    room, beats = pupils.opening(scenario, seed), []
    for said, ids in turns:
        room, done = pupils.respond(scenario, room, said, moved(said, *ids))
        beats.append(done)
    return room, beats


def state(room: Room, name: str) -> PupilState:
    return next(one for one in room.pupils if one.name == name)


def with_state(room: Room, name: str, **values: int) -> Room:
    return replace(room, pupils=tuple(replace(one, **values) if one.name == name else one for one in room.pupils))
