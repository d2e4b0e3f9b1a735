"""An answer under way: its events so far, who reads them, how long it may go on unread, and what of it is written down.

`answering` drives it; this holds no policy but one: a reader who leaves (a reload, lost Wi-Fi) has twenty seconds to come back.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError, Busy

if TYPE_CHECKING:
    from appliance.conversations import Turn

GRACE = 20.0
SUPPORT = "support"  # the handler of an answer that is a fixed text: what was asked was judged unsafe


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to an answer.

    kind, and what `data` holds: "turn" (conversation, question, turn); "queue" (place, wait in seconds); "sources" (covered:
    None where no document was asked, lexical_only, passages, nearest; model and handler to answer); "notice" (message);
    "opening" (code and nearest titles of what stands before the answer's words, see `openings`);
    "quotes" (text: Markdown that leads while a starter serves); "text" (delta); "saving" (the disk takes long); "done" (state,
    text, lead, opening: a code, model, handler, starter, covered, finish, tokens, seconds; "reading" where a grade is known:
    level, band, inside); "error" (message and hint in English; code, facts: by these a page says it in other languages).
    """

    kind: str
    data: dict[str, Any]


class Run:
    """An answer under way: its events so far, who reads, and how long it may go on unread.

    why: what ended it early: "stopped" by its reader, "left" by all of them, "closing" of the box. unsaved: what its row shall
    hold and could not be written yet.
    """

    def __init__(self, ids: dict[str, str], user: str) -> None:
        self.ids = ids
        self.user = user
        self.events: list[Event] = []
        self.kept = Kept()
        self.finished = False
        self.ending = False
        self.why = ""
        self.saved = 0.0
        self.saving: asyncio.Task[None] | None = None
        self.unsaved: dict[str, Any] | None = None
        self.changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._readers = 0
        self._timer: asyncio.TimerHandle | None = None

    def emit(self, event: Event, last: bool = False) -> None:
        self.events.append(event)
        self.finished = last
        woken, self.changed = self.changed, asyncio.Event()
        woken.set()
        if last and self._timer is not None:
            self._timer.cancel()

    def came(self) -> None:
        self._readers += 1
        if self._timer is not None:
            self._timer.cancel()

    def left(self) -> None:
        self._readers = max(0, self._readers - 1)
        if not self._readers and not self.finished:
            self._timer = asyncio.get_running_loop().call_later(GRACE, self.cancel, "left")

    def cancel(self, why: str) -> None:
        """Once: a second cancellation would hit the saving of what the first one left."""
        if self.task is not None and not self.ending:
            self.ending, self.why = True, why
            self.task.cancel()

    def row(self) -> dict[str, Any]:
        """What its row holds as soon as the disk takes it; one that could not be saved yet says so."""
        if self.unsaved is None or not self.finished:
            return self.kept.columns("streaming")
        return self.unsaved | {"state": "failed", "facts": self.unsaved["facts"] | _why(self.events[-1])}


@dataclass
class Kept:
    """What is known of an answer so far, as it is written down."""

    said: list[str] = field(default_factory=list)
    lead: str = ""
    notice: str = ""
    opening: str = ""
    starter: bool = False
    sources: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        match event.kind:
            case "text":
                self.said.append(event.data["delta"])
            case "opening":
                self.opening = event.data["code"]
            case "quotes":
                self.lead, self.starter = event.data["text"], True
            case "notice":
                self.notice = event.data["message"]
            case "sources":
                self.sources = event.data
            case "done":
                self.end, self.lead, self.opening = event.data, event.data["lead"], event.data.get("opening", "")

    def done(self) -> dict[str, Any]:
        return {
            "text": "".join(self.said).strip(), "lead": self.lead, "opening": self.opening, "finish": "stop",
            "model": self.sources.get("model", ""), "handler": self.sources.get("handler", ""),
            "starter": self.starter, "covered": self.sources.get("covered"), "tokens": {}, "seconds": None, **self.end,
        }  # fmt: skip

    def columns(self, state: str, end: Event | None = None, why: str = "") -> dict[str, Any]:
        """The values of the row in `turns`; what has no column of its own stands beside the token counts."""
        done = self.done()
        facts = {
            **done["tokens"], "lead": done["lead"], "opening": self.opening,
            "starter": done["starter"], "finish": done["finish"], "notice": self.notice,
            "nearest": self.sources.get("nearest", []), "lexical_only": self.sources.get("lexical_only", False),
            **_why(end), "why": why, **{key: done[key] for key in ("verdict", "reading") if key in done},
        }  # fmt: skip
        return {
            **{key: done[key] for key in ("text", "model", "handler", "covered", "seconds")},
            "state": state, "passages": self.sources.get("passages", []), "facts": facts,
        }  # fmt: skip


def failure(error: ApplianceError, code: str = "") -> Event:
    """`code`: finer than the error's own, for what only an answer can meet."""
    facts = {"seconds": max(1, round(error.retry_after))} if isinstance(error, Busy) else {}
    return Event("error", {"message": error.message, "hint": error.hint, "code": code or error.code, "facts": facts})


def _why(end: Event | None) -> dict[str, Any]:
    """What the row of an answer says of the fault that ended it; without words where none did."""
    told = end.data if end is not None and end.kind == "error" else {}
    return {
        "error": told.get("message", ""), "hint": told.get("hint", ""), "code": told.get("code", ""),
        "about": told.get("facts", {}),
    }  # fmt: skip


def summary(turn: Turn) -> list[Event]:
    """A stored answer as events."""
    facts = turn.facts
    events = [Event("turn", {"conversation": turn.conversation, "turn": turn.id})]
    if turn.state == "failed":
        message = facts.get("error") or "The box was restarted while it wrote this answer."
        return [
            *events,
            Event(
                "error",
                {
                    "message": message,
                    "hint": facts.get("hint") or "Ask again.",
                    "code": facts.get("code") or "failed",
                    "facts": facts.get("about") or {},
                },
            ),
        ]
    done = {key: facts.get(key) for key in ("lead", "opening", "starter", "finish")}
    tokens = {key: facts[key] for key in ("prompt", "cached", "completion") if key in facts}
    about = {"state": turn.state, "text": turn.text, "model": turn.model, "handler": turn.handler, "covered": turn.covered}
    return [*events, Event("done", {**about, **done, "tokens": tokens, "seconds": turn.seconds})]
