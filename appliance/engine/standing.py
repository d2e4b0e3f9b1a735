"""What a whole class shares, kept on disk: the first answer after a reboot need not read the instructions again.

The state of a prefix (its cells in the model's cache) is written at quiet moments and when the engine ends, and put back when
it starts. Only the beginning of a prompt, the school's own words, and only as far as at least LEAST_USERS different people sent
the very same tokens: never a pupil's words. Hides the counting, and the files: `engine-cache/<key>/`, a folder for each pair of
model and adapter and each release of llama.cpp; whole or not there, a sha256 in each, oldest removed first. A damaged file is
removed and otherwise ignored. It decides nothing about what stays in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from appliance.engine.prefixes import common
from appliance.errors import ApplianceError, BadInput, from_os_error
from appliance.files import write_atomically

if TYPE_CHECKING:
    from appliance.engine.loop import Loop

MAGIC = b"PREFIX1\n"
SUFFIX = ".prefix"
LEAST_USERS = 3
LEAST_TOKENS = 32  # a shorter one is computed in no time
MOST_PREFIXES = 64  # of one adapter, that are counted
MOST_BYTES = 512 * 2**20  # of all files together
LEAVE_FREE = 500 * 2**20  # bytes of disk
UNUSED_SECONDS = 30 * 24 * 3600.0

Result = TypeVar("Result")


class Tally:
    """Who sent which beginning of a prompt. `note` from the event loop only."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[tuple[int, ...], set[str]]] = {}

    def note(self, kind: str, prefix: Sequence[int], user: str) -> None:
        """`kind`: the adapter. Requests of nobody in particular count for nothing."""
        if not user or len(prefix) < LEAST_TOKENS:
            return
        seen = self._seen.setdefault(kind, {})
        tokens = tuple(prefix)
        users = seen.pop(tokens, set())
        if len(users) < LEAST_USERS:
            users.add(user)
        seen[tokens] = users  # used last stands last
        if len(seen) > MOST_PREFIXES:
            del seen[next(iter(seen))]

    def forget(self, kind: str) -> None:
        self._seen.pop(kind, None)

    def shared(self, kind: str) -> list[list[int]]:
        """The longest beginnings that enough people share, none of them the beginning of another; used last first."""
        seen = [(list(tokens), users) for tokens, users in reversed(self._seen.get(kind, {}).items())]
        found: list[list[int]] = []
        for tokens, users in seen:
            alike = [(common(other, tokens), others) for other, others in seen]
            for length in sorted({length for length, _ in alike}, reverse=True):
                together = users.union(*(others for same, others in alike if same >= length))
                if length >= LEAST_TOKENS and len(together) >= LEAST_USERS:
                    found.append(tokens[:length])
                    break
        whole = sorted(found, key=len, reverse=True)
        kept: list[list[int]] = []
        for prefix in whole:
            if not any(common(longer, prefix) == len(prefix) for longer in kept):
                kept.append(prefix)
        return [prefix for at, prefix in enumerate(found) if prefix in kept and prefix not in found[:at]]


class Standing:
    """The files below one folder; one process writes, several threads of it may."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder
        self._most_bytes = most_bytes
        self._writing = threading.Lock()

    @staticmethod
    def key(model: str, adapter: str, streams: int = 1) -> str:
        """The folder for a model and an adapter (their sha256): another release of llama.cpp may lay cells out otherwise, and
        another number of streams does."""
        try:
            release = version("llama-cpp-python")
        except PackageNotFoundError:
            release = ""
        return hashlib.sha256(f"{model}\n{adapter}\n{release}\n{streams}".encode()).hexdigest()

    def has(self, key: str, tokens: Sequence[int]) -> bool:
        return self._path(key, tokens).is_file()

    def used(self, key: str, tokens: Sequence[int]) -> None:
        """It was asked for: it stays longer than others."""
        with contextlib.suppress(OSError):
            os.utime(self._path(key, tokens))

    def load(self, key: str) -> Iterator[tuple[list[int], bytes]]:
        """Tokens and state of each prefix, used last first. What is damaged is removed."""
        try:
            paths = sorted((self.folder / key).glob(f"*{SUFFIX}"), key=lambda path: -path.stat().st_mtime)
        except OSError:
            return
        for path in paths:
            try:
                found = _read(path, path.stem)
            except (OSError, ValueError):
                path.unlink(missing_ok=True)
                continue
            yield found

    def remove(self, key: str, tokens: Sequence[int]) -> None:
        with contextlib.suppress(OSError):
            self._path(key, tokens).unlink(missing_ok=True)

    def save(self, key: str, tokens: Sequence[int], state: bytes) -> bool:
        """Write one; False where it is too large, or the disk too full. Raises ApplianceError."""
        body = struct.pack("<I", len(tokens)) + np.asarray(tokens, "<i4").tobytes() + state
        if len(body) > self._most_bytes // 2:
            return False
        with self._writing:
            return self._save(key, tokens, body)

    def _save(self, key: str, tokens: Sequence[int], body: bytes) -> bool:
        self._sweep(self._most_bytes - len(body))
        try:
            for folder in (self.folder, self.folder / key):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
            disk = os.statvfs(self.folder)
        except OSError as error:
            raise from_os_error(error, "keeping what a class shares") from None
        if disk.f_bavail * disk.f_frsize < LEAVE_FREE + len(body):
            return False
        write_atomically(self._path(key, tokens), MAGIC + hashlib.sha256(body).digest() + body)
        return True

    def sweep(self) -> None:
        """Remove what was not used for long, and the oldest where there are too many."""
        with self._writing:
            self._sweep(self._most_bytes)

    def _sweep(self, room: int) -> None:
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*/.*"):
                path.unlink()  # left by a process that was killed in the middle of a write
            found = [(path.stat(), path) for path in self.folder.glob(f"*/*{SUFFIX}")]
            for state, path in sorted(found, key=lambda one: -one[0].st_mtime):
                room -= state.st_size
                if room < 0 or state.st_mtime < time.time() - UNUSED_SECONDS:
                    path.unlink()
            for folder in self.folder.iterdir():
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _path(self, key: str, tokens: Sequence[int]) -> Path:
        return self.folder / key / f"{_name(tokens)}{SUFFIX}"


def _name(tokens: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(tokens, "<i4").tobytes()).hexdigest()[:32]


def _read(path: Path, name: str) -> tuple[list[int], bytes]:
    """Raises ValueError where the file is not what was written."""
    data = path.read_bytes()
    head = len(MAGIC) + 32
    body = memoryview(data)[head:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != data[len(MAGIC) : head]:
        raise ValueError("damaged")
    (count,) = struct.unpack_from("<I", body)
    tokens = [int(token) for token in np.frombuffer(body[4 : 4 + 4 * count], "<i4")]
    if len(tokens) != count or _name(tokens) != name:
        raise ValueError("damaged")
    return tokens, bytes(body[4 + 4 * count :])


class Keeper:
    """Between a decode loop and the files: counts what is shared, writes it, puts it back."""

    def __init__(self, store: Standing, loop: Loop, model: str) -> None:
        self._store = store
        self._loop = loop
        self._model = model
        self._tally = Tally()
        self._keys: dict[str, str] = {}
        self._settled: set[tuple[str, str]] = set()  # written, or found on disk, since the start

    def note(self, kind: str, prefix: Sequence[int], user: str) -> None:
        if kind in self._keys:
            self._tally.note(kind, prefix, user)

    async def warm(self, kind: str, adapter: str) -> int:
        """Put back what was kept for an adapter ("" for the base); how many prefixes stand now."""
        key = self._keys[kind] = self._store.key(self._model, adapter, self._loop.cache.streams)
        await asyncio.to_thread(self._store.sweep)
        kept = await asyncio.to_thread(lambda: list(self._store.load(key)))
        count = 0
        for tokens, state in kept:
            try:
                count += await self._between(partial(self._loop.cache.adopt, tokens, kind, np.frombuffer(state, np.uint8)))
            except BadInput:
                self._store.remove(key, tokens)
        return count

    async def rest(self) -> None:
        """Write what came to be shared since the last time. Raises ApplianceError."""
        for kind, key in list(self._keys.items()):
            for tokens in self._tally.shared(kind):
                done = (key, _name(tokens))
                if done in self._settled:
                    continue
                if self._store.has(key, tokens):
                    self._store.used(key, tokens)
                else:
                    state = await self._between(partial(self._loop.cache.state_of, tokens, kind))
                    if state is None:
                        continue  # it is not in the cache any more
                    await asyncio.to_thread(self._store.save, key, tokens, state.tobytes())
                self._settled.add(done)

    def forget(self, kind: str) -> None:
        """The adapter was unloaded."""
        self._keys.pop(kind, None)
        self._tally.forget(kind)

    async def end(self) -> None:
        """The last moment to write. Raises nothing: what is not kept is computed again."""
        with contextlib.suppress(ApplianceError):
            await self.rest()

    async def _between(self, work: Callable[[], Result]) -> Result:
        box: list[Result] = []
        await asyncio.wrap_future(self._loop.between_steps(lambda: box.append(work())))
        return box[0]
