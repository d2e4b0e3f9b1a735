"""A power cut takes with it what the system had not yet put on the disk. What somebody was told is saved is there all the same.

A writer runs under strace, which tells every byte that it wrote and every fsync. From that the disk is made as it may be after
a cut at any moment: what was synced is there, and of the rest all, nothing or any part.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from appliance.db import Database
from appliance.tables import collections

ROWS = 60
WRITER = f"""
import sys
import sqlalchemy as sa
from pathlib import Path
from appliance.db import Database
from appliance.tables import collections
database = Database(Path(sys.argv[1]))
print("begun", flush=True)
for number in range({ROWS}):
    with database.begin() as connection:
        connection.execute(sa.insert(collections).values(id=str(number), name=f"{{number}} " * 2000, created=0))
    print(number, flush=True)
    if number % 20 == 19:
        database.fold_log()  # from the log into the file, where a torn page would do most harm
"""
CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass
class Disk:
    """Files as they surely are, and what was written since and may be there or not: where, and bytes; None: cut off there."""

    synced: dict[str, bytearray]
    pending: dict[str, list[tuple[int, bytes | None]]] = field(default_factory=dict)

    def write(self, path: str, at: int, data: bytes | None) -> None:
        self.pending.setdefault(path, []).append((at, data))

    def sync(self, path: str) -> None:
        for at, data in self.pending.pop(path, []):
            _apply(self.synced.setdefault(path, bytearray()), at, data)

    def after(self, chance: random.Random, share: float) -> dict[str, bytearray]:
        """The files as a cut may leave them: of what was not synced this share is there, in pieces of 512 bytes."""
        files = {path: bytearray(data) for path, data in self.synced.items()}
        for path, writes in self.pending.items():
            for at, data in writes:
                if data is None:
                    if chance.random() < share:
                        _apply(files.setdefault(path, bytearray()), at, None)
                    continue
                for start in range(0, len(data), 512):
                    if chance.random() < share:
                        _apply(files.setdefault(path, bytearray()), at + start, data[start : start + 512])
        return files


def _apply(file: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del file[at:]
    file.extend(bytes(max(0, at - len(file))))
    if data is not None:
        file[at : at + len(data)] = data


def moments(log: Path, home: Path, disk: Disk) -> Iterator[int]:
    """Play what the writer did; at each write, sync and word of it: how many rows it had said are saved."""
    opened: dict[str, str] = {}
    told = 0
    for line in log.read_text("ascii").splitlines():
        found = CALL.match(line)
        if not found or int(found[3]) < 0:
            continue
        call, given, result = found[1], found[2], int(found[3])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in TEXT.findall(given)]
        first = given.split(",")[0]
        if call == "openat" and texts:
            path = Path(texts[0].decode("utf-8", "replace"))
            opened[str(result)] = path.name if path.parent == home else ""
            continue
        if call == "write" and first == "1" and texts and texts[0].strip().isdigit():
            told = int(texts[0]) + 1
        name = opened.get(first, "")
        if call == "unlink" and texts and Path(texts[0].decode()).parent == home:
            disk.synced.pop(Path(texts[0].decode()).name, None)
        elif not name or name.endswith("-shm"):
            continue
        elif call == "pwrite64":
            disk.write(name, int(given.rsplit(",", 1)[1]), texts[0][:result])
        elif call == "ftruncate":
            disk.write(name, int(given.split(",")[1]), None)
        elif call in ("fsync", "fdatasync"):
            disk.sync(name)
        yield told


@pytest.mark.optional
def test_no_power_cut_takes_what_was_said_to_be_saved(database: Database, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    home = database.path.parent
    database.close()
    disk = Disk({path.name: bytearray(path.read_bytes()) for path in home.iterdir() if not path.name.endswith("-shm")})
    log = tmp_path / "calls"
    calls = "trace=openat,pwrite64,write,fsync,fdatasync,ftruncate,unlink"
    words = ["strace", "-f", "-xx", "-s", "1000000", "-e", calls, "-o", log, sys.executable, "-c", WRITER, database.path]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("nothing may be watched here")
    assert done.returncode == 0, done.stderr
    chance, tried, folded = random.Random(7), 0, 0
    for number, told in enumerate(moments(log, home, disk)):
        if number % 9 and told < ROWS:
            continue
        for share in (0.0, 0.5, 1.0):
            place = tmp_path / f"{number}-{share}"
            place.mkdir()
            for name, data in disk.after(chance, share).items():
                (place / name).write_bytes(data)
            after = Database(place / database.path.name)
            try:
                after.check()
                with after.read() as connection:
                    there = sorted(int(id) for id in connection.execute(sa.select(collections.c.id)).scalars() if id.isdigit())
            finally:
                after.close()
            assert there[:told] == [*range(told)] and len(there) <= told + 1, f"moment {number}: {told} were said to be saved"
            tried += 1
            shutil.rmtree(place)
        folded = max(folded, sum(name.endswith(".sqlite3") for name in disk.pending))
    assert tried > 90 and told == ROWS and folded, "the writes into the file itself were met as well"
