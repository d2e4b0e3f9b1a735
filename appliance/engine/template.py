"""A model's own chat template, rendered so that nothing a person typed can pass for a control token.

The template (Jinja, carried by the model file) runs in a sandbox. Each message's words are replaced by a placeholder while it
runs; the result is cut at the placeholders into pieces, and only the template's own pieces may be read as control tokens.
`<|system|>` typed by a pupil therefore arrives as seven letters and four signs.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from appliance.engine.handler import Message
from appliance.errors import BadInput


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of the prompt. `control`: written by the template, so control tokens in it count; `message`: its index."""

    text: str
    control: bool
    message: int | None = None


class _Generation(Extension):
    """`{% generation %}` marks what a trainer learns from; for rendering it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - the library's own shape

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Compiled once per model. Raises BadInput where the template cannot be read."""

    def __init__(self, source: str, **variables: str) -> None:
        # Not optimised: folding constants would run parts of a stranger's program while it is only being read.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation], optimized=False
        )
        environment.globals["raise_exception"] = _refuse
        self.source = source
        self._variables = variables
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # noqa: BLE001 - a template is a stranger's program and can raise anything
            raise BadInput(f"The model's chat template cannot be read: {error}.", "Use another copy of the model.") from None

    def pieces(self, messages: Sequence[Message], *, answer: bool) -> list[Piece]:
        """The prompt, cut. `answer`: end by opening the assistant's turn.

        Raises BadInput where there is no message, or the template refuses.
        """
        if not messages:
            raise BadInput("There is no message to answer.", "Write a question.")
        mark = secrets.token_hex(8)
        marked = [{"role": m.role, "content": f"\ue000{mark}:{i}\ue001"} for i, m in enumerate(messages)]
        try:
            text = self._template.render(messages=marked, add_generation_prompt=answer, **self._variables)
        except Exception as error:  # noqa: BLE001 - a template is a stranger's program and can raise anything
            raise BadInput(f"The model's chat template refused this conversation: {error}.", "Try another model.") from None
        pieces: list[Piece] = []
        for part in text.split("\ue000"):
            head, _, rest = part.partition("\ue001")
            if head.startswith(f"{mark}:"):
                index = int(head[len(mark) + 1 :])
                pieces.append(Piece(messages[index].content, control=False, message=index))
                head = rest
            if head:
                pieces.append(Piece(head, control=True))
        return pieces


def _refuse(message: str) -> Any:
    raise TemplateError(message)
