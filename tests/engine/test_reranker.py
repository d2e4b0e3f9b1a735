"""The door for a school's own cross-encoder: a tiny random one reorders what is found; without one nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.db import Database
from appliance.engine.reranker import BATCH, Reranker
from appliance.errors import ModelUnavailable
from appliance.knowledge.library import EVERYTHING, Found, Library
from appliance.settings import Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, embed

QUESTION = "How do green plants make sugar from sunlight and water of rivers?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A BERT of some thousand random weights, as sentence-transformers expects it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    path = tmp_path_factory.mktemp("reranker")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]))
    transformers.BertTokenizerFast(vocab=str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=57, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(6)  # else all texts get nearly the same score
    model.save_pretrained(path)
    yield path


def test_scores_come_in_the_order_of_the_texts(folder: Path) -> None:
    reranker = Reranker(folder)
    texts = [PLANTS, MAGNETS, RIVERS, ""]
    scores = reranker.scores(QUESTION, texts)
    assert len(set(scores)) == 4 and reranker.scores(QUESTION, []) == []
    assert reranker.scores(QUESTION, texts[::-1]) == pytest.approx(scores[::-1], abs=1e-4)
    assert len(reranker.scores(QUESTION, ["water " * 2_000])) == 1, "what is too long is cut"


def test_each_batch_is_a_step_to_the_watchdog(folder: Path) -> None:
    reranker = Reranker(folder)
    reranker.scores(QUESTION, [PLANTS])
    steps: list[Any] = []
    reranker._model.register_forward_hook(lambda *_: steps.append(reranker.step()))
    reranker.scores(QUESTION, [PLANTS] * (3 * BATCH))
    assert len(set(steps)) == 3 and None not in steps and reranker.step() is None


def test_a_folder_without_one_says_so(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no cross-encoder"):
        Reranker(tmp_path / "nowhere").scores("question", ["text"])
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + b"\0" * 60)
    with pytest.raises(ModelUnavailable, match="no cross-encoder"):
        Reranker(tmp_path).scores("question", ["text"])


async def test_it_reorders_what_is_found_and_decides_nothing_else(
    settings: Settings, database: Database, tmp_path: Path, folder: Path
) -> None:
    reranker = Reranker(folder)
    for name, text in {"plants": PLANTS, "magnets": MAGNETS, "rivers": RIVERS}.items():
        (tmp_path / f"{name}.txt").write_text(text)

    async def scores(question: str, texts: Sequence[str]) -> list[float]:
        return await asyncio.to_thread(reranker.scores, question, texts)

    async def away(question: str, texts: Sequence[str]) -> list[float]:
        raise ModelUnavailable(f"The engine is not running; {len(texts)} texts wait for {question!r}.", "Start it.")

    async def found(rerank: Any) -> Found:
        library = Library(settings, database, embed, rerank=rerank)
        await library.add(sorted(tmp_path.glob("*.txt")))
        answer = await library.search(QUESTION, within=EVERYTHING)
        library.close()
        return answer

    plain, reordered = await found(None), await found(scores)
    by_text = dict(zip([PLANTS, MAGNETS, RIVERS], reranker.scores(QUESTION, [PLANTS, MAGNETS, RIVERS]), strict=True))
    expected = sorted(by_text, key=lambda text: -by_text[text])
    held = [text for text in expected if text in {passage.text for passage in plain.passages}]
    assert [passage.text for passage in reordered.passages] == held
    assert held != [passage.text for passage in plain.passages], "else this test shows nothing: take another seed"
    assert (plain.covered, plain.best, plain.threshold) == (reordered.covered, reordered.best, reordered.threshold)
    assert (await found(away)) == plain, "while it is away, the search keeps its own order"


@pytest.mark.llama
async def test_the_engine_answers_for_it_and_refuses_without(starter_gguf: Path, folder: Path) -> None:
    from tests.engine.serving import engine_on_a_socket

    async with engine_on_a_socket(starter_gguf, reranker=Reranker(folder)) as engine:
        assert await engine.rerank(QUESTION, [PLANTS, MAGNETS]) == pytest.approx(
            Reranker(folder).scores(QUESTION, [PLANTS, MAGNETS]), abs=1e-4
        )
    async with engine_on_a_socket(starter_gguf) as engine:
        with pytest.raises(ModelUnavailable, match="no cross-encoder"):
            await engine.rerank(QUESTION, [PLANTS])
