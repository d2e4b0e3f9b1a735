"""Named prompt programs: instructions, lesson and sources in, messages out.

`render` is a pure function of its arguments and the words in `content/modules/`. What a whole class shares (instructions,
lesson) comes first and word for word the same; sources and the question come last, in one message, the sources fenced (see
`fence`): no document can put a word before the first fence. It counts nothing and cuts nothing: `chat` decides what fits.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.engine.handler import Message, Source
from appliance.errors import BadInput, NotFound
from appliance.fence import Fence

CONTENT = Path(__file__).parent / "content" / "modules"
OPEN_FENCE = Fence()  # its tokens are the same on every box: for measuring models, not for people's questions


@dataclass(frozen=True, slots=True)
class Module:
    """A prompt program. `name` is what optimisers and settings call it."""

    name: str
    instructions: str

    def render(
        self,
        question: str,
        passages: Sequence[Source] = (),
        history: Sequence[Message] = (),
        *,
        subject: str | None = None,
        grade: str | None = None,
        lesson: str = "",
        fence: Fence = OPEN_FENCE,
    ) -> list[Message]:
        """Messages ending with the question. `passages` are numbered from 1 in the order given.

        lesson: what a whole class is told of today's lesson (see `lessons`): it stands with the instructions.
        """
        about = " ".join(part for part in (subject and f"Subject: {subject}.", grade and f"Grade: {grade}.") if part)
        system = "\n".join(part for part in (self.instructions, about, lesson) if part)
        return [Message("system", system), *history, Message("user", with_sources(question, passages, fence))]


def with_sources(question: str, passages: Sequence[Source], fence: Fence = OPEN_FENCE) -> str:
    """The last message: numbered sources, then the question; the bare question where there are none."""
    return f"Sources:\n{fence.around(passages)}\n\nQuestion: {question}" if passages else question


@functools.cache
def load(name: str) -> Module:
    """The module of that name from `content/modules/`. Raises NotFound or BadInput."""
    path = CONTENT / f"{name}.toml"
    if not name.replace("_", "").isalnum() or not path.is_file():
        known = ", ".join(sorted(path.stem for path in CONTENT.glob("*.toml")))
        raise NotFound(f"There is no module called {name!r}.", f"Choose one of: {known}.")
    try:
        return Module(name, tomllib.loads(path.read_text("utf-8"))["instructions"].strip())
    except (tomllib.TOMLDecodeError, KeyError, AttributeError) as error:
        raise BadInput(f"{path} cannot be used: {error}.", "It needs `instructions` in quotes.") from None


def render(
    question: str,
    passages: Sequence[Source] = (),
    history: Sequence[Message] = (),
    *,
    module: str = "teacher_responder",
    subject: str | None = None,
    grade: str | None = None,
    lesson: str = "",
    fence: Fence = OPEN_FENCE,
) -> list[Message]:
    """`Module.render` of the named module."""
    return load(module).render(question, passages, history, subject=subject, grade=grade, lesson=lesson, fence=fence)
