"""Errors, settings, the database: what everything else stands on."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from appliance import errors, files, network, settings, tables
from appliance.db import Database
from appliance.errors import (
    ApplianceError,
    BadInput,
    Busy,
    Conflict,
    Forbidden,
    GateNotPassed,
    NotSignedIn,
    StorageFull,
    UnderWay,
)


def kinds() -> list[type[ApplianceError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ApplianceError)]


def test_exit_codes_are_those_that_scripts_rely_on() -> None:
    codes = {kind.__name__: kind.exit_code for kind in kinds()}
    assert codes["GateNotPassed"] == 4 and codes["Forbidden"] == 3 and codes["Busy"] == 75
    assert codes["UnderWay"] == 75 and codes["NotSignedIn"] == 3
    for kind in kinds():
        refused, busy = issubclass(kind, Forbidden | NotSignedIn), issubclass(kind, Busy | UnderWay)
        if kind is not GateNotPassed:
            assert kind.exit_code == (3 if refused else 75 if busy else 1), kind
    assert len({kind.code for kind in kinds()}) == len(kinds()), "each kind has a code of its own"


def test_errors_survive_the_way_from_a_child_process() -> None:
    for kind in kinds():
        back = pickle.loads(pickle.dumps(kind("what", "next")))
        assert (type(back), back.message, back.hint) == (kind, "what", "next")


def test_a_full_disk_has_its_own_words() -> None:
    error = errors.from_os_error(OSError(errno.ENOSPC, "x", "/a/lesson.pdf"), "saving lesson.pdf")
    assert isinstance(error, StorageFull)
    assert "lesson.pdf" in error.message and error.hint


def test_settings_come_from_the_environment_and_name_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APPLIANCE_PORT", "9000")
    assert settings.load(home=tmp_path).port == 9000
    monkeypatch.setenv("APPLIANCE_PORT", "90000")
    with pytest.raises(BadInput, match="port") as caught:
        settings.load(home=tmp_path)
    assert "APPLIANCE_PORT" in caught.value.hint


def test_the_settings_file_is_read_and_unknown_names_in_it_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "appliance.toml"
    monkeypatch.setattr(settings, "CONFIG_FILE", file)
    file.write_text('school = "Hill School"\n')
    assert settings.load(home=tmp_path).school == "Hill School"
    file.write_text("scool = 'Hill School'\n")
    with pytest.raises(BadInput, match="scool"):
        settings.load(home=tmp_path)
    file.write_text("school = \n")
    with pytest.raises(BadInput, match="TOML"):
        settings.load(home=tmp_path)


def test_every_setting_says_what_it_does() -> None:
    assert not [name for name, field in settings.Settings.model_fields.items() if not field.description]


def test_migrated_schema_is_the_one_on_the_page(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_migrating_again_changes_nothing_and_a_newer_database_is_refused(database: Database) -> None:
    database.migrate()
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Conflict, match="newer"):
        database.migrate()


def test_sqlite_is_new_enough_for_two_writers() -> None:
    import pysqlite3

    assert tuple(map(int, pysqlite3.sqlite_version.split("."))) >= (3, 51, 3)


def test_an_error_of_the_database_holds_no_word_of_what_was_to_be_written(database: Database) -> None:
    row = {"id": "1", "name": "Wilhelmina Quorn", "created": 0}
    with pytest.raises(sa.exc.IntegrityError) as caught, database.begin() as connection:
        connection.execute(sa.insert(tables.collections).values(**row))
        connection.execute(sa.insert(tables.collections).values(**row))
    assert "Quorn" not in str(caught.value)


def test_the_log_is_folded_into_the_file_and_says_where_a_reader_holds_it_up(database: Database) -> None:
    def write(id: str) -> None:
        with database.begin() as connection:
            connection.execute(sa.insert(tables.collections).values(id=id, name=id, created=0))

    log = database.path.with_name(database.path.name + "-wal")
    write("1")
    with database.read() as reader:
        reader.execute(sa.select(tables.collections)).all()
        write("2")
        assert not database.fold_log(patience=0.05) and log.stat().st_size
    assert database.fold_log() and not log.stat().st_size
    with database.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


def test_what_is_kept_is_for_its_owner_alone_and_what_was_asked_for_is_not(tmp_path: Path) -> None:
    def modes(path: Path) -> list[int]:
        return [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent, path.parent.parent)]

    before = os.umask(0o022)
    try:
        kept, asked = tmp_path / "a" / "b" / "kept", tmp_path / "c" / "d" / "asked"
        files.write_atomically(kept, "words")
        files.write_atomically(asked, "words", private=False)
        assert modes(kept) == [0o600, 0o700, 0o700] and modes(asked) == [0o644, 0o755, 0o755]
        kept.chmod(0o644)
        files.write_atomically(kept, "more")
        assert modes(kept)[0] == 0o600 and kept.read_text() == "more"
        with pytest.raises(ApplianceError, match="writing x"):
            files.write_atomically(kept / "x", "a file is no folder")
    finally:
        os.umask(before)


def test_a_damaged_database_is_found(database: Database) -> None:
    with database.begin() as connection:
        for number in range(300):
            connection.execute(sa.insert(tables.collections).values(id=str(number), name=f"n{number}" * 20, created=0))
    database.close()
    raw = bytearray(database.path.read_bytes())
    raw[8192:12288] = os.urandom(4096)
    database.path.write_bytes(raw)
    with pytest.raises(ApplianceError, match="damaged"):
        Database(database.path).check()


WRITER = """
import sys
import sqlalchemy as sa
from pathlib import Path
from appliance.db import Database
from appliance.tables import collections
database = Database(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9):
    with database.begin() as connection:
        connection.execute(sa.insert(collections).values(id=str(number), name=str(number), created=0))
    print(number, flush=True)
"""


def test_kill_while_writing_loses_nothing_that_was_acknowledged(database: Database) -> None:
    written = -1
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(database.path), str(written + 1)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _line in range(20):
            written = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        with database.read() as connection:
            kept = {int(row[0]) for row in connection.execute(sa.select(tables.collections.c.id))}
        written = int(rest[-1]) if rest else written
        assert set(range(written + 1)) <= kept
        written = max(kept)
    database.check()


def test_a_full_disk_loses_nothing_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        database = Database(disk / "appliance.sqlite3")
        database.migrate()
        kept = 0
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 200_000)
        with pytest.raises(StorageFull, match="disk is full"):
            for kept in range(10_000):
                with database.begin() as connection:
                    row = {"id": str(kept), "name": f"{kept}" * 500, "created": 0}
                    connection.execute(sa.insert(tables.collections).values(**row))
        with database.read() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(tables.collections)).scalar() == kept
        ballast.unlink()
        with database.begin() as connection:
            connection.execute(sa.insert(tables.collections).values(id="again", name="again", created=0))
        database.check()
        database.close()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_libraries_are_told_to_stay_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1" and os.environ["DO_NOT_TRACK"] == "1"
    assert 0 < int(network.OFFLINE["GOMP_SPINCOUNT"]) <= 10_000  # threads that wait neither sleep at once nor spin for long


def test_busy_tells_when_to_come_back() -> None:
    assert Busy("full", "later", retry_after=7).retry_after == 7
