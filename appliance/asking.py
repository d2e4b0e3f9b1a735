"""A module's outputs for its inputs: one question that a model answers in a form, not in prose.

The road is `chat.complete`, inside the safety guard like every other: what goes in is judged, what comes out is judged, and no
document is searched. An answer that does not keep to its form is asked for again, a little differently, three times in all;
then whoever asked goes on with written words. Hides the tries. It stores nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from appliance import prompts
from appliance.engine.handler import Message
from appliance.errors import BadInput, Forbidden, ModelUnavailable, Unsupported

if TYPE_CHECKING:
    from appliance.accounts import User
    from appliance.chat import Chat
    from appliance.lessons import Lesson

TRIES = 3
ANOTHER_TEMPERATURE = 0.7
TOKENS = 400
FORM_LEFT = "The answer did not keep to its form"


async def ask_module(
    chat: Chat,
    user: User,
    name: str,
    inputs: Mapping[str, Any],
    *,
    subject: str = "",
    grade: str = "",
    tries: int = TRIES,
    temperature: float = 0.0,
    seed: int | None = None,
    lesson: Lesson | None = None,
) -> dict[str, Any]:
    """The outputs of a module with a form. It counts as one question, also with more tries; with a `lesson` as none.

    lesson: as `chat.admit` gave it for what this belongs to. Raises ModelUnavailable where no model is there that can do it, or
    none of its tries could be read; Forbidden where the safety rules stop it; BadInput and NotFound for inputs and a name that
    do not fit, and what `chat.complete` raises.
    """
    module = prompts.load(name)
    admitted = lesson or await chat.admit(user)
    for number in range(max(1, tries)):
        warm = max(temperature, ANOTHER_TEMPERATURE) if number else temperature
        options: dict[str, Any] = {"temperature": warm, "seed": None if seed is None else seed + number, "lesson": admitted}
        text = await ask_text(chat, user, name, inputs, subject=subject, grade=grade, **options)
        try:
            return module.parse(text)
        except BadInput:
            continue
    raise ModelUnavailable(f"{FORM_LEFT} in {max(1, tries)} tries.", "Try again, or let a larger model serve.")


async def ask_text(
    chat: Chat,
    user: User,
    name: str,
    inputs: Mapping[str, Any],
    *,
    schema: dict[str, Any] | None = None,
    subject: str = "",
    grade: str = "",
    lesson: Lesson | None = None,
    max_tokens: int | None = None,
    **options: Any,
) -> str:
    """What a model wrote for a module's inputs, once, unread. `schema`: a form of the caller's in place of the module's.

    `options`: temperature, seed, model. Raises as `ask_module` does.
    """
    module = prompts.load(name)
    admitted = lesson or await chat.admit(user)
    events = chat.complete(
        user, [Message("user", module.asked(inputs))], module=name, collections=(), schema=schema,
        subject=subject or None, grade=grade or None, max_tokens=max_tokens or module.tokens or TOKENS,
        lesson=replace(admitted, strict=False), **options,
    )  # fmt: skip
    done: dict[str, Any] = {}
    try:
        async with aclosing(events):
            async for event in events:
                done = event.data if event.kind == "done" else done
    except Unsupported as error:
        raise ModelUnavailable("What answers now cannot keep to a form.", error.hint) from None
    if done.get("state") == "blocked":
        raise Forbidden("The safety rules stopped this.", "Say it in other words.")
    if done.get("handler") == "quotes":
        raise ModelUnavailable("No language model serves now.", "Ask the administrator to start or promote one.")
    return str(done.get("text", ""))
