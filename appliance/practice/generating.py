"""A new scene from a wish: subject, grade, what is hard, and who sits in the class.

A model writes the little that needs imagination, held to `SCHEMA`: the setting, the people, what each would say. What has to
be sound is filled in by code: the rubric out of criteria that staff know, the scales from a temper, how firmly a belief is held
from the age. What comes out is checked as every scene is, tried three times in all, and saved as a draft: nobody but its maker
rehearses it before staff have approved it. Knows no prompt and no model: `ask` is handed in.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError, BadInput, TooLarge
from appliance.practice.criteria import CRITERIA, USUAL
from appliance.practice.scenario import CATEGORIES, SITUATIONS, Scenario, names_a_language

if TYPE_CHECKING:
    from appliance.accounts import User
    from appliance.practice.scenes import Scenes

# Inputs of the module `scenario_generator` and a JSON schema in, what the model wrote out.
Ask = Callable[[Mapping[str, str], Mapping[str, Any]], Awaitable[str]]

TRIES = 3
LONGEST_ANSWER = 30_000  # characters
LONGEST_FAULT = 400  # of what a model is told of its last try
LIMITS = {"subject": 60, "grade": 20, "challenge": 600, "class_profile": 800, "language": 20}
MINUTES = 12
TWIST_AT = 4  # the teacher's turn after which somebody says what tests them
BELIEF_LINES = ("holds", "wavers", "understands")
# A temper is easier to choose well than four figures: knowledge, mood, energy, attention.
TEMPERS: Mapping[str, tuple[int, int, int, int]] = {
    "keen": (3, 1, 3, 4),
    "calm": (2, 0, 2, 3),
    "restless": (2, 0, 4, 1),
    "shy": (2, -1, 1, 3),
    "tired": (1, 0, 1, 1),
    "upset": (2, -2, 2, 2),
    "proud": (3, 1, 3, 3),
}
_THINKING = ("elicit", "press", "hint", "uptake", "check")
_FEELING = ("acknowledge", "elicit", "revoice", "press", "offer_choice")


def _text(most: int, least: int = 1) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most}


def _object(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(fields), "required": [*fields], "additionalProperties": False}


def _list(items: Mapping[str, Any], least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": dict(items), "minItems": least, "maxItems": most}


SCHEMA: Mapping[str, Any] = _object(
    {
        "title": _text(80),
        "category": {"enum": [*CATEGORIES]},
        "setting": _text(450),
        "opening": _text(350),
        "objectives": _list(_text(160), 1, 3),
        "pupils": _list(
            _object(
                {
                    "name": _text(30),
                    "who": {"enum": ["pupil", "parent", "colleague"]},
                    "about": _text(250),
                    "voice": _text(160),
                    "temper": {"enum": [*TEMPERS]},
                    "belief": _text(200, 0),
                    "words": _list(_text(24), 0, 8),
                    "lines": _object({name: _text(140) for name in SITUATIONS}),
                }
            ),
            2,
            4,
        ),
        "twist": _text(140),
        "rubric": _list({"enum": [*CRITERIA]}, 3, 4),
    }
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a teacher typed. challenge: what they want to rehearse; class_profile: who sits in the class, "" for any.

    language: of the scene, as `Scenario` has it.
    """

    subject: str
    grade: str
    challenge: str
    class_profile: str = ""
    language: str = "en"


class NoScene(ApplianceError):
    """The model wrote nothing that can be rehearsed. `wish` is what was typed, for a page to show again."""

    code = "no_scene"
    status = 503

    def __init__(self, message: str, hint: str = "", wish: Wish | None = None) -> None:
        super().__init__(message, hint)
        self.wish = wish


async def generate(user: User, wish: Wish, scenes: Scenes, ask: Ask) -> Scenario:
    """A draft of the user's. Each try after the first is told in `fault` what was wrong with the one before.

    Raises Forbidden, BadInput, TooLarge before anything is asked; NoScene after three tries; and what `ask` raises.
    """
    scenes.require(user)
    wish = _checked(wish)
    fault = ""
    for _ in range(TRIES):
        text = await ask({**asdict(wish), "fault": fault}, SCHEMA)
        try:
            facts = facts_of(text, wish)
            return await asyncio.to_thread(scenes.save, user, facts, generated=True)
        except BadInput as error:
            fault = error.message[:LONGEST_FAULT]
    hint = "Try again, or say in more words what is hard; what you typed is still here."
    raise NoScene(f"The model wrote no usable scene in {TRIES} tries.", hint, wish)


def facts_of(text: str, wish: Wish) -> dict[str, Any]:
    """What `scenario.read` takes, of what a model wrote; the rest filled in. Raises BadInput; `read` finds what is missing."""
    found = _parsed(text)
    phase = phase_of(wish.grade)
    category = found.get("category")
    people = [_person(one, category, phase) for one in found["pupils"]]
    twist = found.get("twist")
    return {
        "version": 1, "title": found.get("title"), "category": category, "phase": phase, "subject": wish.subject,
        "grade": wish.grade, "language": wish.language, "minutes": MINUTES, "setting": found.get("setting"),
        "opening": found.get("opening"), "objectives": found.get("objectives"), "pupils": people,
        "events": [{"pupil": people[-1]["name"], "at": TWIST_AT, "line": twist}] if twist else [],
        "rubric": _rubric(found.get("rubric"), category),
    }  # fmt: skip


def phase_of(grade: str) -> str:
    """By the first number in it, as school years are counted in most countries; lower secondary where there is none."""
    number = re.search(r"\d{1,2}", grade)
    year = int(number[0]) if number else 7
    return "primary" if year <= 5 else "lower secondary" if year <= 9 else "upper secondary"


def _checked(wish: Wish) -> Wish:
    """The wish without what is no text. Raises BadInput, TooLarge."""
    kept = {}
    for name, most in LIMITS.items():
        value = "".join(one if one.isprintable() or one == "\n" else " " for one in getattr(wish, name)).strip()
        if len(value) > most:
            field = name.replace("_", " ")
            raise TooLarge(f"The {field} has {len(value)} characters; {most} fit.", "Say it in fewer words.")
        kept[name] = value
    if not kept["challenge"]:
        raise BadInput("It is not said yet what is to be rehearsed.", "Write in a sentence what is hard in this class.")
    if not names_a_language(kept["language"]):
        raise BadInput("The scene's language is not known.", 'Give its tag, such as "en", "es" or "pt-BR".')
    return Wish(**kept)


def _parsed(text: str) -> dict[str, Any]:
    """Raises BadInput for all that has no list of people: an answer cut off, a refusal, an apology."""
    if len(text) > LONGEST_ANSWER:
        raise BadInput(f"The answer is longer than {LONGEST_ANSWER} characters.", "Write less.")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("The answer is no whole JSON.", "Write one JSON document and nothing else.") from None
    people = found.get("pupils") if isinstance(found, dict) else None
    if not isinstance(people, list) or not 2 <= len(people) <= 4 or not all(isinstance(one, dict) for one in people):
        raise BadInput("The answer has no list of two to four pupils.", "Write two to four.")
    return dict(found)


def _person(found: Mapping[str, Any], category: Any, phase: str) -> dict[str, Any]:
    """One pupil as a scenario has them. Who believes nothing wrong has no lines for holding on to it."""
    temper = found.get("temper")
    scales = TEMPERS.get(temper if isinstance(temper, str) else "", TEMPERS["calm"])
    given = found.get("lines")
    lines = given if isinstance(given, Mapping) else {}
    belief = found.get("belief")
    believes = isinstance(belief, str) and bool(belief.strip())
    person: dict[str, Any] = {
        **{name: found.get(name) for name in ("name", "about", "voice")}, "who": found.get("who", "pupil"),
        "lines": {name: [lines[name]] for name in SITUATIONS if name in lines and (believes or name not in BELIEF_LINES)},
        **dict(zip(("knowledge", "mood", "energy", "attention"), scales, strict=True)),
    }  # fmt: skip
    if believes:
        thinking = category in ("misconception", "assessment")
        person["misconception"] = {
            "belief": belief, "strength": 2 if phase == "primary" else 3,
            "yields_to": _THINKING if thinking else _FEELING, "about": _words(found.get("words"), str(belief)),
        }  # fmt: skip
        person["knowledge"] = min(person["knowledge"], 2)
    return person


def _words(found: Any, belief: str) -> Sequence[str]:
    """By which a turn is known to be about the belief: those given, else the longer words of the belief itself."""
    given = [one.strip() for one in found if isinstance(one, str) and one.strip()] if isinstance(found, list) else []
    return list(dict.fromkeys(given or re.findall(r"[^\W\d_]{5,}", belief)))[:16] or [belief.strip()[:24]]


def _rubric(found: Any, category: Any) -> list[dict[str, Any]]:
    """The criteria chosen, each once, and what is usual for the category until there are three."""
    chosen = [one for one in found if isinstance(one, str) and one in CRITERIA] if isinstance(found, list) else []
    usual = USUAL.get(category if isinstance(category, str) else "", ())
    ids = [*dict.fromkeys([*chosen[:4], *usual])][: max(3, len(dict.fromkeys(chosen[:4])))]
    return [{"id": id, **CRITERIA[id]} for id in ids]
