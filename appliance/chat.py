"""The one road from a person to a model: find passages, build the prompt, stream the answer, keep every turn.

`complete` is the only caller of the pool; pages go through `start` and `follow`, which store the question before anything
else happens and let an answer run on when its reader reloads. Hides the token budget, which marks point at a passage, and
what leads while only a starter model serves. It renders no HTML, knows no HTTP, and never logs what people write.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from appliance import prompts
from appliance.audit import Audit
from appliance.citations import Citations
from appliance.classes import Classes
from appliance.conversations import Conversations, Turn
from appliance.coverage import Sources, shorten
from appliance.engine.handler import Message, Request
from appliance.errors import ApplianceError, BadInput, Busy, Conflict, ModelUnavailable, TooLarge
from appliance.fence import Fence, secret_of
from appliance.guarding import HANDLER, Guard
from appliance.knowledge import suspicion
from appliance.knowledge.follow_ups import to_search
from appliance.knowledge.shelves import Filter
from appliance.running import Event, Kept, Run, failure, summary
from appliance.safeguarding import Safeguarding

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.db import Database
    from appliance.engine.pool import Pool, Serving
    from appliance.knowledge.library import Library, Passage
    from appliance.settings import Settings

log = logging.getLogger(__name__)

LONGEST_QUESTION = 20_000
ANSWERS_AT_ONCE = 4
SAVE_EVERY = 1.0
# A starter that answers greedily falls into loops; a few words of it are enough to see that it runs.
STARTER_TOKENS = 80
STARTER_PENALTY = 1.2
STARTER_HEADING = "The starter model's own words (for trying the box; do not rely on them)"


def as_one_text(text: str, lead: str) -> str:
    """An answer for places that show one text: quotes first, then the starter's words under their heading."""
    return f"{lead}\n\n---\n\n**{STARTER_HEADING}**\n\n{text}" if lead else text


class Chat:
    """Built once for each process. Call `recover` before the first page and `close` at the end."""

    def __init__(
        self,
        database: Database,
        library: Library,
        pool: Pool,
        accounts: Accounts,
        settings: Settings,
        starter_of: Callable[[str], bool] | None = None,
        safeguarding: Safeguarding | None = None,
    ) -> None:
        """`starter_of` tells of a model's id or alias whether it is the starter's kin; without it every named model is."""
        self.guard = Guard(settings, safeguarding or Safeguarding(database, Audit(database)))
        self.conversations = Conversations(database, accounts)
        self._library = library
        self._pool = pool
        self._starter_of = starter_of
        self._accounts = accounts
        self._settings = settings
        self._classes = Classes(database)
        self._fence: Fence | None = None
        self._runs: dict[str, Run] = {}

    # --- one answer, not stored --------------------------------------------------------------------------------------
    async def complete(
        self, user: User, messages: Sequence[Message], *, conversation: str = "", left: list[str] | None = None, **options: Any
    ) -> AsyncGenerator[Event, None]:
        """`_unguarded`, inside the safety guard: every door comes this way, and what is stopped ends as a "done" event.

        `conversation`: the stored one it belongs to; `left`: as in `Guard.over`. Takes and raises what `_unguarded` does.
        """
        self._accounts.require(user, "ask", "chat")
        _split(messages)

        def answer(checked: Sequence[Message]) -> AsyncGenerator[Event, None]:
            return self._unguarded(user, checked, **options)

        guarded = self.guard.over(user, messages, answer, grade=options.get("grade"), conversation=conversation, left=left)
        async with aclosing(guarded) as events:
            async for event in events:
                yield event

    async def _unguarded(
        self,
        user: User,
        messages: Sequence[Message],
        *,
        model: str = "default",
        collections: Sequence[str] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 0.95,
        seed: int | None = None,
        stop: Sequence[str] = (),
        subject: str | None = None,
        grade: str | None = None,
        module: str = "teacher_responder",
    ) -> AsyncGenerator[Event, None]:
        """Answer the last message. `collections` None searches all documents, an empty one none.

        What only asks on ("and why?") is searched with the question before it.

        Where the documents do not cover it, the answer says so and names the nearest; for a strict class that is all of it.
        System messages need the right to instruct, and stand after ours. Closing the generator frees the model at once.
        Raises NotSignedIn, Forbidden, BadInput, NotFound, TooLarge, Busy, ModelUnavailable.
        """
        self._accounts.require(user, "ask", "chat")
        question, history, instructions = _split(messages)
        if instructions:
            self._accounts.require(user, "instruct", "chat")
        started = time.monotonic()
        meant = to_search(question, [message.content for message in history if message.role == "user"])
        sources = await self._find(user, meant, collections)
        strict = await asyncio.to_thread(self._classes.strict, user.classes)
        if strict and not sources.passages:
            for event in sources.only(round(time.monotonic() - started, 3)):
                yield event
            return
        task = f"{module}/{subject.casefold()}" if subject else module
        serving = await self._pool.serving(task)
        starter = await self._is_starter(model, serving)
        limit = max_tokens or (min(STARTER_TOKENS, self._settings.answer_tokens) if starter else self._settings.answer_tokens)
        context = serving.context or self._pool.context
        if context > 0:
            limit = min(limit, max(16, context // 2))
        if self._fence is None:
            self._fence = Fence(await asyncio.to_thread(secret_of, self._settings.fence), suspicion.suspicious)
        render = partial(prompts.render, question, module=module, subject=subject, grade=grade, fence=self._fence)
        count = partial(self._pool.count, task=task, model=model)
        room = context - limit if context > 0 else 10**9
        plan = await self._fit(render, sources.passages, history, instructions, count, room, limit, strict)
        request = Request(
            plan.messages, model, limit, temperature, top_p=top_p, seed=seed, stop=tuple(stop), user=user.id, group=user.role,
            repeat_penalty=STARTER_PENALTY if starter else 1.0,
            passages=tuple(sources.passages), question=meant, task=task,
        )  # fmt: skip
        async with aclosing(self._events(request, plan, sources, serving, starter)) as events:
            async for event in events:
                if event.kind == "done":
                    event = Event("done", {**event.data, "seconds": round(time.monotonic() - started, 3)})
                yield event

    async def _events(
        self, request: Request, plan: _Plan, sources: Sources, serving: Serving, starter: bool
    ) -> AsyncGenerator[Event, None]:
        """All events of one answer, from what was found to what was said."""
        model = serving.model if request.model in ("default", "quotes") else request.model
        last = {"model": model, "handler": serving.handler, "finish": "stop", "tokens": {}}
        yield Event("sources", {**sources.facts(), "model": last["model"], "handler": last["handler"]})
        if plan.dropped:
            yield Event("notice", {"message": "This chat has grown long: the assistant no longer sees its first messages."})
        said = lead = ""
        if starter:
            lead = await self._quote(request, sources)
            yield Event("quotes", {"text": lead})
        async with aclosing(self._words(request, plan.given, sources, starter, last)) as events:
            async for event in events:
                said += event.data.get("delta", "")
                yield event
        if last["handler"] == "quotes":
            starter, lead = False, ""
        about = {"state": "done", "text": said.strip(), "lead": lead, "starter": starter, "covered": sources.covered}
        yield Event("done", {**about, **last})

    async def _words(
        self, request: Request, given: int, sources: Sources, starter: bool, last: dict[str, Any]
    ) -> AsyncGenerator[Event, None]:
        """The model's own words as events; what the last chunk said of the answer is put into `last`."""
        marks: Citations | None = None
        quoting = request.model == "quotes" or (request.model == "default" and last["handler"] == "quotes")
        if quoting and not request.passages:
            last |= {"model": "quotes", "handler": "quotes"}
            yield Event("text", {"delta": sources.nothing()})
            return
        async with aclosing(self._pool.generate(request)) as chunks:
            async for chunk in chunks:
                last["model"], last["handler"] = chunk.model or last["model"], chunk.handler or last["handler"]
                if chunk.usage is not None:
                    last["tokens"] = asdict(chunk.usage)
                if chunk.finish is not None:
                    last["finish"] = chunk.finish
                if chunk.place is not None:
                    yield Event("queue", {"place": chunk.place, "wait": chunk.wait})
                if not chunk.text:
                    continue
                if marks is None:
                    quoting = chunk.handler == "quotes"
                    if quoting and not request.passages:
                        yield Event("text", {"delta": sources.nothing()})
                        break
                    marks = Citations([one.text for one in request.passages[: None if quoting else given]])
                    if sources.covered is False and not quoting and not starter:
                        yield Event("text", {"delta": sources.before_own_words()})
                if delta := marks.feed(chunk.text):
                    yield Event("text", {"delta": delta})
        if marks is not None and (delta := marks.flush().rstrip()):
            yield Event("text", {"delta": delta})

    async def _quote(self, request: Request, sources: Sources) -> str:
        """What the documents say, in their own words: this leads while the model that serves is not to be relied on."""
        if not request.passages:
            return sources.nothing()
        text = ""
        request = replace(request, model="quotes", max_tokens=1000, stop=())
        async with aclosing(self._pool.generate(request)) as chunks:
            async for chunk in chunks:
                text += chunk.text
        marks = Citations([one.text for one in request.passages])
        return (marks.feed(text) + marks.flush()).strip()

    async def _is_starter(self, model: str, serving: Serving) -> bool:
        if model == "quotes":
            return False
        if model in ("default", serving.model):
            return serving.starter and serving.handler != "quotes"
        # Another local model: what the registry says of it, and the cautious answer where nobody can say.
        return self._starter_of is None or await asyncio.to_thread(self._starter_of, model)

    async def _find(self, user: User, question: str, collections: Sequence[str] | None) -> Sources:
        """What the person who asks may see; a collection that they may not see is one that is not there."""
        if collections is not None and not collections:
            return Sources(None, False, [], [])
        visible = Filter(await asyncio.to_thread(self._accounts.visible, user, "collection"))
        within = await self._library.named(collections, visible)
        found = await self._library.search(question, k=self._settings.passages, within=within)
        return Sources(found.covered, found.lexical_only, list(found.passages) if found.covered else [], list(found.nearest))

    async def _fit(
        self,
        render: Callable[[Sequence[Passage], Sequence[Message]], list[Message]],
        passages: Sequence[Passage],
        history: Sequence[Message],
        instructions: str,
        count: Callable[[Sequence[Message]], Awaitable[int]],
        room: int,
        limit: int,
        strict: bool,
    ) -> _Plan:
        """The largest prompt of at most `room` tokens: old turns go first, then passages, the instructions never.

        Where only documents may answer, the last passage stays.
        """
        plans: list[tuple[Sequence[Message], Sequence[Any]]] = [(history[n:], passages) for n in range(0, len(history), 2)]
        plans += [((), passages[:n]) for n in range(len(passages), 0, -1)]
        plans += [((), [replace(passages[0], text=shorten(passages[0].text, size))]) for size in (600, 250) if passages]
        if not (strict and passages):
            plans.append(((), ()))

        async def measure(index: int) -> tuple[list[Message], int]:
            turns_kept, given = plans[index]
            messages = render(given, turns_kept)
            if instructions:
                messages[0] = Message(messages[0].role, f"{messages[0].content}\n\n{instructions}")
            try:
                return messages, await count(messages)
            except ModelUnavailable:
                return messages, 0  # quotes answer in this case, and they have no such limit

        low, high = 0, len(plans) - 1
        best, size = await measure(low)
        if size > room:  # plans only shrink, so the first one that fits is found by halving
            best, size = await measure(high)
            if size > room:
                raise TooLarge(
                    f"The question takes {size} tokens of the model's; {max(room, 0)} fit beside an answer of {limit}.",
                    "Ask in fewer words, or in parts.",
                )
            while high - low > 1:
                middle = (low + high) // 2
                messages, size = await measure(middle)
                if size <= room:
                    high, best = middle, messages
                else:
                    low = middle
            low = high
        kept, given = plans[low]
        return _Plan(best, len(given), dropped=len(kept) < len(history))

    async def ask(self, user: User, question: str, **options: Any) -> dict[str, Any]:
        """One answer as `appliance ask --json` prints it; nothing is stored. Takes and raises what `complete` does."""
        facts: dict[str, Any] = {}
        async with aclosing(self.complete(user, [Message("user", question)], **options)) as events:
            async for event in events:
                facts |= event.data if event.kind in ("sources", "done") else {}
        kept = ("covered", "model", "handler", "starter", "passages", "tokens", "seconds")
        return {"answer": as_one_text(facts["text"], facts["lead"]), **{key: facts[key] for key in kept}}

    # --- a page's answer ---------------------------------------------------------------------------------------------
    async def start(
        self, user: User, question: str, *, conversation: str | None = None, model: str = "default", **options: Any
    ) -> Event:
        """Store the question, start the answer in the background, and say where they are: an event of kind "turn".

        Once this returns the question is on disk. `options`: collections, subject, grade, module. Raises BadInput, TooLarge,
        NotFound (another's conversation), Conflict (its last answer is not finished), Busy.
        """
        self._accounts.require(user, "ask", "chat")
        question = clean_question(question)
        running = [run for run in self._runs.values() if not run.finished]
        if conversation is not None and any(run.ids["conversation"] == conversation for run in running):
            raise Conflict("The last answer in this chat is not finished.", "Wait for it, or press Stop.")
        if sum(run.user == user.id for run in running) >= ANSWERS_AT_ONCE:
            raise Busy("You have several answers under way.", "Wait until one of them is finished.")
        ids, earlier = await asyncio.to_thread(self.conversations.add_question, user, question, conversation)
        run = Run(ids, user.id)
        self._runs[ids["turn"]] = run
        run.emit(Event("turn", ids))
        messages = [*_history(earlier), Message("user", question)]
        run.task = asyncio.create_task(self._answer(run, user, messages, model=model, **options))
        run.left()  # nobody reads yet
        await asyncio.sleep(0)  # a task that is cancelled before its first step could not even store that it was
        return Event("turn", ids)

    async def answer(self, user: User, question: str, **options: Any) -> AsyncGenerator[Event, None]:
        """`start`, then `follow`."""
        asked = await self.start(user, question, **options)
        async with aclosing(self.follow(user, asked.data["turn"])) as events:
            async for event in events:
                yield event

    async def follow(self, user: User, turn: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """The events of an answer from number `after` on, live or, once it is finished, as a summary without deltas.

        Raises NotFound where it is not the user's. A reader who leaves gives the answer 20 more seconds.
        """
        run = self._runs.get(turn)
        self._accounts.require(user, "read", "conversation", owner=run.user if run else user.id)
        if run is None:
            for event in summary(await asyncio.to_thread(self.conversations.turn, user, turn)):
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
            await asyncio.to_thread(self.conversations.turn, user, turn)
            return
        self._accounts.require(user, "change", "conversation", owner=run.user)
        run.cancel()
        while not run.finished:
            await run.changed.wait()

    async def leave(self, user: User) -> None:
        """End every answer that a person has under way: they have signed out. What was written so far is kept."""
        for turn in [turn for turn, run in self._runs.items() if run.user == user.id]:
            await self.stop(user, turn)

    async def delete(self, user: User, conversation: str) -> None:
        """Stop what is being written in it, then delete it with all its turns. Raises NotFound."""
        _, stored = await asyncio.to_thread(self.conversations.load, user, conversation)
        for turn in stored:
            if turn.id in self._runs:
                await self.stop(user, turn.id)
        await asyncio.to_thread(self.conversations.delete, user, conversation)

    async def recover(self) -> None:
        """After a crash: answers that nobody is writing any more are failed, with what they had. Reads the safety rules."""
        await self.guard.ready()
        await asyncio.to_thread(self.conversations.fail_unfinished, list(self._runs))

    async def close(self) -> None:
        """Stop and store every answer under way."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for run in list(self._runs.values()):
            run.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.guard.safeguarding.close()

    async def _answer(self, run: Run, user: User, messages: list[Message], **options: Any) -> None:
        """Drive one answer to its end and write it down, whatever happens."""
        kept, left = Kept(), list[str]()
        end = Event(
            "error", {"message": "The answer stopped because of a fault in the box.", "hint": "Ask again.", "code": "failed"}
        )
        saved = time.monotonic()
        try:
            about: dict[str, Any] = {"conversation": run.ids["conversation"], "left": left}
            async with aclosing(self.complete(user, messages, **about, **options)) as events:
                async for event in events:
                    kept.take(event)
                    if event.kind == "done":
                        end = event
                        break
                    if event.kind != "text" or time.monotonic() - saved >= SAVE_EVERY:
                        await asyncio.to_thread(self.conversations.save_answer, run.ids["turn"], kept.columns("streaming"))
                        saved = time.monotonic()
                    run.emit(event)
        except asyncio.CancelledError:
            kept.said += left
            end = Event("done", {**kept.done(), "state": "stopped"})
        except ApplianceError as error:
            end = failure(error)
        except Exception as error:  # noqa: BLE001 - the turn must not stay "streaming" for ever
            log.error("answer failed: %s", where(error))
        run.ending = True
        try:
            columns = kept.columns(end.data.get("state", "failed"), end.data.get("message", ""), end.data.get("hint", ""))
            await asyncio.to_thread(self.conversations.save_answer, run.ids["turn"], columns)
            if columns["handler"] == HANDLER:
                await asyncio.to_thread(self.conversations.mark_blocked, run.ids["question"])
        except ApplianceError as error:
            end = failure(error)
        run.emit(end, last=True)
        self._runs.pop(run.ids["turn"], None)


@dataclass(frozen=True, slots=True)
class _Plan:
    """`given` passages are in the messages; `dropped`: older turns are not."""

    messages: list[Message]
    given: int
    dropped: bool


def clean_question(text: str) -> str:
    """Raises BadInput (empty, not text) and TooLarge; control characters become spaces."""
    if len(text) > LONGEST_QUESTION:
        raise TooLarge(f"That is {len(text)} characters; {LONGEST_QUESTION} can be sent at once.", "Ask in parts.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("The text has characters that are not valid Unicode.", "Type it again instead of pasting it.") from None
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text.replace("\r\n", "\n")).strip()
    if not text:
        raise BadInput("The question is empty.", "Write a question first.")
    return text


def where(error: BaseException) -> str:
    """Kind and place of a fault, for a log: its message may hold what a pupil wrote."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"


def _split(messages: Sequence[Message]) -> tuple[str, list[Message], str]:
    """(question, earlier turns, extra instructions). Raises BadInput unless the last message is the user's."""
    instructions = "\n\n".join(message.content.strip() for message in messages if message.role == "system")
    talk = [message for message in messages if message.role != "system"]
    if not talk or talk[-1].role != "user":
        raise BadInput("The last message has to be the user's.", "Send the question as the last message.")
    return clean_question(talk[-1].content), talk[:-1], instructions


def _history(earlier: Sequence[Turn]) -> list[Message]:
    """Questions with their answers; an answer that never came, or was stopped, takes its question with it."""
    messages: list[Message] = []
    for question, reply in zip(earlier[::2], earlier[1::2], strict=False):
        text = reply.facts.get("lead") or reply.text
        if text and reply.state != "blocked":
            messages += [Message("user", question.text), Message("assistant", text)]
    return messages
