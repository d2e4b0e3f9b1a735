"""Words of one segment: which rows hold them best (BM25).

One SQLite file with an FTS5 table that keeps no text, and the number of rows of every term. Hides the query syntax of FTS5, its
tokenizer, and what the commonest words would cost: BM25 looks at every row that a word stands in, so a question is asked with
its rarest words, and with its common ones only where two of them stand together. Rows count from 0; knows no passages and no
collections.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from appliance.knowledge.words import spaced

# Letters, numbers, private characters, and marks: without these, a Hindi word would fall apart at its vowel signs.
TOKENIZER = "porter unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc'"
TITLE_WEIGHT = 0.3  # of a word in the title or the heading, to one in the text
COMMON = 0.3  # a word in more of the rows than this tells none of them apart
BUDGET = 8_000  # rows that one question may have weighed; each costs about a microsecond
COUNTED = 1 / 40  # of that is what a row costs that is only counted, as every statement counts all rows of its words
PAIRED = 4  # of the words beyond the budget, the rarest of which pairs are looked for
RANGES = 8  # a filter of more ranges is asked for in so many, and the rest is left out afterwards
CACHE_KB = 16_000  # of the file that a segment keeps in memory
PHRASES = 5_000  # rows with a phrase are counted no further
Range = tuple[int, int]  # first row, row after the last
_RANK = f"rank MATCH 'bm25(1.0, {TITLE_WEIGHT})'"
_MATCH = f"SELECT rowid, rank FROM lexical WHERE lexical MATCH ? AND {_RANK} AND rowid BETWEEN ? AND ? ORDER BY rank"


def _quoted(word: str) -> str:
    """As a string of FTS5, so that AND, NEAR, * or a column's name is only a word; characters without spaces make a phrase."""
    return '"' + spaced(word).replace('"', " ").strip() + '"'


class Query:
    """What a question asks a segment for: words that are looked for alone, and pairs of common ones.

    `frequencies`: rows of each word, of those that stand somewhere; `share`: of all rows, how many may be found, and in how
    many statements that is asked.
    """

    def __init__(self, frequencies: Mapping[str, int], total: int, share: float = 1.0, statements: int = 1) -> None:
        ordered = sorted(frequencies, key=lambda word: (frequencies[word], word))
        ordered = [word for word in ordered if frequencies[word] <= COMMON * total] or ordered
        left = float(BUDGET)
        self.words: list[str] = []
        for word in ordered:
            cost = frequencies[word] * (share + COUNTED * statements)
            if cost > left:
                break
            left -= cost
            self.words.append(word)
        beyond = ordered[len(self.words) :][:PAIRED]
        chances = {pair: math.prod(frequencies[word] / total for word in pair) for pair in itertools.combinations(beyond, 2)}
        self.pairs: list[tuple[str, str]] = []
        for pair in sorted(chances, key=chances.__getitem__):
            left -= chances[pair] * total * share + COUNTED * statements * sum(frequencies[word] for word in pair)
            if left < 0 and (self.words or self.pairs):
                break
            self.pairs.append(pair)
        if ordered and not self.words and not self.pairs:
            self.words = ordered[:1]

    def __bool__(self) -> bool:
        return bool(self.words) or bool(self.pairs)

    def __str__(self) -> str:
        """As FTS5 writes it."""
        parts = [_quoted(word) for word in self.words]
        return " OR ".join(parts + [f"({_quoted(one)} AND {_quoted(other)})" for one, other in self.pairs])


class Terms:
    """Words as the tokenizer cuts and stems them: a word that one search found is the same term in every segment."""

    def __init__(self) -> None:
        self._connection = _memory()
        self._connection.execute(f'CREATE VIRTUAL TABLE word USING fts5(text, tokenize="{TOKENIZER}")')
        self._connection.execute("CREATE VIRTUAL TABLE term USING fts5vocab(word, instance)")
        self._lock = threading.Lock()
        self.of = functools.lru_cache(maxsize=20_000)(self._of)

    def _of(self, word: str) -> tuple[str, ...]:
        with self._lock:
            self._connection.execute("INSERT INTO word (rowid, text) VALUES (1, ?)", (spaced(word),))
            found = self._connection.execute("SELECT term FROM term ORDER BY offset").fetchall()
            self._connection.execute("DELETE FROM word")
            self._connection.commit()
        return tuple(term for (term,) in found)


class Lexical:
    """The words of one segment, open for reading from any thread."""

    def __init__(self, connection: Any, rows: int) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._rows = rows

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def holding(self, term: str) -> int:
        """In how many rows a term stands."""
        with self._lock:
            found = self._connection.execute("SELECT rows FROM terms WHERE term = ?", (term,)).fetchone()
        return int(found[0]) if found else 0

    def phrases(self, word: str) -> int:
        """In how many rows the terms of a word follow each other; no more than PHRASES."""
        counted = "SELECT count(*) FROM (SELECT 1 FROM lexical WHERE lexical MATCH ? LIMIT ?)"
        with self._lock:
            return int(self._connection.execute(counted, (_quoted(word), PHRASES)).fetchone()[0])

    def best(self, query: Query, k: int, ranges: Sequence[Range]) -> list[tuple[int, float]]:
        """The `k` rows within the ranges (sorted, apart) that match best, best first, with how well: more is better."""
        covers = _covers(ranges)
        found: list[tuple[int, float]] = []
        with self._lock:
            for start, stop, parts in covers:
                rows = self._connection.execute(_MATCH + ("" if parts else f" LIMIT {int(k)}"), (str(query), start, stop - 1))
                kept = ((row, -rank) for row, rank in rows if not parts or _within(row, parts))
                found += itertools.islice(kept, k)
        return sorted(found, key=lambda one: (-one[1], one[0]))[:k]

    def weighed(self, weights: Mapping[str, float], k: int, ranges: Sequence[Range]) -> list[tuple[int, float]]:
        """`best`, but each word weighs what it is told: what is common in a small segment may be rare in the library."""
        scores: dict[int, float] = {}
        for word, weight in weights.items():
            found = self.best(Query({word: 1}, self._rows), self._rows, ranges)
            with self._lock:
                counted = "SELECT count(*) FROM lexical WHERE lexical MATCH ?"
                holding = int(self._connection.execute(counted, (_quoted(word),)).fetchone()[0])
            own = rarity(self._rows, holding)
            for row, score in found:
                scores[row] = scores.get(row, 0.0) + score / own * weight
        return sorted(scores.items(), key=lambda one: (-one[1], one[0]))[:k]


def rarity(rows: int, holding: int) -> float:
    """The weight that FTS5 gives a word which `holding` of the rows hold (inverse document frequency)."""
    return max(1e-6, math.log((rows - holding + 0.5) / (holding + 0.5)))


def statements(ranges: Sequence[Range]) -> int:
    """How many it takes to ask for these ranges."""
    return min(len(ranges), RANGES)


def _covers(ranges: Sequence[Range]) -> list[tuple[int, int, Sequence[Range]]]:
    """At most RANGES stretches that cover all the ranges, and of each the ranges that count within, where not all of it does.

    The widest gaps are left out.
    """
    if len(ranges) <= RANGES:
        return [(start, stop, ()) for start, stop in ranges]
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(ranges)]
    cuts = sorted(int(at) + 1 for at in np.argsort(gaps)[::-1][: RANGES - 1])
    covers = []
    for first, last in itertools.pairwise([0, *cuts, len(ranges)]):
        parts = ranges[first:last]
        covers.append((parts[0][0], parts[-1][1], parts if len(parts) > 1 else ()))
    return covers


def _within(row: int, ranges: Sequence[Range]) -> bool:
    import bisect

    at = bisect.bisect_right(ranges, (row, math.inf)) - 1
    return at >= 0 and row < ranges[at][1]


# --- writing and opening ---------------------------------------------------------------------------------------------------
def write(path: Path | None, texts: Iterable[tuple[str, str]]) -> Any:
    """A new file, or with None one in memory, of (text, heading) row by row; returns the open connection. Raises OSError."""
    connection = _memory() if path is None else _connected(str(path))
    connection.execute("PRAGMA journal_mode=OFF")  # a build that dies is thrown away, never repaired
    connection.execute("PRAGMA synchronous=OFF")  # synced as a whole when it is complete
    connection.execute("PRAGMA temp_store=MEMORY")  # no word of a document goes into a file elsewhere
    connection.execute(f"CREATE VIRTUAL TABLE lexical USING fts5(text, heading, content='', tokenize=\"{TOKENIZER}\")")
    connection.execute("CREATE TABLE terms (term TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID")
    with _translated():
        numbered = ((row, spaced(text), spaced(heading)) for row, (text, heading) in enumerate(texts))
        connection.executemany("INSERT INTO lexical (rowid, text, heading) VALUES (?, ?, ?)", numbered)
        connection.execute("INSERT INTO lexical (lexical) VALUES ('optimize')")
        connection.execute("CREATE VIRTUAL TABLE temp.every USING fts5vocab(main, lexical, row)")
        connection.execute("INSERT INTO terms SELECT term, doc FROM temp.every ORDER BY term")
        connection.commit()
        connection.execute("VACUUM")
    return connection


def open_file(path: Path, rows: int, memory: bool) -> Lexical:
    """A finished file, which nobody writes any more: so no lock is taken, and none can be left behind. Raises DatabaseError."""
    connection = _connected(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    if memory:
        copy = _memory()
        with contextlib.closing(connection):
            connection.backup(copy)
        return Lexical(copy, rows)
    connection.execute(f"PRAGMA cache_size=-{CACHE_KB}")
    connection.execute("SELECT count(*) FROM terms WHERE term = ''").fetchone()  # opened now, before it may be unlinked
    return Lexical(connection, rows)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """A full disk, as files report it."""
    import pysqlite3

    try:
        yield
    except pysqlite3.dbapi2.OperationalError as error:
        raise OSError(str(error)) from error


def _memory() -> Any:
    return _connected(":memory:")


def _connected(name: str, **options: Any) -> Any:
    import pysqlite3

    return pysqlite3.dbapi2.connect(name, check_same_thread=False, **options)
