"""What the model has computed and still holds: whose cells they are, who may share them, and what leaves when room is needed.

A finished conversation stays in the cache until its place is wanted, and is then parked as bytes (`parking.py`). Hides the tree
of token runs (`prefixes.py`), the free sequences, and which of two copies of a prefix is the cheaper one to begin with. Used by
the thread that owns the model and by no other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.engine.job import Job
from appliance.engine.llama import Llama, State
from appliance.engine.parking import Parking
from appliance.engine.prefixes import Prefixes
from appliance.engine.sizing import KEEP_FREE, KEPT, available_memory
from appliance.errors import BadInput

SHARE_FROM = 16  # tokens: a shorter prefix is computed again sooner than waited for
POOLED = 4096  # cells that finished conversations may hold in a pool: each one slows everybody's steps
LOOK_SECONDS = 0.5  # between two looks at the memory that is free: each takes nearly a millisecond
AWAY = -2  # a source from here on downwards is parked, under the key AWAY - source


@dataclass(slots=True)
class _Idle:
    """A finished conversation that stays in the cache; `since`: what the clock said when it was used last."""

    since: float
    uses: int


class Cache:
    """keep: whether anything outlives its answer. parking: bytes for what is kept outside the model's cells."""

    def __init__(self, llama: Llama, *, keep: bool, parking: int = 0) -> None:
        self.keep = keep and llama.divisible
        self._llama = llama
        self._tree = Prefixes()
        self._parking = Parking(parking, llama.reuse)
        self._free = list(range(llama.sequences))
        self._idle: dict[int, _Idle] = {}
        self._kinds: dict[int, str] = {}  # the adapter that a sequence was computed with
        self._clock = 0.0
        self._memory, self._looked = 0, -LOOK_SECONDS  # bytes that were free then, less what was parked since

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._tree

    def length(self, sequence: int) -> int:
        """Tokens that a sequence holds."""
        return self._tree.length(sequence)

    def append(self, sequence: int, tokens: Sequence[int]) -> None:
        """Tokens were computed at the end of a sequence."""
        self._tree.append(sequence, tokens)

    def cut(self, sequence: int, length: int) -> None:
        """Take back all but the first `length` tokens."""
        self._llama.forget(sequence, length)
        self._tree.cut(sequence, length)

    @property
    def streams(self) -> int:
        """Part of the layout of a state: what another number wrote cannot be adopted."""
        return self._llama.streams

    def facts(self) -> dict[str, int]:
        return {
            "cells": self._llama.cells,
            "cells_used": self._tree.cells,
            "kept": len(self._idle) + len(self._parking),
            "parked_bytes": self._parking.used,
        }

    # --- coming -------------------------------------------------------------------------------------------------------
    def match(self, job: Job) -> tuple[int, int]:
        """(source, length) of the longest prefix that is kept; one token is left to compute, for its logits."""
        if not self.keep or job.score_from is not None:
            return -1, 0
        source, length = self._longest(job.tokens, job.kind)
        if self._llama.apart and length < SHARE_FROM:  # all that the source holds would be copied for it
            return -1, 0
        return source, min(length, len(job.tokens) - 1)

    def take(self, job: Job, running: Sequence[Job], source: int, length: int, *, share: bool) -> bool:
        """Give a job a sequence, and what is kept of its prompt where it is to `share` that now. False where there is no room.

        Nobody who runs is ever stopped for want of room: all that they can still come to need is set aside.
        """
        reserved, before = 0, True
        for other in running:
            if other is job:
                before = False
            elif other.sequence in self._tree or other.leader or before:
                reserved += other.needs - (other.shared if other.leader else 0)
            # What is left out waits for room as this job does, and is behind it.
        while True:
            shared = 0 if source <= AWAY else length
            need = job.needs - max(shared, job.shared if job.leader else 0)
            if self._tree.cells + reserved + need <= self._llama.cells and (self._free or job.sequence >= 0):
                break
            if not self.evict(spare=source) and not (source in self._idle and self.evict()):
                return False
            source, length = self.match(job)  # it may be what has just been parked, or gone
        if job.sequence < 0:
            job.sequence = self._nearest(running)
            self._free.remove(job.sequence)
        if share:
            self.begin(job, source, length)
        return True

    def begin(self, job: Job, source: int, length: int) -> None:
        """Begin a job's sequence with what a source holds already."""
        if source <= AWAY and not self._fill(job.sequence, source, length):
            # A whole conversation has to come back before all but its beginning can go, and a pool may have no room for that.
            source, length = self._tree.match(job.tokens, job.kind)
            length = min(length, len(job.tokens) - 1)
        kept = self._idle.get(source)
        if kept is not None and length == self._tree.length(source):
            # Its next turn: it goes on in the same cells.
            self._free.append(job.sequence)
            del self._idle[source]
            job.sequence = source
        elif source <= AWAY:
            self._tree.share(job.sequence, -1, 0, job.kind)
            self._tree.append(job.sequence, job.tokens[:length])
            if self._parking.length(AWAY - source) == length:
                self._parking.drop(AWAY - source)  # likewise: the sequence holds all of it now
        else:
            if length:
                self._fill(job.sequence, source, length)
            self._tree.share(job.sequence, source, length, job.kind)
            if kept is not None:
                kept.uses += 1
                kept.since = self._clock
        self._kinds[job.sequence] = job.kind
        job.done = job.cached = length

    def _longest(self, tokens: list[int], kind: str) -> tuple[int, int]:
        """A sequence in the cache, or what is parked where that is longer by more than it costs to fetch."""
        source, length = self._tree.match(tokens, kind)
        key, away = self._parking.match(tokens, kind)
        return (AWAY - key, away) if away >= length + SHARE_FROM else (source, length)

    def _fill(self, target: int, source: int, length: int) -> bool:
        """Put the first `length` cells of a source into the empty sequence `target`.

        False where what is parked cannot come back: all of it would have to, for a moment.
        """
        if source > AWAY:
            self._llama.copy(source, target, length)
            return True
        back = self._llama.restore(target, self._parking.get(AWAY - source))
        self._llama.forget(target, length if back else 0)
        return back

    # --- side by side -------------------------------------------------------------------------------------------------
    # Where cells are apart, llama.cpp computes only neighbours in one go: a step of sequences 0, 1 and 3 is two steps to it.

    def _nearest(self, running: Sequence[Job]) -> int:
        """The free sequence that leaves those who run side by side."""
        held = [job.sequence for job in running if job.sequence >= 0]
        if not held:
            return min(self._free)
        low, high = min(held), max(held)
        return min(self._free, key=lambda free: (max(low - free, free - high, 0), free))

    def tidy(self, running: Sequence[Job]) -> None:
        """Bring those who run closer together by one move, where they are not side by side."""
        if not self._llama.apart or len(running) < 2:
            return
        kinds = [job.kind for job in running]
        most = max(set(kinds), key=kinds.count)
        mine = {job.sequence: job for job in running if job.kind == most}
        low, high = min(mine), max(mine)
        gap = next((sequence for sequence in range(low, high) if sequence not in mine), None)
        if gap is None:
            return
        other = next((job for job in running if job.sequence == gap), None)
        if gap in self._idle:
            self._park(gap)
        elif other is not None:  # it wears another adapter: out with it, to one side
            outside = [free for free in self._free if not low <= free <= high]
            idle = next((sequence for sequence in self._idle if not low <= sequence <= high), None)
            if not outside and idle is not None:
                self._park(idle)
                outside = [idle]
            if not outside:
                return
            self._move(other, outside[0])
        self._move(mine[high], gap)

    def _move(self, job: Job, target: int) -> None:
        """Let a job go on in a free sequence."""
        left, job.sequence = job.sequence, target
        self._free.remove(target)
        if left in self._tree:
            length = self._tree.length(left)
            if length:
                self._llama.copy(left, target, length)
            self._tree.share(target, left, length, job.kind)
            self._kinds[target] = job.kind
            self._llama.forget(left)
            self._tree.drop(left)
        self._free.append(left)

    # --- going --------------------------------------------------------------------------------------------------------
    def leave(self, job: Job) -> None:
        """A job has ended; what was computed stays, as long as nobody needs the room."""
        if job.sequence not in self._tree:
            self._free.append(job.sequence)
        elif self.keep and job.score_from is None and self._tree.own(job.sequence) >= SHARE_FROM:
            self._idle[job.sequence] = _Idle(self._clock, 1)
            # What is too long to be parked stays until its room is needed.
            away = self._llama.cell_bytes * self._tree.length(job.sequence) <= self._parking.most
            while not self._llama.apart and (len(self._idle) > KEPT or (away and self._pooled() > POOLED)):
                self.evict()
        else:
            self._forget(job.sequence)

    def _pooled(self) -> int:
        """Cells that would come free if all went that is only kept."""
        return sum(self._tree.own(sequence) for sequence in self._idle)

    def evict(self, spare: int = -1) -> bool:
        """Park what is worth least; False where nothing but `spare` is left."""
        doomed = min((id for id in self._idle if id != spare), key=self._worth, default=None)
        if doomed is None:
            return False
        self._park(doomed)
        return True

    def _worth(self, id: int) -> float:
        """GreedyDual (Young 1994; Cao and Irani 1997): how recently and how often it was used, and what it would cost to have
        it again, for the room that it takes. Apart, every one takes a sequence, and costs the tokens that no other holds; in a
        pool it takes so many cells as it costs tokens."""
        kept = self._idle[id]
        return kept.since + kept.uses * (self._tree.own(id) if self._llama.apart else 1)

    def spread(self, places: int) -> bool:
        """Park one conversation while nobody asks: a class that comes then finds places free. False where so many are."""
        if not self._llama.apart or len(self._free) >= places:
            return False
        doomed = min(self._idle, key=self._worth, default=None)
        if doomed is None or not self._parks(doomed):
            return False
        self._park(doomed)
        return True

    def _parks(self, doomed: int) -> bool:
        """Whether there is room to keep it outside."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:  # another model may have taken it
            self._memory, self._looked = available_memory(), time.monotonic()
        state = self._llama.cell_bytes * self._tree.length(doomed)
        return state <= self._parking.most and self._memory > KEEP_FREE + state

    def _park(self, doomed: int) -> None:
        kept = self._idle[doomed]
        self._clock = max(self._clock, self._worth(doomed))
        if self._parks(doomed):
            self._memory -= self._llama.cell_bytes * self._tree.length(doomed)
            self._parking.put(self._tree.tokens(doomed), self._kinds[doomed], self._llama.state(doomed), kept.uses)
        self._forget(doomed)

    def _forget(self, sequence: int) -> None:
        self._idle.pop(sequence, None)
        self._llama.forget(sequence)
        self._tree.drop(sequence)
        self._free.append(sequence)

    # --- adapters, and what outlives the process ----------------------------------------------------------------------
    def unlearn(self, kind: str) -> None:
        """Forget all that was computed with an adapter."""
        for sequence in [sequence for sequence in self._idle if self._kinds[sequence] == kind]:
            self._forget(sequence)
        self._parking.forget(kind)

    def state_of(self, tokens: list[int], kind: str) -> State | None:
        """The cells of a prefix, for `adopt` in a later process; None where they are not kept."""
        if not self.keep or not (self._free or self.evict()):
            return None
        source, length = self._longest(tokens, kind)
        if length < len(tokens):
            return None
        aside = self._free[-1]
        try:
            return self._llama.state(aside) if self._fill(aside, source, length) else None
        finally:
            self._llama.forget(aside)

    def adopt(self, tokens: list[int], kind: str, state: State) -> bool:
        """Keep a prefix that was computed before; False where there is no room. Raises BadInput for a state that is none of
        this model's."""
        if not self.keep or not (self._free or self.evict()) or self._longest(tokens, kind)[1] == len(tokens):
            return False
        if self._tree.cells + len(tokens) > self._llama.cells:
            return False
        aside = self._free[-1]
        try:
            if not self._llama.restore(aside, state) or self._llama.length(aside) != len(tokens):
                raise BadInput("The state of a prefix does not fit this model.", "It is computed again.")
        finally:
            self._llama.forget(aside)
        return self._parking.put(tokens, kind, state, uses=2)
