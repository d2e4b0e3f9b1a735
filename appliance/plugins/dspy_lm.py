"""What an optimiser asks a handler: every call once, within a budget, and remembered for a run that is taken up again.

What was answered is kept as lines of JSON in the run's folder, readable by its owner alone; a line that a power cut tore is
asked again. Hides that file, waiting for a busy engine, and the count of calls and tokens. It knows no DSPy and no prompt.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.engine.handler import Handler, Message, Request
from appliance.errors import Busy, from_os_error

PATIENCE = 8  # times that a busy engine is asked again
LONGEST_WAIT = 20.0  # seconds before the next of them


@dataclass(frozen=True, slots=True)
class Call:
    """One question to a model. seed: used where the temperature is above nought."""

    messages: tuple[Message, ...]
    tokens: int
    temperature: float = 0.0
    seed: int = 0
    schema: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        seed = self.seed if self.temperature > 0 else 0
        said = [[one.role, one.content] for one in self.messages]
        told = json.dumps([said, self.tokens, self.temperature, seed, self.schema], sort_keys=True)
        return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:32]


@dataclass(slots=True)
class Tally:
    """calls: different questions of this run. asked: of those, what the model was asked now. Tokens: of all of them."""

    calls: int = 0
    asked: int = 0
    prompt: int = 0
    completion: int = 0


class OutOfCalls(Exception):
    """The budget is spent: whoever asks goes on with what there is."""


class Asker:
    """`limit`: so many different calls, None for as many as it takes; it may be changed."""

    def __init__(
        self, handler: Handler, *, model: str = "default", task: str = "", context: int = 0, file: Path | None = None
    ) -> None:
        """context: tokens that fit the model, where the handler does not say; 0 where nobody knows."""
        self.handler, self.tally = handler, Tally()
        self.limit: int | None = None
        self.context = context or handler.context
        self._model, self._task, self._file = model, task, file
        self._kept: dict[str, dict[str, Any]] = _read(file) if file is not None else {}
        self._seen: set[str] = set()

    async def count(self, messages: Sequence[Message]) -> int:
        return await self.handler.count(messages)

    async def ask(self, call: Call) -> str:
        """What the model says. Raises OutOfCalls, and what the handler raises."""
        key = call.key
        if key not in self._seen and self.limit is not None and self.tally.calls >= self.limit:
            raise OutOfCalls
        if key not in self._kept:
            self._kept[key] = await self._patiently(call)
            self.tally.asked += 1
            self._keep(key, self._kept[key])
        answer = self._kept[key]
        if key not in self._seen:
            self._seen.add(key)
            self.tally.calls += 1
            self.tally.prompt += answer["prompt"]
            self.tally.completion += answer["completion"]
        return str(answer["text"])

    async def _patiently(self, call: Call) -> dict[str, Any]:
        for left in range(PATIENCE, -1, -1):
            try:
                return await self._answer(call)
            except Busy as error:
                if not left:
                    raise
                await asyncio.sleep(min(error.retry_after, LONGEST_WAIT))
        raise AssertionError("the last try either answers or raises")

    async def _answer(self, call: Call) -> dict[str, Any]:
        request = Request(
            call.messages, self._model, call.tokens, call.temperature, seed=call.seed, task=self._task,
            question=call.messages[-1].content, schema=dict(call.schema) if call.schema else None,
        )  # fmt: skip
        text, prompt, completion = "", 0, 0
        async with aclosing(self.handler.generate(request)) as chunks:
            async for chunk in chunks:
                text += chunk.text
                if chunk.usage is not None:
                    prompt, completion = chunk.usage.prompt, chunk.usage.completion
        return {"text": text, "prompt": prompt, "completion": completion}

    def _keep(self, key: str, answer: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            line = json.dumps({"key": key, **answer}) + "\n"
            with open(self._file, "a", opener=lambda path, flags: os.open(path, flags, 0o600)) as handle:
                handle.write(line)
        except OSError as error:
            raise from_os_error(error, "keeping the answers of a run") from None

    def facts(self) -> dict[str, int]:
        return asdict(self.tally)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """What was answered before. Lines that are no answer are passed over: the model is asked again."""
    kept: dict[str, dict[str, Any]] = {}
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return kept
    except OSError as error:
        raise from_os_error(error, "reading the answers of a run") from None
    for line in lines:
        try:
            one = json.loads(line)
            kept[str(one["key"])] = {
                "text": str(one["text"]), "prompt": int(one["prompt"]), "completion": int(one["completion"])
            }  # fmt: skip
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    if lines[-1:] not in ([], [b""]):  # a torn line must not swallow the next one
        with open(file, "ab") as handle:
            handle.write(b"\n")
    return kept
