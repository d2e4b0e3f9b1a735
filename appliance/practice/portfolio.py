"""One's own rehearsals as a file to keep: Markdown to read, or JSON with everything. It says on top what it is not.

Hides how text is kept from being read as Markdown's links, pictures or HTML, which another program would fetch or run.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from appliance.practice.exchange import MOVES

if TYPE_CHECKING:
    from appliance.practice.feedback import Feedback, Score
    from appliance.practice.lesson import Rehearsal, Turn

NO_RATING = "Never a grade of a real pupil, never an employment rating."
REHEARSED = "Rehearsals with simulated pupils, kept by who rehearsed them."
ABOUT = f"{REHEARSED} {NO_RATING}"
TITLE, LESSON, SAID, AGAINST = "Teaching practice", "The lesson", "I said:", "Read against the rubric"
TO_TRY = "One thing to try"
NOT_HEARD = "Not counted, since it cannot be heard in this language:"
SENTENCES = (NOT_HEARD, NO_RATING, REHEARSED, TITLE, LESSON, SAID, AGAINST, TO_TRY)  # in the language of who keeps it
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~=$@&])")

Assessed = tuple["Rehearsal", "Feedback"]


def markdown(assessed: Sequence[Assessed], say: Callable[[str], str] = str) -> str:
    """All lessons that were finished, the oldest first: what was said, and what the rubric says of it.

    say: puts a sentence of this part's, of `feedback` or of `criteria` into the reader's language.
    """
    parts = [f"# {_plain(say(TITLE))}", f"**{_plain(f'{say(REHEARSED)} {say(NO_RATING)}')}**"]
    for lesson, told in assessed:
        parts += [f"## {_plain(lesson.scenario.title)}", _plain(_day(lesson.created)), _plain(lesson.scenario.setting)]
        parts += [f"- {_plain(objective)}" for objective in lesson.scenario.objectives]
        parts += [f"### {_plain(say(LESSON))}", _quoted(lesson.scenario.opening)]
        for turn in lesson.turns:
            parts += [f"**{_plain(say(SAID))}**", _quoted(turn.exchange.said)]
            parts += [f"**{_plain(beat.pupil)}:** {_plain(beat.said or beat.line)}" for beat in turn.exchange.beats]
        parts.append(f"### {_plain(say(AGAINST))}")
        for score in told.scores:
            parts.append(f"**{_plain(say(score.criterion.name))}:** {_plain(say(score.criterion.levels[score.level]))}")
            parts += [_quoted(quote.text) for quote in score.evidence]
        parts += [f"{_plain(say(NOT_HEARD))} {_plain('; '.join(map(say, told.unheard)))}"] if told.unheard else []
        parts.append(f"{_plain(say(TO_TRY))}: {_plain(say(told.next_step))}" if told.next_step else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(assessed: Sequence[Assessed]) -> str:
    whole = {"about": ABOUT, "moves": dict(MOVES), "rehearsals": [_facts(*one) for one in assessed]}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def _facts(lesson: Rehearsal, told: Feedback) -> dict[str, Any]:
    scenario = lesson.scenario
    aside = lesson.aside or {}
    return {
        "id": lesson.id, "again": lesson.after or None, "seed": lesson.seed, "began": lesson.created,
        "finished": lesson.finished,
        "scenario": {"id": scenario.id, "version": scenario.version, "title": scenario.title, "opening": scenario.opening},
        "turns": [{**_turn(one), "others": [_turn(aside[id]) for id in one.others if id in aside]} for one in lesson.turns],
        "rubric": [_score(one) for one in told.scores],
        "moves": dict(told.moves), "talk": told.talk, "next_step": told.next_step,
    }  # fmt: skip


def _turn(turn: Turn) -> dict[str, Any]:
    said = turn.exchange
    beats = [{"who": one.pupil, "said": one.said or one.line, "by_model": one.by_model} for one in said.beats]
    moves = [{"move": one.id, "quote": one.quote} for one in said.moves]
    return {"id": turn.id, "said": said.said, "waited": said.waited, "moves": moves, "pupils": beats}


def _score(score: Score) -> dict[str, Any]:
    return {
        "criterion": score.criterion.name, "level": score.criterion.levels[score.level],
        "quotes": [one.text for one in score.evidence], "against": [one.text for one in score.against], "try": score.try_this,
    }  # fmt: skip


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _quoted(text: str) -> str:
    return "\n".join(f"> {_plain(line)}".rstrip() for line in text.split("\n"))


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
