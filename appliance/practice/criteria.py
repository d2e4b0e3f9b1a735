"""Lines of a rubric that fit many scenes, ready to be chosen for a generated one.

Plain facts as `scenario.read` takes them, each counted by moves that can be found in a teacher's words. They decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _criterion(
    name: str, moves: tuple[str, ...], against: tuple[str, ...], enough: int, levels: tuple[str, str, str], try_this: str
) -> Mapping[str, Any]:
    return {"name": name, "moves": moves, "against": against, "enough": enough, "levels": levels, "try_this": try_this}


CRITERIA: Mapping[str, Mapping[str, Any]] = {
    "asks-first": _criterion(
        "Asks what they think before explaining", ("elicit",), ("tell",), 2,
        (
            "You explained before you knew what they think.",
            "You asked what they think once, and explained soon after.",
            "You asked what they think, and waited with your own explanation.",
        ),
        'Begin with "What do you think happens here?" and let two people answer before you say anything about it.',
    ),
    "asks-why": _criterion(
        "Asks for the reason behind an answer", ("press",), (), 2,
        (
            "Answers were taken as they came, right or wrong.",
            "You asked for a reason once.",
            "You asked how they know, for right answers as well as wrong ones.",
        ),
        'Ask "What makes you think so?" once after a right answer, so that the question does not mean "wrong".',
    ),
    "builds-on": _criterion(
        "Builds on what was said", ("uptake", "revoice"), (), 3,
        (
            "Your next sentence would have been the same whatever they had said.",
            "Once or twice you used what somebody had said.",
            "Again and again your next step grew out of somebody's words.",
        ),
        "Say a pupil's own words again, then ask somebody else what follows from them.",
    ),
    "leaves-the-step": _criterion(
        "Leaves the step to them", ("hint", "wait", "check"), ("tell",), 3,
        (
            "The answer came from you.",
            "You held back at times, and gave the step away at others.",
            "You gave hints and time, and the step was theirs.",
        ),
        "Give the smallest hint that you can think of, then count to five before you speak.",
    ),
    "checks": _criterion(
        "Checks what has been understood", ("check", "press"), (), 2,
        (
            "You went on without knowing what they had understood.",
            "You checked once, or only with those who had put up a hand.",
            "You checked with a question that showed what each of them had understood.",
        ),
        'Ask for an example or for their own words instead of "Is that clear?".',
    ),
    "names-feelings": _criterion(
        "Names what somebody feels", ("acknowledge",), ("put_down",), 2,
        (
            "What they felt was passed over.",
            "You named once what somebody felt.",
            "You named what they felt before you asked anything of them.",
        ),
        'Say what you see, "You look fed up with this", and wait for a yes or a no before you go on.',
    ),
    "calm-limits": _criterion(
        "Says calmly what is expected", ("correct_behaviour", "offer_choice"), ("put_down",), 2,
        (
            "It was not said what is expected, or it was said as a threat.",
            "You said once what is expected.",
            "You said briefly what is expected, left a way to do it, and went back to the lesson.",
        ),
        "Say the name, what to do now, and thank you; then look away and give them time to do it.",
    ),
    "gives-choices": _criterion(
        "Offers a way in", ("offer_choice", "hint"), (), 2,
        (
            "There was one way to take part, or none.",
            "You offered one of them another way.",
            "You offered choices that each of them could take without losing face.",
        ),
        "Offer two ways to show the same thing: say it, write it, draw it, or tell a partner.",
    ),
    "praises-work": _criterion(
        "Praises what was done", ("praise_effort",), ("praise_person",), 2,
        (
            "There was no praise, or praise of who somebody is.",
            "You praised once what somebody had done.",
            "You said exactly what somebody had done well, so that it can be done again.",
        ),
        'Finish the sentence "You found that out by ...".',
    ),
}  # fmt: skip

# Their words as people read them, which pages look up in the reader's language.
SENTENCES = tuple(
    text for one in CRITERIA.values() for text in (str(one["name"]), *map(str, one["levels"]), str(one["try_this"]))
)

# What fits a category where a model chose too few.
USUAL: Mapping[str, tuple[str, ...]] = {
    "behaviour": ("calm-limits", "names-feelings", "gives-choices"),
    "misconception": ("asks-first", "asks-why", "leaves-the-step"),
    "engagement": ("asks-first", "builds-on", "gives-choices"),
    "inclusion": ("gives-choices", "names-feelings", "checks"),
    "parents": ("names-feelings", "builds-on", "asks-first"),
    "assessment": ("asks-why", "checks", "praises-work"),
}
