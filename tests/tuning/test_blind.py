"""Choices between hidden models: kept at once, resumable, fair to both sides, and counted with the right certainty."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from appliance.engine.handler import Chunk, Health, Message, Request
from appliance.errors import BadInput, NotFound, TooLarge
from appliance.registry import Manifest, Registry
from appliance.settings import Settings
from appliance.tuning.blind import NO_ROOM, Comparison, Question, forget, interval, questions, result, results


class Says:
    """A handler that answers with its own name; counts what it was asked."""

    name, slots, context = "says", 1, 100

    def __init__(self, word: str) -> None:
        self.word, self.asked = word, 0

    async def start(self) -> None: ...

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.asked += 1
        if "too long" in request.messages[-1].content:
            raise TooLarge("too long", "shorten")
        yield Chunk(f"{self.word} on {request.messages[-1].content}")

    async def count(self, messages: Sequence[Message]) -> int:
        return len(messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        return [0.0] * len(messages)

    async def health(self) -> Health:
        return Health(True)

    async def close(self) -> None: ...


def model(settings: Settings, id: str, content: str = "") -> Manifest:
    folder = settings.home / "incoming" / id
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_text(content or id)
    return Registry(settings.models).add(folder, id=id, kind="base", title=id, licence="MIT", context=8)


ASKED = [Question(str(n), f"question {n}") for n in range(40)]


async def answered(comparison: Comparison, asked: Sequence[Question] = ASKED) -> tuple[Says, Says]:
    handlers = Says(comparison.a), Says(comparison.b)
    await comparison.answer(handlers, asked, tokens=20)
    return handlers


async def test_a_choice_counts_for_the_model_whose_answer_was_chosen(settings: Settings) -> None:
    """Whoever always prefers the words of one model gives it every win, wherever they stood."""
    one, other = model(settings, "old"), model(settings, "new")
    comparison = Comparison(settings, one, other)
    await answered(comparison)
    places = []
    for pair in comparison.pairs().values():
        shown = comparison.shown(pair, "ann")
        assert sorted(shown) == sorted(pair.answers)
        places.append(1 if shown[0].startswith("new") else 2)
        comparison.choose(pair, "1" if places[-1] == 1 else "2", "ann")
    assert 8 < places.count(1) < 32, "the side must be by lot"
    found = result(settings, "old", "new")
    assert found is not None and (found.a, found.b, found.wins, found.n, found.judges) == ("old", "new", (0, 40), 40, 1)
    turned = result(settings, "new", "old")
    assert turned is not None and turned.wins == (40, 0) and turned.share is not None and turned.share[0] == 0.0
    assert found.certain and "new was preferred 40 times and old never" in found.sentence


async def test_it_goes_on_after_a_pause_and_a_torn_line(settings: Settings) -> None:
    one, other = model(settings, "old"), model(settings, "new")
    comparison = Comparison(settings, one, other)
    await answered(comparison, ASKED[:3])
    pairs = list(comparison.pairs().values())
    seen = comparison.shown(pairs[1], "ann")
    comparison.choose(pairs[0], "t", "ann")
    with open(comparison.path, "ab") as file:
        file.write(b'{"key": "half a li')
    again = Comparison(settings, other, one)  # the other way round is the same comparison
    assert again.pairs() == comparison.pairs()
    assert again.open(pairs, "ann") == pairs[1:] and again.open(pairs, "bob") == pairs
    assert again.shown(pairs[1], "ann") == seen
    again.choose(pairs[1], "b", "ann")
    again.choose(pairs[0], "b", "ann")  # thought better of it
    found = Comparison(settings, one, other).result("old", "new")
    assert (found.n, found.ties, found.bad, found.share) == (2, 0, 2, None) and not found.certain
    handlers = await answered(Comparison(settings, one, other), ASKED[:4])
    assert [handler.asked for handler in handlers] == [1, 1], "what was answered is not asked again"


async def test_choices_do_not_pass_on_to_another_model_of_the_same_name(settings: Settings) -> None:
    one, other = model(settings, "old"), model(settings, "new")
    comparison = Comparison(settings, one, other)
    await answered(comparison, ASKED[:2])
    comparison.choose(next(iter(comparison.pairs().values())), "1", "ann")
    assert result(settings, "old", "new") is not None
    Registry(settings.models).remove("new")
    assert result(settings, "old", "new") is None
    (settings.home / "incoming" / "new").exists()
    fresh = model(settings, "new", "other weights")
    assert result(settings, "old", "new") is None and not Comparison(settings, one, fresh).pairs()


async def test_every_comparison_of_a_model_is_found(settings: Settings) -> None:
    models = [model(settings, name) for name in ("base", "new", "old", "new-2")]
    for other, count in ((models[0], 1), (models[2], 3)):
        comparison = Comparison(settings, models[1], other)
        await answered(comparison, ASKED[:3])
        for pair in list(comparison.pairs().values())[:count]:
            comparison.choose(pair, "t", "ann")
    assert [(one.a, one.b, one.n) for one in results(settings, "new")] == [("old", "new", 3), ("base", "new", 1)]
    assert results(settings, "new-2") == []
    with pytest.raises(BadInput, match="itself"):
        Comparison(settings, models[0], models[0])


async def test_a_question_without_room_is_still_compared(settings: Settings) -> None:
    comparison = Comparison(settings, model(settings, "old"), model(settings, "new"))
    await answered(comparison, [Question("1", "too long")])
    assert next(iter(comparison.pairs().values())).answers == (NO_ROOM, NO_ROOM)


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    # Exact binomial intervals as tables of Clopper and Pearson give them.
    [(8, 10, 0.4439, 0.9748), (0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (5, 10, 0.1871, 0.8129), (1, 1, 0.025, 1.0)],
)
def test_intervals_are_exact(wins: int, count: int, low: float, high: float) -> None:
    share, least, most = interval(wins, count)
    assert share == wins / count
    assert (least, most) == pytest.approx((low, high), abs=1e-4)


def test_questions_come_from_the_project_or_from_a_file(settings: Settings, tmp_path: Path) -> None:
    own = questions(settings, None, 12)
    assert len(own) == 12 and own == questions(settings, None, 12) and questions(settings, None, 6) == own[:6]
    lines = tmp_path / "q.txt"
    lines.write_text("Why?\n\n How? \n")
    assert [one.text for one in questions(settings, lines, 9)] == ["Why?", "How?"]
    plain = tmp_path / "q.jsonl"
    plain.write_text(json.dumps({"question": "Who?", "grade": 5}) + "\n")
    assert questions(settings, plain, 9) == [Question("1", "Who?", "", "5")]
    talks = tmp_path / "t.jsonl"
    said = [{"role": "user", "content": "When?"}, {"role": "assistant", "content": "What do you know?"}]
    talks.write_text(json.dumps({"messages": said, "subject": "history"}) + "\n")
    assert [(one.text, one.subject) for one in questions(settings, talks, 9)] == [("When?", "history")]
    lines.write_text("\n")
    with pytest.raises(BadInput, match="no question"):
        questions(settings, lines, 1)
    with pytest.raises(NotFound):
        questions(settings, tmp_path / "none.txt", 1)
    talks.write_text("{")
    with pytest.raises(BadInput, match="line 1"):
        questions(settings, talks, 1)


async def test_a_withdrawn_question_goes_by_its_id_or_its_words_with_the_pages_it_stands_on(settings: Settings) -> None:
    one, other, third = model(settings, "old"), model(settings, "new.2"), model(settings, "third")
    comparison, untouched = Comparison(settings, one, other), Comparison(settings, one, third)
    await answered(comparison, ASKED[:4])
    await answered(untouched, ASKED[3:5])
    for pair in comparison.pairs().values():
        comparison.choose(pair, "1", "ann")
    settings.reports.mkdir(parents=True)
    pages = [settings.reports / f"{name}.html" for name in ("old-beside-new.2", "new.2-beside-old", "old-beside-third")]
    for page in pages:
        page.write_text("question 1")
    assert forget(settings, {"1", "nobody"}, {" Question  2"}) == 2
    left = comparison.path.read_text("utf-8")
    assert "question 1" not in left and "question 2" not in left and "question 0" in left
    assert [page.exists() for page in pages] == [False, False, True]
    found = result(settings, "old", "new.2")
    assert found is not None and found.n == 2, "the choices on them are gone as well"
    assert comparison.path.stat().st_mode & 0o777 == 0o600
    assert forget(settings, {"1"}, {"question 2"}) == 0
