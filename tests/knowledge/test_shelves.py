"""Collections: made, named, opened and closed; documents that move between them, and what old links say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.db import Database
from appliance.errors import BadInput, Conflict, NotFound
from appliance.knowledge import index
from appliance.knowledge.library import Document, Filter, Gone, Library, Passage
from appliance.knowledge.shelves import EVERYTHING, Reader, Shelves
from appliance.settings import Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, embed, pdf

QUESTION = "How do plants make sugar from sunlight?"


@pytest.fixture
def library(settings: Settings, database: Database) -> Iterator[Library]:
    library = Library(settings, database, embed)
    yield library
    library.close()


@pytest.fixture
def shelves(library: Library) -> Shelves:
    return library.shelves


async def added(library: Library, path: Path, text: str, collection: str = "school", **more: str) -> str:
    path.write_text(text)
    (report,) = await library.add([path], collection, **more)
    assert report.error is None
    return str(report.document)


async def opened(library: Library, id: str) -> tuple[Document, list[Passage]]:
    held = await library.document(id, EVERYTHING)
    assert not isinstance(held, Gone)
    return held


# --- collections -----------------------------------------------------------------------------------------------------
def test_a_collection_is_its_owners_until_it_is_opened(shelves: Shelves) -> None:
    made = shelves.create("  Physics   7B ", owner="ann", subject="physics", grade="7")
    assert (made.name, made.owner, made.subject, made.grade, made.readers, made.documents) == (
        "Physics 7B", "ann", "physics", "7", (), 0,
    )  # fmt: skip
    shelves.open_to("Physics 7B", Reader("class", "7B"), EVERYTHING)
    shelves.open_to("Physics 7B", Reader("class", "7B"), EVERYTHING)
    shelves.open_to("Physics 7B", Reader("everyone", "whoever"), EVERYTHING)
    assert shelves.one("Physics 7B", EVERYTHING).readers == (Reader("class", "7B"), Reader("everyone"))
    shelves.close_to("Physics 7B", Reader("everyone"), EVERYTHING)
    assert shelves.one("Physics 7B", EVERYTHING).readers == (Reader("class", "7B"),)
    with pytest.raises(NotFound, match="not open to that reader"):
        shelves.close_to("Physics 7B", Reader("everyone"), EVERYTHING)


@pytest.mark.parametrize(
    "reader", [Reader("planet", "Mars"), Reader("", ""), Reader("Everyone"), Reader("class"), Reader("user", " \n")]
)
def test_a_reader_that_nobody_knows_is_not_let_in(shelves: Shelves, reader: Reader) -> None:
    shelves.create("Physics")
    with pytest.raises(BadInput):
        shelves.open_to("Physics", reader, EVERYTHING)
    with pytest.raises(BadInput):
        shelves.create("Chemistry", readers=[reader])
    assert [(one.name, one.readers) for one in shelves.list(EVERYTHING)] == [("Physics", ())]


@pytest.mark.parametrize("name", ["", " \n", "x" * 81, "a\0b", "a\u202eb"])
def test_a_name_that_cannot_be_read_is_refused(shelves: Shelves, name: str) -> None:
    shelves.create("Physics")
    with pytest.raises(BadInput):
        shelves.create(name)
    with pytest.raises(BadInput):
        shelves.rename("Physics", name, EVERYTHING)
    if name.strip():
        with pytest.raises(BadInput):
            shelves.describe("Physics", EVERYTHING, subject=name)


def test_a_name_is_given_once(shelves: Shelves) -> None:
    shelves.create("Physics")
    shelves.create("Chemistry")
    with pytest.raises(Conflict, match="Physics is taken"):
        shelves.create("Physics")
    with pytest.raises(Conflict):
        shelves.rename("Chemistry", "Physics", EVERYTHING)
    shelves.rename("Physics", "Physics", EVERYTHING)
    shelves.rename("Physics", "Physik", EVERYTHING)
    assert [one.name for one in shelves.list(EVERYTHING)] == ["Chemistry", "Physik"]


async def test_links_do_not_know_what_a_collection_is_called(library: Library, tmp_path: Path) -> None:
    id = await added(library, tmp_path / "a.txt", PLANTS, "Physics")
    library.shelves.rename("Physics", "Biology", EVERYTHING)
    document, (passage,) = await opened(library, id)
    assert document.collection == "Biology"
    assert await library.passage(passage.id, EVERYTHING) == passage
    assert (await library.search(QUESTION, within=await library.named(["Biology"], EVERYTHING))).passages[0].id == passage.id


async def test_what_the_command_line_adds_is_everyones_and_what_a_person_adds_is_theirs(
    library: Library, tmp_path: Path
) -> None:
    await added(library, tmp_path / "a.txt", PLANTS, "school")
    await added(library, tmp_path / "b.txt", RIVERS, "Ann's", by="ann")
    await added(library, tmp_path / "c.txt", MAGNETS, "Ann's", by="ann")
    anns, school = library.shelves.list(EVERYTHING)
    assert (school.owner, school.readers) == ("", (Reader("everyone"),))
    assert (anns.owner, anns.readers, anns.documents) == ("ann", (), 2)
    (tmp_path / "d.txt").write_text("Nobody asked for this text here.")
    with pytest.raises(Conflict, match="is taken"):
        await library.add([tmp_path / "d.txt"], "school", by="ann")
    assert library.shelves.one("school", EVERYTHING).documents == 1


async def test_only_an_empty_collection_can_be_discarded(library: Library, tmp_path: Path) -> None:
    id = await added(library, tmp_path / "a.txt", PLANTS, "Old")
    with pytest.raises(Conflict, match="holds 1 documents"):
        library.shelves.discard("Old", EVERYTHING)
    await library.remove(id, EVERYTHING)
    library.shelves.discard("Old", EVERYTHING)
    assert library.shelves.list(EVERYTHING) == []
    with pytest.raises(NotFound):
        await library.document(id, EVERYTHING)


# --- subject and grade -----------------------------------------------------------------------------------------------
async def test_subject_and_grade_come_from_the_collection_or_are_told(library: Library, tmp_path: Path) -> None:
    library.shelves.create("Year 7", subject="science", grade="7")
    first = await added(library, tmp_path / "a.txt", PLANTS, "Year 7")
    second = await added(library, tmp_path / "b.txt", RIVERS, "Year 7", subject="geography")
    told = [(await opened(library, id))[0] for id in (first, second)]
    assert [(one.subject, one.grade) for one in told] == [("science", "7"), ("geography", "7")]
    library.shelves.describe("Year 7", EVERYTHING, subject="biology")
    told = [(await opened(library, id))[0] for id in (first, second)]
    assert [(one.subject, one.grade) for one in told] == [("biology", "7"), ("geography", "7")]
    for subject, wanted in (("biology", [first]), ("science", [])):
        within = Filter(frozenset(one.id for one in library.shelves.list(EVERYTHING)), frozenset({subject}))
        assert [one.document for one in (await library.search(QUESTION, within=within)).passages] == wanted


async def test_a_filter_by_subject_or_grade_finds_nothing_else(library: Library, tmp_path: Path) -> None:
    ids = {}
    for subject, grade in (("biology", "7"), ("biology", "8"), ("history", "7")):
        text = f"{PLANTS} This is what {subject} says in year {grade}."
        ids[subject, grade] = await added(library, tmp_path / f"{subject}{grade}.txt", text, subject=subject, grade=grade)
    every = frozenset(one.id for one in library.shelves.list(EVERYTHING))
    asked = {
        (None, None): set(ids.values()),
        (frozenset({"biology"}), None): {ids["biology", "7"], ids["biology", "8"]},
        (None, frozenset({"7"})): {ids["biology", "7"], ids["history", "7"]},
        (frozenset({"biology"}), frozenset({"7"})): {ids["biology", "7"]},
        (frozenset({"art"}), None): set(),
        (frozenset[str](), None): set(),
    }
    for (subjects, grades), wanted in asked.items():
        within = Filter(every, subjects, grades)
        found = await library.search(QUESTION, k=9, within=within)
        assert {copy.document for one in found.passages for copy in (one, *one.also)} == wanted
        assert {document.id for document in await library.documents(within)} == wanted
        for id in set(ids.values()) - wanted:
            with pytest.raises(NotFound):
                await library.document(id, within)


@pytest.mark.parametrize("killed", [False, True])
async def test_a_described_collection_is_found_by_another_process_however_large_it_is(
    library: Library, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """`killed`: between the database and the index. A search brings no more than QUICK passages up to date by itself."""
    library.shelves.create("Year 7", subject="science", grade="7")
    ids = {await added(library, tmp_path / f"{n}.txt", f"{PLANTS} Number {n}.", "Year 7") for n in range(5)}
    other_year = await added(library, tmp_path / "other.txt", RIVERS, "Year 8")
    monkeypatch.setattr(index, "QUICK", 2)
    if killed:
        library.shelves.describe("Year 7", EVERYTHING, subject="biology", grade="8")
    else:
        await library.describe("Year 7", EVERYTHING, subject="biology", grade="8")
    year = frozenset({library.shelves.one("Year 7", EVERYTHING).id})
    other = Library(settings, Database(settings.database), embed)
    for process in (other, library):
        for within, wanted in (
            (EVERYTHING, ids),
            (Filter(year), ids),
            (Filter(year, frozenset({"biology"}), frozenset({"8"})), ids),
            (Filter(year, frozenset({"science"})), set()),
            (Filter(year, grades=frozenset({"7"})), set()),
        ):
            found = await process.search(QUESTION, k=9, within=within)
            assert {copy.document for one in found.passages for copy in (one, *one.also)} - {other_year} == wanted, within
    other.close()


# --- moving ----------------------------------------------------------------------------------------------------------
async def test_a_document_that_moves_keeps_its_links_and_changes_its_readers(library: Library, tmp_path: Path) -> None:
    id = await added(library, tmp_path / "a.txt", PLANTS, "Year 7")
    library.shelves.create("Staff")
    year, staff = [await library.named([name], EVERYTHING) for name in ("Year 7", "Staff")]
    _, before = await opened(library, id)
    assert (await library.search(QUESTION, within=year)).passages and not (
        await library.search(QUESTION, within=staff)
    ).passages
    await library.move(id, "Staff", EVERYTHING)
    document, after = await opened(library, id)
    assert document.collection == "Staff" and after == before
    assert await library.passage(before[0].id, staff) == before[0]
    with pytest.raises(NotFound):
        await library.passage(before[0].id, year)
    assert not (await library.search(QUESTION, within=year)).passages
    assert [one.document for one in (await library.search(QUESTION, within=staff)).passages] == [id]


async def test_another_process_sees_a_move(library: Library, settings: Settings, tmp_path: Path) -> None:
    id = await added(library, tmp_path / "a.txt", PLANTS, "Year 7")
    library.shelves.create("Staff")
    other = Library(settings, Database(settings.database), embed)
    staff = await other.named(["Staff"], EVERYTHING)
    assert not (await other.search(QUESTION, within=staff)).passages
    await library.move(id, "Staff", EVERYTHING)
    assert (await other.search(QUESTION, within=staff)).passages
    other.close()


async def test_what_was_told_of_the_old_collection_does_not_move_along(library: Library, tmp_path: Path) -> None:
    library.shelves.create("Year 7", subject="science", grade="7")
    library.shelves.create("Year 8", subject="physics", grade="8")
    id = await added(library, tmp_path / "a.txt", PLANTS, "Year 7", subject="biology")
    await library.move(id, "Year 8", EVERYTHING)
    document, _ = await opened(library, id)
    assert (document.subject, document.grade) == ("biology", "8")


async def test_a_move_that_cannot_be_is_refused_and_changes_nothing(library: Library, tmp_path: Path) -> None:
    id = await added(library, tmp_path / "a.txt", PLANTS, "Year 7")
    await added(library, tmp_path / "b.txt", PLANTS, "Year 8")
    with pytest.raises(Conflict, match=r"the same content already, as b\.txt"):
        await library.move(id, "Year 8", EVERYTHING)
    with pytest.raises(NotFound, match="no collection named Year 9"):
        await library.move(id, "Year 9", EVERYTHING)
    with pytest.raises(NotFound):
        await library.move("0" * 16, "Year 8", EVERYTHING)
    await library.move(id, "Year 7", EVERYTHING)
    assert (await opened(library, id))[0].collection == "Year 7"


async def test_an_id_opens_nobody_elses_collection_and_none_that_is_gone(library: Library, tmp_path: Path) -> None:
    hers = library.shelves.create("Physics", owner="ann").id
    (tmp_path / "a.txt").write_text(PLANTS)
    with pytest.raises(Conflict):
        await library.add([tmp_path / "a.txt"], "Physics", collection_id=hers, by="ben")
    library.shelves.rename("Physics", "Physics 7B", EVERYTHING)
    (report,) = await library.add([tmp_path / "a.txt"], "Physics", collection_id=hers, by="ann")
    assert (await opened(library, str(report.document)))[0].collection == "Physics 7B"
    with pytest.raises(NotFound, match="Physics is gone"):
        await library.add([tmp_path / "a.txt"], "Physics", collection_id="0" * 16)
    assert [one.name for one in library.shelves.list(EVERYTHING)] == ["Physics 7B"]


# --- versions, and what is gone --------------------------------------------------------------------------------------
async def test_a_replaced_document_counts_its_versions_and_leads_to_the_newest(library: Library, tmp_path: Path) -> None:
    began = time.time()
    ids = [await added(library, tmp_path / "notes.txt", text, by="ann", collection="x") for text in (PLANTS, RIVERS, MAGNETS)]
    document, passages = await opened(library, ids[2])
    assert (document.version, len(passages), document.passages) == (3, 1, 1)
    for number, old in enumerate(ids[:2]):
        gone = await library.document(old, EVERYTHING)
        assert isinstance(gone, Gone)
        assert (gone.title, gone.file, gone.why, gone.successor) == ("notes", "notes.txt", "replaced", ids[2]), number
        assert began <= gone.at <= time.time()


async def test_a_removed_document_says_so_at_each_of_its_links(library: Library, tmp_path: Path) -> None:
    long = "\n\n".join(f"# Part {number}\n\n{PLANTS} {RIVERS} {MAGNETS} Number {number}." for number in range(6))
    before = await added(library, tmp_path / "before.txt", RIVERS)
    id = await added(library, tmp_path / "long.md", long)
    after = await added(library, tmp_path / "after.txt", MAGNETS)
    _, passages = await opened(library, id)
    assert len(passages) > 3
    await library.remove(id, EVERYTHING, by="ann")
    for passage in passages:
        gone = await library.passage(passage.id, EVERYTHING)
        assert isinstance(gone, Gone) and (gone.file, gone.why, gone.successor) == ("long.md", "removed", "")
    for kept in (before, after):
        (_, (passage,)) = await opened(library, kept)
        assert await library.passage(passage.id, EVERYTHING) == passage
    with pytest.raises(NotFound):
        await library.remove(id, EVERYTHING)


async def test_a_successor_is_told_only_to_those_who_may_see_it(library: Library, tmp_path: Path) -> None:
    old = await added(library, tmp_path / "notes.txt", PLANTS, "Year 7")
    new = await added(library, tmp_path / "notes.txt", RIVERS, "Year 7")
    library.shelves.create("Staff")
    year = await library.named(["Year 7"], EVERYTHING)
    seen = await library.document(old, year)
    assert isinstance(seen, Gone) and seen.successor == new
    await library.move(new, "Staff", EVERYTHING)
    seen = await library.document(old, year)
    assert isinstance(seen, Gone) and seen.successor == ""
    await library.remove(new, EVERYTHING)
    seen = await library.document(old, EVERYTHING)
    assert isinstance(seen, Gone) and seen.successor == ""


@pytest.mark.parametrize("id", [0, -1, 2**63, 2**70])
async def test_a_number_that_is_no_passages_is_not_found(library: Library, id: int) -> None:
    with pytest.raises(NotFound):
        await library.passage(id, EVERYTHING)


async def test_a_move_waits_for_nobody_and_says_who_is_at_work(library: Library, settings: Settings, tmp_path: Path) -> None:
    from appliance.knowledge.index import locked

    id = await added(library, tmp_path / "a.txt", PLANTS)
    library.shelves.create("Staff")
    with locked(settings.run / "documents.lock"):
        for work in (
            library.move(id, "Staff", EVERYTHING), library.remove(id, EVERYTHING), library.reindex(),
            library.describe("Staff", EVERYTHING, subject="science"),
        ):  # fmt: skip
            with pytest.raises(Conflict, match="another run"):
                await work


# --- another embedder ------------------------------------------------------------------------------------------------
def forty(folder: Path) -> Path:
    """A document of forty passages: more than are embedded at once."""
    return pdf(folder / "long.pdf", [f"{PLANTS} {MAGNETS} {RIVERS} Number {page}." for page in range(40)])


async def test_vectors_of_another_embedder_are_never_compared(settings: Settings, database: Database, tmp_path: Path) -> None:
    old = Library(settings, database, embed, "old-1")
    await old.add([forty(tmp_path)])
    assert not (await old.search(QUESTION, within=EVERYTHING)).lexical_only
    old.close()

    asked: list[int] = []

    async def other(texts: list[str]) -> object:
        asked.append(len(texts))
        return -(await embed(texts))  # what was near is as far away as can be

    new = Library(settings, database, other, "new-2")  # type: ignore[arg-type]
    found = await new.search(QUESTION, within=EVERYTHING)
    assert found.lexical_only and found.passages and all(one.score == 0 for one in found.passages), "by words meanwhile"
    told: list[tuple[int, int]] = []
    assert await new.reindex(lambda done, total: told.append((done, total))) == 0
    assert told == [(0, 40), (32, 40), (40, 40)]
    found = await new.search(QUESTION, within=EVERYTHING)
    assert not found.lexical_only and found.passages[0].score > 0.3
    asked.clear()
    assert await new.reindex() == 0 and asked == [], "a second time there is nothing to do"
    new.close()


async def test_reindexing_goes_on_where_the_engine_went_away(settings: Settings, database: Database, tmp_path: Path) -> None:
    from appliance.errors import ModelUnavailable

    library = Library(settings, database, embed, "old-1")
    await library.add([forty(tmp_path)])
    library.close()
    calls = 0

    async def leaves(texts: list[str]) -> object:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise ModelUnavailable("The engine went away.", "Start it.")
        return await embed(texts)

    library = Library(settings, database, leaves, "new-2")  # type: ignore[arg-type]
    assert await library.reindex() == 8
    library.close()
    library = Library(settings, database, embed, "new-2")
    told: list[tuple[int, int]] = []
    assert await library.reindex(lambda done, total: told.append((done, total))) == 0
    assert told == [(0, 8), (8, 8)]
    library.close()


async def test_searches_go_on_while_vectors_are_made_anew(settings: Settings, database: Database, tmp_path: Path) -> None:
    library = Library(settings, database, embed, "old-1")
    await library.add([forty(tmp_path)])
    library.close()
    gate = asyncio.Event()

    async def slow(texts: list[str]) -> object:
        if len(texts) > 1:
            await gate.wait()
        return await embed(texts)

    library = Library(settings, database, slow, "new-2")  # type: ignore[arg-type]
    other = Library(settings, Database(settings.database), embed, "new-2")
    working = asyncio.create_task(library.reindex())
    while library_free(settings):
        assert not working.done(), "it is over before it has begun"
        await asyncio.sleep(0.01)
    for one in (library, other):
        assert (await one.search(QUESTION, within=EVERYTHING)).passages
    gate.set()
    assert await working == 0
    assert not (await other.search(QUESTION, within=EVERYTHING)).lexical_only
    library.close()
    other.close()


def library_free(settings: Settings) -> bool:
    from appliance.errors import Busy
    from appliance.knowledge.index import locked

    try:
        with locked(settings.run / "documents.lock"):
            return True
    except Busy:
        return False
