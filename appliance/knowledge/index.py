"""The index on disk: FAISS for meaning, FTS5 for words, and proof that both are whole.

    index/current          the name of the generation that counts, replaced atomically
    index/gen-7/           vectors.faiss  lexical.sqlite3  meta.json (SHA-256 of both, and what of the database they hold)

The database is the truth and this is a cache of it: a generation is built aside, synced and renamed; a damaged, missing or
stale one is rebuilt and never served. Hides both engines, the query syntax of FTS5, and locks between processes. Does not
embed, does not decide what answers a question, does not return text.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from appliance.db import Database
from appliance.errors import Busy, from_os_error
from appliance.files import sync
from appliance.tables import documents, passages

DIMENSIONS = 384
FORMAT = 1  # a generation of another format is rebuilt
TITLE_WEIGHT = 0.3  # of a word in the title or the heading, to one in the text
QUERY_WORDS = 32
COMMON = 0.3  # a word in more of the passages than this tells none of them apart

State = tuple[int, int, int]  # last passage id given out, documents, passages that have a vector
Vector = np.ndarray[Any, np.dtype[np.float32]]

# The words that say nothing about a subject. Over 100,000 passages they cost ten times what the rest costs.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about after again all also am an and any are as at be because been before being between both but by can could
        did do does doing done down each every few for from further get give given had has have having he her here hers
        him his how i if in into is it its itself just let like many may me might more most much must my no nor not now
        of off on once one only or other our out over own please s same say says she should show so some such t tell
        than that the their them then there these they this those through to too under until up us use used using very
        was we were what when where which while who whom whose why will with would you your explain""",
    )
)


def query_words(text: str) -> list[str]:
    """The words of a question that are worth looking for: lower case, in order, without repeats."""
    words = list(dict.fromkeys(re.findall(r"[^\W_]+", text.lower())))
    return ([word for word in words if word not in STOP_WORDS] or words)[:QUERY_WORDS]


def _any_of(words: Sequence[str]) -> str:
    """An FTS5 query for any of the words. Quoted, so that AND, NEAR, * or a column's name is only a word."""
    return " OR ".join(f'"{word}"' for word in words)


class Damaged(Exception):
    """This generation is not what was written. Never leaves this folder: the answer is to rebuild."""


class Generation:
    """One complete index, open for reading from any thread."""

    def __init__(self, name: str, state: State, vectors: Any, lexical: Any) -> None:
        import faiss

        self._faiss: Any = faiss
        self.name = name
        self.state = state
        self._index = vectors
        self._lexical = lexical
        self._lock = threading.Lock()
        rows = self._query("SELECT id, collection FROM passage ORDER BY id")
        self.passages = len(rows)
        self._embedded = faiss.vector_to_array(vectors.id_map).copy()
        self._known = set(self._embedded.tolist())
        self._owner: dict[int, str] = dict(rows)
        self._frequencies: dict[str, int] = {}

    def close(self) -> None:
        with self._lock:
            self._lexical.close()

    def _query(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        with self._lock:
            found: list[Any] = self._lexical.execute(statement, tuple(values)).fetchall()
        return found

    def nearest(self, vector: Vector, k: int, collections: Sequence[str] | None) -> list[int]:
        """Ids of the passages whose meaning is nearest, best first. `vector`: float32 (384,), length 1. Collections by id."""
        if not self._known:
            return []
        selection: Any = None
        if collections is not None:
            wanted = set(collections)
            ids = [passage for passage in self._embedded.tolist() if self._owner.get(passage) in wanted]
            if not ids:
                return []
            bits = np.zeros(int(self._embedded.max()) + 1, dtype=bool)
            bits[ids] = True
            # Before the top k, not after: another class's better passages must not push this class's out.
            selection = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little")))
        _, found = self._index.search(vector.reshape(1, -1), min(k, len(self._known)), params=selection)
        return [int(passage) for passage in found[0] if passage >= 0]

    def matching(self, words: Sequence[str], k: int, collections: Sequence[str] | None) -> list[int]:
        """Ids of the passages that hold the words best (BM25), best first."""
        rare = [word for word in words if self.frequency(word) <= COMMON * self.passages]
        words = rare or list(words)
        if not words:
            return []
        where, values = "", [_any_of(words)]
        if collections is not None:
            where = f"AND passage.collection IN ({', '.join('?' * len(collections))})"
            values += collections
        found = self._query(
            "SELECT passage.id FROM lexical JOIN passage ON passage.id = lexical.rowid "
            f"WHERE lexical MATCH ? {where} ORDER BY bm25(lexical, 1.0, {TITLE_WEIGHT}) LIMIT {int(k)}",
            values,
        )
        return [int(row[0]) for row in found]

    def frequency(self, word: str) -> int:
        """In how many passages the word, or another form of it, stands."""
        known = self._frequencies.get(word)
        if known is None:
            known = int(self._query("SELECT count(*) FROM lexical WHERE lexical MATCH ?", [_any_of([word])])[0][0])
            if len(self._frequencies) < 100_000:
                self._frequencies[word] = known
        return known

    def cosines(self, ids: Sequence[int], vector: Vector) -> dict[int, float]:
        """Cosine similarity of each passage that has a vector."""
        known = [passage for passage in ids if passage in self._known]
        if not known:
            return {}
        vectors = np.stack([self._index.reconstruct(passage) for passage in known])
        return dict(zip(known, (vectors @ vector).tolist(), strict=True))

    @property
    def embedded(self) -> int:
        """Passages that have a vector."""
        return len(self._known)


class Index:
    """The index of one database. Safe between threads and between processes."""

    def __init__(self, folder: Path, lock: Path, database: Database) -> None:
        self.folder = folder
        self.lock = lock
        self._database = database
        self._mutex = threading.Lock()
        self._loaded: Generation | None = None
        self._seen: tuple[int, ...] | None = None

    def fresh(self) -> Generation:
        """The generation to search: verified, and up to date unless another process is bringing it up to date now. Blocking."""
        with self._mutex:
            pointer = self._pointer()
            if self._loaded is None or pointer != self._seen:
                self._load(pointer)
            if self._loaded is not None and self._loaded.state[:2] == self._state()[:2]:
                return self._loaded
            with _held(self.lock) as ours:
                if ours:
                    self._rebuilt()
                    self._sweep()
            if self._loaded is None:
                self._keep(self._in_memory())  # damaged, and whoever holds the lock will take a while: no search fails for that
            assert self._loaded is not None
            return self._loaded

    def rebuild(self) -> None:
        """Write a new generation if the newest one is not the database's. The caller holds `lock`. Blocking."""
        with self._mutex:
            if self._loaded is None or self._pointer() != self._seen:
                self._load(self._pointer())
            if self._loaded is None or self._loaded.state != self._state(full=True):
                self._rebuilt()
            self._sweep()

    def close(self) -> None:
        with self._mutex:
            if self._loaded is not None:
                self._loaded.close()
            self._loaded = None

    # --- one generation after another --------------------------------------------------------------------------------
    def _pointer(self) -> tuple[int, ...]:
        try:
            facts = (self.folder / "current").stat()
        except OSError:
            return ()
        return (facts.st_ino, facts.st_mtime_ns, facts.st_size)

    def _load(self, pointer: tuple[int, ...]) -> None:
        self._loaded = None  # an old one may be in use by another thread: it is closed with its last reader
        self._seen = pointer
        with contextlib.suppress(Damaged, OSError):
            name = (self.folder / "current").read_text("ascii", "replace").strip()
            if re.fullmatch(r"gen-\d{1,12}", name):
                loaded = _open(self.folder / name)
                # Vectors given to passages that were there before change only the third number: looking when opening will do.
                fits = loaded.state[2] == self._state(full=True)[2]
                self._loaded = loaded if fits else None

    def _state(self, full: bool = False) -> State:
        """What of the database an index holds. Passage ids only ever grow, so the first two tell any two contents apart."""
        with self._database.read() as connection:
            last = connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = 'passages'").scalar()
            count = connection.scalar(sa.select(sa.func.count()).select_from(documents))
            vectors = connection.scalar(sa.select(sa.func.count(passages.c.vector))) if full else 0
        return (int(last or 0), int(count or 0), int(vectors or 0))

    def _keep(self, generation: Generation) -> None:
        self._loaded = generation
        self._seen = self._pointer()

    def _in_memory(self) -> Generation:
        state, vectors, lexical = self._build(":memory:")
        return Generation("memory", state, vectors, lexical)

    def _rebuilt(self) -> None:
        """A new generation, on disk where the disk allows."""
        import pysqlite3

        try:
            self._keep(_open(self._write()))
        except (OSError, Damaged, pysqlite3.dbapi2.Error):
            self._keep(self._in_memory())

    def _write(self) -> Path:
        import faiss

        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        build = Path(tempfile.mkdtemp(prefix=".build-", dir=self.folder))
        try:
            state, vectors, lexical = self._build(str(build / "lexical.sqlite3"))
            lexical.close()
            data = faiss.serialize_index(vectors).tobytes()
            _save(build / "vectors.faiss", data)
            meta = {
                "format": FORMAT,
                "state": state,
                "vectors.faiss": _digest(data),
                "lexical.sqlite3": _digest((build / "lexical.sqlite3").read_bytes()),
            }
            _save(build / "meta.json", json.dumps(meta).encode())
            sync(build / "lexical.sqlite3")
            sync(build)
            numbers = [int(path.name[4:]) for path in self.folder.glob("gen-*") if path.name[4:].isdigit()]
            final = self.folder / f"gen-{max(numbers, default=0) + 1}"
            build.rename(final)
        except BaseException:
            shutil.rmtree(build, ignore_errors=True)
            raise
        sync(self.folder)
        _save(self.folder / ".current", final.name.encode())
        os.replace(self.folder / ".current", self.folder / "current")
        sync(self.folder)
        return final

    def _sweep(self) -> None:
        """Remove old generations, and what a run that died was building. The caller holds `lock`."""
        for path in [*self.folder.glob("gen-*"), *self.folder.glob(".build-*")]:
            if self._loaded is None or path.name != self._loaded.name:
                shutil.rmtree(path, ignore_errors=True)

    def _build(self, lexical_path: str) -> tuple[State, Any, Any]:
        import faiss
        import pysqlite3

        lexical = pysqlite3.dbapi2.connect(lexical_path, check_same_thread=False)
        lexical.execute("PRAGMA journal_mode=OFF")  # a build that dies is thrown away, never repaired
        lexical.execute("CREATE TABLE passage (id INTEGER PRIMARY KEY, collection TEXT NOT NULL)")
        lexical.execute(
            "CREATE VIRTUAL TABLE lexical USING "
            "fts5(text, heading, content='', tokenize='porter unicode61 remove_diacritics 2')"
        )
        vectors = faiss.IndexIDMap2(faiss.IndexFlatIP(DIMENSIONS))
        chosen = sa.select(
            passages.c.id, passages.c.text, passages.c.place, passages.c.vector, documents.c.title, documents.c.collection
        ).join(documents, documents.c.id == passages.c.document)
        ids: list[int] = []
        blobs: list[bytes] = []
        state = self._state(full=True)
        with self._database.read() as connection:
            for row in connection.execution_options(yield_per=2000).execute(chosen):
                lexical.execute("INSERT INTO passage VALUES (?, ?)", (row.id, row.collection))
                heading = f"{row.title} {row.place}"
                lexical.execute("INSERT INTO lexical (rowid, text, heading) VALUES (?, ?, ?)", (row.id, row.text, heading))
                if row.vector is not None and len(row.vector) == DIMENSIONS * 4:
                    ids.append(row.id)
                    blobs.append(row.vector)
        lexical.execute("INSERT INTO lexical (lexical) VALUES ('optimize')")
        lexical.commit()
        if ids:
            matrix = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(-1, DIMENSIONS)
            vectors.add_with_ids(np.ascontiguousarray(matrix), np.array(ids, dtype=np.int64))
        return state, vectors, lexical


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


def _open(folder: Path) -> Generation:
    """Everything into memory first, then verify, and only then use: what is damaged later is never read. Raises Damaged."""
    import faiss
    import pysqlite3

    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        data = (folder / "vectors.faiss").read_bytes()
        lexical = pysqlite3.dbapi2.connect(":memory:", check_same_thread=False)
        # immutable: nobody writes a finished generation, so no lock is taken and none can be left behind.
        uri = f"{(folder / 'lexical.sqlite3').absolute().as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(pysqlite3.dbapi2.connect(uri, uri=True)) as file:
            file.backup(lexical)
        whole = (meta["vectors.faiss"], meta["lexical.sqlite3"]) == (
            _digest(data),
            _digest((folder / "lexical.sqlite3").read_bytes()),
        )
        if meta["format"] != FORMAT or not whole:
            raise Damaged(folder.name)
        first, second, third = (int(number) for number in meta["state"])
        vectors = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        return Generation(folder.name, (first, second, third), vectors, lexical)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, pysqlite3.dbapi2.Error) as error:
        raise Damaged(folder.name) from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _save(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
