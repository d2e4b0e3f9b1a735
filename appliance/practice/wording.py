"""A model words what a pupil does: it is told their state, and its line is shown only where it fits that state.

Rules decide what a pupil does; a model only finds words for it. A line that breaks the role, or an answer that cannot be read,
is asked for again, three times in all and within a time limit, so that a lesson never waits for a model; then the written line
stands. Where no model serves that can do this, the written lines stand at once: the starter cannot. The road to the model is
`asking`'s, inside the safety guard; the lines of one turn are asked for at once and count as one question. Nothing is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from appliance import prompts
from appliance.asking import ask_text
from appliance.errors import ApplianceError, Busy, Forbidden, ModelUnavailable
from appliance.practice import pupils
from appliance.practice.exchange import Beat, Exchange, Room
from appliance.practice.scenario import Scenario

if TYPE_CHECKING:
    from appliance.accounts import User
    from appliance.chat import Chat
    from appliance.engine.pool import Pool
    from appliance.lessons import Lesson
    from appliance.practice.lesson import Turn

MODULE = "student_reaction"
SECONDS = 8.0  # for one line, all tries together
TALK = 6  # exchanges before this one that a model is told
LONGEST_TALK = 1500

TEMPERATURES = (0.4, 0.7, 1.0)  # of the tries: each a little further from the one before


class Wording:
    def __init__(self, chat: Chat, pool: Pool, lines: str = "auto", seconds: float = SECONDS) -> None:
        """lines: "auto" asks any model but the starter, "model" any, "written" none."""
        self._chat = chat
        self._pool = pool
        self._lines = lines
        self._seconds = seconds

    async def worded(
        self, user: User, scenario: Scenario, turn: Turn, before: Sequence[Exchange]
    ) -> tuple[tuple[Beat, ...], bool]:
        """The beats of a turn in a model's words where they fit, and whether a model was asked at all."""
        beats = turn.exchange.beats
        if all(beat.intent == "event" for beat in beats) or not await self._serves(scenario):
            return beats, False
        try:
            lesson = await self._chat.admit(user)
        except ApplianceError:
            return beats, False
        talk = talked([*before, replace(turn.exchange, beats=())])
        lines = [self._line(user, scenario, turn.room, beat, talk, lesson) for beat in beats]
        return tuple(await asyncio.gather(*lines)), True

    async def _serves(self, scenario: Scenario) -> bool:
        """Whether a model is there that can word a line."""
        if self._lines == "written":
            return False
        task = f"{MODULE}/{scenario.subject.casefold()}" if scenario.subject else MODULE
        serving = await self._pool.serving(task)
        return serving.handler != "quotes" and (self._lines == "model" or not serving.starter)

    async def _line(self, user: User, scenario: Scenario, room: Room, beat: Beat, talk: str, lesson: Lesson) -> Beat:
        """One beat in a model's words, or as it is."""
        if beat.intent == "event":
            return beat
        inputs = {**pupils.brief(scenario, room, beat), "talk": talk}
        try:
            async with asyncio.timeout(self._seconds):
                for temperature in TEMPERATURES:
                    said = await self._try(user, scenario, inputs, lesson, temperature)
                    if said and pupils.fits(scenario, room, beat, said):
                        return replace(beat, said=said, by_model=True)
        except (TimeoutError, ModelUnavailable, Busy, Forbidden):
            pass  # asking again would not help, or there is no time for it
        return beat

    async def _try(self, user: User, scenario: Scenario, inputs: Mapping[str, str], lesson: Lesson, temperature: float) -> str:
        """What a model makes of it, "" where that cannot be used. Raises where asking again would not help."""
        try:
            text = await ask_text(
                self._chat, user, MODULE, inputs, subject=scenario.subject, grade=scenario.grade, lesson=lesson,
                temperature=temperature,
            )  # fmt: skip
            line = prompts.load(MODULE).parse(text)["line"]
        except (ModelUnavailable, Busy, Forbidden):
            raise
        except ApplianceError:
            return ""
        return " ".join(str(line).split())


def talked(exchanges: Sequence[Exchange]) -> str:
    """The end of a talk as lines, each with who said it."""
    lines = []
    for one in exchanges[-TALK:]:
        lines.append(f"Teacher: {' '.join(one.said.split())}")
        lines += [f"{beat.pupil}: {beat.said or beat.line}" for beat in one.beats]
    return "\n".join(lines)[-LONGEST_TALK:]
