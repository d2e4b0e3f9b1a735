"""The safety road: what every question and every answer passes, whichever door it came by.

`over` stands around an answer: it judges what was asked before anything else happens (so that help is shown while no model
runs), holds the model's words back until each sentence was judged, and tells `safeguarding`. Hides which fixed text stands in
place of an answer, and in which language. It knows no page, no prompt and no model; the rules are `safety`'s.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
import tomllib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.engine.handler import Message
from appliance.errors import ApplianceError, BadInput
from appliance.running import SUPPORT, Event
from appliance.safeguarding import PATIENCE
from appliance.safety import Policy, Reader, StreamGuard, Verdict

if TYPE_CHECKING:
    from appliance.accounts import User
    from appliance.safeguarding import Safeguarding
    from appliance.settings import Settings

LONG = 2000  # characters that are judged in a thread, so that nobody else's page waits
UNHEARD_SECONDS = 600.0  # a message that was kept from an answer is remembered so long, and in memory only
YOUNG = 5  # up to this grade pupils are judged more strictly

Answer = Callable[[Sequence[Message]], AsyncGenerator[Event, None]]


@dataclass(frozen=True, slots=True)
class Judged:
    """What may go on: the messages without what is personal, and without earlier ones that were stopped.

    `stopped`: the verdict on the last message where it ends here. `told`: verdicts, the words they are about, and whether those
    stand earlier in the talk.
    """

    messages: list[Message]
    stopped: Verdict | None = None
    redacted: Verdict | None = None
    told: list[tuple[Verdict, str, bool]] = field(default_factory=list)


class Guard:
    """One for each process."""

    def __init__(self, settings: Settings, safeguarding: Safeguarding) -> None:
        self._settings = settings
        self.safeguarding = safeguarding
        self._policy: Policy | None = None
        self._judging: set[asyncio.Task[tuple[Judged, set[asyncio.Task[None]]]]] = set()
        self._unheard: dict[tuple[str, str], tuple[float, str]] = {}

    async def ready(self) -> Policy:
        """The rules, read once: it takes a second, and a page must not wait for it in the loop."""
        if self._policy is None:
            self._policy = await asyncio.to_thread(policy_in, self._settings.content / "safety")
        return self._policy

    async def stops(self, user: User, text: str, before: str = "", conversation: str = "") -> bool:
        """Whether somebody has to be told of this: then a fixed text answers, whatever else would keep it from an answer.

        Judged as `over` judges it, by itself and with what its writer sent `before` it. Where it is not stopped nobody gets it
        and it stands in no talk: `unheard` tells of it when the next one comes.
        """
        messages, policy = [Message("user", text)], await self.ready()
        stopped = (await asyncio.to_thread(judge, policy, messages, reader_of(user, None), before)).stopped
        if stopped is not None and stopped.flag:
            return True
        self._unheard[user.id, conversation] = time.monotonic(), text
        return False

    def unheard(self, user: User, conversation: str = "") -> str:
        """What this person last wrote in a talk, or to begin one, that was kept from an answer just before; told once."""
        now = time.monotonic()
        self._unheard = {key: kept for key, kept in self._unheard.items() if now - kept[0] < UNHEARD_SECONDS}
        return self._unheard.pop((user.id, conversation), (now, ""))[1]

    async def over(
        self,
        user: User,
        messages: Sequence[Message],
        answer: Answer,
        *,
        grade: str | None = None,
        conversation: str = "",
        before: str = "",
        left: list[str] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events of an answer, or those of a fixed text. Closing it closes the answer's generator.

        before: what the same person wrote before the last message, where `messages` does not have it.
        left: takes the last words, judged, of an answer that is closed or cancelled in the middle of a sentence.
        """
        started = time.monotonic()
        reader = reader_of(user, grade)
        # Judged to the end even where the answer is stopped meanwhile: who asked for help is heard.
        judging = asyncio.create_task(self._judged(user, messages, reader, conversation, before))
        self._judging.add(judging)
        judging.add_done_callback(self._judging.discard)
        judged, told = await asyncio.shield(judging)
        if told:
            await asyncio.wait(told, timeout=PATIENCE)
        if judged.stopped is not None:
            for event in self._support(user, judged.stopped, round(time.monotonic() - started, 3)):
                yield event
            return
        if judged.redacted is not None:
            yield Event("notice", {"message": self.text(judged.redacted, user)})
        policy = await self.ready()
        async with aclosing(self._guarded(policy, reader, user, judged.messages, answer, conversation, left)) as events:
            async for event in events:
                yield event

    async def _judged(
        self, user: User, messages: Sequence[Message], reader: Reader, conversation: str, before: str
    ) -> tuple[Judged, set[asyncio.Task[None]]]:
        """What may go on, and what is being written down for the safeguarding lead."""
        policy = await self.ready()
        if sum(len(message.content) for message in messages) > LONG:
            judged = await asyncio.to_thread(judge, policy, messages, reader, before)
        else:
            judged = judge(policy, messages, reader, before)
        tell = partial(self.safeguarding.tell, user, conversation=conversation)
        return judged, {tell(verdict, text, again=earlier) for verdict, text, earlier in judged.told}

    async def hear(self, user: User, asked: Sequence[str], conversation: str) -> None:
        """Tell of the last of these questions, where nobody was told of it: the box went down just then."""
        judged = await asyncio.to_thread(
            judge, await self.ready(), [Message("user", text) for text in asked], reader_of(user, None)
        )
        for verdict, text, _ in judged.told:
            if verdict.flag:
                self.safeguarding.tell(user, verdict, text, conversation=conversation, again=True)

    async def close(self) -> None:
        """Write down what is not yet, of answers that have been stopped too."""
        await asyncio.gather(*self._judging, return_exceptions=True)
        await self.safeguarding.close()

    def text(self, verdict: Verdict, user: User) -> str:
        """The fixed text that a verdict asks for: in the language it was written in, else in the reader's."""
        texts = support_in(self._settings.content / "support", verdict.language or user.language or "en")
        parts = [texts[verdict.support or "answer"].strip()]
        if verdict.action in ("block", "escalate") and not verdict.support.endswith("answer"):
            if self._settings.safeguarding_contact and verdict.flag:
                # Isolated, so that a name of one script keeps its order inside a sentence of another.
                parts.append(texts["contact"].format(contact=f"\u2068{self._settings.safeguarding_contact}\u2069"))
            if verdict.flag:
                parts.append(texts["seen"])
        return "\n\n".join(parts)

    def _support(self, user: User, verdict: Verdict, seconds: float) -> list[Event]:
        text = self.text(verdict, user)
        done = {
            "state": "blocked", "text": text, "lead": "", "model": "", "handler": SUPPORT, "starter": False, "covered": None,
            "finish": "blocked", "tokens": {}, "passages": [], "seconds": seconds, "verdict": about(verdict),
        }  # fmt: skip
        return [Event("text", {"delta": text}), Event("done", done)]

    async def _guarded(
        self,
        policy: Policy,
        reader: Reader,
        user: User,
        messages: Sequence[Message],
        answer: Answer,
        conversation: str,
        left: list[str] | None,
    ) -> AsyncGenerator[Event, None]:
        known = policy.known_text([message.content for message in messages if message.role == "user"])
        told: set[asyncio.Task[None]] = set()

        def judged(sentence: str, before: str) -> Verdict:
            verdict = policy.check_answer(sentence, reader, before=before, known=known)
            if verdict.name != "allow":  # told at once, and so once: the answer may be stopped at any moment
                told.add(self.safeguarding.tell(user, verdict, sentence, conversation=conversation, asks=False))
            return verdict

        def instead(verdict: Verdict) -> str:
            return self.text(verdict, user)

        guard, said, sources = StreamGuard(judged, instead), "", Event("sources", {})
        async with aclosing(answer(messages)) as events:
            try:
                async for event in events:
                    if event.kind == "sources":
                        sources = event
                        known += policy.known_text([passage["text"] for passage in event.data.get("passages", ())])
                    if event.kind == "text":
                        shown = guard.feed(event.data["delta"])
                    elif event.kind == "done":
                        shown = guard.flush()
                    else:
                        yield event
                        continue
                    said += shown
                    if shown:
                        yield Event("text", {"delta": shown})
                    if guard.ended is not None:
                        await asyncio.wait(told, timeout=PATIENCE)
                        yield self._cut(guard.ended, said, sources)
                        return
                    if event.kind == "done":
                        changed = bool(guard.softened)
                        yield Event("done", {**event.data, "text": said.strip()}) if changed else event
            except (asyncio.CancelledError, GeneratorExit):
                if left is not None:
                    left.append(guard.flush())
                raise
            except ApplianceError:
                if rest := guard.flush():  # what was written before it broke off is kept, once it is judged
                    yield Event("text", {"delta": rest})
                raise
        if told:
            await asyncio.wait(told, timeout=PATIENCE)

    @staticmethod
    def _cut(verdict: Verdict, said: str, sources: Event) -> Event:
        about_model = {key: sources.data.get(key, "") for key in ("model", "handler")}
        return Event("done", {
            "state": "blocked", "text": said.strip(), "lead": "", "starter": False, "covered": sources.data.get("covered"),
            "finish": "blocked", "tokens": {}, "seconds": None, "passages": [], **about_model, "verdict": about(verdict),
        })  # fmt: skip


def judge(policy: Policy, messages: Sequence[Message], reader: Reader, before: str = "") -> Judged:
    """Every message that a person wrote: the last one decides, earlier ones that would have been stopped are left out.

    Each is judged by itself, and together with the one that its writer sent before it; `before` is what was sent before the
    last one, where the talk does not have it.
    """
    kept: list[Message] = []
    told: list[tuple[Verdict, str, bool]] = []
    redacted = stopped = None
    skipping, said = False, ""
    last = max((number for number, one in enumerate(messages) if one.role == "user"), default=-1)
    for number, message in enumerate(messages):
        if message.role != "user":
            if not (skipping and message.role == "assistant"):
                kept.append(message)
            continue
        verdict = _checked(policy, message.content, reader)
        if verdict.name != "allow":
            told.append((verdict, message.content, number != last))
        earlier_words = before if number == last and before else said
        said = message.content
        if verdict.action not in ("block", "escalate") and earlier_words:
            joined = _joined(policy, earlier_words, message.content, reader)
            if joined.name != "allow":
                told.append((joined, f"{earlier_words}\n{message.content}", number != last))
            if joined.action in ("block", "escalate"):
                verdict = joined
        skipping = verdict.action in ("block", "escalate")
        if number == last:
            stopped = verdict if skipping else None
            redacted = verdict if verdict.action == "redact" else None
        if not skipping:
            kept.append(Message("user", verdict.text))
    # Of an earlier message only a flag is news; what it counted, it counted when it was the last.
    told = [(one, text, earlier) for one, text, earlier in told if one.flag or not earlier]
    return Judged(kept, stopped, redacted, told)


def reader_of(user: User, grade: str | None) -> Reader:
    """Through a key somebody unknown may be writing: they are judged as pupils are."""
    number = re.search(r"\d{1,2}", grade or "")
    return Reader(staff=user.staff and not user.scope, young=number is not None and int(number[0]) <= YOUNG)


def about(verdict: Verdict) -> dict[str, str]:
    """A verdict as it is stored with its turn: without words."""
    return {"action": verdict.name, "category": verdict.category, "rule": verdict.rule}


def _checked(policy: Policy, text: str, reader: Reader) -> Verdict:
    """Earlier messages of a talk come again with each question: they are judged once, but for long ones, kept by nobody."""
    return _judged_once(policy, text, reader) if len(text) <= LONG else policy.check(text, reader)


@lru_cache(maxsize=1000)
def _joined(policy: Policy, before: str, text: str, reader: Reader) -> Verdict:
    return policy.check_joined(before, text, reader)


@lru_cache(maxsize=1000)
def _judged_once(policy: Policy, text: str, reader: Reader) -> Verdict:
    return policy.check(text, reader)


@cache
def policy_in(folder: Path) -> Policy:
    """The rules of a folder. Their patterns are compiled aside meanwhile, so that nobody waits for them."""
    policy = Policy(folder)
    threading.Thread(target=policy.warm, daemon=True).start()
    return policy


@cache
def support_in(folder: Path, language: str) -> dict[str, str]:
    """The fixed texts of a language; those it lacks in English. Raises BadInput for a file that cannot be read."""
    texts: dict[str, str] = {}
    for name in dict.fromkeys(("en", language)):
        path = folder / f"{name}.toml"
        if path.is_file():
            try:
                texts |= tomllib.loads(path.read_text("utf-8"))
            except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise BadInput(f"{path} is not valid TOML: {error}.", "Correct that line.") from None
    return texts
