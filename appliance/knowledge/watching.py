"""Folders whose files are added by themselves: what lies there, what is ready, and what became of it.

A file is ready when two looks found it alike, in size, time and identity: what is still being written waits. What vanishes from
the folder is reported and stays in the library, because a stick that was pulled out is no wish to forget. Links are not
followed, and nothing in the folder is ever changed. Looks when it is told to and adds nothing: what is ready goes to a job of
kind `ingest`, whose record says afterwards how it went.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import BadInput, NotFound
from appliance.knowledge.ingest import LATER, Record, its_own_fault
from appliance.knowledge.intake import shown, walk
from appliance.knowledge.shelves import collection_name, ensure
from appliance.settings import Settings
from appliance.tables import collections, jobs, new_id, watches

FILES = 20_000  # of one folder: its list is read at every look
AGAIN = 600.0  # seconds until a file is tried again that failed for no fault of its own
SAY_AGAIN = 300.0  # seconds until a look that found nothing new is written down

# What a file is: seen once, handed to a job, there, refused, gone from the folder, or left alone as its job was cancelled.
NEW, TAKEN, THERE, FAILED, GONE, LEFT = "new", "taken", "there", "failed", "gone", "left"
Seen = list[Any]  # [state, bytes, mtime in ns, inode, when it failed for no fault of its own or null]


@dataclass(frozen=True, slots=True)
class Watch:
    """A folder and the collection that its files go to. `states`: how many files are in each state.

    `gone`: files that were added and have vanished from the folder since. `trouble`: why it could not be looked at, or "".
    """

    id: str
    folder: str
    collection: str
    collection_id: str
    by: str
    created: float
    looked: float | None
    states: dict[str, int]
    gone: list[str]
    trouble: str


class Watching:
    """The folders of one home. Safe to share between threads; one process looks at a time."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._home = settings.home

    def add(self, folder: Path, collection: str, by: str = "") -> Watch:
        """Tie a folder to a collection, which is made where there is none. The same again changes nothing. Raises BadInput."""
        name = collection_name(collection)
        folder = Path(_real(folder))
        if not os.path.isdir(folder):
            raise BadInput(f"{folder} is not a folder.", "Name the folder that files are put into.")
        if folder.is_relative_to(self._home) or self._home.is_relative_to(folder):
            raise BadInput(f"{folder} holds the appliance's own files.", "Choose a folder of its own.")
        with self._database.begin() as connection:
            shelf = ensure(connection, name, by)
            same = sa.select(watches.c.id).where(watches.c.folder == str(folder), watches.c.collection == shelf)
            id = connection.scalar(same)
            if id is None:
                id = new_id()
                values = {"id": id, "folder": str(folder), "collection": shelf, "by": by, "created": time.time(), "seen": {}}
                connection.execute(sa.insert(watches).values(values))
        return self.one(str(id))

    def remove(self, which: str, by: str = "") -> Watch:
        """End a watch, by its id or its folder; what it added stays. Raises NotFound."""
        watch = self.one(which, by)
        with self._database.begin() as connection:
            connection.execute(sa.delete(watches).where(watches.c.id == watch.id))
        return watch

    def one(self, which: str, by: str = "") -> Watch:
        """By its id or its folder; `by` a user: only theirs. Raises NotFound, BadInput where a folder has several."""
        folder = _real(which)
        found = [watch for watch in self.all(by) if which == watch.id or folder == watch.folder]
        if not found:
            raise NotFound(f"{which} is not watched.", "See `appliance docs watches`.")
        if len(found) > 1:
            ids = ", ".join(watch.id for watch in found)
            raise BadInput(f"{which} is watched for several collections.", f"Say which one: {ids}.")
        return found[0]

    def all(self, by: str = "") -> list[Watch]:
        """By folder; `by` a user: only theirs."""
        chosen = sa.select(watches, collections.c.name).join(collections, collections.c.id == watches.c.collection)
        chosen = chosen.where(watches.c.by == by) if by else chosen
        with self._database.read() as connection:
            return [_watch(row) for row in connection.execute(chosen.order_by(watches.c.folder, watches.c.created))]

    def look(self, watch: Watch) -> list[Path]:
        """What is ready to be added now; nothing while a job of this watch is under way."""
        with self._database.read() as connection:
            kept = connection.scalar(sa.select(watches.c.seen).where(watches.c.id == watch.id))
        if kept is None:
            return []
        files: dict[str, Seen] = {name: list(seen) for name, seen in kept.get("files", {}).items()}
        under_way = self._settle(kept.get("job", ""), files, watch)
        there, trouble = _there(Path(watch.folder))
        ready = _compare(files, there, whole=not trouble)
        self._looked(watch, kept, files, trouble)
        return [] if under_way else ready

    def troubled(self, watch: Watch, trouble: str) -> None:
        """Have it told why the folder could not be looked at; what is known of its files stands."""
        with self._database.read() as connection:
            kept = connection.scalar(sa.select(watches.c.seen).where(watches.c.id == watch.id))
        if kept is not None:
            self._looked(watch, kept, kept.get("files", {}), trouble)

    def _looked(self, watch: Watch, kept: dict[str, Any], files: dict[str, Seen], trouble: str) -> None:
        now = {"files": files, "looked": time.time(), "trouble": trouble}
        old = {"files": kept.get("files"), "looked": now["looked"], "trouble": kept.get("trouble")}
        # The list of a large folder is some megabytes: not written twice a minute to say that nothing happened.
        if now != old or time.time() - kept.get("looked", 0.0) > SAY_AGAIN:
            self._keep(watch.id, kept | now)

    def taken(self, watch: Watch, job: str, paths: list[Path]) -> None:
        """These files are in the hands of a job."""
        with self._database.read() as connection:
            kept = connection.scalar(sa.select(watches.c.seen).where(watches.c.id == watch.id))
        if kept is None:
            return
        files = dict(kept.get("files", {}))
        for name in (shown(path.relative_to(watch.folder)) for path in paths):
            if name in files:
                files[name] = [TAKEN, *files[name][1:4], None]
        self._keep(watch.id, kept | {"files": files, "job": job})

    def _settle(self, job: str, files: dict[str, Seen], watch: Watch) -> bool:
        """Note how the last job went for each of its files; whether it is still under way."""
        if not any(seen[0] == TAKEN for seen in files.values()):
            return False
        with self._database.read() as connection:
            state = connection.scalar(sa.select(jobs.c.state).where(jobs.c.id == job))
        if state in ("queued", "running"):
            return True
        reports = {report.path: report for report in Record(self._database, job).reports()}
        for name, seen in files.items():
            if seen[0] != TAKEN:
                continue
            report = reports.get(shown(Path(watch.folder) / name))
            fault = report.error if report else None
            if fault is not None or (report is None and state == "failed"):
                its_own = fault is not None and its_own_fault(fault.code)
                seen[:] = [FAILED, *seen[1:4], None if its_own else time.time()]
            elif report is None:
                seen[0] = LEFT if state == "cancelled" else NEW
            else:
                seen[0] = THERE
        return False

    def _keep(self, id: str, seen: dict[str, Any]) -> None:
        with self._database.begin() as connection:
            connection.execute(sa.update(watches).where(watches.c.id == id).values(seen=seen))


def asked(watch: Watch, paths: list[Path]) -> tuple[str, dict[str, Any]]:
    """The kind of job that adds these files, and what it is asked."""
    return LATER, {
        "paths": [str(path) for path in paths], "collection": watch.collection, "collection_id": watch.collection_id,
        "by": watch.by, "inside": watch.folder,
    }  # fmt: skip


def _real(path: str | Path) -> str:
    """Where a path leads, whatever is wrong on the way: `Path.resolve` raises for links that lead to themselves."""
    return os.path.realpath(os.path.expanduser(path))


def _there(folder: Path) -> tuple[dict[str, tuple[Path, list[int]]], str]:
    """The files below a folder by their names in it, with size, time and inode; and why these may not be all, or ""."""
    if os.path.islink(folder) or os.path.realpath(folder) != str(folder):
        return {}, "The folder is a link to another place by now; links are not followed."
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = False
    except OSError as error:
        return {}, f"The folder cannot be reached: {error.strerror}. What was added from it is kept."
    if not is_folder:
        return {}, "The folder is not there. What was added from it is kept."
    found: dict[str, tuple[Path, list[int]]] = {}
    trouble = ""
    for path in walk([folder]):
        try:
            facts = os.lstat(path)
        except FileNotFoundError:
            continue  # gone between two system calls
        except OSError as error:  # it is there, for all that is known: nothing has vanished
            trouble = f"{shown(path)} cannot be looked at: {error.strerror}."
            continue
        if stat.S_ISDIR(facts.st_mode):
            trouble = f"The folder {shown(path)} may not be read."
            continue
        if len(found) == FILES:
            return found, f"The folder holds more files than are looked at: {FILES:,}. Split it into several."
        found[shown(path.relative_to(folder))] = path, [facts.st_size, facts.st_mtime_ns, facts.st_ino]
    return found, trouble


def _compare(files: dict[str, Seen], there: dict[str, tuple[Path, list[int]]], *, whole: bool) -> list[Path]:
    """Bring what was seen up to date; the files that stood still since the last look and were not dealt with yet.

    whole: what is not there has vanished.
    """
    ready = []
    for name, (path, facts) in there.items():
        seen = files.get(name)
        if seen is None or seen[1:4] != facts:
            files[name] = [NEW, *facts, None]
        elif seen[0] == GONE:
            seen[0] = THERE  # the very same file is back
        elif seen[0] == NEW or (seen[0] == FAILED and seen[4] is not None and time.time() - seen[4] > AGAIN):
            ready.append(path)
    for name in [name for name in files if whole and name not in there]:
        if files[name][0] in (THERE, GONE):
            files[name][0] = GONE
        elif files[name][0] != TAKEN:  # it was never added: nothing is to be told of it
            del files[name]
    return ready


def _watch(row: Any) -> Watch:
    files = row.seen.get("files", {})
    gone = sorted(name for name, seen in files.items() if seen[0] == GONE)
    states = dict(Counter(seen[0] for seen in files.values()))
    return Watch(
        row.id, row.folder, row.name, row.collection, row.by, row.created, row.seen.get("looked"), states, gone,
        row.seen.get("trouble", ""),
    )  # fmt: skip
