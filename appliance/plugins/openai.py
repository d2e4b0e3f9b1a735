"""Fine-tuning by OpenAI: optional, off while the box is air-gapped, and nothing leaves before a named person has confirmed it.

`OpenAIFineTuner` is the whole of it for a program; the command line says the same with `appliance tune openai`. Hides the
parts: `openai_data` (what would leave), `openai_money` (what it costs), `openai_line` (key and clients), `openai_jobs` (one
fine-tuning, kept step by step), `openai_work` (as a durable job), `openai_handler` (answers). The package `openai` is imported
only once the policy allows its host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.audit import Audit
from appliance.db import Database
from appliance.engine.handler import Handler, Usage
from appliance.errors import BadInput, Conflict, Forbidden
from appliance.plugins import Plugin, require, require_way_out
from appliance.plugins import openai_jobs as jobs
from appliance.plugins import openai_line as line
from appliance.plugins.openai_data import MethodName, Prepared, Wish, prepare
from appliance.plugins.openai_handler import OpenAIHandler
from appliance.plugins.openai_jobs import Event, Kept, Status
from appliance.plugins.openai_money import prices
from appliance.plugins.openai_work import Box, see_through
from appliance.registry import Registry
from appliance.settings import Settings, load

__all__ = ["PLUGIN", "Event", "MethodName", "OpenAIFineTuner", "OpenAIHandler", "Prepared", "Status", "Wish"]

NAME_CHARACTERS = 100


def _handler(settings: Settings, hosted: Mapping[str, Any]) -> Handler:
    return OpenAIHandler(settings, str(hosted["model"]))


def _price(settings: Settings, hosted: Mapping[str, Any], prompt: int, completion: int) -> tuple[float, str]:
    listed = prices(settings)
    return listed.of(str(hosted["model"])).answer(Usage(prompt, 0, completion)), listed.currency


def _check(settings: Settings) -> None:
    line.key(settings)
    prices(settings)
    require_way_out(settings)


PLUGIN = Plugin(
    "openai", "Fine-tuning by OpenAI", package="openai", extra="openai", hosts=line.hosts, check=_check, handler=_handler,
    price=_price,
)  # fmt: skip


class OpenAIFineTuner:
    """Prepare, confirm, start, follow, list, cancel; and a handler for what came of it.

    settings, database: this home's where they are not given. Everything that dials raises Forbidden while the policy is closed,
    Unsupported without the package, Unreachable while the line is down.
    """

    def __init__(self, settings: Settings | None = None, database: Database | None = None) -> None:
        self.settings = settings or load()
        self._given = database
        self.kept = Kept(self.settings)

    # --- before anything is sent ------------------------------------------------------------------------------------------
    def prepare_data(
        self,
        examples: Path | str,
        *,
        model: str = "gpt-4.1-mini",
        method: MethodName = "supervised",
        validation: Path | str | None = None,
        suffix: str = "",
        epochs: int | None = None,
        batch: int | None = None,
        rate: float | None = None,
        beta: float | None = None,
        seed: int | None = None,
    ) -> Prepared:
        """Read, screen, redact, check by the service's rules and estimate the cost; nothing is sent, no line is needed.

        examples: a file or folder as for every tuning; for the method preference rows with a correction, or in OpenAI's own
        shape. Raises BadInput with every fault, NotFound.
        """
        listed = prices(self.settings)
        wish = Wish(listed.of(model).name, method, suffix, epochs, batch, rate, beta, seed)
        (host,) = line.hosts(self.settings)
        with self._database() as database:
            return prepare(
                self.settings, database, wish, listed, Path(examples), Path(validation) if validation else None, str(host)
            )  # fmt: skip

    def confirm(self, prepared: Prepared, name: str) -> Status:
        """A person answers for sending it; recorded in the audit. Raises Forbidden without a full name. Nothing is sent yet."""
        person = " ".join(name.split())
        if len(person.split()) < 2 or len(person) > NAME_CHARACTERS or not person.isprintable():
            (host,) = line.hosts(self.settings)
            listed = prices(self.settings)
            cost = f"{listed.money(prepared.cost)} by prices as of {prepared.dated}"
            raise Forbidden(
                f"Nothing was sent: {prepared.train.rows} conversations would leave the building for {host}, for about {cost}, "
                f"and nobody has answered for that yet.{f' {listed.old}' if listed.old else ''}",
                f"Read {prepared.leaving} and what lies beside it, check the prices, then add "
                '--confirm "FIRST AND LAST NAME" to the command.',
            )
        facts = {
            "confirmed_by": person, "model": prepared.wish.model, "rows": prepared.train.rows, "sha256": prepared.train.sha256,
            "validation_sha256": prepared.validation.sha256 if prepared.validation else "", "cost": round(prepared.cost, 4),
            "prices": prepared.dated,
        }  # fmt: skip
        with self._database() as database:
            Audit(database).note("send to openai", prepared.id, facts)
        return self.kept.begin(prepared, person)

    # --- at the service -----------------------------------------------------------------------------------------------------
    async def start_fine_tuning(self, prepared: Prepared, *, confirm: str) -> Status:
        """Send the files and start the job. The same again sends nothing twice."""
        require(self.settings, "openai")
        line.key(self.settings)
        await asyncio.to_thread(self.confirm, prepared, confirm)
        with self.kept.only(prepared.id):
            async with line.official_client(self.settings) as client:
                return await jobs.advance(client, self.kept, prepared, lambda _event: None)

    async def check_status(self, id: str, on_event: Callable[[Event], None] = lambda _event: None) -> Status:
        """How a run stands now; id: the run's or the job's. on_event: gets what the service has said since the last look."""
        status = self.kept.get(id)
        require(self.settings, "openai")
        if not status.job or status.status == jobs.DELETED:
            return status
        async with line.official_client(self.settings) as client:
            return await jobs.look(client, self.kept, status, on_event)

    async def follow(self, id: str, tell: Callable[[dict[str, Any]], None] = lambda _progress: None) -> dict[str, Any]:
        """Go on with a run until it has ended, also after a restart; its model is registered then. tell: gets the progress."""
        status = self.kept.get(id)
        with self._database() as database:
            return await see_through(Box(self.settings, database, Registry(self.settings.models)), status.run, tell)

    resume = follow

    async def cancel(self, id: str) -> Status:
        """End a job here and there."""
        status = self.kept.get(id)
        require(self.settings, "openai")
        async with line.official_client(self.settings) as client:
            return await jobs.cancel(client, self.kept, status)

    async def delete(self, id: str, *, models: bool = False) -> Sequence[str]:
        """Delete what a run sent, at the service; models: and what was made of it. The names of what went; it is audited.

        Raises Conflict while a job needs the files, or the model serves here.
        """
        status = self.kept.get(id)
        require(self.settings, "openai")
        for one in Registry(self.settings.models).list() if models else ():
            if "champion" in one.aliases and (one.hosted or {}).get("run") == status.run:
                raise Conflict(f"{one.id} serves now.", "`appliance models rollback` first, then delete it.")
        async with line.official_client(self.settings) as client:
            gone = await jobs.delete(client, self.kept, status, models=models)
        with self._database() as database:
            Audit(database).note("delete at openai", status.run, {"gone": list(gone)})
        return gone

    async def list_jobs(self, newest: int = 20) -> Sequence[dict[str, Any]]:
        """The newest jobs of the account, whoever started them: {id, run, status, model, tuned, created}."""
        require(self.settings, "openai")
        async with line.official_client(self.settings) as client:
            page = await client.fine_tuning.jobs.list(limit=newest)
            return [
                {
                    "id": job.id, "run": (job.metadata or {}).get("run", ""), "status": job.status, "model": job.model,
                    "tuned": job.fine_tuned_model or "", "created": float(job.created_at),
                }
                for job in page.data
            ]  # fmt: skip

    async def list_models(self) -> Sequence[str]:
        """Names of the models that the account may use; its own begin with ft:."""
        require(self.settings, "openai")
        async with line.official_client(self.settings) as client:
            page = await client.models.list()
            return sorted(model.id for model in page.data)

    # --- what came of it ----------------------------------------------------------------------------------------------------
    def create_fine_tuned_handler(self, model: str, *, fallback: Handler | None = None) -> OpenAIHandler:
        """A handler for "ft:...", like any other; fallback: who answers while the line is down."""
        if not model.startswith("ft:") or model.count(":") < 2:
            raise BadInput(f"{model[:80]!r} is no tuned model of OpenAI.", "Its name begins with ft:, see `tune openai list`.")
        return OpenAIHandler(self.settings, model, fallback=fallback)

    def _database(self) -> _Lent:
        return _Lent(self._given, self.settings)


class _Lent:
    """The database that was given, or one that is opened and closed."""

    def __init__(self, given: Database | None, settings: Settings) -> None:
        self._given, self._settings = given, settings

    def __enter__(self) -> Database:
        if self._given is not None:
            return self._given
        self._own = Database(self._settings.database)
        self._own.migrate()
        return self._own

    def __exit__(self, *_error: object) -> None:
        if self._given is None:
            self._own.close()
