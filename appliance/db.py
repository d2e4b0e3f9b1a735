"""The database: one SQLite file in WAL mode, migrated at start, opened by several processes.

Hides the driver (pysqlite3, which carries its own SQLite: Debian's has a bug that can corrupt a WAL file when two connections
write and checkpoint at once, fixed in 3.51.3), the pragmas, and alembic. Work is blocking; async callers use a thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.errors import ApplianceError, Conflict, StorageFull

OLDEST_SQLITE = (3, 51, 3)
STEPS = 100_000  # of SQLite's machine between two looks at the clock
MIGRATIONS = Path(__file__).parent / "migrations"
FORMS = 10_000  # more than there will ever be migrations; they are numbered


class Damaged(ApplianceError):
    """The file is not what SQLite wrote."""

    code = "damaged_database"


class Database:
    """Connections to one database file. Safe to share between threads; every process makes its own."""

    def __init__(self, path: Path) -> None:
        import pysqlite3

        if tuple(int(part) for part in pysqlite3.sqlite_version.split(".")) < OLDEST_SQLITE:
            raise ApplianceError(
                f"SQLite {pysqlite3.sqlite_version} can corrupt a database that two processes write.",
                "Install pysqlite3 0.6.1 or newer.",
            )
        self.path = path
        self.engine = sa.create_engine(
            f"sqlite+pysqlite:///{path}",
            module=pysqlite3.dbapi2,
            connect_args={"timeout": 30, "check_same_thread": False},
            hide_parameters=True,  # they are what pupils wrote, and an error's text ends up in a log
        )
        sa.event.listen(self.engine, "connect", _on_connect)
        sa.event.listen(self.engine, "begin", _on_begin)
        self._reader = self.engine.execution_options(read=True)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view that never waits for a writer. Writing through it is a mistake and fails under load."""
        with self._transaction(self._reader) as connection:
            yield connection

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction: committed at the end, rolled back on any exception. Writers wait for each other up to 30 s."""
        with self._transaction(self.engine) as connection:
            yield connection

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            raise _translate(error, self.path) from error
        except sa.exc.DatabaseError as error:
            if "malformed" in str(error) or "not a database" in str(error):
                raise _damaged(self.path) from error
            raise

    def migrate(self) -> None:
        """Bring the schema to this release's. Makes the file where there is none.

        A newer database is left as it is where it says that this release may still open it (an upgrade that was undone), and
        refused otherwise.
        """
        from alembic import command
        from alembic.runtime.migration import MigrationContext

        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        config, scripts = _scripts()
        with self.begin() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            if current == scripts.get_current_head():
                return
            if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
                if may_open(connection, current, scripts.get_current_head()):
                    return
                raise Conflict(
                    f"The database {self.path} was made by a newer release of the appliance.",
                    "Install that release again, or restore a backup made with this one.",
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.exec_driver_sql(f"PRAGMA user_version={_says(scripts)}")
        self.path.chmod(0o600)

    @staticmethod
    def revisions() -> set[str]:
        """The schemas that this release can open: its own, and those that it migrates."""
        return {script.revision for script in _scripts()[1].walk_revisions()}

    def check(self, *, thorough: bool = False, seconds: float = 0.0) -> None:
        """Read the whole file; thorough: and compare each index with its table. Raises Damaged.

        seconds: as much of it as is read in that time, for who cannot wait; 0 is all.
        """
        ends, late = time.monotonic() + seconds, False

        def over() -> bool:
            nonlocal late
            late = bool(seconds) and time.monotonic() > ends
            return late

        try:
            with self.read() as connection:
                driver: Any = connection.connection.driver_connection
                driver.set_progress_handler(over if seconds else None, STEPS)
                try:
                    if connection.exec_driver_sql(f"PRAGMA {'integrity' if thorough else 'quick'}_check").scalar() != "ok":
                        raise _damaged(self.path)
                finally:
                    driver.set_progress_handler(None, 0)
        except ApplianceError as error:
            if not late or isinstance(error, Damaged):
                raise

    def copy_to(self, path: Path) -> None:
        """As it stands at this moment, into a new file for the owner alone, while others write. Raises ApplianceError."""
        import pysqlite3

        path.touch(mode=0o600)
        try:
            with contextlib.closing(pysqlite3.dbapi2.connect(str(path))) as copy:
                connection = self.engine.raw_connection()
                try:
                    # All pages in one step: a reader in WAL mode holds up no writer, and never has to begin again.
                    connection.driver_connection.backup(copy, pages=-1)  # type: ignore[union-attr]
                finally:
                    connection.close()
        except pysqlite3.dbapi2.OperationalError as error:
            raise _translate(error, self.path) from error
        except pysqlite3.dbapi2.DatabaseError as error:
            raise _damaged(self.path) from error

    def fold_log(self, *, patience: float = 2.0) -> bool:
        """Put the write-ahead log into the file and empty it, so that no page is left as it was before.

        False where somebody else still reads or writes after so many seconds; then old pages stay in the log for now.
        """
        try:
            connection = self.engine.raw_connection()
            try:
                cursor = connection.cursor()
                before = cursor.execute("PRAGMA busy_timeout").fetchone()[0]
                cursor.execute(f"PRAGMA busy_timeout={int(patience * 1000)}")
                busy, _pages, _folded = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                cursor.execute(f"PRAGMA busy_timeout={int(before)}")
                cursor.close()
            finally:
                connection.close()
        except (sa.exc.DatabaseError, self.engine.dialect.loaded_dbapi.DatabaseError):
            return False
        return not busy

    def close(self) -> None:
        self.engine.dispose()


def _scripts() -> tuple[Any, Any]:
    """alembic's configuration and the migrations of this release."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config, ScriptDirectory.from_config(config)


def may_open(connection: sa.Connection, current: str, head: str) -> bool:
    """Whether a newer database says that a release which knows the migrations up to `head` may use it as it is.

    It says so of the form that it has, `current`: what an earlier one said counts for nothing.
    """
    newest, oldest = divmod(int(connection.exec_driver_sql("PRAGMA user_version").scalar() or 0), FORMS)
    return newest == int(current) and 0 < oldest <= int(head)


def _says(scripts: Any) -> int:
    """The newest migration, and the oldest one whose release can use its database: each after that says that it only adds."""
    script = newest = scripts.get_revision("head")
    while getattr(script.module, "only_adds", False):
        script = scripts.get_revision(script.down_revision)
    return int(newest.revision) * FORMS + int(script.revision)


def _on_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy begins; the driver must not begin a second time on its own
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # An acknowledged message survives a power cut; it costs one fsync a transaction.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    # On every connection, not only where somebody withdraws: what an earlier one moved or unlinked would stay readable.
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.execute("PRAGMA trusted_schema=OFF")
    cursor.close()


def _on_begin(connection: sa.Connection) -> None:
    # IMMEDIATE: a transaction that reads, then writes, cannot fail half-way because another one wrote in between.
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("read") else "BEGIN IMMEDIATE")


def _damaged(path: Path) -> Damaged:
    return Damaged(f"The database {path} is damaged.", "Restore the last good backup: `appliance backup restore latest`.")


def _translate(error: Exception, path: Path) -> ApplianceError:
    """error: the driver's, or SQLAlchemy's around it."""
    text = str(getattr(error, "orig", error))
    if "full" in text:
        return StorageFull(f"The disk is full: {path} could not be written.", "Free some space, then try again.")
    if "locked" in text:
        return Conflict(f"Another process has held the database {path} for too long.", "Try again in a moment.")
    if "readonly" in text or "unable to open" in text:
        return ApplianceError(f"The database {path} cannot be opened: {text}.", "Check who owns the appliance's folder.")
    return ApplianceError(
        f"The database {path} refused: {text}.", "Try again; if it stays so: `appliance backup restore latest`."
    )
