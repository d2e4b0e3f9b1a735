"""What a backup holds: the box's whole folder but what can be made again, and a manifest to compare it with.

Hides how a box that people write to stands still for it: the database through SQLite's online backup, large files as second
names of the same content (they are replaced, never changed in place), small ones as copies. Sign-ins are left out: a cookie
from before is worth nothing after a restore.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance import __version__
from appliance.audit import Audit
from appliance.backup.repository import Damaged, Snapshot
from appliance.db import Database
from appliance.errors import ApplianceError, Conflict, NotFound, from_os_error
from appliance.files import sha256_of, write_atomically
from appliance.settings import CONFIG_FILE, Settings
from appliance.tables import sessions, setup_codes

MANIFEST = "manifest.json"
STATE = "home"  # in a backup: what goes into the home folder
SETTINGS = "settings"  # in a backup: the settings' file, and files outside the home folder that it names
# Made again when they are missing, of this moment only, or the backups themselves.
LEFT_OUT = frozenset({"run", "engine-cache", "backups", "backup.key", "backup.key.old", "lost+found"})
UNFINISHED = "checkpoints"  # of tuning runs: large, and of use only to a run that goes on
WHOLE = frozenset({"documents", "models", "index"})  # here a file is replaced by a rename and never written to again
NAMED = ("ldap_bind_password_file", "ldap_ca_file", "oidc_client_secret_file", "oidc_ca_file")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Contents:
    """The manifest; `schema`: the database's.

    files: {path in the backup: [sha256, bytes]}; rows: of each table; named: {file in SETTINGS: its path}."""

    version: str
    schema: str
    created: float
    bytes: int
    files: dict[str, tuple[str, int]]
    rows: dict[str, int]
    named: dict[str, str]


# --- at the time of a backup --------------------------------------------------------------------------------------------
def gather(settings: Settings, tree: Path, progress: Progress) -> Contents:
    """Put everything that a backup holds below the empty folder `tree`, the manifest last. Blocking. Raises ApplianceError."""
    try:
        home = tree / STATE
        home.mkdir(parents=True, mode=0o700)
        progress("collecting", 0, 0)
        _take(settings, home)
        rows, schema = _take_database(settings, home / settings.database.name)
        _take(settings, home)  # once more: a document that came in between is in the database's copy
        named = _take_settings(settings, tree / SETTINGS)
        files = _told(tree, progress)
    except OSError as error:
        raise from_os_error(error, "collecting what a backup holds") from None
    size = sum(size for _digest, size in files.values())
    contents = Contents(__version__, schema, time.time(), size, files, rows, named)
    write_atomically(tree / MANIFEST, json.dumps(asdict(contents), ensure_ascii=False, indent=0))
    return contents


def _take(settings: Settings, to: Path) -> None:
    own = {settings.database.name + ending for ending in ("", "-wal", "-shm", "-journal")}
    for top in sorted(os.listdir(settings.home)):
        if top in LEFT_OUT or top in own or top.startswith("."):
            continue
        for path in _files(settings.home / top):
            target = to / path.relative_to(settings.home)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                _second_name(path, target, linked=top in WHOLE)


def _files(top: Path) -> Iterator[Path]:
    """Plain files; what begins with a dot is being written, or a lock."""
    if not top.is_dir():
        yield from [top] if _plain(top) else []
        return
    for folder, names, files in os.walk(top):
        names[:] = [name for name in names if name != UNFINISHED and not name.startswith(".")]
        paths = (Path(folder) / name for name in files if not name.startswith("."))
        yield from (path for path in paths if _plain(path))


def _plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _second_name(path: Path, target: Path, *, linked: bool) -> None:
    try:
        if linked:
            os.link(path, target)
            return
    except FileNotFoundError:
        return  # taken out at this moment
    except OSError:
        pass  # on another disk
    try:
        shutil.copy2(path, target)
    except FileNotFoundError:
        target.unlink(missing_ok=True)


def _take_database(settings: Settings, to: Path) -> tuple[dict[str, int], str]:
    """The copy, without sign-ins; the rows of its tables, and its schema's revision."""
    if not settings.database.is_file():
        raise NotFound(f"There is nothing to back up in {settings.home}.", "Choose the box's own folder with --home.")
    source = Database(settings.database)
    try:
        source.copy_to(to)
    finally:
        source.close()
    copy = Database(to)
    try:
        with copy.begin() as connection:
            for table in (sessions, setup_codes):
                connection.execute(table.delete())
            schema = str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "")
        copy.fold_log()
        return rows_of(copy), schema
    finally:
        copy.close()
        to.chmod(0o600)


def rows_of(database: Database) -> dict[str, int]:
    with database.read() as connection:
        listed = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        names = [str(name) for (name,) in connection.exec_driver_sql(listed)]
        return {name: int(connection.scalar(sa.select(sa.func.count()).select_from(sa.table(name))) or 0) for name in names}


def _take_settings(settings: Settings, to: Path) -> dict[str, str]:
    wanted = [CONFIG_FILE, *(path for name in NAMED if (path := getattr(settings, name)) is not None)]
    named = {}
    for path in wanted:
        if path.is_file() and settings.home not in path.parents:
            to.mkdir(exist_ok=True, mode=0o700)
            shutil.copy2(path, to / path.name)
            (to / path.name).chmod(0o600)
            named[path.name] = str(path)
    return named


def _told(tree: Path, progress: Progress) -> dict[str, tuple[str, int]]:
    paths = sorted(path for path in tree.rglob("*") if path.is_file())
    whole = sum(path.stat().st_size for path in paths)
    done, told = 0, {}
    for path in paths:
        size = path.stat().st_size
        told[path.relative_to(tree).as_posix()] = (sha256_of(path), size)
        done += size
        progress("reading", done, whole)
    return told


# --- when one is read ---------------------------------------------------------------------------------------------------
def require_known(chosen: Snapshot, settings: Settings) -> None:
    """Raises Conflict where a newer release made a backup, of a database that is not of this box's own form."""
    if chosen.schema not in Database.revisions() and chosen.schema != _form(settings):
        raise Conflict(
            f"The backup {chosen.id} was made by a newer release ({chosen.version}) than this one ({__version__}).",
            "Install that release or a newer one, then restore the backup.",
        )


def _form(settings: Settings) -> str:
    """Of the database that is here: a newer one's, where an upgrade was undone; "" where there is none."""
    if not settings.database.is_file():
        return ""
    database = Database(settings.database)
    try:
        with database.read() as connection:
            return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "")
    except (ApplianceError, sa.exc.DatabaseError):
        return ""
    finally:
        database.close()


def understood(tree: Path, chosen: Snapshot) -> Contents:
    """The manifest of a backup that was restored into `tree`. Raises Damaged."""
    try:
        told: dict[str, Any] = json.loads((tree / MANIFEST).read_bytes())
        files = {str(name): (str(fact[0]), int(fact[1])) for name, fact in told["files"].items()}
        return Contents(**(told | {"files": files}))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise _not_as_written(chosen.id, "its manifest cannot be read") from None


def compare(tree: Path, contents: Contents, id: str, progress: Progress) -> int:
    """That a restored backup is what was written down: every file, the database, the audit record; its rows of that.

    Raises Damaged.
    """
    there = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()} - {MANIFEST}
    if there != set(contents.files):
        one = min(there ^ set(contents.files))
        raise _not_as_written(id, f"{one} is {'missing' if one in contents.files else 'not one of its files'}")
    done = 0
    for name, (digest, size) in contents.files.items():
        if sha256_of(tree / name) != digest:
            raise _not_as_written(id, f"{name} is not what was written")
        done += size
        progress("comparing", done, contents.bytes)
    path = tree / STATE / "appliance.sqlite3"
    if not path.is_file():
        raise _not_as_written(id, "it has no database")
    database = Database(path)
    try:
        database.check(thorough=True)
        if rows_of(database) != contents.rows:
            raise _not_as_written(id, "tables have other rows than were counted")
        return Audit(database).verify()
    except Damaged:
        raise
    except ApplianceError as error:
        raise _not_as_written(id, error.message) from error
    finally:
        database.close()


def _not_as_written(id: str, how: str) -> Damaged:
    return Damaged(f"The backup {id} is damaged: {how.rstrip('.')}.", "Take an older one: `appliance backup list`.")
