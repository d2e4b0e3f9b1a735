"""Vectors of large segments, which are read in place from the disk: damage to their file ends nobody's process."""

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
from appliance.knowledge import index, segments, vectors
from appliance.knowledge.index import Index
from appliance.knowledge.shelves import EVERYTHING, Filter
from appliance.settings import CLONE, Settings
from tests.knowledge.school import School, units

HARMLESS = ("removed", "replaced")  # what is mapped is not what has the name by now
DAMAGES = ("cut to a page", "emptied", "half of it", "zeros", "noise", "longer", "touched", *HARMLESS)


def _run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.knowledge.mapped", str(home), *arguments]
    return subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize("kind", ["scan", "clusters"])
def test_the_danger_is_real(tmp_path: Path, kind: str) -> None:
    """Without the look at the file, a search in one that was cut short ends the process: these tests can fail."""
    assert _run(tmp_path / "home", kind, "emptied", "--unguarded").returncode == -signal.SIGBUS


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["scan", "clusters"])
def test_vectors_damaged_between_two_searches_are_noticed_and_built_anew(tmp_path: Path, kind: str, damage: str) -> None:
    run = _run(tmp_path / "home", kind, damage)
    assert run.returncode == 0, run.stderr[-2000:]
    before, after, noticed = json.loads(run.stdout)
    assert len(before) == 20 and after == before
    assert noticed == (damage not in HARMLESS)


# --- while nobody has it open ----------------------------------------------------------------------------------------
@pytest.fixture(params=["scan", "clusters"])
def school(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[School]:
    """Two classes with a segment each, read in place; closed."""
    monkeypatch.setattr(index, "GROWTH", 0)
    monkeypatch.setattr(segments, "IN_MEMORY", 0)
    monkeypatch.setattr(vectors, "FLAT_BELOW", 1)
    monkeypatch.setattr(vectors, "CLUSTERS_FROM", 1 if request.param == "clusters" else 10**9)
    monkeypatch.setattr(vectors, "PROBES", 10**6)
    school = School(settings, database)
    for name in ("seven", "eight"):
        school.add(name, [f"{name} page{number}" for number in range(600)], name)
        school.index.rebuild()
    school.index.close()
    yield school
    school.index.close()


@pytest.mark.parametrize("file", ["vectors.faiss", "lexical.sqlite3", "rows.npy", "documents.json"])
@pytest.mark.parametrize(
    "damage", ["flipped 0.0", "flipped 0.3", "flipped 0.7", "flipped 1.0", "cut", "emptied", "gone", "of the other class"]
)
def test_a_damaged_segment_is_never_served_and_built_anew(school: School, file: str, damage: str) -> None:
    first, second = sorted(school.settings.index.glob("seg-*"))
    sound = (second / file).read_bytes()
    match damage.split():
        case ["flipped", share]:
            data = bytearray(sound)
            data[min(len(data) - 1, int(len(data) * float(share)))] ^= 0x41
            (second / file).write_bytes(data)
        case ["cut"]:
            os.truncate(second / file, len(sound) // 2)
        case ["emptied"]:
            os.truncate(second / file, 0)
        case ["gone"]:
            (second / file).unlink()
        case _:
            shutil.copyfile(first / file, second / file)
            assert (second / file).read_bytes() != sound
    kept = (first / file).stat().st_mtime_ns
    reader = Index(school.settings.index, school.settings.run / "index.lock", school.database)
    generation = reader.fresh()
    assert {one.name for one in generation.segments} & {second.name} == set(), "the damaged one is gone"
    assert (first / file).stat().st_mtime_ns == kept, "and the other was left alone"
    for name in ("seven", "eight"):
        within = Filter(frozenset({name}))
        mine = {id for id, _ in generation.matching([name], 1000, within)}
        assert len(mine) == 600
        for vector in units(4, seed=8):
            found = [id for id, _ in generation.nearest(vector, 10, within)]
            assert found == school.exact(vector, 10, sorted(mine))
    assert generation.passages == 1200 and len(generation.nearest(units(1)[0], 1200, EVERYTHING)) == 1200
    reader.close()
