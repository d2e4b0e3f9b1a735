"""Simulated pupils as a state machine: what a teacher's turn does to each of them, who answers, and with which intent.

Pure functions: no model, no clock, no database; the same seed and the same words give the same lesson. States change by the
rules below and never by chance: chance (of a seed, the turn and the words) only chooses who speaks, between fitting intents,
and the written line. A model may word a line (`brief`) but changes no state, and is heard only where its wording `fits`. What
the room makes of the words themselves is for `hearing`, the form of a line for `in_role`. Parents and colleagues are people
like any.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from appliance.practice import in_role
from appliance.practice.exchange import Beat, Move, PupilState, Room
from appliance.practice.hearing import ASKS, Heard, hear, touches
from appliance.practice.scenario import SCALES, Happening, PupilSpec, Scenario

# What somebody does, in plain words for a model and for pages. All but the last four are situations with written lines.
INTENTS: Mapping[str, str] = {
    "holds": "holds on to the belief and says why",
    "wavers": "begins to doubt: sees that something does not fit, has no explanation yet",
    "understands": "has let go of the belief and says the new idea in own words",
    "answers": "says something to the point, out of what they know",
    "unsure": "is not sure and says so, or asks",
    "off_task": "is busy with something else, or disturbs",
    "withdrawn": "is hurt or has given up, and keeps to themself",
    "warms": "feels seen, and opens up a little",
    "agrees": "agrees aloud because the teacher says so, without being convinced",
    "puzzled": "does not know what the teacher is talking about, and takes it as odd talk of a teacher",
    "waits": "waits, since nothing was said",
    "event": "does something that nobody asked for",
}
# Where the intent itself is no situation: whose written lines it takes.
_LINES_OF = {"agrees": "unsure", "puzzled": "unsure", "waits": "unsure"}

MOST_BEATS = 3
MOST_EVENTS = 2  # in one turn; others follow in the next
LONG, LECTURE = 80, 160  # words of one turn that cost attention, one point each
ALONE_AFTER = 5  # turns without a word, after which somebody who is not asked drifts off a little
LONGEST_SCENE = 400  # characters of the setting that a model is told
THINKS = ASKS | {"uptake", "revoice"}

_KNOWS = ("knows nothing about the topic", "knows little", "knows some of it", "knows it well", "knows it very well")
_MOODS = ("is hurt or angry", "is in low spirits", "is in an even mood", "is in good mood", "is glad")
_ENERGY = ("is exhausted", "is tired", "is rested", "is lively", "is bursting with energy")
_ATTENDS = ("does not listen at all", "hardly listens", "listens with half an ear", "listens", "is all ears")


def opening(scenario: Scenario, seed: int) -> Room:
    """The room before the teacher's first words."""
    return Room(0, tuple(_at_first(one) for one in scenario.pupils), seed)


def respond(
    scenario: Scenario, room: Room, said: str, moves: Sequence[Move], waited: float | None = None
) -> tuple[Room, tuple[Beat, ...]]:
    """The room after the teacher's turn, and what one to three people do then, in this order.

    moves: see `moves.detect`. waited: seconds of silence before the words. Takes any words, also none.
    """
    specs = {one.name: one for one in scenario.pupils}
    chance = random.Random(f"{room.seed}/{room.turn + 1}/{said}".encode("utf-8", "surrogatepass"))
    heard = hear(said, moves, [*specs], waited, scenario.language)
    turn = room.turn + 1
    now = {one.name: _changed(specs[one.name], one, heard, room.turn) for one in room.pupils}
    events = _due(scenario, room.happened, now, turn)
    for _, event in events:
        now[event.pupil] = _shifted(now[event.pupil], event.change or {})
    before = {one.name: one for one in room.pupils}
    quiet = {name: state for name, state in now.items() if name not in {event.pupil for _, event in events}}
    beats = []
    for name in _speakers(before, quiet, heard, room.turn, MOST_BEATS - len(events), chance):
        intent = _intent(specs[name], before[name], now[name], heard, heard.means(name, _just(before[name], room.turn)), chance)
        beats.append(Beat(name, intent, _line(specs[name], intent, before[name].last, chance)))
    happens = [Beat(event.pupil, "event", event.line) for _, event in events]
    first = [one for one in happens if heard.called[:1] == (one.pupil,)]
    beats = [*first, *beats, *(one for one in happens if one not in first)]
    for beat in beats:
        now[beat.pupil] = replace(now[beat.pupil], spoke=turn, last=beat.line)
    happened = (*room.happened, *(number for number, _ in events))
    return Room(turn, tuple(now.values()), room.seed, happened), tuple(beats)


def brief(scenario: Scenario, room: Room, beat: Beat) -> Mapping[str, str]:
    """What a model is told to word this beat: inputs of the module `student_reaction` but for the talk."""
    spec, state = _found(scenario, room, beat.pupil)
    scene = f"{scenario.title}. {scenario.setting}"
    return {
        "scene": scene if len(scene) <= LONGEST_SCENE else scene[:LONGEST_SCENE].rsplit(" ", 1)[0] + " ...",
        "name": spec.name,
        "voice": spec.voice,
        "state": "; ".join(_state_in_words(spec, state)),
        "intent": INTENTS[beat.intent],
        "line": beat.line,
    }


def fits(scenario: Scenario, room: Room, beat: Beat, said: str) -> bool:
    """Whether a model's wording may be shown: short, in role, not like a teacher, and no giving in while a belief holds."""
    spec, state = _found(scenario, room, beat.pupil)
    if not in_role.spoken(said, [one.name for one in scenario.pupils], spec.name) or in_role.breaks_role(said, spec.who):
        return False
    return not (state.hold and in_role.gives_in(said, spec, beat.intent))


# --- how a turn changes somebody ---------------------------------------------------------------------------------------------
def _changed(spec: PupilSpec, state: PupilState, heard: Heard, last: int) -> PupilState:
    """One of the room after a turn, by rules alone. A call to leave the play passes by everybody."""
    if heard.breaks_role:
        return state
    meant = heard.means(state.name, _just(state, last))
    close = state.name in heard.named or (meant and _just(state, last))
    helped = bool(state.hold and spec.misconception and meant and heard.convinces(spec.misconception))
    after = _shifted(
        replace(state, hold=state.hold - helped),
        {
            "mood": _mood(state, heard, meant, close),
            "energy": _energy(state, heard, meant),
            "attention": _attention(state, heard, meant, last + 1),
        },
    )
    return _shifted(after, {"knowledge": _learned(after, heard, meant, helped)})


def _mood(state: PupilState, heard: Heard, meant: bool, close: bool) -> int:
    if heard.harsh:
        return -2 if state.name in heard.named else -1 if meant else 0
    lifts = meant and (
        "acknowledge" in heard.kinds
        or (close and "praise_effort" in heard.kinds)
        or (close and state.mood < 1 and not heard.kinds.isdisjoint(("uptake", "revoice", "praise_person")))
        or (state.mood < 0 and not heard.kinds.isdisjoint(("offer_choice", "praise_effort")))
    )
    return int(lifts)


def _energy(state: PupilState, heard: Heard, meant: bool) -> int:
    if heard.words > LECTURE:
        return -1
    return int(meant and not heard.harsh and state.energy < 3 and "offer_choice" in heard.kinds)


def _attention(state: PupilState, heard: Heard, meant: bool, turn: int) -> int:
    if heard.silent:
        return -1
    change = -(heard.words > LONG) - (heard.words > LECTURE)
    asked = meant and not heard.kinds.isdisjoint(ASKS)
    if not change and not heard.harsh:
        if "correct_behaviour" in heard.kinds and state.attention <= 2:
            change += 2 if state.name in heard.named and state.attention < 2 else 1
        elif state.attention < 3 and (asked or state.name in heard.named):
            change += 1
    silent_for = turn - state.spoke
    if not asked and state.name not in heard.named and silent_for >= ALONE_AFTER and silent_for % ALONE_AFTER == 0:
        change -= 1
    return change


def _learned(after: PupilState, heard: Heard, meant: bool, helped: bool) -> int:
    """Knowledge gained: by letting go of a belief, by thinking with help, and a little by being told."""
    if helped:
        return int(after.hold == 0)
    if after.hold or not meant or heard.harsh or after.attention < 2 or after.mood == SCALES["mood"][0]:
        return 0
    thinks = "hint" in heard.kinds or len(heard.kinds & THINKS) > 1
    return int((thinks and after.knowledge < 3) or ("tell" in heard.kinds and after.knowledge < 2))


def _due(scenario: Scenario, happened: Sequence[int], now: Mapping[str, PupilState], turn: int) -> list[tuple[int, Happening]]:
    """Events that come to pass in this turn, with their numbers: each once, one for a person, the first ones first."""
    found: dict[str, tuple[int, Happening]] = {}
    for number, event in enumerate(scenario.events):
        if number in happened or event.pupil in found or event.pupil not in now:
            continue
        fallen = bool(event.when) and getattr(now[event.pupil], event.when) <= event.below
        if fallen or 0 < event.at <= turn:
            found[event.pupil] = (number, event)
    return list(found.values())[:MOST_EVENTS]


# --- who speaks, and how -----------------------------------------------------------------------------------------------------
def _speakers(
    before: Mapping[str, PupilState],
    quiet: Mapping[str, PupilState],
    heard: Heard,
    last: int,
    most: int,
    chance: random.Random,
) -> list[str]:
    """Those who were called, in this order, then whoever has just understood, then whoever is likeliest to."""
    chosen = [name for name in heard.called if name in quiet]
    chosen += [name for name, one in quiet.items() if name not in chosen and before[name].hold and not one.hold]
    if heard.silent:
        wanted = 1
    elif chosen:
        wanted = len(chosen) + (chance.random() < (0.6 if heard.whole else 0.3))
    else:
        wanted = 1 + (chance.random() < 0.6) + (chance.random() < 0.2)
    wanted = min(wanted, most, len(quiet))
    while len(chosen) < wanted:
        names = [name for name in quiet if name not in chosen]
        weights = [_eagerness(before[name], quiet[name], heard, last) for name in names]
        chosen += chance.choices(names, weights)
    return chosen[:wanted]


def _eagerness(before: PupilState, now: PupilState, heard: Heard, last: int) -> float:
    """How likely somebody is to speak: awake, attentive, and not just heard. Time to think brings in the tired and the shy."""
    eager = 1.0 + 0.5 * now.energy + 0.5 * now.attention + 0.8 * min(last + 1 - before.spoke, 6)
    if now.mood < 0:
        eager *= 0.4 if now.mood == SCALES["mood"][0] else 0.7
    if heard.waits and (now.mood < 0 or now.energy <= 2):
        eager *= 2.5
    if before.hold != now.hold:
        eager *= 3
    if _just(before, last):
        eager *= 1.5 if heard.means(before.name, True) and not heard.whole else 0.2
    return eager


def _intent(spec: PupilSpec, before: PupilState, now: PupilState, heard: Heard, meant: bool, chance: random.Random) -> str:
    """What somebody who speaks does, the strongest reason first."""
    if heard.breaks_role:
        return "puzzled"
    if heard.harsh and not meant:
        return "unsure"
    if heard.harsh:
        return "off_task" if now.energy >= 3 and now.mood > -2 and chance.random() < 0.3 else "withdrawn"
    if heard.silent:
        return "off_task" if now.attention <= 1 else "waits"
    if now.hold < before.hold:
        return "wavers" if now.hold else "understands"
    if now.mood > before.mood and before.mood <= 0 and heard.kinds & {"acknowledge", "offer_choice", "praise_effort"}:
        return "warms"
    if now.mood == SCALES["mood"][0]:
        return "withdrawn"
    if now.attention <= 1 and (now.attention <= before.attention or chance.random() < 0.5):
        return "off_task"
    if now.hold:
        return _with_belief(spec, now, heard, meant, chance)
    return _without_belief(spec, now, heard, chance)


def _with_belief(spec: PupilSpec, now: PupilState, heard: Heard, meant: bool, chance: random.Random) -> str:
    believed = spec.misconception
    if meant and "tell" in heard.kinds:
        return "agrees"
    if believed is None or (not touches(heard.said, believed.about) and chance.random() < 0.4):
        return "answers" if now.knowledge >= 2 else "unsure"
    doubts = now.hold < believed.strength and chance.random() < 0.35
    return "wavers" if doubts else "holds"


def _without_belief(spec: PupilSpec, now: PupilState, heard: Heard, chance: random.Random) -> str:
    believed = spec.misconception
    if believed is not None and touches(heard.said, believed.about) and chance.random() < 0.5:
        return "understands"
    sure = (0.0, 0.3, 0.7, 1.0, 1.0)[now.knowledge] + (0.3 if heard.waits and now.knowledge else 0.0)
    return "answers" if chance.random() < sure else "unsure"


def _line(spec: PupilSpec, intent: str, last: str, chance: random.Random) -> str:
    """A written line, another one than the last where there is one."""
    lines = spec.lines.get(_LINES_OF.get(intent, intent)) or spec.lines["unsure"]
    return chance.choice([line for line in lines if line != last] or list(lines))


# --- states ------------------------------------------------------------------------------------------------------------------
def _at_first(spec: PupilSpec) -> PupilState:
    hold = spec.misconception.strength if spec.misconception else 0
    return _shifted(PupilState(spec.name, spec.knowledge, hold, spec.mood, spec.energy, spec.attention), {})


def _shifted(state: PupilState, change: Mapping[str, int]) -> PupilState:
    """A state with its scales moved, kept between their ends."""
    kept = {name: max(low, min(high, getattr(state, name) + change.get(name, 0))) for name, (low, high) in SCALES.items()}
    return replace(state, **kept)


def _just(state: PupilState, last: int) -> bool:
    """Whether somebody spoke in the turn before."""
    return 0 < state.spoke == last


def _found(scenario: Scenario, room: Room, name: str) -> tuple[PupilSpec, PupilState]:
    spec = next(one for one in scenario.pupils if one.name == name)
    return spec, next(one for one in room.pupils if one.name == name)


def _state_in_words(spec: PupilSpec, state: PupilState) -> list[str]:
    said = [] if spec.who == "pupil" else [f"is a {spec.who}, no pupil"]
    believed = spec.misconception
    if believed and state.hold:
        sure = "is sure of it" if state.hold == believed.strength else "begins to doubt it, but still holds it"
        said += [f"believes: {believed.belief}", sure, "does not say that this is wrong and does not give the right idea"]
    elif believed:
        said += [f"used to believe: {believed.belief}", "has let go of it"]
    low = SCALES["mood"][0]
    return [*said, _KNOWS[state.knowledge], _MOODS[state.mood - low], _ENERGY[state.energy], _ATTENDS[state.attention]]
