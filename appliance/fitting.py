"""The largest prompt that a model has room for: what is left out of a talk and of its sources, and in which order.

Old turns go first, then passages, the instructions never. Hides how the first one that fits is found with few counts. It
renders nothing and counts nothing itself: both are handed in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from appliance.engine.handler import Message
from appliance.errors import ModelUnavailable, TooLarge
from appliance.openings import shorten

if TYPE_CHECKING:
    from appliance.knowledge.library import Passage

SHORTER = (600, 250)  # characters of the last passage, where it does not fit whole

Render = Callable[["Sequence[Passage]", Sequence[Message]], list[Message]]
Count = Callable[[Sequence[Message]], Awaitable[int]]


# One way to fill a prompt: passages, and earlier turns.
Filled = tuple[Sequence[Any], Sequence[Message]]


@dataclass(frozen=True, slots=True)
class Plan:
    """`given` passages are in the messages; `dropped`: older turns are not."""

    messages: list[Message]
    given: int
    dropped: bool


@dataclass(frozen=True, slots=True)
class Room:
    """`prompt` tokens for the prompt, beside `answer` for what is said."""

    prompt: int
    answer: int


async def fit(
    render: Render,
    passages: Sequence[Passage],
    history: Sequence[Message],
    instructions: str,
    count: Count,
    room: Room,
    *,
    strict: bool = False,
) -> Plan:
    """The largest plan within the room. strict: only documents may answer, so the last passage stays. Raises TooLarge."""
    plans = _plans(passages, history, strict)

    async def measure(index: int) -> tuple[list[Message], int]:
        given, kept = plans[index]
        messages = render(given, kept)
        if instructions:
            messages[0] = Message(messages[0].role, f"{messages[0].content}\n\n{instructions}")
        try:
            return messages, await count(messages)
        except ModelUnavailable:
            return messages, 0  # quotes answer in this case, and they have no such limit

    low, high = 0, len(plans) - 1
    best, size = await measure(low)
    if size > room.prompt:  # plans only shrink, so the first one that fits is found by halving
        best, size = await measure(high)
        if size > room.prompt:
            left = max(room.prompt, 0)
            told = f"The question takes {size} tokens of the model's; {left} fit beside an answer of {room.answer}."
            raise TooLarge(told, "Ask in fewer words, or in parts.")
        while high - low > 1:
            middle = (low + high) // 2
            messages, size = await measure(middle)
            if size <= room.prompt:
                high, best = middle, messages
            else:
                low = middle
        low = high
    given, kept = plans[low]
    return Plan(best, len(given), dropped=len(kept) < len(history))


def _plans(passages: Sequence[Passage], history: Sequence[Message], strict: bool) -> list[Filled]:
    """The largest first."""
    plans: list[Filled] = [(passages, history[n:]) for n in range(0, len(history), 2)]
    plans += [(passages[:n], ()) for n in range(len(passages), 0, -1)]
    plans += [([replace(passages[0], text=shorten(passages[0].text, size))], ()) for size in SHORTER if passages]
    return plans if strict and passages else [*plans, ((), ())]
