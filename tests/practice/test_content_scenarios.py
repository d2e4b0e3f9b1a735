"""The scenes that come with the appliance: enough of each kind, sound, and written as people speak."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import pytest

from appliance.practice.exchange import MOVES
from appliance.practice.scenario import CATEGORIES, CONTENT, PHASES, SITUATIONS, SUBJECTS, PupilSpec, Scenario, written

# A scene names what helps somebody, never a label for them, and nobody is called names, in no line and in no description.
LABELS = re.compile(
    r"\b(adhd|autis\w*|retard\w*|psycho\w*|schizo\w*|bipolar|spast\w*|cripp\w*|handicap\w*|deaf and dumb|wheelchair[- ]bound|"
    r"suffers from|special needs|slow learner|lazy|idiots?|morons?|dumb|crazy|insane|loser|gypsy|foreigner)\b",
    re.IGNORECASE,
)
# How teachers speak, and pupils do not.
LIKE_A_TEACHER = re.compile(
    r"well done|good job|let's recap|learning (goal|objective)|can anyone tell|as we (saw|learned)|in other words|"
    r"to summari[sz]e|misconception|consider the following",
    re.IGNORECASE,
)


def scenes() -> Iterator[Scenario]:
    yield from written().values()


def people() -> Iterator[tuple[Scenario, PupilSpec]]:
    for scene in scenes():
        for one in scene.pupils:
            yield scene, one


def test_there_are_enough_of_every_category_phase_and_subject() -> None:
    found = [*scenes()]
    assert len(found) == len([*CONTENT.glob("*.toml")]) >= 24
    categories = Counter(one.category for one in found)
    assert set(categories) == set(CATEGORIES) and min(categories.values()) >= 4
    phases = Counter(one.phase for one in found)
    assert set(phases) == set(PHASES) and min(phases.values()) >= 6
    subjects = Counter(one.subject for one in found)
    assert set(subjects) == {*SUBJECTS, ""} and min(subjects.values()) >= 2


@pytest.mark.parametrize("id", sorted(written()))
def test_a_scene_is_whole(id: str) -> None:
    scene = written()[id]
    assert scene.version >= 1 and scene.approved_by and re.fullmatch(r"[a-z0-9-]+", id)
    assert 2 <= len(scene.pupils) <= 4 and scene.events and 5 <= scene.minutes <= 20
    assert 2 <= len(scene.objectives) <= 4 and scene.grade
    text = (CONTENT / f"{id}.toml").read_text("utf-8")
    assert text.startswith("# ") and len(text.splitlines()) <= 110
    parents = [one for one in scene.pupils if one.who == "parent"]
    assert bool(parents) is (scene.category == "parents")
    if scene.category == "misconception":
        assert any(one.misconception for one in scene.pupils)
    turns = [event.at for event in scene.events if event.at]
    assert all(at <= scene.minutes for at in turns), "what tests the teacher happens within the lesson"
    begins = {one.name: one for one in scene.pupils}
    for event in scene.events:
        assert not event.when or getattr(begins[event.pupil], event.when) > event.below, "nothing happens before a word is said"


@pytest.mark.parametrize("id", sorted(written()))
def test_every_line_of_the_rubric_can_be_reached_and_says_what_to_try(id: str) -> None:
    scene = written()[id]
    assert 3 <= len(scene.rubric) <= 4
    for line in scene.rubric:
        # Silence has no words: where nothing measured it, the top has to be reached by other moves.
        assert set(line.moves) - {"wait"}, line.id
        assert not set(line.moves) & set(line.against), line.id
        assert 1 <= line.enough <= 4 <= scene.minutes, "within the turns of a lesson"
        assert not set(line.moves) & {"put_down", "praise_person", "tell"}, "nobody is praised for these"
        assert set(line.against) <= {"put_down", "praise_person", "tell", "confirm"}
        assert len(set(line.levels)) == 3 and min(map(len, line.levels)) > 15 and len(line.try_this) > 40
    for pupil in scene.pupils:
        if pupil.misconception:
            helps = set(pupil.misconception.yields_to)
            assert helps <= set(MOVES) - {"tell", "confirm", "put_down", "praise_person"}, "telling is not what changes a mind"
            assert helps & {move for line in scene.rubric for move in line.moves}, "what helps is what the rubric asks for"
            assert len(pupil.misconception.about) >= 6 and len(helps) >= 3


def test_people_speak_briefly_and_not_like_teachers() -> None:
    counted = 0
    for scene, one in people():
        assert set(one.lines) == {*SITUATIONS} - (set() if one.misconception else {"holds", "wavers", "understands"})
        assert len(one.lines["answers"]) >= 2, (scene.id, one.name)
        assert not one.misconception or len({*one.lines["holds"], *one.lines["wavers"]}) >= 3, (scene.id, one.name)
        said = [line for lines in one.lines.values() for line in lines]
        said += [event.line for event in scene.events if event.pupil == one.name]
        for line in said:
            counted += 1
            assert len(line) <= 200 and len(line.split()) <= 25, (scene.id, line)
            assert not LIKE_A_TEACHER.search(line), (scene.id, line)
        assert len(said) == len(set(said)), (scene.id, one.name)
    assert counted >= 24 * 3 * 8


def test_nobody_is_labelled_or_called_names() -> None:
    assert LABELS.search("he suffers from it") and LABELS.search("What an idiot")
    for path in CONTENT.glob("*.toml"):
        found = LABELS.search(path.read_text("utf-8"))
        assert not found, (path.name, found)


def test_no_two_scenes_are_the_same_and_no_two_people_have_one_name() -> None:
    found = [*scenes()]
    assert len({one.title for one in found}) == len(found)
    names = Counter(one.name for _, one in people())
    assert not [name for name, count in names.items() if count > 1]

    def words(scene: Scenario) -> set[str]:
        text = [scene.setting, scene.opening, *scene.objectives]
        text += [line for one in scene.pupils for lines in one.lines.values() for line in lines]
        return set(re.findall(r"[^\W\d_]{4,}", " ".join(text).casefold()))

    for one, other in combinations(found, 2):
        shared = len(words(one) & words(other)) / len(words(one) | words(other))
        assert shared < 0.3, (one.id, other.id, shared)
    tried = [line.try_this for scene in found for line in scene.rubric]
    assert len(tried) == len(set(tried))
