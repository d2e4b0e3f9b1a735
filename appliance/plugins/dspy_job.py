"""Optimising as a job of the box: rows that may teach, a search that can be taken up again, a program in the table, the gate.

The same order is the same run: it has a folder, in which every answer of the model is kept, so that a run that was killed goes
on without asking again, and the rows lie where `tuning.erasing` finds them. A program is promoted by `Programs.promote`, which
asks for the verdict on the held-out rows and nothing else. Hides the folder, and whom the model is asked of.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance import plugins, prompts
from appliance.errors import ApplianceError, BadInput, GateNotPassed, ModelUnavailable, NotFound, Unsupported
from appliance.files import write_atomically
from appliance.plugins import dspy_rows, dspy_run, dspy_screen
from appliance.plugins.dspy import BUDGET, PLUGIN, DSPyOptimizer
from appliance.tuning.dataset import Dataset
from appliance.tuning.formats import Example
from appliance.tuning.run_folder import RunFolder, only_run, write_json

if TYPE_CHECKING:
    from appliance.engine.handler import Handler
    from appliance.plugins.dspy_rows import Row, Split
    from appliance.plugins.dspy_run import OnProgress
    from appliance.prompts import Module

KIND = "tune dspy"
MAKER = "dspy"


@dataclass(frozen=True)
class Order:
    """What is to be optimised. examples: a file; "" for what the school has reviewed.

    model: "" for what answers in the building; one of another machine is asked only where it is named.
    """

    module: str = "teacher_responder"
    examples: str = ""
    method: str = "bootstrap"
    metric: tuple[str, ...] = ()
    subject: str = ""
    grade: str = ""
    seed: int = 0
    budget: int = BUDGET
    model: str = ""
    promote: bool = True

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Order:
        return cls(**{**payload, "metric": tuple(payload.get("metric", ()))})

    @property
    def file(self) -> Path | None:
        return Path(self.examples) if self.examples else None


@dataclass(frozen=True)
class Asked:
    """Whom the model is asked of: a handler, which of its models, and how many tokens fit it.

    price: what so many tokens in and out cost, and in which money; None where nobody charges, or nobody knows.
    """

    handler: Handler
    model: str
    context: int
    price: Callable[[int, int], tuple[float, str] | None] | None = None


def check(box: Any, order: Order) -> None:
    """Whatever can be said before anything is begun. Raises Forbidden, Unsupported, BadInput, NotFound."""
    plugins.require(box.settings, PLUGIN.name)
    dspy_run.need(order.method)
    prompts.load(order.module)
    if order.file is not None and not order.file.exists():
        raise NotFound(f"There is no file {order.file}.", "Give the file of examples.")
    if order.model:
        box.registry.get(order.model)


async def work(box: Any, order: Order, tell: OnProgress) -> dict[str, Any]:
    """{"id", "promoted", "reasons", "report", "module", "maker", "run"}. Raises what stopped it.

    box: the `Appliance`.
    """
    check(box, order)
    base = await asyncio.to_thread(box.chat.programs.module, order.module, order.subject, order.grade)
    gathered = await asyncio.to_thread(dspy_screen.gather, box.database, base, order.file)
    rows = dspy_run.fitting(gathered.rows, order.subject, order.grade)
    split = dspy_rows.split(rows, order.seed, gathered.left_out)
    with only_run(box.settings.run / "tune.lock"):  # whoever withdraws rows meanwhile is told to ask again
        async with asked(box, order) as whom:
            run = RunFolder(box.settings.runs / f"dspy-{_key(order, base, split, whom)}")
            run.path.chmod(0o700)
            known = _known(box, run)
            if known is None:
                gone = await asyncio.to_thread(lambda: gathered.record(_keep(run, split)))
                known = await _optimise(box, order, base, rows, whom, run, gone, tell)
        return await asyncio.to_thread(_end, box, order, run, known)


async def _optimise(
    box: Any, order: Order, base: Module, rows: list[Row], whom: Asked, run: RunFolder, gone: Any, tell: OnProgress
) -> str:
    """Search, judge, and put the program into the table; its id."""
    place = {"subject": order.subject, "grade": order.grade}
    optimiser = DSPyOptimizer(whom.handler, box.settings, model=whom.model, context=whom.context, **place)
    done = await optimiser.optimize_module(
        order.module, rows, method=order.method, metric=order.metric, seed=order.seed, budget=order.budget, start=base,
        folder=run.path, on_progress=tell,
    )  # fmt: skip
    report = {**done.report, "run": run.path.name}
    cost = whom.price(report["prompt"], report["completion"]) if whom.price is not None else None
    if cost is not None:
        report |= {"cost": round(cost[0], 4), "currency": cost[1]}
    await asyncio.to_thread(none_withdrawn, gone)

    def register() -> str:
        made = box.chat.programs.add(
            box.accounts.local_administrator(), done.program, report=report, maker=MAKER, **place
        )  # fmt: skip
        run.finish("register", {"id": made.id})
        return str(made.id)

    return await asyncio.to_thread(register)


def _end(box: Any, order: Order, run: RunFolder, id: str) -> dict[str, Any]:
    """Promote it if it passed and is to serve; write down how it ended."""
    programs, me = box.chat.programs, box.accounts.local_administrator()
    program = programs.get(id)
    reasons = list(program.report.get("reasons", ()))
    promoted = program.state == "active"
    if order.promote and not promoted and program.report.get("passed") is True:
        promoted = programs.promote(me, id).state == "active"
    told = {
        "id": id, "promoted": promoted, "reasons": reasons, "report": dict(program.report), "module": program.module,
        "maker": MAKER, "run": str(run.path),
    }  # fmt: skip
    write_json(run.path / "result.json", told)
    return told


def none_withdrawn(gone: Any) -> None:
    """Raise GateNotPassed where a row was withdrawn while the program was being made of it."""
    lost = gone()
    if lost:
        raise GateNotPassed(
            f"{len(lost)} rows were withdrawn while the program was being made of them, so it is thrown away.",
            "Run the same command again: it leaves them out.",
        )


def _known(box: Any, run: RunFolder) -> str | None:
    """The program that this run has made already, if it is still there and whole."""
    marker = run.finished("register")
    try:
        found = box.chat.programs.get(str(marker["id"])) if marker else None
    except (ApplianceError, KeyError):
        return None
    return str(found.id) if found is not None and found.report.get("erased") is not True else None


def _key(order: Order, base: Module, split: Split, whom: Asked) -> str:
    told = [
        base.as_program(), split.digest, order.method, order.metric, order.subject, order.grade, order.seed, order.budget,
        whom.model, whom.context,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _keep(run: RunFolder, split: Split) -> Dataset:
    """Write the rows down; as a dataset of ids, for the record of who is in it."""
    folder = run.path / "data"
    folder.mkdir(exist_ok=True, mode=0o700)
    for name, rows in (("train", split.seen), ("held_out", split.held_out)):
        text = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
        write_atomically(folder / f"{name}.jsonl", text)
    train, held_out = ([Example(row.id, (), author=row.author) for row in rows] for rows in (split.seen, split.held_out))
    return Dataset(folder, train, held_out, {"digest": split.digest})


@asynccontextmanager
async def asked(box: Any, order: Order) -> AsyncIterator[Asked]:
    """What answers: the engine of the box with what serves the module there, or a model by its id, also of another machine.

    Raises ModelUnavailable where no language model is there.
    """
    manifest = box.registry.get(order.model) if order.model else None
    if manifest is not None and manifest.hosted:
        plugin = await asyncio.to_thread(plugins.require, box.settings, str(manifest.hosted.get("plugin")))
        if plugin.handler is None:
            raise Unsupported(f"{plugin.title} serves no model.", "Choose another one of `appliance models list`.")
        handler = plugin.handler(box.settings, manifest.hosted)
        price = partial(plugin.price, box.settings, manifest.hosted) if plugin.price else None
        await handler.start()
        try:
            yield Asked(handler, manifest.id, manifest.context, price)
        finally:
            await handler.close()
        return
    async with box.running_engine():
        task = f"{order.module}/{order.subject.casefold()}" if order.subject else order.module
        serving = await box.pool.serving(task, inside=True)  # examples leave the building only for a model that was named
        if manifest is None and (serving.handler == "quotes" or not serving.ok):
            raise ModelUnavailable(
                "No language model serves in the building.", "Promote one, or name one: `appliance tune dspy --help`, --model."
            )
        model, context = (manifest.id, manifest.context) if manifest else (serving.model, serving.context)
        yield Asked(box.engine, model, context)


async def judge(box: Any, id: str, examples: Path | None, tell: OnProgress, *, model: str = "") -> dict[str, Any]:
    """How a program in the table does beside its module's file: on a file's rows, else on those that its run held out.

    model: as in an order. Rows that it has words of judge nothing. Raises NotFound, BadInput where none is left.
    """
    program = box.chat.programs.get(id)
    module = prompts.from_program(box.chat.programs.export(id))
    seen: Collection[str] = set(program.report.get("rows", ()))
    if examples is not None:
        gathered = await asyncio.to_thread(dspy_screen.gather, box.database, module, examples)
        rows: list[Any] = [row for row in gathered.rows if row.id not in seen]
    else:
        rows = _held_out(box.settings.runs / Path(str(program.report.get("run") or "none")).name)
    if not rows:
        raise BadInput(f"There is nothing to judge {id} by.", "Give examples that it never saw: --examples FILE.")
    order = Order(program.module, subject=program.subject, grade=program.grade, model=model)
    async with asked(box, order) as whom:
        optimiser = DSPyOptimizer(
            whom.handler, box.settings, model=whom.model, context=whom.context, subject=order.subject, grade=order.grade
        )  # fmt: skip
        metric = [str(name) for name in program.report.get("metric", ())]
        return await optimiser.evaluate(module, [row.to_json() for row in rows], metric=metric, on_progress=tell)


def _held_out(run: Path) -> list[Row]:
    try:
        lines = (run / "data" / "held_out.jsonl").read_text("utf-8").split("\n")
    except OSError:
        return []
    return [dspy_rows.from_json(json.loads(line)) for line in lines if line.strip()]
