"""One optimisation, from rows to a verdict: the search in a child process, the judging here, on rows that no candidate saw.

Hides the talk with the child: it asks by lines of JSON, and the handler answers in this process's own event loop. What is found
is judged beside what served before, by paired answers to the held-out rows; never by the scores of the search. DSPy is imported
in the child alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from appliance import prompts
from appliance.engine.handler import Message
from appliance.errors import ApplianceError, BadInput, TooLarge, Unsupported, from_os_error, where
from appliance.network import OFFLINE
from appliance.plugins import dspy_metrics
from appliance.plugins.dspy_lm import Asker, Call, OutOfCalls
from appliance.settings import PACKAGE

if TYPE_CHECKING:
    from appliance.plugins.dspy_rows import Row, Split
    from appliance.prompts import Module

NEEDS = {"bootstrap": "", "random": "", "mipro": "optuna", "gepa": "gepa"}  # method -> the package that it needs besides
TITLES = {"bootstrap": "Bootstrap few-shot", "random": "Random search", "mipro": "MIPROv2", "gepa": "GEPA"}
LEAST_SEARCH = 4  # calls, below which no candidate can be tried
LONGEST_LINE = 2**24
OnProgress = Callable[[str, int, int, "float | None", dict[str, Any]], None]  # as in `tuning.huggingface`


def need(method: str) -> None:
    """Raises BadInput for no method, Unsupported where a package for it is missing."""
    if method not in NEEDS:
        raise BadInput(f"There is no method {method[:40]!r}.", f"Choose one of: {', '.join(NEEDS)}.")
    package = NEEDS[method]
    if package and importlib.util.find_spec(package) is None:
        raise Unsupported(
            f"{TITLES[method]} needs the package {package}, which is not installed.",
            f"pip install {package}, or choose another method: random.",
        )


class Place:
    """Where a program is to serve, and how long its answers may be. Rows of another subject or grade are not for it."""

    def __init__(self, base: Module, tokens: int, subject: str = "", grade: str = "") -> None:
        self.base, self.tokens, self.subject, self.grade = base, tokens, subject, grade

    def render(self, module: Module, row: Row) -> list[Message]:
        """The prompt as it is served, where no document is found."""
        return module.render(module.asked(row.inputs), subject=self.subject or None, grade=self.grade or None)

    def room(self, context: int) -> int:
        """Tokens that a prompt may take, 0 where nobody knows."""
        return max(0, context - self.limit(context)) if context > 0 else 0

    def limit(self, context: int) -> int:
        """Longest answer, as `chat` cuts it."""
        return min(self.tokens, max(16, context // 2)) if context > 0 else self.tokens


def reserved(split: Split) -> int:
    """Calls that judging takes: what served and what was found, on every held-out row."""
    return 2 * len(split.held_out)


async def find(
    asker: Asker, place: Place, split: Split, *, method: str, metric: Sequence[str], seed: int, budget: int, tell: OnProgress
) -> tuple[Module, dict[str, Any]]:
    """The best module that the method found within `budget` calls, judging included, and what is to be told of the search.

    Raises BadInput where the budget is too small, and what the handler raises. Cancelling ends the search at once.
    """
    calls = budget - reserved(split)
    if calls < LEAST_SEARCH:
        raise BadInput(
            f"A budget of {budget} calls is too small: judging on {len(split.held_out)} examples takes {reserved(split)}.",
            f"Give {reserved(split) + 5 * (len(split.train) + len(split.choose))} or more.",
        )
    asker.limit = calls
    order = {
        "program": place.base.as_program(), "method": method, "metric": list(metric), "seed": seed, "budget": calls,
        "room": place.room(asker.context), "tokens": place.limit(asker.context), "subject": place.subject,
        "grade": place.grade, "train": [row.to_json() for row in split.train],
        "choose": [row.to_json() for row in split.choose],
    }  # fmt: skip
    try:
        done = await _child(order, asker, lambda: _told(tell, asker, calls))
    finally:
        asker.limit = None
    return prompts.from_program(done["program"]), {"tried": done["tried"], "spent": done["spent"]}


def _told(tell: OnProgress, asker: Asker, calls: int) -> None:
    tell("optimise", asker.tally.calls, calls, None, {"asked": asker.tally.asked})


async def _child(order: Mapping[str, Any], asker: Asker, told: Callable[[], None]) -> dict[str, Any]:
    # Nothing of this process's environment goes along: no secrets, no switches. -P: its folder is not searched for modules.
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **OFFLINE}
    environment |= {"HOME": os.devnull, "DSPY_CACHEDIR": os.devnull, "PYTHONHASHSEED": "0", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-P", "-X", "utf8", "-m", "appliance.plugins.dspy_child"]
    try:
        child = await asyncio.create_subprocess_exec(
            *command, env=environment, cwd="/", limit=LONGEST_LINE, start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        raise from_os_error(error, "starting the optimiser") from None
    assert child.stdin is not None and child.stdout is not None
    try:
        await _say(child.stdin, dict(order))
        async for raw in child.stdout:
            line = json.loads(raw)
            if "done" in line:
                found: dict[str, Any] = line["done"]
                return found
            if "unfit" in line:
                what = f"The model is not able enough for {TITLES[order['method']]}: {line['unfit']}."
                raise Unsupported(what, "Choose the method random, or a larger model.")
            if "fault" in line:
                raise ApplianceError(f"The optimiser failed: {line['fault']}.", "Try another method; if it stays, report it.")
            await _say(child.stdin, await _reply(line, asker))
            told()
        raise ApplianceError("The optimiser's process ended early; memory may have run out.", "Run the same command again.")
    except ValueError as error:  # a line that is none of ours, or far too long
        raise ApplianceError(f"The optimiser failed: {where(error)}.", "Try another method; if it stays, report it.") from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        child.stdin.close()
        await child.wait()


async def _say(pipe: asyncio.StreamWriter, told: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: reading says so
        pipe.write(json.dumps(told).encode() + b"\n")
        await pipe.drain()


async def _reply(line: Mapping[str, Any], asker: Asker) -> dict[str, Any]:
    if "count" in line:
        return {"tokens": await asker.count([Message(role, text) for role, text in line["count"]])}
    asked = line["ask"]
    messages = tuple(Message(role, text) for role, text in asked["messages"])
    call = Call(messages, asked["tokens"], asked["temperature"], asked["seed"], asked["schema"])
    try:
        return {"text": await asker.ask(call)}
    except OutOfCalls:
        return {"over": True}
    except TooLarge:
        return {"large": True}


# --- judging -----------------------------------------------------------------------------------------------------------
async def scores(
    asker: Asker, place: Place, module: Module, rows: Sequence[Row], metric: Sequence[str], done: Callable[[], None]
) -> list[float]:
    """The metric of each row's greedy answer; 0 where it keeps to no form, or the prompt does not fit."""
    found = []
    room = place.room(asker.context)
    served = await module.within(room, asker.count) if room else module
    for row in rows:
        call = Call(tuple(place.render(served, row)), place.limit(asker.context), schema=served.schema)
        try:
            outputs = served.parse(await asker.ask(call))
        except BadInput:
            found.append(0.0)
        else:
            found.append(dspy_metrics.score(metric, module, row, outputs).value)
        done()
    return found


async def judge(
    asker: Asker,
    place: Place,
    before: Module,
    after: Module,
    split: Split,
    *,
    metric: Sequence[str],
    seed: int,
    tell: OnProgress,
) -> dict[str, Any]:
    """{"passed", "reasons", "metric", "n", "before", "after", "difference"}: figures with 95 % intervals, paired by row."""
    from appliance.tuning.verdicts import FEWEST, paired

    rows, at, started = split.held_out, 0, time.monotonic()

    def done() -> None:
        nonlocal at
        at += 1
        left = (time.monotonic() - started) / at * (2 * len(rows) - at)
        tell("evaluate", at, 2 * len(rows), left, {})

    old = await scores(asker, place, before, rows, metric, done)
    new = await scores(asker, place, after, rows, metric, done)
    figures = paired([(one, 1.0) for one in old], [(one, 1.0) for one in new], seed)
    reasons = []
    if after == before:
        reasons = ["Nothing was found that does better than what serves now."]
    elif len(rows) < FEWEST:
        reasons = [f"Only {len(rows)} examples were held out: {FEWEST} are needed to judge, and 20 or more to be sure."]
    elif not all(math.isfinite(one.low) for one in figures):
        reasons = ["A figure is not a number, so nothing can be said for this program."]
    elif figures[2].low <= 0:
        reasons = [
            f"The gain of {figures[2].value:+.3f} is not certain: its 95 % interval is {figures[2].low:+.3f} to "
            f"{figures[2].high:+.3f}, and has to lie above nought."
        ]
    told = [{"value": one.value, "low": one.low, "high": one.high} for one in figures]
    facts: dict[str, Any] = dict(zip(("before", "after", "difference"), told, strict=True))
    return {"passed": not reasons, "reasons": reasons, "metric": list(metric), "n": len(rows), **facts}


def quoted(module: Module, base: Module, split: Split) -> list[str]:
    """Ids of the rows of which a program has words: those that it shows, or all, where its instructions were written anew."""
    if module.instructions != base.instructions:
        return [row.id for row in split.seen]
    shown = [json.dumps(dict(one.inputs), sort_keys=True) for one in module.demonstrations]
    return [row.id for row in split.seen if _given(row) in shown]


def _given(row: Row) -> str:
    return json.dumps({name: value for name, value in row.inputs.items() if value not in (None, "")}, sort_keys=True)


def fitting(rows: Iterable[Row], subject: str, grade: str) -> list[Row]:
    """The rows that are for this subject and grade, or say nothing of theirs."""
    from appliance.programs import grade_key, key

    return [
        row
        for row in rows
        if (not subject or not row.subject or key(row.subject) == key(subject))
        and (not grade or not row.grade or grade_key(row.grade) == grade_key(grade))
    ]
