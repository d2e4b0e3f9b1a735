"""The engine process's own dialect: loading beside what serves, errors as they are, embeddings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from appliance.engine.embedder import Embedder
from appliance.engine.handler import Message, Request
from appliance.engine.service import ModelFiles
from appliance.errors import BadInput, ModelUnavailable, NotFound, TooLarge
from tests.engine.serving import engine_on_a_socket

pytestmark = pytest.mark.llama
QUESTION = [Message("user", "What is a fraction?")]


async def test_an_unknown_or_refused_model_is_an_error_and_the_others_go_on(starter_gguf: Path) -> None:
    def resolve(name: str) -> ModelFiles:
        if name == "changed":
            raise ModelUnavailable("The file model.gguf is not what was registered.", "Serve another model.")
        if name != "default":
            raise NotFound(f"There is no model called {name!r}.", "See `appliance models list`.")
        return ModelFiles("starter", starter_gguf, None, 1024)

    async with engine_on_a_socket(starter_gguf, resolve=resolve) as engine:
        with pytest.raises(NotFound, match="nobody"):
            await engine.load("nobody")
        with pytest.raises(ModelUnavailable, match="not what was registered") as caught:
            await engine.load("changed")
        assert caught.value.hint == "Serve another model."
        assert [chunk async for chunk in engine.generate(Request(QUESTION, max_tokens=4))][-1].finish


async def test_models_change_under_load_without_a_failed_request(starter_gguf: Path) -> None:
    served = ["one"]

    def resolve(name: str) -> ModelFiles:
        return ModelFiles(served[0] if name == "default" else name, starter_gguf, None, 1024)

    async with engine_on_a_socket(starter_gguf, resolve=resolve) as engine:

        async def answer() -> str:
            request = Request(QUESTION, max_tokens=30, ignore_eos=True)
            return [chunk async for chunk in engine.generate(request)][-1].model

        tasks = []
        for name in ("one", "two", "three", "four", "five"):
            assert await engine.load(name) == name
            served[0] = name
            tasks += [asyncio.create_task(answer()) for _ in range(4)]
            await asyncio.sleep(0.03)
        models = await asyncio.gather(*tasks)
        assert set(models) >= {"five"} and len(models) == 20
        await asyncio.sleep(0.2)
        await answer()
        assert len((await engine.health()).facts["models"]) <= 2, "what no longer serves is unloaded"


async def test_a_model_whose_loop_died_is_loaded_again(starter_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.engine.llama import Llama

    async with engine_on_a_socket(starter_gguf) as engine:
        assert await engine.load("starter") == "starter"
        with monkeypatch.context() as broken:

            def fail(*_: object) -> bool:
                raise ModelUnavailable("llama.cpp failed while computing (code -3).", "")

            broken.setattr(Llama, "decode", fail)
            with pytest.raises(ModelUnavailable, match="code -3"):
                [chunk async for chunk in engine.generate(Request(QUESTION, max_tokens=4))]
        assert [chunk async for chunk in engine.generate(Request(QUESTION, max_tokens=4))][-1].finish


async def test_busy_says_when_to_come_back_across_the_socket(starter_gguf: Path) -> None:
    from appliance.errors import Busy

    async with engine_on_a_socket(starter_gguf) as engine:
        with pytest.raises(Busy) as caught:
            [chunk async for chunk in engine.generate(Request(QUESTION, max_tokens=900, ignore_eos=True, deadline=0.01))]
        assert caught.value.retry_after == 5


async def test_scores_and_counts_cross_the_socket_unchanged(starter_gguf: Path) -> None:
    from appliance.engine.scheduler import LlamaHandler

    conversation = [*QUESTION, Message("assistant", "A part of a whole.")]
    direct = LlamaHandler(starter_gguf, threads=2, slots=4)
    await direct.start()
    async with engine_on_a_socket(starter_gguf) as engine:
        assert await engine.count(QUESTION) == await direct.count(QUESTION)
        np.testing.assert_allclose(await engine.score(conversation), await direct.score(conversation), atol=1e-6)
        with pytest.raises(BadInput):
            await engine.score(QUESTION)
        with pytest.raises(TooLarge, match="1024"):
            async for _chunk in engine.generate(Request(QUESTION, max_tokens=5000)):
                pass
    await direct.close()


@pytest.mark.slow
async def test_embeddings_are_those_of_the_published_model(starter_gguf: Path) -> None:
    async with engine_on_a_socket(starter_gguf, embedder=Embedder(2)) as engine:
        vectors = await engine.embed(["Leaves are green.", "Why are leaves green?", "The king signed a treaty."])
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.3 > vectors[0] @ vectors[2]


def test_another_model_in_the_embedders_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.engine import embedder

    (tmp_path / "model.safetensors").write_bytes(b"not the published weights")
    monkeypatch.setattr(embedder, "_folder", lambda: tmp_path)
    with pytest.raises(ModelUnavailable, match="not the published"):
        Embedder().embed(["x"])
