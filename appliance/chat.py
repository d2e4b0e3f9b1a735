"""The one road from a person to a model: find passages, build the prompt, stream the answer, keep every turn.

`complete` is the only caller of the pool; pages go through `start`, which stores the question before anything else happens, and
`follow`; what becomes of an answer under way is `answering`'s. Hides the token budget, which marks point at a passage, and
what leads while only a starter model serves. It renders no HTML, knows no HTTP, and never logs what people write.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from appliance import hints, openings, reading, teaching
from appliance.accounts import PUPIL
from appliance.answering import Answers
from appliance.audit import Audit
from appliance.citations import Citations
from appliance.conversations import Conversations, Turn, talk
from appliance.coverage import Sources
from appliance.engine.handler import Message, Request
from appliance.errors import ApplianceError, BadInput, Closed, TooLarge, UsedUp
from appliance.fence import Fence
from appliance.files import kept_secret
from appliance.fitting import Count, Plan, Render, Room, fit
from appliance.guarding import Guard
from appliance.knowledge import suspicion
from appliance.knowledge.follow_ups import to_search
from appliance.knowledge.shelves import Filter
from appliance.lessons import Lesson, Lessons
from appliance.programs import Programs
from appliance.quotas import Quotas
from appliance.running import Event
from appliance.safeguarding import Safeguarding

if TYPE_CHECKING:
    from appliance.accounts import Accounts, User
    from appliance.db import Database
    from appliance.engine.pool import Pool, Serving
    from appliance.knowledge.library import Library
    from appliance.settings import Settings

log = logging.getLogger(__name__)

SLOW_COUNT = 0.3  # seconds that an answer's end waits for its tokens to be counted
LONGEST_QUESTION = 20_000
ANOTHER_TEMPERATURE = 0.7
# A starter that answers greedily falls into loops; a few words of it are enough to see that it runs.
STARTER_TOKENS = 80
STARTER_PENALTY = 1.2
# Prompt programs of teachers' rehearsals: no pupil reaches them, whoever hands a name on.
FOR_PRACTICE = frozenset({"student_reaction", "scenario_generator"})


@dataclass(frozen=True, slots=True)
class How:
    """How one answer is asked for. `collections` None searches all documents, an empty one none.

    lesson: as `admit` gave it for this question; None: it is admitted then. module: a prompt program; where its answers have a
    form (see `asking`), or `schema` gives one, they are held to it. simpler: the reader found the answer before this one hard.
    """

    model: str = "default"
    collections: Sequence[str] | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 0.95
    seed: int | None = None
    stop: Sequence[str] = ()
    subject: str | None = None
    grade: str | None = None
    module: str = "teacher_responder"
    lesson: Lesson | None = None
    schema: dict[str, Any] | None = None
    simpler: bool = False


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
        self.lessons = Lessons(database)
        self.quotas = Quotas(database)
        self.programs = Programs(database, accounts, Audit(database))
        self._fence: Fence | None = None
        self._counting: set[asyncio.Task[None]] = set()
        # What happens to an answer once it is begun. `recover` before the first page, `close` at the end.
        answers = self._answers = Answers(self.conversations, accounts)
        self.follow, self.stop, self.leave, self.delete = answers.follow, answers.stop, answers.leave, answers.delete
        self.answering = answers.answering
        # Who counts how long people wait: told seconds, to the first words of an answer and to its end.
        self.on_first_words: Callable[[float], None] = _uncounted
        self.on_answered: Callable[[float], None] = _uncounted

    # --- one answer, not stored --------------------------------------------------------------------------------------
    async def complete(
        self,
        user: User,
        messages: Sequence[Message],
        *,
        conversation: str = "",
        before: str = "",
        left: list[str] | None = None,
        **options: Any,
    ) -> AsyncGenerator[Event, None]:
        """`_unguarded`, inside the safety guard: every door comes this way, and what is stopped ends as a "done" event.

        `conversation`: the stored one it belongs to; `before` and `left`: as in `Guard.over`; options: those of `How`. Raises
        what `_unguarded` does.
        """
        self._accounts.require(user, "ask", "chat")
        _split(messages)
        how = How(**options)

        def answer(checked: Sequence[Message]) -> AsyncGenerator[Event, None]:
            return self._unguarded(user, checked, how)

        grade = (how.lesson.grade if how.lesson is not None else "") or how.grade
        guarded = self.guard.over(user, messages, answer, grade=grade, conversation=conversation, before=before, left=left)
        started, silent = time.monotonic(), True
        async with aclosing(guarded) as events:
            async for event in events:
                if silent and event.kind in ("text", "quotes"):
                    silent = False
                    self.on_first_words(time.monotonic() - started)
                elif event.kind == "done":
                    self.on_answered(time.monotonic() - started)
                yield event

    async def _unguarded(self, user: User, messages: Sequence[Message], how: How) -> AsyncGenerator[Event, None]:
        """Answer the last message.

        What only asks on ("and why?") is searched with the question before it. Where the documents do not cover it, the answer
        says so and names the nearest; for a strict class that is all of it. System messages need the right to instruct, and
        stand after ours. Closing the generator frees the model at once.
        Raises NotSignedIn, Forbidden, Closed, BadInput, NotFound, TooLarge, Busy, ModelUnavailable.
        """
        question, history, instructions = _split(messages)
        if instructions:
            self._accounts.require(user, "instruct", "chat")
        if how.module in FOR_PRACTICE:
            self._accounts.require(user, "practise", "lesson")
        lesson = how.lesson or await self.admit(user)
        how = replace(how, lesson=lesson, subject=lesson.subject or how.subject, grade=lesson.grade or how.grade)
        started = time.monotonic()
        meant = to_search(question, [message.content for message in history if message.role == "user"])
        sources = await self._find(user, meant, how.collections, lesson)
        if lesson.strict and not sources.passages:
            for event in sources.only(round(time.monotonic() - started, 3)):
                yield event
            return
        task = f"{how.module}/{how.subject.casefold()}" if how.subject else how.module
        inside = not user.staff and self._settings.hosted_for != "everyone"
        serving = await self._pool.serving(task, inside)
        starter = await self._is_starter(how.model, serving)
        room = self._room(serving, starter, how.max_tokens)
        count = partial(self._pool.count, task=task, model=how.model, inside=inside)
        render, form = await self._rendering(question, history, how, lesson, count, room)
        plan = await fit(render, sources.passages, history, instructions, count, room, strict=lesson.strict)
        request = Request(
            plan.messages, how.model, room.answer, how.temperature, top_p=how.top_p, seed=how.seed, stop=tuple(how.stop),
            user=user.id, group=_group(user), repeat_penalty=STARTER_PENALTY if starter else 1.0,
            passages=tuple(sources.passages), question=meant, task=task, schema=form, inside=inside,
        )  # fmt: skip
        async with aclosing(self._events(request, plan, sources, serving, starter)) as events:
            async for event in events:
                if event.kind == "done":
                    hard = reading.facts(event.data["text"], lesson.grade)
                    told = {"reading": hard} if hard else {}
                    event = Event("done", {**event.data, **told, "seconds": round(time.monotonic() - started, 3)})
                    used = sum(event.data["tokens"].get(kind, 0) for kind in ("prompt", "completion"))
                    await self._count(user, lesson.class_id, used)
                yield event

    def _room(self, serving: Serving, starter: bool, wanted: int | None) -> Room:
        """How long the answer may be, and what is left to the prompt."""
        limit = wanted or (min(STARTER_TOKENS, self._settings.answer_tokens) if starter else self._settings.answer_tokens)
        context = serving.context or self._pool.context
        if context <= 0:
            return Room(10**9, limit)
        limit = min(limit, max(16, context // 2))
        return Room(context - limit, limit)

    async def _rendering(
        self, question: str, history: Sequence[Message], how: How, lesson: Lesson, count: Count, room: Room
    ) -> tuple[Render, dict[str, Any] | None]:
        """What makes messages of passages and earlier turns, and the form that the answer is held to, None for plain words."""
        if self._fence is None:
            self._fence = Fence(await asyncio.to_thread(kept_secret, self._settings.fence), suspicion.suspicious)
        served = await asyncio.to_thread(self.programs.module, how.module, how.subject or "", how.grade or "")
        program = await served.within(room.prompt, count)
        form = how.schema or program.schema
        note = "" if form else _note(lesson, [*history, Message("user", question)], simpler=how.simpler)
        about: dict[str, Any] = {"subject": how.subject, "grade": how.grade, "lesson": lesson.words(), "note": note}
        return partial(program.render, question, fence=self._fence, **about), form

    async def _count(self, user: User, class_id: str, tokens: int) -> None:
        """Note what an answer took. It is told before a slow or locked disk has taken this, and whether it does or not."""

        async def note() -> None:
            try:
                await asyncio.to_thread(self.quotas.spent, user, class_id, tokens)
            except ApplianceError as error:
                log.warning("the tokens of an answer are not counted: %s", error.code)

        counting = asyncio.create_task(note())
        self._counting.add(counting)
        counting.add_done_callback(self._counting.discard)
        await asyncio.wait({counting}, timeout=SLOW_COUNT)

    async def admit(self, user: User, conversation: str | None = None, class_id: str = "") -> Lesson:
        """The lesson in which a question is answered, once it is counted. Raises Closed, UsedUp."""
        lesson = await asyncio.to_thread(self.lessons.of, user, conversation, class_id)
        lesson.require_open()
        await asyncio.to_thread(self.quotas.take, user, lesson.class_id)
        return lesson

    async def _events(
        self, request: Request, plan: Plan, sources: Sources, serving: Serving, starter: bool
    ) -> AsyncGenerator[Event, None]:
        """All events of one answer, from what was found to what was said."""
        model = serving.model if request.model in ("default", "quotes") else request.model
        last = {"model": model, "handler": serving.handler, "finish": "stop", "tokens": {}, "opening": ""}
        yield Event("sources", {**sources.facts(), "model": last["model"], "handler": last["handler"]})
        if plan.dropped:
            yield Event("notice", {"message": "This chat has grown long: the assistant no longer sees its first messages."})
        said = lead = ""
        if starter:
            last["opening"], lead = code, _ = await self._quote(request, sources)
            if code:
                yield sources.opens(code)
            yield Event("quotes", {"text": lead})
        async with aclosing(self._words(request, plan.given, sources, starter, last)) as events:
            async for event in events:
                said += event.data.get("delta", "")
                if event.kind == "opening":
                    last["opening"] = event.data["code"]
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
            yield sources.opens(sources.nothing())
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
                        yield sources.opens(sources.nothing())
                        break
                    marks = Citations([one.text for one in request.passages[: None if quoting else given]])
                    if sources.covered is False and not quoting and not starter:
                        yield sources.opens(openings.NOT_COVERED_OWN)
                    if quoting and (code := openings.code_of(chunk.text)):
                        yield sources.opens(code)
                        continue
                if delta := marks.feed(chunk.text):
                    yield Event("text", {"delta": delta})
        if marks is not None and (delta := marks.flush().rstrip()):
            yield Event("text", {"delta": delta})

    async def _quote(self, request: Request, sources: Sources) -> tuple[str, str]:
        """What leads while the model that serves is not to be relied on: a code of what opens it, and quotations."""
        if not request.passages:
            return sources.nothing(), ""
        text, code = "", ""
        request = replace(request, model="quotes", max_tokens=1000, stop=())
        async with aclosing(self._pool.generate(request)) as chunks:
            async for chunk in chunks:
                begins = openings.code_of(chunk.text) if not text else ""
                code, text = code or begins, text if begins else text + chunk.text
        marks = Citations([one.text for one in request.passages])
        return code, (marks.feed(text) + marks.flush()).strip()

    async def _is_starter(self, model: str, serving: Serving) -> bool:
        if model == "quotes":
            return False
        if model in ("default", serving.model):
            return serving.starter and serving.handler != "quotes"
        # Another local model: what the registry says of it, and the cautious answer where nobody can say.
        return self._starter_of is None or await asyncio.to_thread(self._starter_of, model)

    async def _find(self, user: User, question: str, collections: Sequence[str] | None, lesson: Lesson) -> Sources:
        """What the person who asks may see; a collection that they may not see is one that is not there."""
        if collections is not None and not collections:
            return Sources(None, False, [], [])
        visible = await asyncio.to_thread(self._accounts.visible, user, "collection")
        within = await self._library.named(collections, Filter(lesson.within(visible)))
        found = await self._library.search(question, k=self._settings.passages, within=within)
        return Sources(found.covered, found.lexical_only, list(found.passages) if found.covered else [], list(found.nearest))

    async def ask(self, user: User, question: str, **options: Any) -> dict[str, Any]:
        """One answer as `appliance ask --json` prints it; nothing is stored. Takes and raises what `complete` does."""
        facts: dict[str, Any] = {}
        async with aclosing(self.complete(user, [Message("user", question)], **options)) as events:
            async for event in events:
                facts |= event.data if event.kind in ("sources", "done") else {}
        kept = ("covered", "model", "handler", "starter", "passages", "tokens", "seconds")
        return {"answer": openings.whole(facts), **{key: facts[key] for key in kept}}

    # --- a page's answer ---------------------------------------------------------------------------------------------
    async def start(
        self,
        user: User,
        question: str,
        *,
        conversation: str | None = None,
        shown: str = "",
        edits: str = "",
        class_id: str = "",
        **options: Any,
    ) -> Event:
        """Store the question, start the answer in the background, and say where they are: an event of kind "turn".

        Once this returns the question is on disk. It follows `shown`, the last turn that its writer saw; `edits` is the one
        beside which it begins a branch. `class_id`: for which class it is asked, of several. `options`: model, collections,
        subject, grade, module. Raises BadInput, TooLarge, NotFound (another's conversation), Conflict (its last answer is not
        finished), Closed, UsedUp, Busy.
        """
        self._accounts.require(user, "ask", "chat")
        question = clean_question(question)
        async with self._answers.room_for(user, conversation):
            lesson, said = await self._admitted(user, question, conversation, class_id)
            add = self.conversations.add_question
            ids, earlier = await asyncio.to_thread(add, user, question, conversation, shown, edits)
            if conversation is None and lesson.class_id:
                await asyncio.to_thread(self.lessons.begin, ids["conversation"], lesson)
            messages = [*_history(earlier), Message("user", question)]
            return await self._begin(user, ids, messages, before=said or _asked(earlier), lesson=lesson, **options)

    async def again(self, user: User, turn: str, **options: Any) -> Event:
        """Another answer beside the answer `turn`: as `start`, without a new question. Raises what `start` does.

        With `simpler` it is asked for in shorter sentences and simpler words.
        """
        self._accounts.require(user, "ask", "chat")
        before = await asyncio.to_thread(self.conversations.turn, user, turn)
        async with self._answers.room_for(user, before.conversation):
            lesson = await self.admit(user, before.conversation)
            ids, earlier = await asyncio.to_thread(self.conversations.add_answer, user, turn)
            if before.state == "done":
                options = {"temperature": ANOTHER_TEMPERATURE} | options  # the same road would lead to the same words
            messages = [*_history(earlier), Message("user", earlier[-1].text)]
            return await self._begin(user, ids, messages, before=_asked(earlier[:-1]), lesson=lesson, **options)

    async def _begin(self, user: User, ids: dict[str, str], messages: list[Message], **options: Any) -> Event:
        left: list[str] = []
        events = self.complete(user, messages, conversation=ids["conversation"], left=left, **options)
        return await self._answers.begin(user, ids, events, left)

    async def _admitted(self, user: User, question: str, talk: str | None, class_id: str) -> tuple[Lesson, str]:
        """As `admit`, and what was said in vain before. Who needs help is heard while it rests: by the guard, no model."""
        said = self.guard.unheard(user, talk or "")
        try:
            return await self.admit(user, talk, class_id), said
        except (Closed, UsedUp):
            said = said or (_asked((await asyncio.to_thread(self.conversations.load, user, talk))[1]) if talk else "")
            if not await self.guard.stops(user, question, said, talk or ""):
                raise
            return Lesson(), said

    async def recover(self) -> None:
        """After a crash: answers that nobody is writing any more are failed, with what they had. Reads the safety rules."""
        await self.guard.ready()
        await asyncio.to_thread(self.quotas.forget_old)
        for conversation, name, asked in await asyncio.to_thread(self.conversations.lost):
            await self.guard.hear(await asyncio.to_thread(self._accounts.named, name), asked, conversation)
        await self._answers.recover()

    async def close(self) -> None:
        """Stop and store every answer under way, and what the safeguarding lead has to see."""
        await self._answers.close()
        await asyncio.gather(*self._counting)
        await self.guard.close()

    async def answer(self, user: User, question: str, **options: Any) -> AsyncGenerator[Event, None]:
        """`start`, then `follow`."""
        asked = await self.start(user, question, **options)
        async with aclosing(self.follow(user, asked.data["turn"])) as events:
            async for event in events:
                yield event


def _asked(path: Sequence[Turn]) -> str:
    """The last question of a branch, whatever became of its answer."""
    return next((turn.text for turn in reversed(path) if turn.role == "user"), "")


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


def _note(lesson: Lesson, messages: Sequence[Message], *, simpler: bool) -> str:
    """What is told behind the question, by the state of this talk: the lesson's own words stay one for the whole class."""
    easier = teaching.plainer() if simpler else reading.note(lesson.grade, messages)
    found = (hints.note(lesson.help_level, messages), easier)
    return "\n".join(one for one in found if one)


def _group(user: User) -> str:
    """Whom the engine's queue takes a person for: a pupil for their class, so that no class waits for all of another, and
    everybody else for their role, so that a teacher never waits behind thirty of theirs."""
    return min(user.classes - {""}, default=user.role) if user.role == PUPIL else user.role


def _split(messages: Sequence[Message]) -> tuple[str, list[Message], str]:
    """(question, earlier turns, extra instructions). Raises BadInput unless the last message is the user's."""
    instructions = "\n\n".join(message.content.strip() for message in messages if message.role == "system")
    talk = [message for message in messages if message.role != "system"]
    if not talk or talk[-1].role != "user":
        raise BadInput("The last message has to be the user's.", "Send the question as the last message.")
    return clean_question(talk[-1].content), talk[:-1], instructions


def _history(path: Sequence[Turn]) -> list[Message]:
    """What was said before, on the branch that is asked on; see `conversations.talk`."""
    return [Message("user" if role == "user" else "assistant", text) for role, text in talk(path)]


def _uncounted(_seconds: float) -> None:
    """Where nobody counts."""
