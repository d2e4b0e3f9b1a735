"""DSPyOptimizer: better instructions and demonstrations for a prompt module, found by DSPy, judged by the house.

What comes out is a program in the house's own JSON (`prompts.Module.as_program`): words and nothing else, so that it serves
without DSPy, on any handler, with the line cut. The search runs in a process of its own (`dspy_child`); importing this module
imports no DSPy. It stays off while the box is air-gapped. Which rows may teach, registering and promoting are `dspy_job`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance import plugins, prompts
from appliance.errors import BadInput, from_os_error
from appliance.files import write_atomically
from appliance.plugins import Plugin

if TYPE_CHECKING:
    from appliance.engine.handler import Handler
    from appliance.plugins.dspy_lm import Asker
    from appliance.plugins.dspy_run import OnProgress
    from appliance.prompts import Module
    from appliance.settings import Settings

PLUGIN = Plugin("dspy", "DSPy optimisation", package="dspy", extra="dspy")
BUDGET = 300  # calls
ANSWER_TOKENS = 400  # of a module that does not say how long its answers may be, and is no talk


def silent(_stage: str, _done: int, _total: int, _left: float | None, _facts: dict[str, Any]) -> None:
    """The progress report of those who do not ask for one."""


@dataclass(frozen=True)
class Optimised:
    """`module`: as it would serve. `report`: how it did on rows that it never saw, and what that cost."""

    module: Module
    report: Mapping[str, Any]

    @property
    def program(self) -> dict[str, Any]:
        return self.module.as_program()

    @property
    def passed(self) -> bool:
        return self.report.get("passed") is True


class DSPyOptimizer:
    """Optimises on any handler (started). `settings` None reads them as every command does."""

    def __init__(
        self,
        llm_handler: Handler,
        settings: Settings | None = None,
        *,
        model: str = "default",
        context: int = 0,
        subject: str = "",
        grade: str = "",
    ) -> None:
        """model: which one of the handler's is asked. context: tokens that fit it, where the handler cannot say.

        subject, grade: what the program is for, "" for any.
        """
        from appliance.settings import load

        self.handler = llm_handler
        self.settings = settings or load()
        self.model, self.context, self.subject, self.grade = model, context, subject, grade

    async def optimize_module(
        self,
        module_name: str = "teacher_responder",
        training_examples: Iterable[Any] = (),
        *,
        method: str = "bootstrap",
        metric: str | Sequence[str] = (),
        seed: int = 0,
        budget: int = BUDGET,
        start: Module | None = None,
        answer_tokens: int = 0,
        folder: Path | None = None,
        on_progress: OnProgress = silent,
    ) -> Optimised:
        """The best program that `method` finds for a module within `budget` calls, and how it did beside `start`.

        training_examples: rows of {"inputs", "outputs"}, flat ones, or conversations (see `dspy_rows`). method: bootstrap,
        random, mipro, gepa. metric: of `dspy_metrics`, several for their mean, none for the module's usual one. start: what
        serves now, left out the module's file. folder: where answers are kept, so that a killed run goes on without asking
        again. The same arguments and answers give the same program. Raises Forbidden while the box is air-gapped, Unsupported
        where a package is missing, BadInput, NotFound for an unknown module, and what the handler raises.
        """
        from appliance.plugins import dspy_metrics, dspy_rows, dspy_run

        plugins.require(self.settings, PLUGIN.name)
        dspy_run.need(method)
        base = start or prompts.load(module_name)
        found, left_out = dspy_rows.read(base, training_examples)
        rows = dspy_run.fitting(found, self.subject, self.grade)
        rows = [replace(row, grade=row.grade or self.grade) for row in rows]
        names = dspy_metrics.checked([metric] if isinstance(metric, str) else metric, base, rows)
        split = dspy_rows.split(rows, seed, left_out)
        place = dspy_run.Place(base, answer_tokens or self._tokens(base), self.subject, self.grade)
        asker = self._asker(base, folder / "calls.jsonl" if folder else None)

        def tell(*progress: Any) -> None:
            plugins.require(self.settings, PLUGIN.name)  # the line may have been closed meanwhile
            on_progress(*progress)

        began = time.monotonic()
        module, searched = await dspy_run.find(
            asker, place, split, method=method, metric=names, seed=seed, budget=budget, tell=tell
        )  # fmt: skip
        verdict = await dspy_run.judge(asker, place, base, module, split, metric=names, seed=seed, tell=tell)
        report = verdict | searched | asker.facts() | {
            "method": method, "seed": seed, "budget": budget, "seconds": round(time.monotonic() - began, 2),
            "model": await self._answers(), "dataset": split.digest, "left_out": split.left_out,
            "parts": {part: len(getattr(split, part)) for part in ("train", "choose", "held_out")},
            "rows": dspy_run.quoted(module, base, split),
        }  # fmt: skip
        return Optimised(module, report)

    async def evaluate(
        self,
        module: Module | Mapping[str, Any] | str,
        examples: Iterable[Any],
        *,
        metric: str | Sequence[str] = (),
        answer_tokens: int = 0,
        seed: int = 0,
        beside: Module | None = None,
        on_progress: OnProgress = silent,
    ) -> dict[str, Any]:
        """How a module or a program does beside another, left out the module's file: the verdict of `dspy_run.judge`.

        No optimiser takes part, so it needs no package and no open line. All examples judge: give such as it never saw.
        """
        from appliance.plugins import dspy_metrics, dspy_rows, dspy_run

        after = module if isinstance(module, prompts.Module) else prompts.from_program(module)
        before = beside or prompts.load(after.name)
        found, left_out = dspy_rows.read(after, examples)
        rows = [replace(row, grade=row.grade or self.grade) for row in dspy_run.fitting(found, self.subject, self.grade)]
        names = dspy_metrics.checked([metric] if isinstance(metric, str) else metric, after, rows)
        split = dspy_rows.Split([], [], rows, "", left_out)
        if not rows:
            raise BadInput("There is no example to judge by.", "Give examples of this subject and grade.")
        place = dspy_run.Place(before, answer_tokens or self._tokens(after), self.subject, self.grade)
        asker = self._asker(after)
        verdict = await dspy_run.judge(asker, place, before, after, split, metric=names, seed=seed, tell=on_progress)
        return verdict | asker.facts()

    def save(self, optimised: Optimised | Module, path: str | Path) -> Path:
        """Write a program as JSON that `load` and `appliance modules import` read; whole or not at all."""
        module = optimised.module if isinstance(optimised, Optimised) else optimised
        target = Path(path)
        write_atomically(target, json.dumps(module.as_program(), ensure_ascii=False, indent=1) + "\n")
        return target

    def load(self, path: str | Path) -> Module:
        """The module of a saved program: words are read, nothing is run. Raises NotFound, BadInput with every fault."""
        try:
            text = Path(path).read_bytes()[: 8 * prompts.LONGEST_PROGRAM].decode("utf-8", "replace")
        except OSError as error:
            raise from_os_error(error, f"reading {Path(path).name}") from None
        return prompts.from_program(text)

    def _asker(self, module: Module, file: Path | None = None) -> Asker:
        from appliance.plugins.dspy_lm import Asker

        return Asker(self.handler, model=self.model, task=module.name, context=self.context, file=file)

    def _tokens(self, module: Module) -> int:
        """How long its answers may be where it serves: see `chat` and `asking`."""
        if module.form == "text":
            return module.tokens or self.settings.answer_tokens
        return module.tokens or ANSWER_TOKENS

    async def _answers(self) -> str:
        """What answered, by its own name where a handler tells it."""
        health = await self.handler.health()
        return self.model if self.model != "default" else (health.model or self.handler.name)
