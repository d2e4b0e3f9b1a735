"""Which back end serves and why, how one takes over from another, the path through the engine process; and who goes next."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance import network
from appliance.accounts import User
from appliance.engine import loaded as loaded_module
from appliance.engine.backend import GPU_SPARE, RETRY_SECONDS, Fallback, Machine
from appliance.engine.fake import Fake
from appliance.engine.handler import Chunk, Handler, Health, Message, Request
from appliance.engine.loaded import Loaded, ModelFiles
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.pool import Active, Pool
from appliance.engine.quotes import Quotes
from appliance.engine.serving_choice import Choice, Chosen, Setting
from appliance.errors import BadInput, ModelUnavailable
from appliance.registry import Registry
from appliance.settings import Settings
from tests.engine.serving import engine_on_a_socket
from tests.engine.steps import counted_steps, until
from tests.web.box import make_box

WEIGHTS = 10**9
LARGE, SMALL = Machine(40 * 10**9), Machine(GPU_SPARE + WEIGHTS)
FOLDER = Path("weights")


class Llama(Fake):
    """Wears adapters, as llama.cpp does."""

    name = "llama"

    def __init__(self, files: ModelFiles, gpu_layers: int) -> None:
        super().__init__()
        self.files, self.gpu_layers = files, gpu_layers
        self.worn: list[str] = []
        self.started = self.closed = False

    async def start(self) -> None:
        self.started = True

    async def learn(self, name: str, path: Path, digest: str = "") -> None:  # noqa: ARG002
        self.worn.append(name)

    async def unlearn(self, name: str) -> None:
        self.worn.remove(name)

    async def score(self, messages: Sequence[Message], adapter: str = "") -> list[float]:  # noqa: ARG002
        return []

    async def close(self) -> None:
        self.closed = True


class OnGPU(Fake):
    """Takes its adapter when it is made; can be lost, in mid-answer or before it says a word, or refuse to load."""

    name = "transformers"

    def __init__(self, files: ModelFiles, chosen: Chosen, on_fault: Callable[[str], None]) -> None:
        super().__init__()
        self.files, self.chosen, self._on_fault = files, chosen, on_fault
        self.refuses: Exception | None = None
        self.lost = self.started = self.closed = False
        self.said, self.go = asyncio.Event(), asyncio.Event()

    async def start(self) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.started = True

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if "slowly" in request.messages[-1].content:
            yield Chunk("well, ", handler=self.name)
            self.said.set()  # and somebody has heard it
            await self.go.wait()
        if self.lost:
            self._on_fault("CUDA error: device lost")
            raise ModelUnavailable("device lost", "Ask again.")
        async for chunk in super().generate(request):
            yield Chunk(chunk.text, finish=chunk.finish, usage=chunk.usage, handler=self.name)

    async def health(self) -> Health:
        return Health(not self.lost and not self.closed, "")

    async def close(self) -> None:
        self.closed = True


class Room:
    """A machine whose GPU changes, and everything that was made for it."""

    def __init__(self, machine: Machine = LARGE, setting: Setting = "auto") -> None:
        self.machine = machine
        self.now = 0.0
        self.made: list[Any] = []
        self.refuses: Exception | None = None
        self.choice = Choice(
            self._llama, self._transformers, setting=setting, count=lambda _folder: WEIGHTS, offloads=lambda: True,
            look=lambda tuning: Machine(self.machine.gpu_free, self.machine.tuning or tuning),
            fallback=Fallback(lambda: self.now),
        )  # fmt: skip
        self.loaded = Loaded(self.resolve, self.choice)

    def _llama(self, files: ModelFiles, *, gpu_layers: int) -> Handler:
        self.made.append(Llama(files, gpu_layers))
        return self.made[-1]  # type: ignore[no-any-return]

    def _transformers(self, files: ModelFiles, chosen: Chosen, on_fault: Callable[[str], None]) -> Handler:
        self.made.append(OnGPU(files, chosen, on_fault))
        self.made[-1].refuses = self.refuses
        return self.made[-1]  # type: ignore[no-any-return]

    @staticmethod
    def resolve(name: str) -> ModelFiles:
        if name == "base":
            return ModelFiles("base", Path(__file__), None, 512, weights=FOLDER)
        return ModelFiles(name, Path(__file__), Path(f"{name}.gguf"), 512, "base", "", name, FOLDER, Path(name))

    async def ask(self, name: str = "base", words: str = "why") -> list[Chunk]:
        async with self.loaded.use(name) as model, aclosing(model.generate(Request([Message("user", words)]))) as chunks:
            return [chunk async for chunk in chunks]

    async def handler(self, name: str = "base") -> str:
        return (await self.ask(name))[-1].handler or "llama"


def files(**changes: Any) -> ModelFiles:
    return ModelFiles(**{"id": "m", "model": Path(__file__), "adapter": None, "context": 512, "weights": FOLDER} | changes)


# --- the choice and why ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("setting", "machine", "weights", "backend", "gpu", "why"),
    [
        ("auto", LARGE, FOLDER, "transformers", True, "free and large enough"),
        ("auto", Machine(), FOLDER, "llama", False, "no GPU"),
        ("auto", LARGE, None, "llama", True, "not in the registry"),
        ("auto", SMALL, FOLDER, "transformers", True, "free and large enough"),  # in four bits
        ("auto", Machine(GPU_SPARE + 10**8), FOLDER, "llama", True, "only 2.1 GB"),
        ("auto", Machine(10**9), FOLDER, "llama", False, "only 1.0 GB"),
        ("auto", Machine(40 * 10**9, tuning=True), FOLDER, "llama", False, "tuning"),
        ("llama", LARGE, FOLDER, "llama", True, "setting"),
        ("llama", Machine(), FOLDER, "llama", False, "setting"),
        ("transformers", Machine(), FOLDER, "transformers", False, "setting"),
        ("transformers", LARGE, FOLDER, "transformers", True, "setting"),
        ("transformers", Machine(40 * 10**9, tuning=True), FOLDER, "transformers", True, "setting"),
        ("transformers", Machine(), None, "llama", False, "not in the registry"),
    ],
)
def test_who_serves_and_why(
    setting: Setting, machine: Machine, weights: Path | None, backend: str, gpu: bool, why: str
) -> None:
    chosen = Room(machine, setting).choice.choose(files(weights=weights))
    assert (chosen.backend, chosen.gpu) == (backend, gpu) and why in chosen.why, chosen
    if backend == "transformers":
        assert chosen.precision == ("float32" if not gpu else "nf4" if machine is SMALL else "bfloat16")


def test_layers_go_on_the_gpu_only_where_the_build_can() -> None:
    for able in (True, False):
        choice = Choice(
            lambda files, *, gpu_layers: Llama(files, gpu_layers), OnGPU, setting="llama", count=lambda _folder: 1,
            offloads=lambda able=able: able, look=lambda tuning: Machine(LARGE.gpu_free, tuning),
        )  # fmt: skip
        made = choice(files())
        assert isinstance(made, Llama) and made.gpu_layers == (-1 if able else 0)
        assert choice.facts(made)["gpu"] is able


def test_a_box_without_a_gpu_imports_neither_torch_nor_llama_for_the_choice(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from appliance.app import serving_choice\n"
        "from appliance.engine import backend\n"
        "from appliance.engine.loaded import ModelFiles\n"
        "from appliance.settings import Settings\n"
        "backend.DRIVERS = ()\n"
        f"choice = serving_choice(Settings(home={str(tmp_path)!r}), fitting=lambda _: '', tuning=lambda: False)\n"
        "made = choice(ModelFiles('m', Path('m.gguf'), None, 512, weights=Path('hf')))\n"
        "assert made.name == 'llama', made\n"
        "assert not {'torch', 'transformers', 'llama_cpp'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- from one back end to another -----------------------------------------------------------------------------------------
async def test_a_tuning_run_gets_the_gpu_and_gives_it_back_without_a_failed_request() -> None:
    room = Room()
    assert await room.handler("history") == "transformers"
    first = room.made[-1]
    assert first.files.tuned == Path("history"), "the adapter is worked into what stands on the GPU"
    running = asyncio.create_task(room.ask("history", "slowly"))
    await first.said.wait()
    room.machine = Machine(10**9, tuning=True)
    await room.loaded.tend(tuning=True)
    assert not first.closed, "somebody is being answered by it"
    assert await room.handler("history") == "llama"
    told = (await room.loaded.facts())["base"]
    assert (told["backend"], told["gpu"], told["why"]) == ("llama", False, "a tuning run has the GPU")
    first.go.set()
    answer = await running
    assert answer[-1].finish and answer[-1].handler == "transformers"
    assert first.closed, "the GPU is free"
    await room.loaded.tend(tuning=True)
    room.machine = LARGE
    assert await room.handler("history") == "llama", "nobody waits while the other is loaded"
    await room.loaded.tend(tuning=False)
    assert await room.handler("history") == "transformers"
    made = len(room.made)
    for _ in range(3):
        await room.loaded.tend(tuning=False)
    assert len(room.made) == made, "nothing is left to change"
    await room.loaded.close()
    assert sum(one.started for one in room.made) == 3
    assert all(one.closed for one in room.made if one.started)


async def test_what_stands_on_the_gpu_is_not_asked_for_the_room_that_it_takes() -> None:
    room = Room()
    assert await room.handler() == "transformers"
    room.machine = Machine(10**9)
    await room.loaded.tend(tuning=False)
    assert await room.handler() == "transformers"


async def test_a_lost_gpu_costs_no_more_than_the_answers_that_it_was_giving() -> None:
    room = Room()
    assert await room.handler("history") == "transformers"
    gpu = room.made[-1]
    running = asyncio.create_task(room.ask("history", "slowly"))
    await gpu.said.wait()
    gpu.lost = True
    gpu.go.set()
    with pytest.raises(ModelUnavailable, match="device lost"):
        await running
    assert await room.handler("history") == "llama"
    assert gpu.closed
    assert "device lost" in (await room.loaded.facts())["base"]["why"]
    room.now += 10 * RETRY_SECONDS
    await room.loaded.tend(tuning=False)
    assert await room.handler("history") == "llama", "this process cannot use a lost GPU again"


async def test_who_was_told_nothing_yet_is_answered_by_the_other_back_end() -> None:
    room = Room()
    async with room.loaded.use("base") as model:
        room.made[-1].lost = True  # between the choice of the handler and the first word
        chunks = [chunk async for chunk in model.generate(Request([Message("user", "why")]))]
        assert "".join(chunk.text for chunk in chunks) == "WHY" and chunks[-1].finish
        assert all(chunk.model == "base" for chunk in chunks)
    assert [one.name for one in room.made] == ["transformers", "llama"]


async def test_too_little_memory_while_loading_is_answered_by_llama_and_tried_again_later() -> None:
    room = Room()
    room.refuses = ModelUnavailable("The model cannot be loaded: CUDA out of memory.", "Set `slots` lower.")
    assert await room.handler("history") == "llama", "not even this request fails"
    tried = len(room.made)
    await room.loaded.tend(tuning=False)
    assert len(room.made) == tried, "it is not tried again at once"
    room.refuses, room.now = None, RETRY_SECONDS + 1
    await room.loaded.tend(tuning=False)
    assert await room.handler("history") == "transformers"


async def test_a_model_that_transformers_cannot_serve_keeps_no_other_from_it() -> None:
    room = Room()
    room.refuses = BadInput("The model base has no chat template.", "Choose another.")
    assert await room.handler("base") == "llama"
    assert "no chat template" in (await room.loaded.facts())["base"]["why"]
    room.refuses = None
    assert await room.handler("history") == "llama", "its base is in memory, and answers at once"
    await room.loaded.tend(tuning=False)
    assert await room.handler("history") == "transformers"
    assert await room.handler("base") == "llama"


async def test_a_model_that_nobody_asks_leaves_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room()
    await room.ask("history")
    old = room.made[-1]
    room.machine = Machine(10**9)
    assert await room.handler("art") == "llama"
    await room.loaded.tend(tuning=False)
    assert not old.closed
    monkeypatch.setattr(loaded_module, "GPU_IDLE_SECONDS", 0.0)
    await room.loaded.tend(tuning=False)
    assert old.closed
    room.machine = LARGE
    await room.loaded.tend(tuning=False)
    assert await room.handler("art") == "transformers"


async def test_an_engine_that_stops_puts_no_question_anew() -> None:
    room = Room()
    async with room.loaded.use("base") as model:
        room.made[-1].lost = True
        await room.loaded.close()
        with pytest.raises(ModelUnavailable):
            _ = [chunk async for chunk in model.generate(Request([Message("user", "why")]))]
    assert [one.name for one in room.made] == ["transformers"]


# --- the whole path, in the engine's own process ----------------------------------------------------------------------------
@asynccontextmanager
async def engine_process(settings: Settings, backend: str) -> AsyncIterator[OpenAICompatible]:
    command = [sys.executable, "-m", "appliance", "--home", str(settings.home), "engine"]
    environment = os.environ | {"APPLIANCE_BACKEND": backend, "APPLIANCE_SLOTS": "2", "APPLIANCE_CACHE_MB": "60"}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    client = OpenAICompatible(partial(network.socket_client, settings.engine_socket))
    try:
        while not (await client.health()).ok:
            assert process.returncode is None, (await process.communicate())[1]
            await asyncio.sleep(0.1)
        yield client
    finally:
        await client.close()
        if process.returncode is None:
            process.terminate()
        await process.communicate()


@pytest.fixture
def tuned(settings: Settings, tmp_path: Path) -> str:
    """The starter in a registry, serving, and an adapter on it; the adapter's id."""
    pytest.importorskip("llama_cpp")
    from appliance.tuning.gguf import export_adapter, install_base
    from tests.tuning.families import adapted

    if not (settings.starter / "model.safetensors").is_file():
        pytest.skip("models/starter holds no weights")
    settings.run.mkdir(parents=True)
    registry = Registry(settings.models)
    registry.root.mkdir(parents=True)
    base = install_base(registry, settings.starter)
    registry.promote(base.id)
    folder = tmp_path / "made"
    adapted(settings.starter, folder / "hf")
    export_adapter(folder / "hf", settings.starter, folder / "adapter.gguf")
    registry.add(
        folder, id="history", kind="adapter", title="History", licence="MIT", context=base.context, base=base.id,
        parents=(base.id,), starter=True,
    )  # fmt: skip
    return "history"


async def text_of(engine: Any, model: str, **options: Any) -> tuple[str, Chunk]:
    request = Request([Message("user", "What is a fraction?")], model=model, max_tokens=12, ignore_eos=True, **options)
    chunks = [chunk async for chunk in engine.generate(request)]
    return "".join(chunk.text for chunk in chunks), chunks[-1]


@pytest.mark.slow
@pytest.mark.llama
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks by the old name
async def test_the_engine_serves_a_base_and_an_adapter_by_transformers_where_it_is_told_to(
    settings: Settings, tuned: str
) -> None:
    from appliance.app import Appliance

    said: dict[str, dict[str, str]] = {}
    for backend in ("transformers", "auto" if not Path("/proc/driver/nvidia").exists() else "llama"):
        async with engine_process(settings, backend) as engine:
            said[backend] = {}
            for model in ("default", tuned):
                text, last = await text_of(engine, model)
                said[backend][model] = text
                assert last.usage and last.usage.completion == 12
                assert last.handler == ("transformers" if backend == "transformers" else "llama")
                assert await engine.count([Message("user", "What is a fraction?")], model) == last.usage.prompt
            models = (await engine.health()).facts["models"]
            assert {about["backend"] for about in models.values()} == {last.handler}
            assert all(about["why"] and about["gpu"] is False for about in models.values())
            app = Appliance.open(settings)
            serving = await app.pool.serving()
            assert serving.handler == last.handler and serving.context == 1024
            assert ("by transformers on the processor" if backend == "transformers" else "by llama.cpp") in serving.detail
            await app.close()
    by_transformers, by_llama = said.values()
    assert by_transformers["default"] != by_transformers[tuned], "the adapter says other words"
    assert by_transformers["default"][:12] == by_llama["default"][:12], "both serve the same model"
    assert by_transformers[tuned][:12] == by_llama[tuned][:12]


# --- who goes next, from a person's role to the engine's queue --------------------------------------------------------------
@pytest.mark.llama
async def test_a_teachers_question_goes_before_those_of_thirty_pupils(settings: Settings, starter_gguf: Path) -> None:
    async def nothing(_text: str) -> list[Any]:
        return []

    places: dict[str, list[tuple[int, float]]] = {}
    ended: list[str] = []

    async with engine_on_a_socket(starter_gguf, slots=1) as engine:
        await engine.load("starter")
        box = make_box(settings, pool=Pool(engine, Quotes(nothing), lambda _task: Active("starter", "Starter", False, 1024)))

        async def ask(user: User) -> None:
            told = places.setdefault(user.id, [])
            question = [Message("user", f"What is {user.name}?")]
            async for event in box.chat.complete(user, question, collections=[], max_tokens=40):
                if event.kind == "queue":
                    told.append((event.data["place"], event.data["wait"]))
            ended.append(user.role)

        async def waits(number: int) -> bool:
            return int((await engine.health()).facts["waiting"]) == number

        def person(name: str, role: str) -> User:
            made, _ = box.people.add(name, role, source="ldap")  # without a password, which would take its time to hash
            return User(made.id, name, role)

        class_of_thirty = [person(f"Pupil {n}", "pupil") for n in range(30)]
        tutor = person("Teacher", "teacher")
        with counted_steps() as steps, steps.held():  # nobody is answered before all have come
            pupils = [asyncio.create_task(ask(one)) for one in class_of_thirty]
            await until(lambda: waits(29), "one who is answered, and all others wait")
            teacher = asyncio.create_task(ask(tutor))
            await until(lambda: waits(30), "the teacher waits too")
        await asyncio.gather(teacher, *pupils)
        assert ended.index("teacher") <= 2, "the teacher did not stand behind the pupils"
        box.database.close()
    assert places[tutor.id] and all(place == 1 and wait >= 1 for place, wait in places[tutor.id]), places[tutor.id]
    assert len(ended) == 31
    assert max(told[0][0] for told in places.values() if told) >= 20
    assert all(told[-1][0] == 1 for told in places.values() if told), "everybody who waited came to be the next"
