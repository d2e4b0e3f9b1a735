"""Power cuts, damaged files and full disks: what was there before stays, and nothing half-made is ever served."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.db import Database
from appliance.errors import StorageFull
from appliance.knowledge.library import EVERYTHING, Library
from appliance.settings import CLONE, Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, embed, engine_down, pdf

QUESTION = "Where does a river drop pebbles and build a delta?"


async def _home(folder: Path, files: dict[str, str]) -> Path:
    """A home with these documents in it, closed, so that it can be copied."""
    source = folder.parent / f"{folder.name}-source"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    settings = Settings(home=folder)
    database = Database(settings.database)
    database.migrate()
    library = Library(settings, database, embed)
    await library.add([source])
    library.close()
    database.close()
    return folder


def _opened(home: Path) -> tuple[Library, Database]:
    settings = Settings(home=home)
    database = Database(settings.database)
    return Library(settings, database, embed), database


def _whole(home: Path) -> bool:
    """The segments of the newest generation and no others, nothing left of a build, no copy on its way in."""
    listed = json.loads((home / "index" / "current").read_text())["segments"]
    names = {path.name for path in (home / "index").iterdir()}
    return names == {"current", *listed} and not list((home / "documents").glob(".*"))


def _segment(home: Path) -> Path:
    (segment,) = (home / "index").glob("seg-*")
    return segment


# --- kill -9 ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("apart", [False, True])
async def test_killed_at_any_step_nothing_is_lost_or_done_twice(tmp_path: Path, apart: bool) -> None:
    """Of adding, replacing, merging; and, apart, of purging what was replaced."""
    seed = await _home(tmp_path / "seed", {"notes.txt": PLANTS, "rivers.txt": RIVERS})
    incoming = tmp_path / "seed-source"
    (incoming / "rivers.txt").unlink()
    (incoming / "notes.txt").write_text(f"{MAGNETS} {PLANTS} These are the new notes.")
    homes = [Path(shutil.copytree(seed, tmp_path / f"home-{number}")) for number in range(32 if apart else 22)]
    told = subprocess.run(
        [sys.executable, "-m", "tests.knowledge.killed", *["--apart"] * apart, *map(str, homes), "--", str(incoming)],
        cwd=CLONE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "failed" not in told and told[-1] == "finished", "enough homes to see every step"
    killed = told.count("killed")
    assert killed >= (20 if apart else 8)
    for home in homes[: killed + 1]:
        library, database = _opened(home)
        before = {document.file: document for document in await library.documents(EVERYTHING)}
        assert {"notes.txt", "rivers.txt"} <= set(before), "what was there is there, in its old form or its new one"
        for document in before.values():
            _, passages = await library.document(document.id, EVERYTHING)
            assert passages and (home / "documents" / document.id).stat().st_size == document.bytes
        assert (await library.search(QUESTION, within=EVERYTHING)).passages[0].file == "rivers.txt"

        reports = await library.add([incoming])
        assert {report.status for report in reports} <= {"added", "unchanged"}
        after = {document.file: document for document in await library.documents(EVERYTHING)}
        assert set(after) == {"notes.txt", "rivers.txt"}
        _, (notes,) = await library.document(after["notes.txt"].id, EVERYTHING)
        assert notes.text.endswith("These are the new notes.")
        for report in reports:
            if report.status == "unchanged":
                assert after[report.file].id == before[report.file].id, "finished work is not done twice"
        assert _whole(home)
        library.close()
        database.close()


async def test_killed_from_outside_while_embedding(tmp_path: Path) -> None:
    home = await _home(tmp_path / "home", {"rivers.txt": RIVERS})
    many = tmp_path / "many"
    many.mkdir()
    for number in range(15):
        (many / f"{number:02}.txt").write_text(f"{PLANTS} Copy {number}.")
    code = (
        "import asyncio, sys; import tests.knowledge.killed as k\n"
        "real, calls = k.embed, []\n"
        "async def embed(texts):\n"
        "    calls.append(texts)\n"
        "    if len(calls) > 6:\n"
        "        print('embedding', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "    return await real(texts)\n"
        "k.embed = embed\n"
        "k.add(k.Path(sys.argv[1]), [k.Path(sys.argv[2])], 0)\n"
    )
    command = [sys.executable, "-c", code, str(home), str(many)]
    with subprocess.Popen(command, cwd=CLONE, start_new_session=True, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "embedding\n", "it died before it was killed"
        os.killpg(run.pid, signal.SIGKILL)
    library, database = _opened(home)
    finished = {document.id for document in await library.documents(EVERYTHING)}
    assert len(finished) == 7, "what was done with by then"
    reports = await library.add([many])
    assert sum(report.status == "unchanged" for report in reports) == len(finished) - 1
    assert finished <= {document.id for document in await library.documents(EVERYTHING)}
    assert _whole(home)
    library.close()
    database.close()


# --- damage ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import asyncio

    return asyncio.run(_home(tmp_path_factory.mktemp("sound") / "home", {"plants.txt": PLANTS, "rivers.txt": RIVERS}))


def _flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[min(len(data) - 1, int(len(data) * share))] ^= 0x41
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["vectors.faiss", "lexical.sqlite3", "rows.npy", "documents.json", "../current"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 1.0])
async def test_a_flipped_byte_is_never_served(tmp_path: Path, sound: Path, file: str, share: float) -> None:
    home = Path(shutil.copytree(sound, tmp_path / "home"))
    segment = _segment(home)
    whole = (segment / file).read_bytes()
    _flip(segment / file, share)
    library, database = _opened(home)
    found = await library.search(QUESTION, within=EVERYTHING)
    assert found.passages[0].file == "rivers.txt" and found.covered
    rebuilt = _segment(home)
    assert rebuilt.name != segment.name, "the damaged one is gone"
    if file in ("vectors.faiss", "rows.npy", "documents.json"):
        assert (rebuilt / file).read_bytes() == whole
    assert _whole(home)
    library.close()
    database.close()


@pytest.mark.parametrize(
    "damage",
    ["truncated", "missing file", "missing segment", "missing folder", "wrong pointer", "no pointer", "path in pointer", "old"],
)
async def test_other_damage_is_repaired(tmp_path: Path, sound: Path, damage: str) -> None:
    home = Path(shutil.copytree(sound, tmp_path / "home"))
    segment, current = _segment(home), home / "index" / "current"
    match damage:
        case "truncated":
            os.truncate(segment / "vectors.faiss", 100)
        case "missing file":
            (segment / "lexical.sqlite3").unlink()
        case "missing segment":
            shutil.rmtree(segment)
        case "missing folder":
            shutil.rmtree(home / "index")
        case "wrong pointer":
            current.write_text(current.read_text().replace(segment.name, "seg-99"))
        case "no pointer":
            current.unlink()
        case "path in pointer":
            current.write_text(current.read_text().replace(segment.name, "../../elsewhere"))
        case "old":  # an index as earlier releases wrote it
            segment.rename(home / "index" / "gen-3")
            current.write_text("gen-3")
    library, database = _opened(home)
    assert (await library.search(QUESTION, within=EVERYTHING)).passages[0].file == "rivers.txt"
    assert _whole(home)
    library.close()
    database.close()


async def test_one_damaged_segment_costs_no_other(tmp_path: Path) -> None:
    texts = {f"plants {number:02}.txt": f"{PLANTS} Copy {number}." for number in range(12)}
    home = await _home(tmp_path / "home", texts)
    sound = _segment(home)
    library, database = _opened(home)
    (tmp_path / "rivers.txt").write_text(RIVERS)
    await library.add([tmp_path / "rivers.txt"])
    library.close()
    database.close()
    (small,) = set((home / "index").glob("seg-*")) - {sound}
    before = (sound / "documents.json").stat().st_mtime_ns
    _flip(small / "lexical.sqlite3", 0.5)
    library, database = _opened(home)
    assert (await library.search(QUESTION, within=EVERYTHING)).passages[0].file == "rivers.txt"
    assert (sound / "documents.json").stat().st_mtime_ns == before and not small.exists() and _whole(home)
    library.close()
    database.close()


async def test_an_index_of_another_school_is_not_served(tmp_path: Path, sound: Path) -> None:
    other = await _home(tmp_path / "other", {"magnets.txt": MAGNETS, "more.txt": f"{PLANTS} More."})
    home = Path(shutil.copytree(sound, tmp_path / "home"))
    shutil.rmtree(home / "index")
    shutil.copytree(other / "index", home / "index")
    library, database = _opened(home)
    found = (await library.search(QUESTION, k=9, within=EVERYTHING)).passages
    assert [passage.file for passage in found] == ["rivers.txt", "plants.txt"]
    assert _segment(home).joinpath("vectors.faiss").read_bytes() == _segment(sound).joinpath("vectors.faiss").read_bytes()
    assert _whole(home)
    library.close()
    database.close()


async def test_damage_after_opening_changes_no_answer(tmp_path: Path, sound: Path) -> None:
    home = Path(shutil.copytree(sound, tmp_path / "home"))
    library, database = _opened(home)
    before = await library.search(QUESTION, within=EVERYTHING)
    for file in _segment(home).iterdir():
        file.write_bytes(bytes(len(file.read_bytes())))
    assert await library.search(QUESTION, within=EVERYTHING) == before
    library.close()
    database.close()


async def test_another_process_sees_what_one_has_added(tmp_path: Path, sound: Path) -> None:
    home = Path(shutil.copytree(sound, tmp_path / "home"))
    (writer, one), (reader, two) = _opened(home), _opened(home)
    assert (await reader.search("compass needle magnet", within=EVERYTHING)).covered is False
    (tmp_path / "magnets.txt").write_text(MAGNETS)
    await writer.add([tmp_path / "magnets.txt"])
    assert (await reader.search("compass needle magnet", within=EVERYTHING)).passages[0].file == "magnets.txt"
    await writer.remove((await reader.search("compass needle magnet", within=EVERYTHING)).passages[0].document, EVERYTHING)
    assert all(
        passage.file != "magnets.txt" for passage in (await reader.search("compass needle magnet", within=EVERYTHING)).passages
    )
    for part in (writer, reader, one, two):
        part.close()


# --- a full disk -----------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Six megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if not shutil.which("mount"):
        pytest.skip("there is no mount command here")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_full_disk_says_so_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    settings = Settings(home=small_disk / "home", disk_reserve_mb=0)
    database = Database(settings.database)
    database.migrate()
    library = Library(settings, database, embed)
    (tmp_path / "rivers.txt").write_text(RIVERS)
    assert (await library.add([tmp_path / "rivers.txt"]))[0].status == "added"

    # Not to the last byte by the check before copying, but by what comes after it: text, vectors, index.
    pdf(tmp_path / "long.pdf", [f"{PLANTS} {MAGNETS} Page {page} of many. " * 4 for page in range(700)])
    filler = small_disk / "filler"
    filler.write_bytes(bytes(int(shutil.disk_usage(small_disk).free - 1.2 * 2**20)))
    (report,) = await library.add([tmp_path / "long.pdf"])
    assert isinstance(report.error, StorageFull), report
    assert "long.pdf" in report.error.message and "full" in report.error.message and report.error.hint
    assert [document.file for document in await library.documents(EVERYTHING)] == ["rivers.txt"]
    assert (await library.search(QUESTION, within=EVERYTHING)).passages[0].file == "rivers.txt"
    assert len(list(settings.documents.iterdir())) == 1

    fresh, other = _opened(settings.home)
    (small_disk / "home" / "index" / "current").unlink()
    (small_disk / "rest").write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - 8192)))
    found = await fresh.search(QUESTION, within=EVERYTHING)
    assert found.passages[0].file == "rivers.txt", "no room for an index: it is kept in memory"

    filler.unlink()
    assert (await library.add([tmp_path / "long.pdf"]))[0].status == "added", "the same command works once there is room"
    for part in (library, database, fresh, other):
        part.close()


async def test_the_reserve_is_left_alone(tmp_path: Path, database: Database, settings: Settings) -> None:
    library = Library(Settings(home=settings.home, disk_reserve_mb=10**9), database, engine_down)
    (tmp_path / "rivers.txt").write_text(RIVERS)
    (report,) = await library.add([tmp_path / "rivers.txt"])
    assert isinstance(report.error, StorageFull) and "rivers.txt" in report.error.message
    assert list(settings.documents.iterdir()) == []
    library.close()
