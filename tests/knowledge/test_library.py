"""Adding, finding and removing documents, through the Library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from appliance.db import Database
from appliance.errors import BadInput, Conflict, NotFound, TooLarge
from appliance.knowledge.index import locked
from appliance.knowledge.library import EVERYTHING, FileReport, Found, Gone, Library, Passage
from appliance.settings import Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, docx, embed, engine_down, pdf, zip_bomb


@pytest.fixture
def library(settings: Settings, database: Database) -> Iterator[Library]:
    library = Library(settings, database, embed)
    yield library
    library.close()


@pytest.fixture
def school(tmp_path: Path) -> Path:
    """A folder of good documents, one of each kind."""
    folder = tmp_path / "school"
    folder.mkdir()
    pdf(folder / "plants.pdf", ["Contents of this small book.", PLANTS], title="Plants")
    docx(folder / "magnets.docx", [(1, "Physics"), (2, "Compass"), (0, MAGNETS)])
    (folder / "rivers.md").write_text(f"# Geography\n\n## Deltas\n\n{RIVERS}\n")
    return folder


def _files(found: Found) -> list[str]:
    return [passage.file for passage in found.passages]


async def _passages(library: Library, document: str | None) -> list[Passage]:
    held = await library.document(str(document), EVERYTHING)
    assert not isinstance(held, Gone)
    return held[1]


async def _texts(library: Library) -> dict[str, list[str]]:
    """The content of every document, by the name of its file."""
    held: dict[str, list[str]] = {}
    for document in await library.documents(EVERYTHING):
        held.setdefault(document.file, []).append(" ".join(one.text for one in await _passages(library, document.id)))
    return {file: sorted(texts) for file, texts in held.items()}


async def test_add_and_search_with_title_and_page(library: Library, school: Path) -> None:
    seen: list[FileReport] = []
    reports = await library.add([school], on_file=seen.append)
    assert seen == reports
    assert [(report.file, report.status, report.error) for report in reports] == [
        ("magnets.docx", "added", None),
        ("plants.pdf", "added", None),
        ("rivers.md", "added", None),
    ]
    found = await library.search("What is the process called by which plants make sugar from sunlight?", within=EVERYTHING)
    best = found.passages[0]
    assert (best.file, best.title, best.place, best.page) == ("plants.pdf", "Plants", "p. 2", 2)
    assert PLANTS in best.text
    assert 0.3 < best.score <= 1
    assert found.covered and not found.lexical_only and found.nearest == []
    assert (await library.search("Where does a river drop pebbles?", within=EVERYTHING)).passages[0].place == "Deltas"


async def test_what_no_document_answers_is_not_covered(library: Library, school: Path) -> None:
    await library.add([school])
    found = await library.search("Who wrote the play Romeo and Juliet?", within=EVERYTHING)
    assert not found.covered
    assert len(found.nearest) == len(set(found.nearest)) and set(found.nearest) <= {"Plants", "Physics", "Geography"}


async def test_progress_is_told(library: Library, tmp_path: Path) -> None:
    pdf(tmp_path / "long.pdf", [f"{PLANTS} {MAGNETS} {RIVERS} Number {page}." for page in range(40)])
    told: list[tuple[str, int, int]] = []
    await library.add([tmp_path / "long.pdf"], on_progress=lambda file, done, total: told.append((file, done, total)))
    assert told[0] == ("long.pdf", 0, 40) and told[-1] == ("long.pdf", 40, 40)


async def test_a_second_time_nothing_is_read_again(library: Library, school: Path) -> None:
    first = await library.add([school])
    (school / "copy of plants.pdf").write_bytes((school / "plants.pdf").read_bytes())
    second = await library.add([school])
    assert {report.status for report in second} == {"unchanged"}
    assert {report.document for report in second} == {report.document for report in first}
    assert "plants.pdf" in second[0].note
    assert len(await library.documents(EVERYTHING)) == 3


async def test_new_content_under_the_same_name_replaces_the_old(library: Library, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(PLANTS)
    old = (await library.add([path]))[0].document
    path.write_text(MAGNETS)
    new = (await library.add([path]))[0].document
    assert [document.id for document in await library.documents(EVERYTHING)] == [new]
    assert [file.name for file in settings.documents.iterdir()] == [new]
    assert MAGNETS in (await library.search("compass needle magnet", within=EVERYTHING)).passages[0].text
    gone = await library.document(str(old), EVERYTHING)
    assert isinstance(gone, Gone) and (gone.why, gone.successor) == ("replaced", new)


async def test_a_bad_new_version_leaves_the_old_one(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "notes.pdf"
    pdf(path, [PLANTS])
    await library.add([path])
    path.write_bytes(path.read_bytes()[:500])
    (report,) = await library.add([path])
    assert report.status == "failed"
    assert _files(await library.search("plants sunlight sugar", within=EVERYTHING)) == ["notes.pdf"]


async def test_files_of_one_name_in_two_folders_are_both_kept(library: Library, tmp_path: Path) -> None:
    for folder, text in (("a", PLANTS), ("b", RIVERS)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "notes.txt").write_text(text)
    await library.add([tmp_path / "in"])
    first = {document.id for document in await library.documents(EVERYTHING)}
    assert len(first) == 2
    (tmp_path / "in" / "a" / "notes.txt").write_text(MAGNETS)
    (report,) = await library.add([tmp_path / "in" / "a"])
    assert report.note == "", "it has the place of what it was itself"
    assert await _texts(library) == {"notes.txt": [MAGNETS, RIVERS]}


async def test_a_file_of_the_same_name_from_another_folder_is_another_document_in_a_later_run_too(
    library: Library, tmp_path: Path
) -> None:
    for number, text in enumerate((PLANTS, RIVERS, MAGNETS), 1):
        folder = tmp_path / f"Term {number}"
        folder.mkdir()
        (folder / "worksheet.txt").write_text(text)
        (report,) = await library.add([folder / "worksheet.txt"])
        assert report.status == "added"
        kept = ["", "Another document of this name is kept", "2 other documents of this name are kept"][number - 1]
        assert report.note.startswith(kept) and bool(report.note) == bool(kept)
    assert await _texts(library) == {"worksheet.txt": sorted([PLANTS, RIVERS, MAGNETS])}
    assert {document.version for document in await library.documents(EVERYTHING)} == {1}
    assert all(document.note == "" for document in await library.documents(EVERYTHING)), "no matter of its readers"
    (tmp_path / "Term 2" / "worksheet.txt").write_text(f"{RIVERS} Corrected.")
    (tmp_path / "link").symlink_to(tmp_path / "Term 2")
    (report,) = await library.add([tmp_path / "link" / ".." / "Term 2" / "worksheet.txt"])
    assert await _texts(library) == {"worksheet.txt": sorted([PLANTS, f"{RIVERS} Corrected.", MAGNETS])}


async def test_a_copy_that_nobody_corrected_stays_and_has_its_own_name(library: Library, tmp_path: Path) -> None:
    for name in ("plants.txt", "plants for 7B.txt"):
        (tmp_path / name).write_text(PLANTS)
    first, _ = await library.add([tmp_path / "plants.txt", tmp_path / "plants for 7B.txt"])
    (tmp_path / "plants.txt").write_text(RIVERS)
    await library.add([tmp_path / "plants.txt"])
    assert await _texts(library) == {"plants for 7B.txt": [PLANTS], "plants.txt": [RIVERS]}
    assert not isinstance(await library.document(str(first.document), EVERYTHING), Gone)
    (tmp_path / "plants for 7B.txt").write_text(MAGNETS)
    await library.add([tmp_path / "plants for 7B.txt"])
    assert await _texts(library) == {"plants for 7B.txt": [MAGNETS], "plants.txt": [RIVERS]}


async def test_a_folder_that_was_moved_is_the_same_folder(library: Library, tmp_path: Path) -> None:
    (tmp_path / "Term 1").mkdir()
    (tmp_path / "Term 1" / "worksheet.txt").write_text(PLANTS)
    await library.add([tmp_path / "Term 1"])
    (tmp_path / "Term 1").rename(tmp_path / "Autumn")
    assert [report.status for report in await library.add([tmp_path / "Autumn"])] == ["unchanged"]
    (tmp_path / "Autumn" / "worksheet.txt").write_text(RIVERS)
    await library.add([tmp_path / "Autumn"])
    assert await _texts(library) == {"worksheet.txt": [RIVERS]}


async def test_what_was_added_before_paths_were_kept_is_known_by_its_name_where_that_is_plain(
    library: Library, database: Database, tmp_path: Path
) -> None:
    async def two(first: str, second: str) -> list[FileReport]:
        for folder, text in (("a", first), ("b", second)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "notes.txt").write_text(text)
        return await library.add([tmp_path / "a", tmp_path / "b"])

    def forget() -> None:
        with database.begin() as connection:
            connection.exec_driver_sql("DELETE FROM document_paths")

    await two(PLANTS, RIVERS)
    forget()
    (tmp_path / "a" / "notes.txt").write_text(MAGNETS)
    (report,) = await library.add([tmp_path / "a"])
    assert report.note.startswith("2 other documents of this name are kept"), "which of the two it was, nobody can tell"
    assert await _texts(library) == {"notes.txt": sorted([PLANTS, RIVERS, MAGNETS])}
    await library.add([tmp_path / "b"])  # unchanged: from now on its place is known
    (tmp_path / "a" / "notes.txt").write_text(f"{MAGNETS} Twice.")
    await library.add([tmp_path / "a"])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text(f"{PLANTS} Newer.")
    await library.add([tmp_path / "c"])
    assert await _texts(library) == {"notes.txt": sorted([f"{PLANTS} Newer.", RIVERS, f"{MAGNETS} Twice."])}


async def test_a_file_that_was_corrected_by_copying_another_over_it_is_not_found_as_it_was(
    library: Library, settings: Settings, tmp_path: Path
) -> None:
    rules, final = tmp_path / "rules.txt", tmp_path / "rules final.txt"
    rules.write_text(f"{PLANTS} The old rule is aardvark.")
    final.write_text(f"{PLANTS} The new rule is badger.")
    new, old = await library.add([final, rules])
    rules.write_bytes(final.read_bytes())
    (report,) = await library.add([rules])
    assert (report.status, report.document) == ("unchanged", new.document)
    assert report.note == "The same content is there as rules final.txt. What this file was before was taken out."
    assert await _texts(library) == {"rules final.txt": [final.read_text()]}
    gone = await library.document(str(old.document), EVERYTHING)
    assert isinstance(gone, Gone) and (gone.why, gone.successor) == ("replaced", new.document)
    assert [file.name for file in settings.documents.iterdir()] == [new.document]
    assert _files(await library.search("What is the old rule aardvark?", within=EVERYTHING)) == ["rules final.txt"]


async def test_two_files_that_changed_places_are_both_there(library: Library, tmp_path: Path) -> None:
    one, two = tmp_path / "1.txt", tmp_path / "2.txt"
    one.write_text(PLANTS)
    two.write_text(RIVERS)
    await library.add([one, two])
    one.write_text(RIVERS)
    two.write_text(PLANTS)
    await library.add([one, two])
    assert sorted(text for texts in (await _texts(library)).values() for text in texts) == sorted([PLANTS, RIVERS])
    assert {report.status for report in await library.add([one, two])} == {"unchanged"}


async def test_a_path_that_no_file_can_have_stops_no_other(library: Library, tmp_path: Path) -> None:
    (tmp_path / "plants.txt").write_text(PLANTS)
    (tmp_path / "round").symlink_to(tmp_path / "round")
    bad = [
        tmp_path / ("y" * 300 + ".txt"),
        tmp_path / "round" / "x.txt",
        tmp_path / "x\0y.txt",
        tmp_path / "plants.txt" / "x.txt",
    ]
    reports = await library.add([*bad, tmp_path / "plants.txt"])
    assert [report.status for report in reports] == ["failed"] * 4 + ["added"]
    for report in reports[:4]:
        assert report.error is not None and report.file in report.error.message and report.error.hint


async def test_bad_files_stop_nothing_and_each_gets_a_sentence(library: Library, school: Path) -> None:
    pdf(school / "locked.pdf", [PLANTS], password="chalk")
    pdf(school / "pictures.pdf", ["", ""])
    (school / "empty.txt").touch()
    (school / "photo.md").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    zip_bomb(school / "bomb.docx", megabytes=100)
    (school / "cut.pdf").write_bytes((school / "plants.pdf").read_bytes()[:-200])
    (school / ".hidden.txt").write_text(PLANTS)
    reports = await library.add([school, school / "gone.pdf"])
    failed = {report.file: report.error for report in reports if report.status == "failed"}
    assert set(failed) == {"locked.pdf", "pictures.pdf", "empty.txt", "photo.md", "bomb.docx", "cut.pdf", "gone.pdf"}
    for file, error in failed.items():
        assert error is not None and file in error.message and error.hint
    assert sum(report.status == "added" for report in reports) == 3


async def test_hostile_names_stay_text(library: Library, settings: Settings, tmp_path: Path) -> None:
    name = "..\\..\\x\u202egpj.txt"
    (tmp_path / name).write_text(PLANTS)
    (tmp_path / "sub").mkdir()
    (report,) = await library.add([tmp_path / "sub" / ".." / name])
    assert report.file == "x gpj.txt"
    (stored,) = settings.documents.iterdir()
    assert stored.name == report.document
    assert not list(settings.home.parent.glob("x*"))


async def test_a_link_is_refused_and_links_in_folders_are_left_out(library: Library, tmp_path: Path, school: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(PLANTS)
    (school / "link.txt").symlink_to(secret)
    assert "link.txt" not in [report.file for report in await library.add([school])]
    (report,) = await library.add([school / "link.txt"])
    assert report.error is not None and "is a link" in report.error.message


async def test_a_pipe_does_not_hang(library: Library, tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.txt")
    (report,) = await asyncio.wait_for(library.add([tmp_path / "pipe.txt"]), 10)
    assert isinstance(report.error, BadInput)


async def test_a_file_above_the_limit_is_refused(database: Database, settings: Settings, tmp_path: Path) -> None:
    library = Library(Settings(home=settings.home, document_mb=1), database, embed)
    (tmp_path / "large.txt").write_bytes(b"word " * 300_000)
    (report,) = await library.add([tmp_path / "large.txt"])
    assert isinstance(report.error, TooLarge) and "larger than 1 MB" in report.error.message
    library.close()


async def test_removing_takes_text_vectors_and_file(library: Library, settings: Settings, school: Path) -> None:
    await library.add([school])
    (plants,) = [document for document in await library.documents(EVERYTHING) if document.file == "plants.pdf"]
    passage = (await library.search("plants sunlight sugar", within=EVERYTHING)).passages[0]
    there = await library.passage(passage.id, EVERYTHING)
    assert isinstance(there, Passage) and there.text == passage.text
    await library.remove(plants.id, EVERYTHING)
    assert "plants.pdf" not in _files(await library.search("plants sunlight sugar", within=EVERYTHING))
    assert not (settings.documents / plants.id).exists()
    for wrong in (plants.id, "../../etc/passwd", ""):
        with pytest.raises(NotFound):
            await library.remove(wrong, EVERYTHING)
    assert isinstance(await library.passage(passage.id, EVERYTHING), Gone)


async def test_passage_ids_are_never_given_out_again(library: Library, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PLANTS)
    first = (await library.add([tmp_path / "a.txt"]))[0].document
    (old,) = await _passages(library, first)
    await library.remove(str(first), EVERYTHING)
    second = (await library.add([tmp_path / "a.txt"]))[0].document
    (new,) = await _passages(library, second)
    assert new.id > old.id


async def test_collections_keep_apart(library: Library, tmp_path: Path) -> None:
    for name, text in (("a.txt", PLANTS), ("b.txt", f"{PLANTS} {RIVERS}")):
        (tmp_path / name).write_text(text)
    await library.add([tmp_path / "a.txt"], collection="Year 7")
    await library.add([tmp_path / "b.txt"], collection="Staff")
    question = "How do plants make sugar from sunlight?"
    assert _files(await library.search(question, k=1, within=await library.named(["Staff"], EVERYTHING))) == ["b.txt"]
    assert _files(await library.search(question, k=5, within=await library.named(["Year 7"], EVERYTHING))) == ["a.txt"]
    assert sorted(_files(await library.search(question, within=EVERYTHING))) == ["a.txt", "b.txt"]
    assert (await library.search(question, within=await library.named([], EVERYTHING))).passages == []
    with pytest.raises(NotFound, match="no collection named Year 8"):
        await library.search(question, within=await library.named(["Year 8"], EVERYTHING))
    assert [document.file for document in await library.documents(await library.named(["Staff"], EVERYTHING))] == ["b.txt"]
    for wrong in ("", " \n ", "x" * 81, "a\0b"):
        with pytest.raises(BadInput):
            await library.add([], collection=wrong)


async def test_a_collection_is_filtered_before_the_best_are_taken(library: Library, tmp_path: Path) -> None:
    crowd = tmp_path / "crowd"
    crowd.mkdir()
    for number in range(12):
        pdf(crowd / f"{number}.pdf", [f"{PLANTS} Copy {number}, page {page}." for page in range(12)])
    (tmp_path / "mine.txt").write_text(f"Rivers and plants. {RIVERS}")
    await library.add([crowd], collection="crowd")
    await library.add([tmp_path / "mine.txt"], collection="mine")
    assert _files(
        await library.search("How do plants make sugar from sunlight?", within=await library.named(["mine"], EVERYTHING))
    ) == ["mine.txt"]


# --- while the engine is down ----------------------------------------------------------------------------------------
async def test_search_by_words_alone_says_so(settings: Settings, database: Database, school: Path) -> None:
    down = Library(settings, database, engine_down)
    reports = await down.add([school])
    assert all(report.status == "added" and "words only" in report.note for report in reports)
    found = await down.search("Where does the river drop pebbles and build a delta?", within=EVERYTHING)
    assert found.lexical_only and found.covered
    assert found.passages[0].file == "rivers.md" and found.passages[0].score == 0
    assert not (await down.search("Who wrote Romeo and Juliet?", within=EVERYTHING)).covered

    up = Library(settings, database, embed)
    reports = await up.add([school])
    assert {report.status for report in reports} == {"unchanged"}
    found = await up.search("Where does the river drop pebbles and build a delta?", within=EVERYTHING)
    assert not found.lexical_only and found.passages[0].score > 0.3
    assert (await down.search("river delta", within=EVERYTHING)).lexical_only
    for library in (down, up):
        library.close()


async def test_documents_notes_forget_that_the_engine_was_down(settings: Settings, database: Database, school: Path) -> None:
    await Library(settings, database, engine_down).add([school])
    library = Library(settings, database, embed)
    await library.add([])
    assert all("words only" not in document.note for document in await library.documents(EVERYTHING))
    library.close()


# --- questions of any sort -------------------------------------------------------------------------------------------
async def test_any_text_is_a_question(library: Library, school: Path) -> None:
    await library.add([school])
    odd = [
        "",
        " ",
        '"',
        "NEAR(a b)",
        "a AND",
        "* OR text:",
        "rowid:1",
        "the of and",
        "'; DROP TABLE passage; --",
        "\0",
        "光合作用",
        "x" * 9000,
    ]
    for text, found in zip(odd, await library.search_many(odd, within=EVERYTHING), strict=True):
        assert found.covered is False, text

    @given(st.lists(st.text(max_size=80), max_size=3))
    @hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def fuzz(texts: list[str]) -> None:
        loop = asyncio.new_event_loop()
        try:
            assert len(loop.run_until_complete(library.search_many(texts, within=EVERYTHING))) == len(texts)
        finally:
            loop.close()

    await asyncio.to_thread(fuzz)


async def test_an_empty_library_answers_nothing(library: Library) -> None:
    assert await library.search("anything", within=EVERYTHING) == Found(False, False, [], [])


async def test_check_measures_hits_and_refusals(library: Library, school: Path, tmp_path: Path) -> None:
    await library.add([school])
    rows = [
        {"question": "How do green plants make sugar from sunlight?", "book_file": "plants.pdf", "page": 2},
        {"question": "How do green plants make sugar from water?", "book_file": "plants.pdf", "page": 1},
        {"question": "Where does the river build a delta of sand?", "book_file": "rivers.md"},
        {"question": "Who wrote Romeo and Juliet?", "answer_in_books": False},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    result = await library.check(path, EVERYTHING)
    ranks = [question["rank"] for question in result["questions"]]
    assert (ranks[0], ranks[2], ranks[3]) == (1, 1, None) and ranks[1] > 1
    assert (result["hit_at_1"], result["hit_at_5"]) == (0.6667, 1.0)
    assert (result["refused_unanswerable"], result["refused_answerable"]) == (1.0, 0.0)
    path.write_text('{"question": "x"}\n{"query": 1}')
    with pytest.raises(BadInput, match=r"Line 2 of questions.jsonl"):
        await library.check(path, EVERYTHING)


# --- two at once -----------------------------------------------------------------------------------------------------
async def test_a_second_run_is_told_and_changes_nothing(library: Library, settings: Settings, school: Path) -> None:
    with locked(settings.run / "documents.lock"), pytest.raises(Conflict, match="another run"):
        await library.add([school])
    with locked(settings.run / "documents.lock"), pytest.raises(Conflict):
        await library.remove("0" * 16, EVERYTHING)
    assert (await library.add([school]))[0].status == "added"


async def test_searches_go_on_while_documents_are_added(library: Library, school: Path, tmp_path: Path) -> None:
    await library.add([school / "rivers.md"])
    pdf(tmp_path / "long.pdf", [f"{PLANTS} {MAGNETS} Number {page}." for page in range(60)])
    adding = asyncio.create_task(library.add([tmp_path / "long.pdf"]))
    while not adding.done():
        assert _files(await library.search("river delta pebbles", k=1, within=EVERYTHING)) == ["rivers.md"]
    assert [(report.status, report.error) for report in await adding] == [("added", None)]
    assert _files(await library.search("compass needle", k=1, within=EVERYTHING)) == ["long.pdf"]


async def test_searching_loads_no_heavy_library(library: Library, settings: Settings, school: Path) -> None:
    """The web process searches: it must stay small, and read no document itself."""
    import subprocess
    import sys

    code = (
        "import asyncio, sys; from pathlib import Path; from appliance.db import Database\n"
        "from appliance.settings import Settings\n"
        "from appliance.knowledge.library import EVERYTHING, Library; from tests.knowledge.helpers import engine_down\n"
        "s = Settings(home=Path(sys.argv[1])); d = Database(s.database); d.migrate()\n"
        "found = asyncio.run(Library(s, d, engine_down).search('river delta', within=EVERYTHING))\n"
        "print(found.passages[0].file, *{name.partition('.')[0] for name in sys.modules})"
    )
    from appliance.settings import CLONE

    await library.add([school])
    command = [sys.executable, "-c", code, str(settings.home)]
    done = subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "rivers.md" and "faiss" in done.stdout.split()
    heavy = {
        "torch",
        "transformers",
        "sentence_transformers",
        "pypdfium2",
        "docx",
        "bs4",
        "lxml",
        "llama_cpp",
        "tokenizers",
        "openpyxl",
    }
    assert not heavy & set(done.stdout.split())
