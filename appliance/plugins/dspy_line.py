"""How the optimiser's process and the one that started it talk: a line of JSON each way, from the side of the former.

A file of its own, because the process runs `dspy_child` under another name, and an exception has to be one and the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, BinaryIO, NoReturn

from appliance.engine.handler import Message


class Over(BaseException):
    """The budget is spent. No `Exception`: an optimiser takes those for a bad candidate and goes on asking."""


class Broken(BaseException):
    """A fault of ours, or of DSPy's: for the same reason none that could be taken for a bad answer."""


class Unfit(Exception):
    """The model cannot do what the method asks of it besides the module's own answers."""


class TooLong(ValueError):
    """This prompt does not fit the model: a candidate that makes such ones is a bad one."""


class Line:
    """The talk with the process that started this one."""

    def __init__(self, voice: BinaryIO, ear: BinaryIO) -> None:
        self._voice, self._ear = voice, ear

    def read(self) -> dict[str, Any]:
        raw = self._ear.readline()
        if not raw:
            _end()
        told: dict[str, Any] = json.loads(raw)
        return told

    def say(self, told: dict[str, Any]) -> None:
        try:
            self._voice.write(json.dumps(told).encode() + b"\n")
            self._voice.flush()
        except BrokenPipeError:
            _end()

    def ask(self, messages: Sequence[Message], **options: Any) -> str:
        """A model's answer. Raises TooLong, Over."""
        self.say({"ask": {"messages": [[one.role, one.content] for one in messages], **options}})
        told = self.read()
        if told.get("over"):
            raise Over
        if told.get("large"):
            raise TooLong("the prompt does not fit the model")
        return str(told["text"])

    def count(self, messages: Sequence[Message]) -> int:
        self.say({"count": [[one.role, one.content] for one in messages]})
        return int(self.read()["tokens"])


def _end() -> NoReturn:
    """Nobody listens: there is nothing to clean up."""
    os._exit(1)
