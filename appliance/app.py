"""All parts, built once from Settings: the only place where they are wired to each other.

A part that needs another's work is handed a function here, so that no two of them import each other. Hides start-up order,
the engine as a child process where no engine is running, and how the starter model comes into the registry.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance import guard, network
from appliance.accounts import Accounts, People
from appliance.accounts.directory import SECONDS, Directory
from appliance.accounts.oidc import Oidc
from appliance.audit import Audit
from appliance.chat import Chat
from appliance.classes import Classes
from appliance.db import Database
from appliance.engine import fake
from appliance.engine.embedder import NAME as EMBEDDER
from appliance.engine.handler import Message, Request
from appliance.engine.loaded import MakeHandler, ModelFiles
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.pool import Active, Pool
from appliance.engine.quotes import Quotes
from appliance.engine.serving_choice import Choice, Chosen
from appliance.errors import (
    ApplianceError,
    BadInput,
    Conflict,
    GateNotPassed,
    ModelUnavailable,
    NotFound,
    Unsupported,
    from_os_error,
)
from appliance.feedback import Feedback
from appliance.figures import Figures
from appliance.jobs import Jobs, held
from appliance.knowledge.library import Library
from appliance.plugins.hosting import Hosting
from appliance.practice.mentors import Mentors
from appliance.practice.rehearsals import Rehearsals
from appliance.practice.scenes import Scenes
from appliance.practice.wording import Wording
from appliance.registry import Manifest, Registry
from appliance.safeguarding import Safeguarding
from appliance.settings import Settings
from appliance.standards import Standards
from appliance.supervisor import end
from appliance.tuning.giving import Giving

if TYPE_CHECKING:
    from appliance.engine.handler import Handler, Source

# A cold engine imports torch and loads the embedder: seconds on a quick machine, half a minute on an old busy one.
ENGINE_START_SECONDS = 120.0
# Conversations in a batch of the transformers back end, where no setting says.
TRANSFORMERS_SLOTS = {"cpu": 4, "cuda": 32}


class Appliance:
    """Every part of one box. Use `open()`; close with `close()`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        self.audit = Audit(self.database)
        self.registry = Registry(settings.models)
        self.engine = OpenAICompatible(partial(network.socket_client, settings.engine_socket))
        rerank = None if settings.reranker is None else self.engine.rerank
        self.library = Library(settings, self.database, self.engine.embed, EMBEDDER, rerank)
        self.quotes = Quotes(_no_search, self.engine.embed)
        self.hosting = Hosting(settings)
        self.pool = Pool(self.engine, self.quotes, self._active, self._named, self.hosting.use)
        dial = partial(network.dial, settings, timeout=SECONDS)
        directory = Directory(settings, dial) if settings.ldap_url else None
        self.accounts = Accounts(self.database, settings, directory, self.audit)
        client = partial(network.http_client, settings, ca_file=settings.oidc_ca_file)
        self.oidc = Oidc(settings, client) if settings.oidc_issuer else None
        self.people = People(self.database)
        self.classes = Classes(self.database)
        self.scenes = Scenes(self.database, self.accounts, self.audit)
        self.standards = Standards(self.database, self.accounts, self.audit)
        self.jobs = Jobs(self.database, settings)
        self.figures = Figures(self.database)
        self.safeguarding = Safeguarding(self.database, self.audit)
        self.chat = Chat(
            self.database, self.library, self.pool, self.accounts, settings, self._is_starter, self.safeguarding
        )  # fmt: skip
        keep = Giving(self.database).keep
        self.feedback = Feedback(self.database, self.chat.conversations, self.accounts, self.audit, keep, self._take_back)
        mentors = Mentors(self.database, self.accounts, self.audit, keep, self._take_back)
        wording = Wording(self.chat, self.pool, settings.practice_lines, settings.practice_seconds)
        self.rehearsals = Rehearsals(self.database, self.accounts, self.scenes, mentors, wording)

    @classmethod
    def open(cls, settings: Settings) -> Appliance:
        """Make the home folder if it is new, bring the database up to date, build the parts. Raises ApplianceError."""
        try:
            for folder in (settings.home, settings.run, settings.models, settings.documents):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise from_os_error(error, "preparing the appliance's folder") from error
        appliance = cls(settings)
        appliance.database.migrate()
        guard.tell(appliance._note_attempt)
        return appliance

    def _note_attempt(self, attempt: guard.Attempt) -> None:
        self.audit.note("network refused", attempt.target[:120], {"by": attempt.by})

    def _take_back(self, example: str, by: str) -> None:
        """Also in states that are kept for an undo: at once, or by the nightly backup where that cannot be."""
        from appliance.backup import sweep_now

        if Giving(self.database).take_back(example, by):
            with suppress(ApplianceError):
                sweep_now(self.settings, self.database)

    async def close(self) -> None:
        guard.tell(None)
        await self.pool.close()
        await self.hosting.close()
        await self.safeguarding.close()
        self.library.close()
        self.database.close()

    def _active(self, task: str) -> Active | None:
        if self.settings.backend == "fake":
            return Active(fake.Fake.name, "Pretend answers: no model is asked", False, fake.CONTEXT)
        name, _, subject = task.partition("/")
        ids = self.registry.for_task(name, subject)
        found = self._readable(ids)
        if not found:
            return None
        # Where the first is damaged, the engine will find it so when asked for it, and the next one is what stands in for it.
        return self._as_active(found[0], found[0].id if found[0].kind == "hosted" else ids[0], found)

    def _named(self, name: str) -> Active | None:
        """A model by its id or alias, where it is on another machine; of the others the engine knows more."""
        found = self._readable([name])
        hosted = found and found[0].kind == "hosted"
        return self._as_active(found[0], found[0].id, self._readable(self.registry.for_task(""))) if hosted else None

    def _readable(self, names: Sequence[str]) -> list[Manifest]:
        found = []
        for name in names:
            with suppress(BadInput, NotFound):
                found.append(self.registry.get(name))
        return found

    def _as_active(self, found: Manifest, id: str, others: Sequence[Manifest]) -> Active:
        """others: of which the first that is here stands in for it, where it is on another machine."""
        here = next((one for one in others if one.kind != "hosted"), None) if found.kind == "hosted" else None
        local = self._as_active(here, here.id, ()) if here is not None else None
        return Active(id, found.title, found.starter, context_of(found, self.settings), found.hosted, local)

    def _is_starter(self, name: str) -> bool:
        return self.registry.get(name).starter

    # --- the engine -----------------------------------------------------------------------------------------------------
    def resolve(self, name: str) -> ModelFiles:
        """A model's files, each compared with its recorded sha256 before any parser sees it.

        Where the champion is damaged, the model before it takes over; where a model that tasks were given to is, the champion
        does. An alarm is raised either way.
        """
        if self.settings.backend == "fake":
            return ModelFiles(fake.Fake.name, Path(os.devnull), None, fake.CONTEXT)
        try:
            manifest = self.registry.verify(name)
            if manifest.kind == "hosted":
                here = [one.id for one in self._readable(self.registry.for_task("")) if one.kind != "hosted"]
                if not here:
                    raise Unsupported(f"{name} is on another machine: nothing of it is here.", "Promote a local model first.")
                return self.resolve(here[0])
            base = self.registry.verify(manifest.base) if manifest.base else manifest
        except (ModelUnavailable, BadInput, NotFound):
            stand_in = self._stand_in(self.registry.id_of(name))
            if stand_in is None:
                raise
            return self.resolve(stand_in)
        model = self.registry.folder(base.id) / "model.gguf"
        digest = base.files["model.gguf"].sha256 if "model.gguf" in base.files else ""
        context = context_of(base, self.settings)  # of the base: all that was tuned on it shares one batch
        weights, tuned = self._weights(manifest)
        if not manifest.base:
            return ModelFiles(manifest.id, model, None, context, digest=digest, weights=weights, tuned=tuned)
        adapter = self.registry.folder(manifest.id) / "adapter.gguf"
        worn = manifest.files["adapter.gguf"].sha256 if "adapter.gguf" in manifest.files else ""
        return ModelFiles(manifest.id, model, adapter, context, base.id, digest, worn, weights, tuned)

    def _weights(self, manifest: Manifest) -> tuple[Path | None, Path | None]:
        """The folders with a verified model's Hugging Face weights and with its adapter to them; None where there are none."""
        try:
            origin = self.registry.verify(manifest.origin)
        except ApplianceError:
            return None, None  # what a merged model was made of may be damaged; it needs it no more
        if "hf/config.json" not in origin.files:
            return None, None
        weights, tuned = (self.registry.folder(id) / "hf" for id in (origin.id, manifest.id))
        if origin.id == manifest.id:
            return weights, None
        return (weights, tuned) if "hf/adapter_config.json" in manifest.files else (None, None)

    @asynccontextmanager
    async def running_engine(
        self, say: Callable[[str], None] = lambda _text: None, *, required: bool = True
    ) -> AsyncIterator[None]:
        """The engine that runs for this home, or a child of ours for as long as this lasts and others use it.

        Where none comes up in time: raises ModelUnavailable if it is `required`, else says so and goes on without.
        """
        with open(self.settings.run / "engine.users", "w") as users:
            await asyncio.to_thread(fcntl.flock, users, fcntl.LOCK_SH)
            child = None
            if not (await self.engine.health()).ok:
                try:
                    child = await self._start_engine(say)
                except ModelUnavailable as error:
                    if required:
                        raise
                    say(f"{error.message} {error.hint} Going on without it, by words alone.")
            try:
                yield
            finally:
                if child is not None and child.returncode is None:
                    fcntl.flock(users, fcntl.LOCK_UN)
                    # Another command may have borrowed our engine: it is given the time it needs.
                    await asyncio.to_thread(fcntl.flock, users, fcntl.LOCK_EX)
                    await end(child)

    async def _start_engine(self, say: Callable[[str], None]) -> asyncio.subprocess.Process | None:
        """Wait for an engine that is coming up, or start one; None where it is not ours."""
        say("Starting the engine.")
        log = self.settings.run / "engine.log"
        child = None
        ends = time.monotonic() + ENGINE_START_SECONDS
        while time.monotonic() < ends:
            if child is not None and child.returncode is not None:
                if not held(self.settings.run / "engine.lock"):
                    break  # it died; had another one been quicker, that one would hold the lock
                child = None
            if (await self.engine.health()).ok:
                return child
            if child is None and not held(self.settings.run / "engine.lock"):
                with open(log, "ab") as output:
                    command = [sys.executable, "-m", "appliance", "--home", str(self.settings.home), "engine", "--with-parent"]
                    child = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
            await asyncio.sleep(0.1)
        if child is not None:
            await end(child)
        raise ModelUnavailable("The engine did not start.", f"Its last words are in {log}.")

    # --- models ---------------------------------------------------------------------------------------------------------
    def ensure_starter(self) -> Manifest:
        """The starter model in the registry: exported to GGUF and added the first time, looked up afterwards."""
        from appliance.tuning.gguf import install_base

        return install_base(self.registry, self.settings.starter, starter=True)

    async def promote(self, name: str, *, accept: str = "", actor: str = "") -> Manifest:
        """Make a model the one that serves, after the engine has loaded it beside the current one and it has answered.

        accept: why a model that the gate refused, or never judged, is served all the same; the audit record keeps it.
        actor: who asked for it, where that is not who runs this process.
        Raises GateNotPassed, and what went wrong; then nothing has changed.
        """
        manifest = self.registry.get(name)

        def admit() -> None:
            if not accept:
                _require_gate(manifest, self._yardstick())
                self._require_rows(manifest)

        return await self._serve(manifest, "promote", admit, {"accept": accept} if accept else {}, actor)

    async def rollback(self, *, actor: str = "") -> Manifest:
        """Serve the model before this one again: no gate, it has served before; not where rows of it were withdrawn since."""
        previous = self.registry.aliases().get("previous")
        if previous is None:
            return self.registry.rollback()  # raises, with the words for it
        manifest = self.registry.get(previous)
        return await self._serve(manifest, "rollback", lambda: self._require_rows(manifest), {}, actor)

    async def _serve(
        self, manifest: Manifest, verb: str, admit: Callable[[], None], facts: dict[str, str], actor: str
    ) -> Manifest:
        if self.settings.backend == "fake":
            raise Conflict("A load test is on: no model is loaded, so none can be tried.", "Take the setting backend back.")
        await asyncio.to_thread(admit)
        if manifest.kind == "hosted":
            await self._answers_once(manifest)
        else:
            async with self.running_engine():
                await self.engine.load(manifest.id)
        await asyncio.to_thread(admit)  # loading takes its time: another model may serve by now, or a row be withdrawn
        before = self._champion_id()
        serving = await asyncio.to_thread(self.registry.promote, manifest.id)
        await asyncio.to_thread(self.audit.note, verb, manifest.id, facts | {"before": before}, actor=actor)
        return serving

    async def _answers_once(self, manifest: Manifest) -> None:
        """Raises what is wrong where a model of another machine cannot be reached, or says nothing."""
        question = Request([Message("user", "What is 2 + 2?")], manifest.id, max_tokens=8, inside=False)
        async with aclosing(self.pool.generate(question)) as chunks:
            async for _chunk in chunks:
                pass

    def choose(self, task: str, name: str | None, *, accept: str = "") -> Manifest | None:
        """Have a model answer for a task, or for a task in one subject; None: the champion again. accept: as in `promote`."""
        if name is not None and not accept:
            manifest = self.registry.get(name)
            _require_gate(manifest, self._yardstick())
            self._require_rows(manifest)
        chosen = self.registry.choose(task, name)
        facts = {"accept": accept} if accept else {}
        self.audit.note("choose", task, facts | {"model": chosen.id if chosen else ""})
        return chosen

    def _champion_id(self) -> str:
        """The id of what serves, whether it can be read or not; "" where nothing does, or nobody knows what."""
        try:
            return self.registry.aliases().get("champion", "")
        except ModelUnavailable:
            return ""

    def _yardstick(self) -> Manifest | None:
        """What a candidate must have been compared with; None where nothing that could be read serves."""
        try:
            return self.registry.get(self._champion_id())
        except (BadInput, NotFound):
            return None

    def _require_rows(self, manifest: Manifest) -> None:
        """Raise GateNotPassed where a row that the model, or one that it stands on, was made of has been withdrawn since."""
        from appliance.tuning.store import ExampleStore

        store = ExampleStore(self.database)
        exposed = {one.id: one for one in store.models_with(store.withdrawn(), self.registry)}.get(manifest.id)
        if exposed is None:
            return
        told = f"{exposed.rows} rows of it" if exposed.rows else f"Rows of {exposed.through}, on which it stands,"
        raise GateNotPassed(
            f"The model {manifest.id!r} is made of what was withdrawn: {told} have been taken back since.",
            "Run `appliance retrain`: it learns from what is left. Or, knowing that, "
            f"`appliance models promote {manifest.id} --accept REASON`.",
        )

    def retraining_plan(self) -> list[str]:
        """What the next model would learn from, and why the rest is not used, in lines. Raises BadInput, StorageFull."""
        from appliance.tuning.retrain import School, plan

        return list(plan(School(self.settings, self.registry, self.database)).lines(every=True))

    def lineage(self, name: str) -> dict[str, Any]:
        """What a model was made of, down to its base and the rows."""
        from appliance.tuning.lineage import lineage
        from appliance.tuning.store import ExampleStore

        return lineage(self.settings, self.registry, ExampleStore(self.database), name)

    def card(self, manifest: Manifest) -> str:
        """A model's card as Markdown."""
        from appliance.tuning.card import card
        from appliance.tuning.run_folder import read_json

        return card(manifest, read_json(self.registry.folder(manifest.id) / "dataset.json"))

    def champion(self) -> Manifest | None:
        """What serves. Where its manifest cannot be read, the model before it takes over; None where there is none."""
        try:
            return self.registry.champion()
        except (BadInput, NotFound):
            return self.step_back()

    def step_back(self) -> Manifest | None:
        """Serve the model before this one where this one's files are damaged; None where nothing was changed."""
        before = self.registry.aliases().get("champion", "")
        stand_in = self.registry.step_back()
        if stand_in is not None:
            self.audit.note("step back", stand_in.id, {"damaged": before})
        return stand_in

    def _stand_in(self, damaged: str) -> str | None:
        """The id of what serves in place of a damaged model from now on; None where nothing can or need."""
        champion = self.registry.aliases().get("champion")
        if champion == damaged:
            stand_in = self.step_back()
            return stand_in.id if stand_in else None
        lost = self.registry.give_up(damaged)
        if champion is None or not lost:
            return None
        self.audit.note("step back", champion, {"damaged": damaged, "tasks": lost})
        return champion


async def _no_search(_text: str) -> list[Source]:
    """Quotes have what was found for whoever asks, or nothing: a search of their own would not know who that is."""
    return []


def _require_gate(manifest: Manifest, champion: Manifest | None) -> None:
    """A tuned model is a new model: it needs a report that it passed, and against what serves now.

    Where no more than a base serves, its own or the starter's, to have beaten its own base is enough. A base that the school
    brought has nothing to show.
    """
    report = manifest.report or {}
    if manifest.kind == "base" or (champion is not None and champion.id == manifest.id):
        return
    keep = f"Keep what serves; or, knowing that, `appliance models promote {manifest.id} --accept REASON`."
    if not report.get("passed"):
        reasons = " ".join(report.get("reasons", [])) or "It was never judged."
        raise GateNotPassed(f"The model {manifest.id!r} did not pass the gate. {reasons}", keep)
    met = report.get("baseline")
    on_starter = champion is not None and champion.kind == "base" and champion.starter and met == manifest.origin
    if champion is None or met == champion.id or on_starter:
        return
    again = champion.origin == manifest.origin or manifest.kind == "hosted"
    against = f" --against {champion.id}" if champion.kind == "hosted" and manifest.kind != "hosted" else ""
    raise GateNotPassed(
        f"The model {manifest.id!r} passed the gate against {met or 'an unknown model'}, but {champion.id} serves now.",
        (
            f"Judge it again with `appliance models evaluate {manifest.id}{against}`, then promote it. "
            if again or against
            else ""
        )
        + keep,
    )


def context_of(manifest: Manifest, settings: Settings) -> int:
    """Tokens of a conversation: the setting where one is given, never more than the model was made for."""
    return min(manifest.context, settings.context or manifest.context)


def serving_choice(settings: Settings, *, fitting: Callable[[int], str], tuning: Callable[[], bool]) -> MakeHandler:
    """Which back end serves, with this box's settings: what the engine makes its handlers with.

    fitting: the name of a model for so many bytes of memory. tuning: whether a tuning run computes on this machine now.
    """
    if settings.backend == "fake":
        return lambda _files: fake.Fake(slots=fake.SLOTS, context=fake.CONTEXT, seconds_per_word=fake.SECONDS_PER_WORD)
    from appliance.engine import llama
    from appliance.engine.scheduler import LlamaHandler
    from appliance.engine.standing import Standing
    from appliance.tuning.loading import weights_in

    standing = Standing(settings.engine_cache)

    def by_llama(files: ModelFiles, *, gpu_layers: int) -> Handler:
        return LlamaHandler(
            files.model, files.adapter, threads=settings.threads, context=files.context, slots=settings.slots,
            queue=settings.queue, model_id=files.id, cache_mb=settings.cache_mb, standing=standing,
            digest=files.digest, fitting=fitting, gpu_layers=gpu_layers,
        )  # fmt: skip

    def by_transformers(files: ModelFiles, chosen: Chosen, on_fault: Callable[[str], None]) -> Handler:
        from appliance.engine.transformers_gpu import TransformersHandler

        device = "cuda" if chosen.gpu else "cpu"
        return TransformersHandler(
            lambda: _torch_parts(files, chosen.precision, device), model_id=files.id, context=files.context,
            slots=settings.slots or TRANSFORMERS_SLOTS[device], queue=settings.queue, cache_mb=settings.cache_mb,
            adapter=files.id if files.tuned else "", on_fault=on_fault,
        )  # fmt: skip

    return Choice(
        by_llama, by_transformers, setting=settings.backend, tuning=tuning, count=weights_in, offloads=llama.offloads
    )  # fmt: skip


def _torch_parts(files: ModelFiles, precision: str, device: str) -> tuple[Any, Any]:
    """A model with its adapter, in its precision and where it shall stand, and its tokenizer."""
    from appliance.tuning import loading

    assert files.weights is not None
    tokenizer = loading.load_tokenizer(files.weights)
    small = precision == "nf4"
    model = loading.load_base(
        files.weights, dtype="bfloat16" if small else precision, quantised="nf4" if small else "", device=device
    )
    if files.tuned is not None:
        from peft import PeftModel

        loading.check_folder(files.tuned)
        model = PeftModel.from_pretrained(model, str(files.tuned), local_files_only=True)
    return model.eval(), tokenizer
