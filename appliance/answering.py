"""The answers under way in this process: started, followed by any number of readers, stopped, and written down as they grow.

Hides that an answer outlives its reader for a while, and what a disk does to it: it is saved beside the stream, once a second,
so that a slow or locked disk holds up no word; what could not be saved at the end is kept here, shown, and tried again until it
could. It knows nothing of models: who makes one hands over its events. Rights are `accounts`' to say.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

from appliance.conversations import UNDO_SECONDS
from appliance.errors import ApplianceError, Busy, Conflict, StorageFull, where
from appliance.running import SUPPORT, Event, Run, failure, summary
from appliance.tables import new_id

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.conversations import Conversations

log = logging.getLogger(__name__)

ANSWERS_AT_ONCE = 4
SAVE_EVERY = 1.0
SLOW_SAVE = 2.0  # seconds after which the reader is told that the disk takes long
TRY_AGAIN = 5.0


class Answers:
    """Built once for each process. Call `recover` before the first page and `close` at the end."""

    def __init__(self, conversations: Conversations, accounts: Accounts) -> None:
        self._conversations = conversations
        self._accounts = accounts
        self._runs: dict[str, Run] = {}
        self._coming: set[tuple[str, str]] = set()  # who is about to begin an answer, in which conversation
        self._timers: list[asyncio.TimerHandle] = []
        conversations.under_way = self._row

    @asynccontextmanager
    async def room_for(self, user: User, conversation: str | None) -> AsyncIterator[None]:
        """A place for one more answer, held while it is being begun.

        Raises Conflict (an answer of this conversation is not finished), Busy, or why the last one cannot be saved.
        """
        here = [run for run in self._runs.values() if run.ids["conversation"] == conversation and run.user == user.id]
        coming = (user.id, conversation or new_id())
        if any(not run.finished for run in here) or coming in self._coming:
            raise Conflict("The last answer in this chat is not finished.", "Wait for it, or press Stop.")
        under_way = sum(run.user == user.id and not run.finished for run in self._runs.values())
        if under_way + sum(who == user.id for who, _ in self._coming) >= ANSWERS_AT_ONCE:
            raise Busy("You have several answers under way.", "Wait until one of them is finished.")
        self._coming.add(coming)
        try:
            for run in here:
                await self._save_last(run)
            yield
        finally:
            self._coming.discard(coming)

    async def begin(
        self, user: User, ids: dict[str, str], events: AsyncGenerator[Event, None], left: Sequence[str] = ()
    ) -> Event:
        """Drive what makes an answer, in the background, and say where it is: an event of kind "turn".

        left: what was written and not told yet where the answer is stopped; its maker fills it in.
        """
        run = Run(ids, user.id)
        self._runs[ids["turn"]] = run
        run.emit(Event("turn", ids))
        run.task = asyncio.create_task(self._drive(run, events, left))
        run.left()  # nobody reads yet
        await asyncio.sleep(0)  # a task that is cancelled before its first step could not even store that it was
        return Event("turn", ids)

    async def follow(self, user: User, turn: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """The events of an answer from number `after` on, live or, once it is finished, as a summary without deltas.

        Raises NotFound where it is not the user's. A reader who leaves gives the answer 20 more seconds.
        """
        run = self._runs.get(turn)
        self._accounts.require(user, "read", "conversation", owner=run.user if run else user.id)
        if run is None:
            for event in summary(await asyncio.to_thread(self._conversations.turn, user, turn)):
                yield event
            return
        run.came()
        try:
            while True:
                changed = run.changed
                while after < len(run.events):
                    yield run.events[after]
                    after += 1
                if run.finished:
                    return
                await changed.wait()
        finally:
            run.left()

    async def stop(self, user: User, turn: str) -> None:
        """End an answer now; what was written so far is kept. Does nothing to a finished one. Raises NotFound."""
        run = self._runs.get(turn)
        if run is None:
            await asyncio.to_thread(self._conversations.turn, user, turn)
            return
        self._accounts.require(user, "change", "conversation", owner=run.user)
        run.cancel("stopped")
        while not run.finished:
            await run.changed.wait()

    async def leave(self, user: User) -> None:
        """End every answer that a person has under way: they have signed out. What was written so far is kept."""
        for turn in [turn for turn, run in self._runs.items() if run.user == user.id]:
            await self.stop(user, turn)

    async def delete(self, user: User, conversation: str) -> None:
        """Stop what is being written in it, then delete it; it can be brought back for ten minutes. Raises NotFound."""
        await asyncio.to_thread(self._conversations.load, user, conversation)
        for turn in [turn for turn, run in self._runs.items() if run.ids["conversation"] == conversation]:
            await self.stop(user, turn)
        await asyncio.to_thread(self._conversations.delete, user, conversation)
        self._purge_later()

    def answering(self, users: Collection[str]) -> int:
        """How many answers these people (by id) wait for or read as they are written."""
        return sum(run.user in users and not run.finished for run in self._runs.values())

    async def recover(self) -> None:
        """After a crash: answers that nobody is writing any more are failed, with what they had."""
        await asyncio.to_thread(self._conversations.fail_unfinished, list(self._runs))
        await asyncio.to_thread(self._conversations.purge)
        self._purge_later()

    async def close(self) -> None:
        """Stop and store every answer under way."""
        for timer in self._timers:
            timer.cancel()
        tasks = []
        for run in list(self._runs.values()):
            if run.finished and run.task is not None:
                run.task.cancel()  # it only waits to save once more, which is done for the last time as it ends
            run.cancel("closing")
            tasks += [run.task] if run.task is not None else []
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one answer to its end ---------------------------------------------------------------------------------------
    async def _drive(self, run: Run, events: AsyncGenerator[Event, None], left: Sequence[str]) -> None:
        """Drive one answer to its end and write it down, whatever happens."""
        end = failure(ApplianceError("The answer stopped because of a fault in the box.", "Ask again."))
        try:
            async with aclosing(events):
                async for event in events:
                    run.kept.take(event)
                    if event.kind == "done":
                        end = event
                        break
                    self._save_beside(run, event)
                    run.emit(event)
        except asyncio.CancelledError:
            run.kept.said += left
            end = Event("done", {**run.kept.done(), "state": "stopped"})
            if run.why == "closing":
                off = ApplianceError("The box was switched off while it wrote this answer.", "Ask again.")
                end = failure(off, "switched_off")
        except ApplianceError as error:
            end = failure(error)
        except Exception as error:  # noqa: BLE001 - the turn must not stay "streaming" for ever
            log.error("answer failed: %s", where(error))
        run.ending = True
        run.unsaved = run.kept.columns(end.data.get("state", "failed"), end, run.why)
        try:
            await self._save_end(run)
        except ApplianceError as error:
            run.emit(_not_saved(error), last=True)
            await self._keep_trying(run)
            return
        self._runs.pop(run.ids["turn"], None)
        run.emit(end, last=True)

    def _save_beside(self, run: Run, event: Event) -> None:
        """Save what there is so far, without waiting for it. A fault of the disk is told at the end, if it lasts."""
        due = event.kind not in ("text", "queue") or time.monotonic() - run.saved >= SAVE_EVERY
        if not due or (run.saving is not None and not run.saving.done()):
            return
        run.saved = time.monotonic()
        run.saving = asyncio.create_task(self._save(run, run.kept.columns("streaming")))

    async def _save(self, run: Run, columns: dict[str, Any]) -> None:
        try:
            await self._write(run, columns)
        except ApplianceError as error:
            log.warning("an answer under way could not be saved: %s", error.code)

    async def _write(self, run: Run, columns: dict[str, Any]) -> None:
        try:
            await asyncio.to_thread(self._conversations.save_answer, run.ids["turn"], columns)
        except ApplianceError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the words are kept and tried again
            log.error("saving an answer failed: %s", where(error))
            raise ApplianceError("Something in the box went wrong.", "Tell the administrator if it stays.") from None

    async def _save_end(self, run: Run) -> None:
        """Raises what the disk says."""
        if run.saving is not None:
            await asyncio.wait({run.saving}, timeout=SLOW_SAVE)
        saving = asyncio.create_task(self._save_last(run))
        _, late = await asyncio.wait({saving}, timeout=SLOW_SAVE)
        if late:
            run.emit(Event("saving", {}))
        await saving

    async def _save_last(self, run: Run) -> None:
        """The final words of an answer. Raises what the disk says."""
        unsaved = run.unsaved
        if unsaved is not None:  # two may be at it: who waits for the disk, and whoever asks the next question
            await self._write(run, unsaved)
            if unsaved["handler"] == SUPPORT:
                await asyncio.to_thread(self._conversations.mark_blocked, run.ids["question"])
            run.unsaved = None

    async def _keep_trying(self, run: Run) -> None:
        """Hold a finished answer until the disk takes it."""
        try:
            while run.unsaved is not None:
                await asyncio.sleep(TRY_AGAIN)
                try:
                    await self._save_last(run)
                except ApplianceError as error:
                    log.warning("a finished answer cannot be saved yet: %s", error.code)
        except asyncio.CancelledError:
            await self._save_last(run)
        self._runs.pop(run.ids["turn"], None)

    def _row(self, turn: str) -> dict[str, Any] | None:
        run = self._runs.get(turn)
        return run.row() if run is not None else None

    def _purge_later(self) -> None:
        """What is deleted now leaves the disk once it can no longer be brought back."""
        loop = asyncio.get_running_loop()
        later = loop.call_later(UNDO_SECONDS + 1, loop.run_in_executor, None, self._purge)
        self._timers = [one for one in self._timers if one.when() > loop.time()] + [later]

    def _purge(self) -> None:
        try:
            self._conversations.purge()
        except ApplianceError as error:
            log.warning("deleted chats stay until the next start: %s", error.code)


def _not_saved(error: ApplianceError) -> Event:
    told = ApplianceError(
        f"This answer could not be saved. {error.message}",
        "The box keeps trying; copy what you need before you leave this page.",
    )
    return failure(told, "not_saved_disk_full" if isinstance(error, StorageFull) else "not_saved")
