"""Subjects and grade bands in words, how hard a text is to read, and what is done about an answer that was too hard."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from appliance import reading, teaching
from appliance.engine.handler import Message
from appliance.errors import BadInput
from appliance.settings import Settings
from appliance.tuning.examples import read_examples
from tests.web.box import make_box

CONTENT = Settings(home=Path("/nonexistent")).content
EASY = (
    "A leaf looks green because it throws green light back. It keeps the red light and the blue light for itself. With that "
    "light it makes sugar out of water and air. The plant lives on this sugar."
)
HARD = (
    "In the photosynthetic organisms it is the pigments that fundamentally transform electromagnetic radiation into "
    "biochemically accessible energy, notwithstanding the considerable thermodynamic inefficiencies that characterise their "
    "intracellular apparatus."
)
SPANISH = (
    "Las plantas verdes toman la luz del sol y hacen con ella su propia comida. Para eso necesitan agua, aire y mucha luz del "
    "día. No pueden vivir a oscuras."
)


def sections() -> list[str]:
    texts = [path.read_text("utf-8") for path in sorted((CONTENT / "documents").glob("*.md"))]
    return [part for text in texts for part in [text, *text.split("\n\n")] if len(part.split()) >= 20]


# --- the words ----------------------------------------------------------------------------------------------------------
def test_subjects_are_found_by_what_a_class_calls_them() -> None:
    assert set(teaching.subjects()) >= {"mathematics", "sciences", "history", "languages"}
    for name, id in (("Maths", "mathematics"), (" SCIENCE ", "sciences"), ("Física", "sciences"), ("history", "history")):
        found = teaching.subject(name)
        assert found is not None and found.id == id
    for name in ("", "Pottery", "../history"):
        assert teaching.subject(name) is None
    for way in teaching.subjects().values():
        assert way.name and way.about and 10 < len(way.instructions.split()) < 50


def test_every_grade_has_one_band_in_order() -> None:
    bands = teaching.bands()
    assert [one.grades[0] for one in bands][1:] == [one.grades[1] + 1 for one in bands][:-1]
    assert all(one.reading[0] < one.reading[1] and 10 < len(one.instructions.split()) < 40 for one in bands)
    for low, high in itertools.pairwise(bands):
        assert low.ages < high.ages and low.reading < high.reading
    for grade, name in (
        ("7", "Grades 6 to 8"),
        ("Grade 2", "Grades 1 and 2"),
        ("7B", "Grades 6 to 8"),
        ("grade 07", "Grades 6 to 8"),
    ):
        found = teaching.band(grade)
        assert found is not None and found.name == name
    assert [teaching.band(grade) for grade in ("", "reception", "0", "99")] == [None] * 4


@pytest.mark.parametrize(
    "text",
    ["[x]", "[x]\nname = 'x'\ngrades = [2, 1]\nages = [1, 2]\nreading = [1, 2]\ninstructions = 'x'", "x = 3", "[x"],
)
def test_a_file_of_bands_that_is_none_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (tmp_path / "grades.toml").write_text(text)
    monkeypatch.setattr(teaching, "CONTENT", tmp_path)
    with pytest.raises(BadInput, match=r"grades.toml cannot be used") as caught:
        teaching.bands.__wrapped__()
    assert caught.value.hint


# --- the level ------------------------------------------------------------------------------------------------------------
def test_it_is_the_index_that_textstat_counts() -> None:
    import textstat

    found = [(reading.index(text), float(textstat.automated_readability_index(text))) for text in [*sections(), EASY, HARD]]
    assert len(found) > 100
    assert max(abs(ours - theirs) for ours, theirs in found) < 1e-9


def test_easy_is_below_hard_and_what_cannot_be_measured_has_no_level() -> None:
    easy, hard = reading.level(EASY), reading.level(HARD, "en")
    assert easy is not None and hard is not None and easy < 5 and hard > 14
    assert reading.level(SPANISH) is None and reading.level(EASY, "es") is None and not reading.english(SPANISH)
    for text in ("", "Yes.", "...", "7 x 8 = 56", "ok " * 5, "الضوء " * 30):
        assert reading.level(text) is None


def test_what_is_not_prose_is_left_out() -> None:
    code = f"```\n{'unpronounceable_identifier ' * 40}\n```"
    dressed = f"# Leaves\n\n- {EASY} [1, 2]\n{code}\n$\\frac{{thermodynamic}}{{x}}$ https://a.example/{'x' * 90}"
    plain, found = reading.level(f"Leaves.\n{EASY}"), reading.level(dressed)
    assert plain is not None and found is not None and abs(plain - found) < 0.5


def test_it_takes_a_few_milliseconds_at_most() -> None:
    text = " ".join([EASY, HARD] * 60)
    reading.level(text)
    times = []
    for _ in range(7):
        began = time.perf_counter()
        reading.level(text)
        times.append(time.perf_counter() - began)
    assert sorted(times)[0] < 0.005, "the best of seven: what it costs, not what else the machine did"


def test_the_written_lessons_are_in_the_band_of_their_grades() -> None:
    """At least four in five; the rest are easier than their band, none is harder by more than a grade."""
    found = []
    for path in (CONTENT / "documents").glob("*.md"):
        text = path.read_text("utf-8")
        if grades := re.search(r"grades (\d+)-(\d+)", text):
            band, level = teaching.band(grades[2]), reading.level(text)
            assert band is not None and level is not None and level <= band.reading[1] + 1, path.stem
            found.append(reading.inside(level, band))
    assert len(found) >= 12 and sum(found) / len(found) >= 0.8
    assert reading.share_inside([EASY, HARD, "Yes."], "4") == (1, 2)


def test_the_written_turns_of_tutors_are_in_the_band_of_their_pupils() -> None:
    """Each that is long enough to be measured, and all of an exchange taken together; none of them is too hard."""
    turns, whole, hard = [0, 0], [0, 0], []
    for example in read_examples(CONTENT / "examples"):
        band = teaching.band(example.grade)
        assert band is not None, example.id
        said = [message.content for message in example.messages if message.role == "assistant"]
        for texts, sums in ((said, turns), ([" ".join(said)], whole)):
            inside, measured = reading.share_inside(texts, example.grade)
            sums[0], sums[1] = sums[0] + inside, sums[1] + measured
        hard += [(example.id, found) for found in map(reading.level, said) if found is not None and found > band.reading[1]]
    assert turns[1] >= 200 and turns[0] / turns[1] >= 0.8
    assert whole[1] >= 200 and whole[0] / whole[1] >= 0.8
    assert not hard


# --- in a class -------------------------------------------------------------------------------------------------------
@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings)
    for name, grade in (("ann", "Grade 4"), ("ben", "")):
        box.people.add(name, "pupil")
        made = box.classes.add(f"class of {name}", grade=grade, help_level="full")
        box.people.join(box.accounts.named(name).id, made.id, teaches=False)
    yield box
    await box.chat.close()
    box.database.close()


async def done(box: Any, name: str, messages: Sequence[Message]) -> dict[str, Any]:
    async with aclosing(box.chat.complete(box.accounts.named(name), messages)) as events:
        return [event async for event in events][-1].data


def after(answer: str) -> list[Message]:
    return [Message("user", "Why are leaves green?"), Message("assistant", answer), Message("user", "And in autumn?")]


async def test_after_an_answer_that_was_too_hard_the_next_is_to_be_simpler(box: Any) -> None:
    await done(box, "ann", after(HARD))
    first = box.pool.requests[-1].messages
    assert first[-1].content == f"And in autumn?\n\n{teaching.simpler()}" and "shorter sentences" in teaching.simpler()
    await done(box, "ann", after(EASY))
    second = box.pool.requests[-1].messages
    assert second[-1].content == "And in autumn?" and second[0] == first[0], "the class's part stays one"
    await done(box, "ben", after(HARD))
    assert box.pool.requests[-1].messages[-1].content == "And in autumn?", "no grade, no band"


async def test_the_level_is_kept_with_the_answer(box: Any) -> None:
    for answer, inside in ((EASY, True), (HARD, False)):
        box.pool.answer = answer
        assert (await done(box, "ann", after(EASY)[:1]))["reading"]["inside"] is inside
    ann = box.accounts.named("ann")
    async with aclosing(box.chat.answer(ann, "Why are leaves green?")) as events:
        turn = (await anext(events)).data["turn"]
        async for _ in events:
            pass
    kept = box.chat.conversations.turn(ann, turn).facts["reading"]
    assert kept["band"] == "grades-3-5" and kept["level"] > 14 and kept["inside"] is False
    box.pool.answer = "Yes."
    assert "reading" not in await done(box, "ann", after(EASY)[:1])
    box.pool.answer = EASY
    assert "reading" not in await done(box, "ben", after(EASY)[:1])
