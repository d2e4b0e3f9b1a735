"""The index on disk: FAISS for meaning, FTS5 for words, and proof that both are whole.

    index/current     the generation that counts: which segments it has, and the SHA-256 of each of their files
    index/seg-7/      some documents' vectors and words, written once: see `segments`

The database is the truth and this is a cache of it. Whatever changes, changes by a new segment beside the old ones and a new
`current` in one step; readers go on with the segments that they have open. A damaged, missing or foreign segment is built anew
and never served. Documents that are gone are left out at once, and their bytes with the segment that held them, which is
written again without them. Hides both engines, when segments are merged, and locks between processes. Does not embed, does not
decide what answers a question, does not return text, and knows no people: whoever asks brings a filter along.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import Busy, from_os_error
from appliance.files import sha256_of, sync
from appliance.knowledge import content, segments
from appliance.knowledge.lexical import BUDGET, Query, Terms, rarity, statements
from appliance.knowledge.segments import Described, Segment
from appliance.knowledge.shelves import Everything, Filter, Within
from appliance.knowledge.vectors import DIMENSIONS, Changed, Range, Vector
from appliance.tables import documents, passages

__all__ = ["DIMENSIONS", "Generation", "Index", "Reader", "Vector", "locked"]

FORMAT = 3  # an index of another format is built anew
MARGIN = 20  # proposals beyond those asked for, where the kind of vectors only comes near to the score
LARGEST = 250_000  # rows of a segment: what has to be written again when one document of it goes
GROWTH = 3  # a segment is merged with what comes in if it is at most so many times as large
QUICK = 50_000  # rows that a search may index before it answers; more is left to who adds and removes

State = tuple[int, int, int]  # number of the content, last passage id given out, documents
Exact = Callable[[Sequence[int]], dict[int, bytes]]


class Damaged(Exception):
    """This segment is not what was written. Never leaves this folder: the answer is to build it anew."""


class Reader(Protocol):
    """What a search needs of an index, whatever keeps it. Passages by id, scores better where they are more."""

    @property
    def passages(self) -> int: ...

    @property
    def embedded(self) -> int: ...

    def nearest(self, vector: Vector, k: int, within: Within) -> list[tuple[int, float]]:
        """The passages nearest in meaning, best first, with their cosine. `vector`: float32 (384,), length 1."""

    def matching(self, words: Sequence[str], k: int, within: Within) -> list[tuple[int, float]]:
        """The passages that hold the words best, best first."""

    def frequency(self, word: str) -> int:
        """In how many passages the word, or another form of it, stands."""

    def cosines(self, ids: Sequence[int], vector: Vector) -> dict[int, float]:
        """Of each passage that has a vector."""


class Generation:
    """One complete index, open for reading from any thread: a `Reader`."""

    def __init__(self, parts: Sequence[Segment], state: State | None, whole: bool, terms: Terms, exact: Exact) -> None:
        """`state`: what of the database it holds, None where it holds something else; `exact`: vectors by passage."""
        self.segments = tuple(parts)
        self.state = state
        self.whole = whole
        self._terms = terms
        self._exact = exact
        self._rows = sum(len(one.rows) for one in parts)
        live = [(one, one.ranges(None)) for one in parts]
        self.passages = sum(_size(ranges) for _, ranges in live)
        self.embedded = sum(_size(one.embedded(ranges)) for one, ranges in live)
        self._frequencies: dict[str, int] = {}
        self._ranges: dict[Filter | None, list[tuple[Segment, list[Range]]]] = {None: live}

    def nearest(self, vector: Vector, k: int, within: Within) -> list[tuple[int, float]]:
        exact: list[tuple[int, float]] = []
        near: list[tuple[int, float]] = []
        for one, ranges in self._within(within):
            wanted = k if one.vectors.exact else k + MARGIN
            found = one.passages(self._asked([], one.vectors.nearest, vector, wanted, one.embedded(ranges)))
            (exact if one.vectors.exact else near).extend(found)
        best = [passage for passage, _ in sorted(near, key=_best)[: k + MARGIN]]
        return sorted([*exact, *self.cosines(best, vector).items()], key=_best)[:k]

    def matching(self, words: Sequence[str], k: int, within: Within) -> list[tuple[int, float]]:
        frequencies = {word: count for word in words if (count := self.frequency(word))}
        chosen = self._within(within)
        scope = sum(_size(ranges) for _, ranges in chosen)
        if not frequencies or not scope:
            return []
        query = Query(frequencies, self._rows, scope / self._rows, max(statements(ranges) for _, ranges in chosen))
        asked = dict.fromkeys([*query.words, *(word for pair in query.pairs for word in pair)])
        weights = {word: rarity(self._rows, frequencies[word]) for word in asked}
        found: list[tuple[int, float]] = []
        for one, ranges in chosen:
            if len(self.segments) > 1 and len(one.rows) <= BUDGET:
                rows = self._asked([], one.lexical.weighed, weights, k, ranges)
            else:
                rows = self._asked([], one.lexical.best, query, k, ranges)
            found += one.passages(rows)
        return sorted(found, key=_best)[:k]

    def frequency(self, word: str) -> int:
        known = self._frequencies.get(word)
        if known is None:
            terms = self._terms.of(word)
            known = 0
            for one in self.segments if terms else ():
                counted = (one.lexical.holding, terms[0]) if len(terms) == 1 else (one.lexical.phrases, word)
                known += self._asked(0, *counted)
            if len(self._frequencies) < 100_000:
                self._frequencies[word] = known
        return known

    def cosines(self, ids: Sequence[int], vector: Vector) -> dict[int, float]:
        if not ids:
            return {}
        found = {id: blob for id, blob in self._exact(ids).items() if len(blob) == DIMENSIONS * 4}
        if not found:
            return {}
        matrix = np.frombuffer(b"".join(found.values()), dtype="<f4").reshape(-1, DIMENSIONS)
        return dict(zip(found, (matrix @ vector).tolist(), strict=True))

    def close(self) -> None:
        for one in self.segments:
            one.lexical.close()

    def _within(self, within: Within) -> list[tuple[Segment, list[Range]]]:
        wanted = None if isinstance(within, Everything) else within
        known = self._ranges.get(wanted)
        if known is None:
            known = [(one, ranges) for one in self.segments if (ranges := one.ranges(wanted))]
            if len(self._ranges) >= 200:
                self._ranges = {None: self._ranges[None]}
            self._ranges[wanted] = known
        return known

    def _asked(self, otherwise: Any, ask: Callable[..., Any], *arguments: object) -> Any:
        """A file that is read in place may be damaged after it was verified: noticed here, the next search builds it anew."""
        import pysqlite3

        try:
            return ask(*arguments)
        except (pysqlite3.dbapi2.DatabaseError, Changed):
            self.whole = False
            return otherwise


def _best(one: tuple[int, float]) -> tuple[float, int]:
    return (-one[1], one[0])


def _size(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


class Index:
    """The index of one database. Safe between threads and between processes."""

    def __init__(self, folder: Path, lock: Path, database: Database, embedder: str = "") -> None:
        """`embedder`: a vector that another one made is left out, and its passage found by words."""
        self.folder = folder
        self.lock = lock
        self._database = database
        self._embedder = embedder
        self._mutex = threading.Lock()
        self._terms = Terms()
        self._loaded: Generation | None = None
        self._seen: tuple[int, ...] | None = None
        self._left: State | None = None  # a state that is too far away for a search to bring it up to

    def fresh(self) -> Generation:
        """The generation to search: verified, and up to date unless a writer is bringing it up to date, or has to. Blocking."""
        at_hand = self._loaded
        if at_hand is None or not at_hand.whole:
            self._mutex.acquire()
        elif not self._mutex.acquire(blocking=False):
            return at_hand  # another thread is at it, perhaps for minutes
        try:
            return self._fresh()
        finally:
            self._mutex.release()

    def _fresh(self) -> Generation:
        loaded = self._followed()
        state = self._state()
        if loaded.whole and state in (loaded.state, self._left):
            return loaded
        with _held(self.lock) as ours:
            if ours:
                loaded = self._followed()  # whoever had the lock before may have swept segments of the older one away
                self._bring_up(loaded, most=QUICK if loaded.whole else math.inf, purge=QUICK)
                self._sweep()
                self._left = state if self._loaded is loaded else None
            elif not loaded.whole:
                self._bring_up(loaded, disk=False)  # whoever holds the lock may take a while: no search fails for that
        return self._current()

    def rebuild(self) -> None:
        """Make the index hold what the database holds, and no byte of anything else. The caller holds `lock`. Blocking.

        Readers find what was added, and no longer what was removed, before large segments are written again.
        """
        with self._mutex:
            self._bring_up(self._followed(), purge=QUICK)
            if any(one.dead for one in self._current().segments):
                self._bring_up(self._current())
            self._sweep()

    def close(self) -> None:
        with self._mutex:
            if self._loaded is not None:
                self._loaded.close()
            self._loaded = None

    # --- reading -----------------------------------------------------------------------------------------------------
    def _current(self) -> Generation:
        assert self._loaded is not None
        return self._loaded

    def _followed(self) -> Generation:
        """The newest generation, with all of it that is sound and the database's."""
        pointer = self._pointer()
        if self._loaded is not None and self._loaded.whole and pointer == self._seen:
            return self._loaded
        # Segments that are open were verified; after damage all are read again.
        known = {one.name: one for one in self._loaded.segments} if self._loaded is not None and self._loaded.whole else {}
        for _ in range(3):
            found, whole = self._read(known)
            if whole or pointer == self._pointer():
                break  # else a writer has swept away what this was reading
            pointer = self._pointer()
        with self._database.read() as connection:
            state, wanted = self._state(connection), self._wanted(connection)
        found = [_without_dead(one, wanted) for one in found]
        live = {one for part in found for one in part.live}
        fits = live == set(wanted.values()) and not any(part.dead for part in found)
        self._seen = pointer
        # An old one may be in use by another thread: it is closed with its last reader.
        self._loaded = self._generation(found, state if fits else None, whole and bool(live or not wanted))
        return self._loaded

    def _generation(self, parts: Sequence[Segment], state: State | None, whole: bool = True) -> Generation:
        return Generation(parts, state, whole, self._terms, self._vectors)

    def _vectors(self, ids: Sequence[int]) -> dict[int, bytes]:
        there = passages.c.vector.is_not(None) & (passages.c.embedder == self._embedder)
        chosen = sa.select(passages.c.id, passages.c.vector).where(passages.c.id.in_(ids), there)
        with self._database.read() as connection:
            return dict(connection.execute(chosen).all())

    def _pointer(self) -> tuple[int, ...]:
        try:
            facts = (self.folder / "current").stat()
        except OSError:
            return ()
        return (facts.st_ino, facts.st_mtime_ns, facts.st_size)

    def _read(self, known: dict[str, Segment]) -> tuple[list[Segment], bool]:
        """The segments that are what was written, and whether that is all of them."""
        listed = self._listed()
        if listed is None:
            return [], False
        found = []
        for name, digests in listed.items():
            with contextlib.suppress(Damaged):
                there = known.get(name)
                found.append(there if there is not None and there.digests == digests else _open(self.folder, name, digests))
        return found, len(found) == len(listed)

    def _state(self, connection: sa.Connection | None = None) -> State:
        """What of the database an index holds, as far as it can be told at once."""
        if connection is None:
            with self._database.read() as connection:
                return self._state(connection)
        last = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'passages'").scalar()
        count = connection.scalar(sa.select(sa.func.count()).select_from(documents))
        return (content.number(connection), int(last or 0), int(count or 0))

    def _wanted(self, connection: sa.Connection) -> dict[str, Described]:
        """Every document as the index has to hold it. Of passages only what indexes of the database tell is read."""
        edges = (sa.func.count(passages.c.id), sa.func.min(passages.c.id), sa.func.max(passages.c.id))
        grouped = sa.select(passages.c.document, *edges).group_by(passages.c.document)
        held = {document: tuple(rest) for document, *rest in connection.execute(grouped)}
        waiting = sa.select(passages.c.document, sa.func.count()).where(passages.c.embedder == "", passages.c.vector.is_(None))
        waits: dict[str, int] = dict(connection.execute(waiting.group_by(passages.c.document)).all())
        newest = sa.select(sa.func.max(passages.c.id).label("id")).group_by(passages.c.document).subquery()
        last = sa.select(passages.c.document, passages.c.embedder).join(newest, newest.c.id == passages.c.id)
        made = dict(connection.execute(last).all())
        columns = (documents.c.id, documents.c.collection, documents.c.subject, documents.c.grade, documents.c.title)
        wanted = {}
        for id, collection, subject, grade, title in connection.execute(sa.select(*columns)):
            rows = held.get(id, (0, 0, 0))
            facts = (title, *rows, waits.get(id, 0), made.get(id, ""), self._embedder)
            mark = hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
            wanted[id] = Described(collection, subject, grade, id, rows[0], mark)
        return wanted

    # --- one generation after another --------------------------------------------------------------------------------
    def _bring_up(self, loaded: Generation, *, most: float = math.inf, purge: float = math.inf, disk: bool = True) -> None:
        """A generation that holds what the database holds; nothing where more than `most` rows would have to be indexed.

        Segments with documents that are gone are written again if they have no more than `purge` rows between them.
        """
        with self._database.read() as connection:
            state, wanted = self._state(connection), self._wanted(connection)
            parts = [_without_dead(one, wanted) for one in loaded.segments if one.name or not disk]
            live = {described for one in parts for described in one.live}
            missing = [one for one in wanted.values() if one not in live]
            kept, merged = _absorbed(parts, missing)
            if sum(one.passages for one in merged) > most:
                return
            unclean = [one for one in kept if one.dead]
            if sum(len(one.rows) for one in unclean) > purge:
                unclean = []
            kept = [one for one in kept if one not in unclean]
            groups = [*_divided(merged), *(one.live for one in unclean)]
            parts = self._built(connection, kept, [group for group in groups if group], disk)
        self._loaded = self._generation(parts, state)
        self._seen = self._pointer()

    def _built(
        self, connection: sa.Connection, kept: Sequence[Segment], groups: Sequence[Sequence[Described]], disk: bool
    ) -> list[Segment]:
        """What is kept and a segment for each group, on disk where it allows."""
        import pysqlite3

        if disk:
            try:
                parts = [*kept, *(self._write(connection, group) for group in groups)]
                if {one.name: one.digests for one in parts} != self._listed():
                    self._publish(parts)
                return parts
            except (OSError, RuntimeError, Damaged, pysqlite3.dbapi2.Error):
                pass  # a full disk, above all: the search goes on, and the next one tries again
        return [*kept, *(segments.build(connection, group, self._embedder, None) for group in groups)]

    def _listed(self) -> dict[str, dict[str, str]] | None:
        """The segments of `current` with the digests of their files, or None where it is not what was written."""
        try:
            told = json.loads((self.folder / "current").read_bytes())
            listed = {str(name): dict(digests) for name, digests in told["segments"].items()}
            return listed if told["format"] == FORMAT and told["seal"] == _seal(listed) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def _write(self, connection: sa.Connection, group: Sequence[Described]) -> Segment:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        build = Path(tempfile.mkdtemp(prefix=".build-", dir=self.folder))
        try:
            segments.build(connection, group, self._embedder, build).lexical.close()
            digests = {file: sha256_of(build / file) for file in segments.FILES}
            for file in segments.FILES:
                sync(build / file)
            sync(build)
            numbers = [int(path.name[4:]) for path in self.folder.glob("seg-*") if path.name[4:].isdigit()]
            final = self.folder / f"seg-{max(numbers, default=0) + 1}"
            build.rename(final)
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise
        return _open(self.folder, final.name, digests)

    def _publish(self, parts: Sequence[Segment]) -> None:
        sync(self.folder)
        listed = {one.name: one.digests for one in parts}
        told = {"format": FORMAT, "segments": listed, "seal": _seal(listed)}
        with (self.folder / ".current").open("wb") as file:
            file.write(json.dumps(told).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.folder / ".current", self.folder / "current")
        sync(self.folder)

    def _sweep(self) -> None:
        """Remove segments that are no longer needed, and what a run that died was building. The caller holds `lock`."""
        needed = {one.name for one in self._current().segments} | set(self._listed() or ())  # these two differ on a full disk
        for pattern in ("seg-*", "gen-*", ".build-*"):
            for path in self.folder.glob(pattern):
                if path.name not in needed:
                    shutil.rmtree(path, ignore_errors=True)


def _without_dead(one: Segment, wanted: dict[str, Described]) -> Segment:
    """The segment with all documents dead that the database holds no longer, or not so.

    Subject and grade only say which filter lets a document through: a segment takes on those that the database tells now, and
    nothing has to be written again for them.
    """
    held = tuple(part._replace(described=_as_told(part.described, wanted)) for part in one.held)
    now = (part.described for part in held)
    return replace(one, held=held, dead=frozenset(told.document for told in now if wanted.get(told.document) != told))


def _as_told(one: Described, wanted: dict[str, Described]) -> Described:
    told = wanted.get(one.document)
    return one if told is None else one._replace(subject=told.subject, grade=told.grade)


def _absorbed(parts: Sequence[Segment], missing: Sequence[Described]) -> tuple[list[Segment], list[Described]]:
    """Segments that stay as they are, and what is written together: what is missing, and small segments beside it.

    So sizes stay apart by GROWTH: there are few segments, and a passage is written again only a few times.
    """
    kept: list[Segment] = []
    merged = list(missing)
    rows = sum(one.passages for one in missing)
    for one in sorted(parts, key=lambda one: len(one.rows)):
        size = sum(described.passages for described in one.live)
        if rows and not kept and size <= GROWTH * rows and rows + size <= LARGEST:
            merged += one.live
            rows += size
        elif one.live:
            kept.append(one)
    return kept, merged


def _divided(merged: Sequence[Described]) -> list[list[Described]]:
    """In segments of much the same size, none much larger than LARGEST, neighbours together."""
    rows = sum(one.passages for one in merged)
    share = rows / max(1, math.ceil(rows / LARGEST))
    groups: list[list[Described]] = []
    done = 0
    for one in sorted(merged):
        if done >= share * len(groups):
            groups.append([])
        groups[-1].append(one)
        done += one.passages
    return groups


def _open(folder: Path, name: str, digests: dict[str, str]) -> Segment:
    """Verified before it is used. Raises Damaged."""
    import pysqlite3

    try:
        if not re.fullmatch(r"seg-\d{1,12}", name) or set(digests) != set(segments.FILES):
            raise Damaged(name)
        if any(sha256_of(folder / name / file) != digest for file, digest in digests.items()):
            raise Damaged(name)
        return segments.open_files(folder / name, name, digests)
    except (OSError, ValueError, TypeError, RuntimeError, pysqlite3.dbapi2.Error) as error:
        raise Damaged(name) from error


def _seal(listed: dict[str, dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps([FORMAT, listed], sort_keys=True).encode()).hexdigest()


# --- locks between processes -----------------------------------------------------------------------------------------------
@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`. Raises Busy at once if another process, or another part of this one, holds it."""
    with _held(path) as ours:
        if not ours:
            raise Busy("Another process is working on the index.", "Try again in a moment.")
        yield


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Try to take the lock; whether it worked. The system lets go of it when the process dies, however it dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise from_os_error(error, f"taking the lock {path.name}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
