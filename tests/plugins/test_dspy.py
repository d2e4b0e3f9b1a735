"""The optimiser on a model whose answers are known to improve: the gain is a number, and nothing else comes with it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance import prompts
from appliance.engine.handler import Chunk, Request
from appliance.errors import ApplianceError, BadInput, Forbidden, ModelUnavailable, NotFound, TooLarge, Unsupported
from appliance.plugins import dspy_rows, dspy_run
from appliance.plugins.dspy import DSPyOptimizer
from appliance.settings import CLONE, Settings
from tests.plugins.scripted import GOOD, ROWS, RULE, Scripted, children, close_line, open_line

pytest.importorskip("dspy", reason="the extra [dspy] is not installed")
NAME = "teacher_responder"
# Of a process that knows nothing but where the code lies.
PLAIN = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(filter(None, [str(CLONE), os.environ.get("PYTHONPATH")]))}


@pytest.fixture
def connected(settings: Settings) -> Settings:
    open_line(settings)
    return settings


def asked_of(handler: Any, settings: Settings, **more: Any) -> DSPyOptimizer:
    return DSPyOptimizer(llm_handler=handler, settings=settings, **more)


def bare(name: str) -> prompts.Module:
    return replace(prompts.load(name), demonstrations=())


# --- what it finds ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["bootstrap", "random"])
async def test_demonstrations_are_found_and_the_gain_is_a_number(connected: Settings, method: str) -> None:
    handler = Scripted()
    done = await asked_of(handler, connected).optimize_module(module_name=NAME, training_examples=ROWS, method=method)
    assert done.passed and not done.report["reasons"]
    assert (done.report["before"]["value"], done.report["after"]["value"]) == (0.0, 1.0), "of f1 on held-out rows"
    assert done.report["difference"] == {"value": 1.0, "low": 1.0, "high": 1.0} and done.report["n"] == 12
    assert 1 <= len(done.module.demonstrations) <= prompts.MOST_DEMONSTRATIONS
    assert done.report["calls"] == done.report["asked"] == len(handler.requests) <= done.report["budget"]
    assert done.report["prompt"] > 0 < done.report["completion"] and done.report["model"] == "scripted"
    assert set(done.report["rows"]) <= {row["id"] for row in ROWS}
    assert len(done.report["rows"]) == len(done.module.demonstrations)
    shown = {one.inputs["question"] for one in done.module.demonstrations}
    held_out = handler.requests[-12:]
    assert shown.isdisjoint(one.messages[-1].content for one in held_out), "what judges was never shown"
    for one in held_out:
        assert list(one.messages) == done.module.render(one.messages[-1].content), "word for word as it is served"
        assert (one.temperature, one.task) == (0.0, NAME)


async def test_gepa_writes_the_instructions_anew_and_they_keep_what_every_version_says(connected: Settings) -> None:
    asker = asked_of(Scripted(), connected)
    done = await asker.optimize_module(NAME, ROWS, method="gepa", budget=120)
    assert done.passed and done.report["difference"]["low"] == 1.0
    assert done.module.instructions == f"{RULE} {prompts.load(NAME).keep}"
    assert len(done.report["rows"]) == 18, "instructions may hold words of any row that was looked at"


async def test_mipro_asks_in_a_form_and_says_what_it_needs(connected: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Able(Scripted):
        """Writes what DSPy's own questions ask for, as JSON."""

        def say(self, request: Request) -> str:
            own = request.schema["properties"] if request.schema else {}
            return json.dumps(dict.fromkeys(own, RULE)) if own else super().say(request)

    with monkeypatch.context() as without:
        without.setitem(sys.modules, "optuna", None)  # as where it is not installed
        with pytest.raises(Unsupported, match="MIPROv2 needs the package optuna") as caught:
            await asked_of(Able(), connected).optimize_module(NAME, ROWS, method="mipro")
        assert "pip install optuna" in caught.value.hint
    done = await asked_of(Able(), connected).optimize_module(NAME, ROWS, method="mipro", budget=100)
    assert done.passed and done.report["difference"]["low"] == 1.0
    with pytest.raises(Unsupported, match="The model is not able enough for MIPROv2"):
        await asked_of(Scripted(), connected).optimize_module(NAME, ROWS, method="mipro", budget=100)


async def test_a_gain_that_is_not_certain_does_not_pass(settings: Settings) -> None:
    asker = asked_of(Scripted(), settings)  # judging needs no line: no optimiser takes part
    shown = prompts.Demonstration({"question": "How?"}, {"answer": GOOD})
    better = replace(prompts.load(NAME), demonstrations=(shown,))
    mixed = [{**row, "messages": [row["messages"][0], {"role": "assistant", "content": "It is 42."}]} for row in ROWS[:15]]
    verdict = await asker.evaluate(better, [*mixed, *ROWS[15:]])
    assert not verdict["passed"] and verdict["reasons"][0].startswith(
        "The gain of +0.000 is not certain: its 95 % interval is -0."
    )
    same = await asker.evaluate(prompts.load(NAME), ROWS)
    assert same["reasons"] == ["Nothing was found that does better than what serves now."]
    assert (await asker.evaluate(better, ROWS))["passed"]


async def test_a_module_with_a_form_is_held_to_its_schema(connected: Settings) -> None:
    levels = [0, 2]
    rows = [
        {"inputs": {"criterion": "Asks why", "talk": f"Teacher: Why {n}?"},
         "outputs": {"level": levels[n % 8 > 0], "quote": "", "try_this": "Ask why."}}
        for n in range(30)
    ]  # fmt: skip
    handler = Scripted()
    done = await asked_of(handler, connected).optimize_module("assessment", rows, start=bare("assessment"))
    assert done.report["metric"] == ["rubric"] and done.passed and done.report["difference"]["low"] > 0
    schema = prompts.load("assessment").schema
    assert handler.requests and all(one.schema == schema for one in handler.requests)
    assert all(one.max_tokens == prompts.load("assessment").tokens for one in handler.requests)


async def test_every_module_can_be_optimised(connected: Settings) -> None:
    for name in ("student_reaction", "scenario_generator"):  # one has a name on both sides
        shown = prompts.load(name).demonstrations
        rows = [
            {"inputs": {**one.inputs, key: f"{one.inputs[key]} {n}"}, "outputs": one.outputs}
            for n in range(5) for one in shown for key in [next(iter(one.inputs))]
        ]  # fmt: skip
        told = Told({json.dumps(dict(row["inputs"])): row["outputs"] for row in rows}, shown[0].outputs)
        done = await asked_of(told, connected).optimize_module(name, rows, start=bare(name), budget=60)
        assert done.module.name == name and done.module.demonstrations
        assert prompts.from_program(done.program) == done.module


class Told(Scripted):
    """Says the outputs that it was told, as JSON."""

    def __init__(self, _answers: dict[str, Any], usual: Any) -> None:
        super().__init__()
        self.usual = usual

    def say(self, request: Request) -> str:
        del request
        return json.dumps(self.usual)


async def test_a_prompt_never_takes_more_room_than_where_it_serves(connected: Settings) -> None:
    long = [{**row, "messages": [row["messages"][0], {"role": "assistant", "content": f"{GOOD} " * 30}]} for row in ROWS]
    handler = Scripted()
    handler.context = 1000
    done = await asked_of(handler, connected).optimize_module(NAME, long)
    room = 1000 - connected.answer_tokens
    assert 1 <= len(done.module.demonstrations) < 6
    assert await done.module.within(room, handler.count) == done.module, "what was optimised is served uncut"


# --- budget, cancel, resume -------------------------------------------------------------------------------------------
async def test_a_spent_budget_ends_the_search_with_the_best_so_far(connected: Settings) -> None:
    handler = Scripted()
    rows = [{**row, "messages": [row["messages"][0], {"role": "assistant", "content": GOOD if n % 5 else "Zebra."}]}
            for n, row in enumerate(ROWS)]  # fmt: skip
    done = await asked_of(handler, connected).optimize_module(NAME, rows, method="random", budget=24 + 20)
    assert done.report["spent"] and len(handler.requests) <= 44 and done.report["n"] == 12
    assert done.passed and done.module.demonstrations, "the best that was tried on all rows"
    with pytest.raises(BadInput, match="budget of 20 calls is too small: judging on 12 examples takes 24"):
        await asked_of(handler, connected).optimize_module(NAME, ROWS, budget=20)


async def test_a_cancelled_run_ends_its_process(connected: Settings) -> None:
    stop = asyncio.Event()

    class Hangs(Scripted):
        async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
            stop.set()
            await asyncio.Event().wait()
            yield Chunk(str(request))

    running = asyncio.ensure_future(asked_of(Hangs(), connected).optimize_module(NAME, ROWS))
    await stop.wait()
    assert children()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not children()


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from appliance.settings import Settings
from appliance.plugins.dspy import DSPyOptimizer
from tests.plugins import scripted

class Killed(scripted.Scripted):
    def say(self, request):
        if len(self.requests) == 9:
            print([pid for pid in scripted.children()], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().say(request)

asker = DSPyOptimizer(Killed(), Settings(home=Path(HOME)))
asyncio.run(asker.optimize_module("teacher_responder", scripted.ROWS, method="random", folder=Path(FOLDER)))
"""


def runs(process: int) -> bool:
    """Whether it still does; one that has ended may stand there until somebody asks how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_killed_run_goes_on_and_asks_nothing_twice(connected: Settings, tmp_path: Path) -> None:
    killed = in_a_process(f"HOME, FOLDER = {str(connected.home)!r}, {str(tmp_path)!r}\n{KILLED}")
    assert killed.returncode == -9, killed.stderr
    (orphan,) = json.loads(killed.stdout)
    ends = time.monotonic() + 20
    while runs(orphan) and time.monotonic() < ends:
        await asyncio.sleep(0.02)
    assert not runs(orphan), "the optimiser's process ends when nobody listens"
    kept = tmp_path / "calls.jsonl"
    assert len(kept.read_text().splitlines()) == 8 and kept.stat().st_mode & 0o077 == 0
    with kept.open("a") as file:
        file.write('{"key": "x", "te')  # a power cut
    handler = Scripted()
    done = await asked_of(handler, connected).optimize_module(NAME, ROWS, method="random", folder=tmp_path)
    assert done.passed and done.report["asked"] == len(handler.requests) == done.report["calls"] - 8
    whole = await asked_of(Scripted(), connected).optimize_module(NAME, ROWS, method="random")
    assert whole.program == done.program, "as if it had never been broken off: the same seed finds the same"
    assert {**whole.report, "asked": 0, "seconds": 0} == {**done.report, "asked": 0, "seconds": 0}


async def test_a_model_that_fails_ends_the_run_with_its_own_words(connected: Settings) -> None:
    class Dead(Scripted):
        def say(self, _request: Request) -> str:
            raise ModelUnavailable("The engine has died.", "Start it.")

    with pytest.raises(ModelUnavailable, match="has died"):
        await asked_of(Dead(), connected).optimize_module(NAME, ROWS)
    assert not children()


async def test_prompts_that_do_not_fit_are_bad_candidates_and_no_fault(connected: Settings) -> None:
    class Narrow(Scripted):
        def say(self, request: Request) -> str:
            if len(request.messages) > 2:
                raise TooLarge("The prompt is too long.", "Shorten it.")
            return GOOD

    done = await asked_of(Narrow(), connected).optimize_module(NAME, ROWS, method="random", budget=120)
    assert not done.passed and not done.module.demonstrations


async def test_closing_the_line_stops_a_run_and_it_does_not_hang(connected: Settings, tmp_path: Path) -> None:
    class Cut(Scripted):
        def say(self, request: Request) -> str:
            if len(self.requests) == 5:
                close_line(connected)
            return super().say(request)

    handler = Cut()
    with pytest.raises(Forbidden, match="air-gapped"):
        await asked_of(handler, connected).optimize_module(NAME, ROWS, folder=tmp_path)
    assert len(handler.requests) == 5 and not children()


# --- examples and programs that cannot be used ------------------------------------------------------------------------
async def test_few_examples_prove_nothing_and_wrong_ones_are_all_named(connected: Settings) -> None:
    asker = asked_of(Scripted(), connected)
    done = await asker.optimize_module(NAME, ROWS[:9])
    assert not done.passed and done.report["n"] == 4 and "Only 4 examples were held out" in done.report["reasons"][0]
    with pytest.raises(BadInput, match="There are 1 different examples"):
        await asker.optimize_module(NAME, [ROWS[0], ROWS[0]])
    bad = [{"question": "Why?"}, "words", {"inputs": {"question": 3}, "outputs": {"answer": "x"}}, ROWS[0]]
    with pytest.raises(BadInput) as caught:
        await asker.optimize_module(NAME, bad)
    assert all(f"example {number}" in str(caught.value) for number in (1, 2, 3)) and "example 4" not in str(caught.value)
    with pytest.raises(BadInput, match="it is a conversation; this module needs inputs and outputs"):
        await asker.optimize_module("assessment", ROWS)
    with pytest.raises(BadInput, match="no metric called 'magic'"):
        await asker.optimize_module(NAME, ROWS, metric="magic")
    with pytest.raises(BadInput, match="needs the grade"):
        await asker.optimize_module(NAME, ROWS, metric=["f1", "readability"])
    with pytest.raises(BadInput, match="no method 'copro'"):
        await asker.optimize_module(NAME, ROWS, method="copro")
    with pytest.raises(NotFound, match="no module called"):
        await asker.optimize_module("nobody", ROWS)


def test_rows_in_every_shape_and_only_those_of_the_place() -> None:
    import dspy

    module = prompts.load(NAME)
    flat = [{"question": f"How do I do task {n}?", "answer": GOOD, "subject": "History"} for n in range(10)]
    own = [dspy.Example(question=f"And task {n}?", answer=GOOD).with_inputs("question") for n in range(10)]
    other = [{**row, "subject": "Maths", "id": f"m{row['id']}"} for row in ROWS]
    long = [{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "x" * 3_000}]}]
    found, too_long = dspy_rows.read(module, [*flat, *own, *other, *long])
    assert (len(found), too_long) == (50, 1)
    here = dspy_run.fitting(found, "history", "")
    assert len(here) == 20 and {one.outputs["answer"] for one in here} == {GOOD}
    split = dspy_rows.split([*here, *here], 1)
    parts = [{row.id for row in part} for part in (split.train, split.choose, split.held_out)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 20 and split == dspy_rows.split(here, 1)


async def test_a_saved_program_is_words_and_only_words_are_read(connected: Settings, tmp_path: Path) -> None:
    asker = asked_of(Scripted(), connected)
    shown = prompts.Demonstration({"question": "How?"}, {"answer": GOOD})
    module = replace(prompts.load(NAME), demonstrations=(shown,))
    path = asker.save(module, tmp_path / "program.json")
    assert json.loads(path.read_text()) == module.as_program() and asker.load(path) == module
    for change, said in (
        ({"format": 2}, "not of format 1"),
        ({"format": 0}, "not of format 1"),
        ({"path": "/etc/passwd"}, "there is no part 'path'"),
        ({"code": "import os"}, "there is no part 'code'"),
        ({"lm": {"model": "openai/x", "api_base": "http://evil.example"}}, "there is no part 'lm'"),
        ({"demonstrations": [{"inputs": {"question": "a", "__class__": "os.system"}, "outputs": {"answer": "b"}}]}, "unknown"),
    ):
        path.write_text(json.dumps(module.as_program() | change))
        with pytest.raises(BadInput, match=said) as caught:
            asker.load(path)
        assert caught.value.hint
    for text in ("{", "", "[" * 100_000, '{"answer": {"demos": [], "signature": {}}, "metadata": {"dspy_version": "2.5"}}'):
        path.write_text(text)
        with pytest.raises(BadInput):
            asker.load(path)
    path.write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(BadInput):
        asker.load(path)
    with pytest.raises(NotFound):
        asker.load(tmp_path / "nothing.json")


# --- shut in ----------------------------------------------------------------------------------------------------------
def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=CLONE, check=False,
        env={**PLAIN, **environment},
    )  # fmt: skip


AIR_GAPPED = """
import asyncio, sys
from pathlib import Path
from appliance import errors
from appliance.settings import Settings
from appliance.plugins.dspy import DSPyOptimizer
from tests.plugins.scripted import ROWS, Scripted
handler = Scripted()
try:
    asyncio.run(DSPyOptimizer(handler, Settings(home=Path("/nonexistent"))).optimize_module("teacher_responder", ROWS))
except errors.Forbidden as error:
    print(error.message, error.hint, error.exit_code, handler.requests, [name for name in sys.modules if name == "dspy"])
"""


async def test_air_gapped_it_is_off_and_nothing_is_imported_or_asked(settings: Settings) -> None:
    told = in_a_process(AIR_GAPPED)
    assert told.returncode == 0, told.stderr
    said = "DSPy optimisation is off while the box is air-gapped. Where the school chooses to: `appliance network allow HOST`"
    assert told.stdout.startswith(said) and told.stdout.strip().endswith("3 [] []")
    line = subprocess.run(
        [sys.executable, "-m", "appliance", "--home", str(settings.home), "tune", "dspy", "start", "--examples", "x.jsonl"],
        capture_output=True, text=True, cwd=CLONE, env=PLAIN, check=False,
    )  # fmt: skip
    assert line.returncode == 3 and line.stderr.startswith(
        "Error: DSPy optimisation is off while the box is air-gapped.\nTry: "
    )


async def test_a_missing_package_is_a_sentence(connected: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(Unsupported, match="needs the package dspy, which is not installed"):
        await asked_of(Scripted(), connected).optimize_module(NAME, ROWS)


def test_neither_pages_nor_engine_nor_plugins_load_dspy() -> None:
    code = """
import sys
import appliance.app, appliance.web.server, appliance.engine.service, appliance.cli.worker, appliance.cli.tune
import appliance.plugins.dspy, appliance.plugins.dspy_job, appliance.plugins.dspy_run
from appliance import plugins
assert "dspy" in plugins.installed()
print([name for name in ("dspy", "litellm", "gepa", "optuna") if name in sys.modules])
"""
    told = in_a_process(code)
    assert told.stdout.strip() == "[]", told.stderr


SHUT = """
import sys
from appliance.plugins import dspy_child
from appliance.plugins.dspy_line import Broken
tried = []
sys.addaudithook(lambda event, _: tried.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
dspy_child.shut_in()
dspy = dspy_child.begin()
import dspy.teleprompt, gepa, appliance.plugins.dspy_methods
print(tried, "litellm" in sys.modules, dspy.cache.enable_disk_cache, dspy.cache.enable_memory_cache)
import pickle, socket
for what in (lambda: pickle.loads(pickle.dumps(dspy.Example)), lambda: socket.create_connection(("127.0.0.1", 9), 1)):
    try:
        what()
        print("done")
    except Broken as error:
        print(error)
"""


def test_its_process_reaches_nobody_and_reads_no_pickle(tmp_path: Path) -> None:
    told = in_a_process(SHUT, HOME=str(tmp_path))
    assert told.stdout.splitlines() == [
        "[] False False False", "refused: pickle.find_class", "refused: socket.getaddrinfo",
    ], told.stderr  # fmt: skip
    assert not [*tmp_path.iterdir()], "and leaves nothing on the disk"


POISON = """
import sys
from pathlib import Path
class Evil:
    def __reduce__(self):
        return (eval, (f"open({sys.argv[1]!r}, 'w').close()",))
import dspy
request = {"model": "school/served", "messages": [1]}
cache = dspy.cache
cache.disk_cache.set(cache.cache_key(request), Evil())
"""
READ = "import dspy; dspy.cache.get({'model': 'school/served', 'messages': [1]})"
OURS = f"from appliance.plugins import dspy_child; dspy_child.shut_in(); dspy_child.begin(); {READ}"


async def test_a_poisoned_cache_runs_nothing(connected: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, cache = tmp_path / "marker", tmp_path / "cache"
    here = {"DSPY_CACHEDIR": str(cache), "HOME": str(tmp_path)}
    made = in_a_process(f"import sys; sys.argv.append({str(marker)!r})\n{POISON}", **here)
    assert made.returncode == 0 and any(cache.rglob("cache.db")), made.stderr
    in_a_process(READ, **here)
    assert marker.exists(), "the control: as DSPy comes, a planted entry runs"
    marker.unlink()
    ours = in_a_process(OURS, **here)
    assert ours.returncode == 0 and not marker.exists(), ours.stderr
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    monkeypatch.setenv("DSPY_CACHEDIR", str(cache))
    assert (await asked_of(Scripted(), connected).optimize_module(NAME, ROWS)).passed
    assert not marker.exists() and before == {path: path.stat().st_mtime_ns for path in cache.rglob("*")}


async def test_a_fault_inside_is_a_sentence_without_the_words_of_a_row(
    connected: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.plugins.dspy_run.LONGEST_LINE", 200)  # the child's lines do not fit
    with pytest.raises(ApplianceError, match="The optimiser failed") as caught:
        await asked_of(Scripted(), connected).optimize_module(NAME, ROWS)
    assert "task" not in str(caught.value) and not children()
