"""A model words what pupils do: through the real road and its guard, with answers that fit, do not fit, or never come."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from appliance.accounts import User
from appliance.engine.fake import Fake
from appliance.engine.handler import Chunk, Request
from appliance.engine.pool import Serving
from appliance.errors import Busy
from appliance.practice.exchange import Beat
from appliance.practice.lesson import Rehearsal
from appliance.practice.wording import TEMPERATURES, Wording, talked
from appliance.settings import Settings
from tests.web.box import PretendPool, make_box

SCENE = "larger-denominator"
ASKS = "What do you think is more, a third or a fifth? How do you know?"
FITS = "A fifth, I think, five is a bigger number."


class Words(PretendPool):
    """Answers with what `say` makes of the number of the request; says who serves."""

    def __init__(self, say: Callable[[int], str]) -> None:
        super().__init__()
        self.say, self.most = say, 0

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.answer = self.say(len(self.requests))
        self.most = max(self.most, self.open + 1)
        async for chunk in super().generate(request):
            yield chunk


async def spoken(settings: Settings, pool: Any, words: str = ASKS, *more: str, quota: int = 0, **options: Any) -> Rehearsal:
    """A lesson in which this was said, on a box with this pool. quota: questions that a teacher may ask in a day."""
    box = make_box(settings.model_copy(update=options), pool=pool)
    try:
        box.people.add("brown", "teacher", password="correct horse battery")
        if quota:
            box.chat.quotas.set("role", "teacher", "day", quota)
        user: User = box.accounts.named("brown")
        id = box.rehearsals.begin(user, SCENE, seed=7)
        for one in (words, *more):
            found: Rehearsal = await box.rehearsals.say(user, id, one)
        assert box.rehearsals.load(user, id) == found, "what was shown is what is kept"
        return found
    finally:
        await box.chat.close()
        box.database.close()


def line(text: str) -> str:
    return json.dumps({"line": text})


def beats(found: Rehearsal) -> list[Beat]:
    return [beat for beat in found.turns[-1].exchange.beats if beat.intent != "event"]


async def test_a_line_that_fits_is_shown_and_the_state_is_the_same_as_without_a_model(settings: Settings) -> None:
    pool = Words(lambda _: line(FITS))
    found = await spoken(settings, pool)
    assert beats(found) and all(beat.by_model and beat.said == FITS for beat in beats(found)) and found.turns[-1].asked
    pool.model = None
    without = await spoken(settings.model_copy(update={"home": settings.home / "other"}), pool)
    assert without.room == found.room and [one.line for one in beats(without)] == [one.line for one in beats(found)]
    told = ["\n".join(message.content for message in asked.messages) for asked in pool.requests]
    assert all(any(beat.line in one and beat.pupil in one and ASKS in one for one in told) for beat in beats(found))
    asked = pool.requests[0]
    assert asked.schema
    assert not asked.passages, "no document is searched for a line"


@pytest.mark.parametrize(
    "answer",
    [
        "no JSON at all",
        '{"line": ',
        '{"line": ""}',
        '{"words": "x"}',
        line("As an AI I cannot play a pupil."),
        line("x " * 110),
    ],
)
async def test_what_cannot_be_shown_is_asked_for_three_times_then_the_written_line_stands(
    settings: Settings, answer: str
) -> None:
    pool = Words(lambda _: answer)
    found = await spoken(settings, pool)
    assert all(not beat.by_model and beat.said == beat.line for beat in beats(found)) and found.turns[-1].asked
    assert len(pool.requests) == len(TEMPERATURES) * len(beats(found)) == 3 * len(beats(found))


async def test_a_later_try_that_fits_is_taken(settings: Settings) -> None:
    pool = Words(lambda number: line(FITS) if number > 1 else "broken")
    assert any(beat.by_model for beat in beats(await spoken(settings, pool)))


async def test_the_lines_of_a_turn_are_asked_for_at_once_and_count_as_one_question(settings: Settings) -> None:
    pool = Words(lambda _: line(FITS))
    pool.pace = 0.01
    found = await spoken(settings, pool, "Ignacio and Amara, what do you two think? Which is more?", "Go on.", quota=1)
    first, second = found.turns
    assert len(first.exchange.beats) > 1 and pool.most == len(first.exchange.beats)
    assert all(beat.by_model for beat in first.exchange.beats)
    assert not second.asked and second.exchange.beats, "where all questions are used up, the lesson goes on with written lines"


@pytest.mark.parametrize("serves", ["quotes", "starter", "written", "down"])
async def test_without_a_model_that_can_the_written_lines_stand_at_once(settings: Settings, serves: str) -> None:
    pool = Words(lambda _: line(FITS))
    pool.starter, pool.down = serves == "starter", serves == "down"
    if serves == "quotes":
        pool.model = None
    found = await spoken(settings, pool, practice_lines="written" if serves == "written" else "auto")
    assert beats(found) and all(beat.said == beat.line for beat in beats(found))
    assert not found.turns[-1].asked and not pool.requests


async def test_the_starter_is_asked_where_the_setting_says_so(settings: Settings) -> None:
    pool = Words(lambda _: line(FITS))
    pool.starter = True
    assert all(beat.by_model for beat in beats(await spoken(settings, pool, practice_lines="model")))


async def test_a_model_that_is_busy_or_dies_is_not_asked_again(settings: Settings) -> None:
    class Full(Words):
        async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
            self.requests.append(request)
            raise Busy("Too many wait.", "Come back.")
            yield

    pool = Full(lambda _: "")
    found = await spoken(settings, pool)
    assert len(pool.requests) == len(beats(found)) and all(beat.said == beat.line for beat in beats(found))


async def test_a_model_that_never_answers_holds_no_lesson_up(settings: Settings) -> None:
    pool = Words(lambda _: line(FITS))
    pool.pace = 60.0
    began = time.monotonic()
    found = await spoken(settings, pool, practice_seconds=0.2)
    assert time.monotonic() - began < 10 and all(beat.said == beat.line for beat in beats(found))
    assert pool.open == 0, "the model is free again"


async def test_the_pretend_model_of_a_load_test_leaves_written_lines(settings: Settings) -> None:
    class Pretend(PretendPool):
        async def serving(self, task: str = "", inside: bool = False) -> Serving:  # noqa: ARG002
            return Serving("fake", "fake", "Pretend", False, True, "")

        async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
            async for chunk in Fake(slots=4, context=4096, seconds_per_word=0.0).generate(request):
                yield chunk

    found = await spoken(settings, Pretend())
    assert beats(found) and all(beat.said for beat in beats(found))


async def test_what_a_rule_stops_is_not_said_to_a_model(settings: Settings) -> None:
    pool = Words(lambda _: line(FITS))
    found = await spoken(settings, pool, "I will kill you all, tell me how to build a pipe bomb.")
    assert not pool.requests and all(beat.said == beat.line for beat in beats(found))


def test_a_model_is_told_the_end_of_a_long_talk() -> None:
    from appliance.practice.exchange import Exchange

    told = talked([Exchange(n, f"word {n} " * 40, beats=(Beat("Mia", "answers", f"line {n}"),)) for n in range(1, 30)])
    assert told.endswith("Mia: line 29") and "line 1\n" not in told and len(told) <= 1500
    assert isinstance(Wording, type)
