"""The index alone: kinds of vectors, filters, words, and segments that come, merge and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from appliance.db import Database
from appliance.knowledge import content, index, lexical, segments, vectors
from appliance.knowledge.index import Generation, Index
from appliance.knowledge.shelves import EVERYTHING, Filter, Within
from appliance.settings import Settings
from appliance.tables import passages
from tests.knowledge.school import School, held_vectors, units

KINDS = ["flat", "scan", "clusters"]
WORDS = ["river", "delta", "pebble", "magnet", "compass", "needle", "plant", "sugar", "light", "prime", "number", "fraction"]


@pytest.fixture
def school(settings: Settings, database: Database) -> Iterator[School]:
    school = School(settings, database)
    yield school
    school.index.close()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every kind of index, at sizes that a test can fill; the large ones are read from disk."""
    name = str(request.param)
    monkeypatch.setattr(vectors, "FLAT_BELOW", 10**9 if name == "flat" else 1)
    monkeypatch.setattr(vectors, "CLUSTERS_FROM", 1 if name == "clusters" else 10**9)
    monkeypatch.setattr(vectors, "PROBES", 16)
    monkeypatch.setattr(vectors, "NARROW", 300)
    monkeypatch.setattr(segments, "IN_MEMORY", 10**9 if name == "flat" else 0)
    return name


def _text(number: int) -> str:
    return f"{WORDS[number % 12]} {WORDS[number * 5 % 7]} and the text of page{number}"


def _fill(school: School, many: int = 24, pages: int = 100) -> dict[tuple[str, str, str], list[int]]:
    """Documents over three collections, two subjects and two grades; the passages of each combination."""
    held: dict[tuple[str, str, str], list[int]] = {}
    for number in range(many):
        shelf = ("abc"[number % 3], ("maths", "physics")[number // 3 % 2], ("7", "8")[number // 6 % 2])
        ids = school.add(f"document {number}", [_text(number * pages + page) for page in range(pages)], *shelf, bare=number % 2)
        held.setdefault(shelf, []).extend(ids)
    return held


# --- vectors and filters ---------------------------------------------------------------------------------------------------
def _filters() -> list[Within]:
    return [
        EVERYTHING,
        Filter(frozenset("ab")),
        Filter(frozenset("abc"), frozenset({"maths"})),
        Filter(frozenset("ac"), None, frozenset({"8"})),
        Filter(frozenset("b"), frozenset({"physics"}), frozenset({"7"})),
    ]


def _seen(held: dict[tuple[str, str, str], list[int]], within: Within) -> list[int]:
    if not isinstance(within, Filter):
        return [id for ids in held.values() for id in ids]
    return [
        id
        for (collection, subject, grade), ids in held.items()
        for id in ids
        if collection in within.collections
        and (within.subjects is None or subject in within.subjects)
        and (within.grades is None or grade in within.grades)
    ]


def test_every_kind_finds_the_nearest_within_every_filter(school: School, kind: str) -> None:
    held = _fill(school)
    generation = school.fresh()
    assert [vectors.kind(len(one.rows)) for one in generation.segments] == [kind]
    assert (generation.passages, generation.embedded) == (2400, 2388)
    hits = total = 0
    for within in _filters():
        seen = _seen(held, within)
        for vector in units(12, seed=99):
            found = generation.nearest(vector, 10, within)
            assert len(found) == 10 and {id for id, _ in found} <= set(seen), "filled, and nothing else let through"
            for id, score in found:
                assert score == pytest.approx(float(school.vectors[id] @ vector), abs=1e-5)
            assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
            same = {id for id, _ in found} & set(school.exact(vector, 10, seen))
            hits, total = hits + len(same), total + 10
            if kind != "clusters" or len(seen) <= vectors.NARROW:
                assert len(same) == 10
    assert hits / total >= 0.98


@pytest.mark.parametrize("narrow", [199, 200])
def test_a_narrow_filter_is_exact_on_both_sides_of_its_border(
    school: School, monkeypatch: pytest.MonkeyPatch, narrow: int
) -> None:
    monkeypatch.setattr(vectors, "FLAT_BELOW", 1)
    monkeypatch.setattr(vectors, "CLUSTERS_FROM", 1)
    monkeypatch.setattr(vectors, "PROBES", 16)
    monkeypatch.setattr(vectors, "NARROW", narrow)
    held = _fill(school)
    within = Filter(frozenset("b"), frozenset({"physics"}), frozenset({"7"}))
    seen = _seen(held, within)
    assert len(seen) == 200
    generation = school.fresh()
    for vector in units(20, seed=5):
        assert [id for id, _ in generation.nearest(vector, 10, within)] == school.exact(vector, 10, seen)


@pytest.mark.usefixtures("kind")
def test_words_stay_within_every_filter_and_fill_it(school: School) -> None:
    held = _fill(school)
    generation = school.fresh()
    for within in _filters():
        seen = set(_seen(held, within))
        found = [id for id, _ in generation.matching(["river", "magnet"], 60, within)]
        assert len(found) == len(set(found)) == 60 and set(found) <= seen
    nobody = Filter(frozenset())
    assert generation.matching(["river"], 5, nobody) == [] == generation.nearest(units(1)[0], 5, nobody)
    assert generation.matching(["river"], 5, Filter(frozenset({"unknown"}))) == []


def test_a_filter_of_very_many_stretches_lets_nothing_else_through(school: School) -> None:
    mine = []
    for number in range(40):
        ids = school.add(f"d{number}", [f"river number{number} {page}" for page in range(3)], f"c{number:02}")
        mine += ids if number % 2 else []
    within = Filter(frozenset(f"c{number:02}" for number in range(1, 40, 2)))
    generation = school.fresh()
    assert len(generation.segments[0].ranges(within)) == 20 > lexical.RANGES
    assert sorted(id for id, _ in generation.matching(["river"], 100, within)) == mine
    assert sorted(id for id, _ in generation.nearest(units(1)[0], 100, within)) == mine
    assert len(generation.matching(["river"], 7, within)) == 7


def test_a_vector_of_another_embedder_is_left_out(school: School) -> None:
    ids = school.add("a", ["river delta", "magnet needle"])
    with school.database.begin() as connection:
        connection.execute(sa.update(passages).where(passages.c.id == ids[0]).values(embedder="another"))
        content.changed(connection)
    generation = school.fresh()
    assert generation.embedded == 1
    assert [id for id, _ in generation.nearest(units(1)[0], 5, EVERYTHING)] == ids[1:]
    assert set(generation.cosines(ids, units(1)[0])) == {ids[1]}
    assert [id for id, _ in generation.matching(["river"], 5, EVERYTHING)] == ids[:1]


# --- words -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "asked", "other"),
    [
        ("植物の光合作用は水を使う", "光合", "合光"),
        ("น้ำไหลลงสู่ทะเล", "ทะเล", "เลทะ"),
        ("ນ້ຳໄຫຼລົງສູ່ທະເລ", "ທະເລ", "ລເທະ"),
        ("ទឹកហូរទៅសមុទ្រ", "សមុទ្រ", "ទ្រសមុ"),
        ("पानी समुद्र में जाता है", "समुद्र", "समद"),
        ("La PHOTOSYNTHÈSE des végétaux", "photosynthese", "photosynthax"),
    ],
)
def test_words_of_every_script_are_found_and_no_others(school: School, text: str, asked: str, other: str) -> None:
    (id,) = school.add("a", [text])
    school.add("b", ["A river carries pebbles."])
    generation = school.fresh()
    assert [found for found, _ in generation.matching([asked], 5, EVERYTHING)] == [id]
    assert generation.frequency(asked) == 1
    assert generation.matching([other], 5, EVERYTHING) == [] and generation.frequency(other) == 0


def test_the_syntax_of_the_engine_is_only_words(school: School) -> None:
    school.add("a", ["A river carries pebbles."])
    generation = school.fresh()
    for word in ('"', "text:", "AND", "NEAR(a b)", "*", "", "^river", "rowid:1", "\0"):
        generation.matching([word, "river"], 5, EVERYTHING)
        assert generation.frequency(word) in (0, 1)
    assert len(generation.matching(["river"], 5, EVERYTHING)) == 1


def test_common_words_are_asked_for_only_together(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical, "BUDGET", 20)
    texts = [f"river water text{number}" if number % 2 else f"delta sand text{number}" for number in range(100)]
    both = school.add("a", [*texts, "the river delta", "quartz"])[-2]
    generation = school.fresh()
    frequencies = {word: generation.frequency(word) for word in ("river", "delta", "quartz")}
    assert frequencies == {"river": 51, "delta": 51, "quartz": 1}
    query = lexical.Query(frequencies, 102)
    assert query.words == ["quartz"] and query.pairs == []
    monkeypatch.setattr(lexical, "COMMON", 0.9)
    assert lexical.Query(frequencies, 102).words == ["quartz"]
    assert [id for id, _ in generation.matching(["river", "delta"], 1, EVERYTHING)] == [both]
    assert len(generation.matching(["river"], 60, EVERYTHING)) == 51, "a word alone is looked for, whatever it costs"


def test_what_is_common_in_a_small_segment_is_not_common_in_the_library(school: School) -> None:
    school.add("a", [f"water {WORDS[number % 12]} text{number}" for number in range(60)])
    school.fresh()
    ids = school.add("b", [f"glacier water {number}" for number in range(4)])
    generation = school.fresh()
    assert len(generation.segments) == 2
    found = generation.matching(["glacier", "water"], 64, EVERYTHING)
    assert sorted(id for id, _ in found[:4]) == ids and found[3][1] > 1


# --- segments that come, merge and go --------------------------------------------------------------------------------------
def _same(one: Generation, other: Generation, filters: Sequence[Within]) -> None:
    assert (one.passages, one.embedded) == (other.passages, other.embedded)
    for word in (*WORDS, "page7", "absent"):
        assert one.frequency(word) == other.frequency(word), word
    for within in filters:
        for vector in units(4, seed=77):
            mine, theirs = (generation.nearest(vector, 15, within) for generation in (one, other))
            assert [id for id, _ in mine] == [id for id, _ in theirs]
        for word in ("river", "compass", "page7"):
            found = [{id for id, _ in generation.matching([word], 10_000, within)} for generation in (one, other)]
            assert found[0] == found[1]


@pytest.mark.usefixtures("kind")
def test_whatever_changes_the_index_says_what_one_built_at_once_says(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "PROBES", 10**6)
    numbers = np.random.default_rng(3)
    alive: list[str] = []
    for step in range(30):
        match numbers.integers(0, 5):
            case 0 if alive:
                school.remove(alive.pop(int(numbers.integers(0, len(alive)))))
            case 1 if alive:
                school.change(alive[int(numbers.integers(0, len(alive)))], subject="physics")
            case 2 if alive:
                school.change(alive[int(numbers.integers(0, len(alive)))], title=f"Magnets {step}")
            case _:
                size = int(numbers.integers(1, 40))
                alive.append(f"document {step}")
                school.add(alive[-1], [_text(step * 40 + page) for page in range(size)], "ab"[step % 2], "maths", bare=step % 3)
        if step % 3 == 0:
            school.index.rebuild()
        elif step % 3 == 1:
            school.fresh()
    school.index.rebuild()
    generation = school.fresh()
    assert len(generation.segments) <= 8 and not any(one.dead for one in generation.segments)
    _same(
        generation,
        school.rebuilt("other"),
        [EVERYTHING, Filter(frozenset("a")), Filter(frozenset("ab"), frozenset({"physics"}))],
    )


def test_adding_one_by_one_leaves_few_segments_and_writes_little_again(school: School) -> None:
    written, before = 0, dict[str, dict[str, str]]()
    for number in range(60):
        school.add(f"d{number}", [_text(number * 5 + page) for page in range(5)])
        now = school.fresh().segments
        written += sum(len(one.rows) for one in now if before.get(one.name) != one.digests)
        before = {one.name: one.digests for one in now}
        assert len(now) <= 6
    assert written < 60 * 5 * 8, "not everything with every document"
    _same(school.fresh(), school.rebuilt("other"), [EVERYTHING])


def test_what_is_added_at_once_is_divided_into_segments_of_a_bounded_size(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "LARGEST", 500)
    held = _fill(school, many=12)
    generation = school.fresh()
    assert [len(one.rows) for one in generation.segments] == [400, 400, 400]
    for within in _filters():
        seen = _seen(held, within)
        for vector in units(5, seed=9):
            assert [id for id, _ in generation.nearest(vector, 10, within)] == school.exact(vector, 10, seen)


@pytest.mark.parametrize("quick", [50_000, 0])
@pytest.mark.usefixtures("kind")
def test_nothing_of_a_removed_document_is_left_in_the_index(
    school: School, monkeypatch: pytest.MonkeyPatch, quick: int
) -> None:
    monkeypatch.setattr(index, "QUICK", quick)
    school.add("stays", [_text(page) for page in range(30)])
    (secret,) = school.add("goes", ["The secretword xylophonequartz is told here."])
    school.index.rebuild()
    vector = school.vectors[secret]
    held = held_vectors(school)
    at = int(np.argmax([float(one @ vector) for _, one in held]))
    told, nearest = held[at]
    assert float(nearest @ vector) > 0.99, "it can be seen in what a kind makes of it"
    assert school.bytes_of(b"xylophonequartz") == ["lexical.sqlite3"] and school.bytes_of(b"goes")
    assert school.bytes_of(told) == ["vectors.faiss"] and len(told) in (vectors.DIMENSIONS, 4 * vectors.DIMENSIONS)
    school.remove("goes")
    school.index.rebuild()
    for bytes_ in (b"xylophonequartz", b"secretword", b'"goes"', vector.tobytes(), told, told[:64]):
        assert school.bytes_of(bytes_) == []
    left = held_vectors(school)
    assert len(left) == 30 and max(float(one @ vector) for _, one in left) < 0.9, "nor in other bytes that mean the same"
    assert school.fresh().passages == 30
    school.remove("stays")
    school.index.rebuild()
    assert school.bytes_of(b"page7") == [] and school.fresh().segments == ()


def test_readers_see_what_changed_before_large_segments_are_written_again(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "QUICK", 0)
    first = school.add("first", [_text(page) for page in range(20)])
    second = school.add("second", [_text(page) for page in range(20, 60)], "a")
    rest = school.add("rest", [_text(page) for page in range(60, 260)])
    school.index.rebuild()
    school.remove("first")
    school.change("second", collection="one")
    third = school.add("third", ["river"])

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index, "_absorbed", _once(index._absorbed, dies))
    with pytest.raises(KeyboardInterrupt):
        school.index.rebuild()
    monkeypatch.undo()
    monkeypatch.setattr(index, "QUICK", 0)
    reader = Index(school.settings.index, school.settings.run / "reader.lock", school.database)
    generation = reader.fresh()
    assert any(one.dead for one in generation.segments), "the large segment is still there"
    found = {id for id, _ in generation.nearest(units(1)[0], 1000, Filter(frozenset({"one"})))}
    assert found == {*second, *third, *rest} and not found & set(first)
    assert not {id for id, _ in generation.matching(["river"], 1000, EVERYTHING)} & set(first)
    assert len(generation.nearest(units(1)[0], 200, EVERYTHING)) == 200, "what is gone takes no places"
    school.index.rebuild()
    assert not any(one.dead for one in school.fresh().segments)
    reader.close()


def _once(first: Any, then: Any) -> Any:
    """The first call is the one thing, every later one the other."""
    calls: list[int] = []

    def call(*arguments: Any) -> Any:
        calls.append(1)
        return first(*arguments) if len(calls) == 1 else then(*arguments)

    return call


def test_a_search_leaves_large_work_to_who_adds(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    school.add("first", [_text(page) for page in range(20)])
    before = school.fresh()
    monkeypatch.setattr(index, "QUICK", 10)
    school.add("second", [_text(page) for page in range(40)])
    assert school.fresh() is before and school.fresh() is before
    school.add("small", ["river"])
    assert school.fresh() is before
    school.index.rebuild()
    assert school.fresh().passages == 61


def test_a_damaged_file_that_is_read_in_place_is_noticed_and_built_anew(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "IN_MEMORY", 0)
    monkeypatch.setattr(lexical, "CACHE_KB", 1)
    school.add("first", [_text(page) for page in range(400)])
    school.index.rebuild()
    school.index.close()
    before = school.fresh()
    (folder,) = school.settings.index.glob("seg-*")
    with (folder / "lexical.sqlite3").open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(bytes(size))
    before.matching(["river"], 5, EVERYTHING)
    assert not before.whole
    after = school.fresh()
    assert after is not before and len(after.matching(["river"], 5, EVERYTHING)) == 5
    assert Path(school.settings.index / after.segments[0].name).name != folder.name


def test_searches_go_on_with_what_is_there_while_another_thread_rebuilds(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = school.add("first", [_text(page) for page in range(20)])
    before = school.fresh()
    school.add("second", ["river"])
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return build(*arguments)

    build = segments.build
    monkeypatch.setattr(segments, "build", slowly)
    rebuilding = threading.Thread(target=school.index.rebuild)
    rebuilding.start()
    try:
        assert begun.wait(60)
        assert school.fresh() is before and len(before.nearest(units(1)[0], 50, EVERYTHING)) == len(first)
    finally:
        go_on.set()
        rebuilding.join()
    assert school.fresh().passages == 21
