"""A module's outputs for its inputs: through the guard, held to their form, tried again, and never in the way."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance import forms, prompts
from appliance.asking import ask_module, ask_text
from appliance.classes import Classes
from appliance.engine.fake import Fake
from appliance.engine.handler import Chunk, Request
from appliance.engine.pool import Active, Pool
from appliance.engine.quotes import Quotes
from appliance.errors import ApplianceError, BadInput, Forbidden, ModelUnavailable, NotFound, UsedUp
from appliance.settings import Settings
from tests.engine.serving import engine_on_a_socket
from tests.web.box import PretendPool, make_box

MIA = {"name": "Mia", "state": "tired", "intent": "yawns"}
LINE = '{"line": "Hm, is it over soon?"}'


class Answers(PretendPool):
    """Says each of `says` in turn, the last one again."""

    def __init__(self, *says: str) -> None:
        super().__init__()
        self.says = list(says)

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.answer = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        async for chunk in super().generate(request):
            yield chunk


@pytest.fixture
async def box(settings: Settings) -> AsyncIterator[Any]:
    box = make_box(settings, pool=Answers(LINE))
    box.me = box.accounts.local_administrator()
    yield box
    await box.chat.close()
    box.database.close()


async def test_an_answer_keeps_to_the_modules_form_and_asks_no_document(box: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box.library, "search", None)
    inputs = MIA | {"talk": "Teacher: Why are leaves green?"}
    said = await ask_module(box.chat, box.me, "student_reaction", inputs, subject="History", grade="7")
    assert said == {"line": "Hm, is it over soon?"}
    request, module = box.pool.requests[0], prompts.load("student_reaction")
    assert request.schema == module.schema and request.task == "student_reaction/history" and request.max_tokens == 120
    assert list(request.messages) == module.render(module.asked(inputs), subject="History", grade="7")
    assert len(box.pool.requests) == 1 and request.temperature == 0.0


async def test_a_broken_answer_is_asked_for_again_and_differently(box: Any) -> None:
    box.pool.says = ["Sure! Here:", '{"line": ""}', LINE]
    assert (await ask_module(box.chat, box.me, "student_reaction", MIA, seed=5))["line"]
    assert [(one.temperature, one.seed) for one in box.pool.requests] == [(0.0, 5), (0.7, 6), (0.7, 7)]


async def test_after_three_broken_answers_the_caller_is_told(box: Any) -> None:
    box.pool.says = ["Sure! Here:"]
    with pytest.raises(ModelUnavailable, match="did not keep to its form in 3 tries") as caught:
        await ask_module(box.chat, box.me, "student_reaction", MIA)
    assert caught.value.hint and len(box.pool.requests) == 3
    with pytest.raises(ModelUnavailable, match="1 tries"):
        await ask_module(box.chat, box.me, "student_reaction", MIA, tries=1)


async def test_a_form_of_the_callers_own_is_given_on_and_not_read(box: Any) -> None:
    schema = forms.schema([forms.Field("scene")])
    assert await ask_text(box.chat, box.me, "scenario_generator", {"challenge": "A quarrel."}, schema=schema) == LINE
    assert box.pool.requests[0].schema == schema


async def test_it_counts_as_one_question_and_with_a_lesson_as_none(box: Any) -> None:
    box.people.add("brown", "teacher")
    brown = box.accounts.named("brown")
    box.chat.quotas.set("role", "teacher", "hour", 2)
    lesson = await box.chat.admit(brown)
    for _ in range(3):
        await ask_module(box.chat, brown, "student_reaction", MIA, lesson=lesson)
    box.pool.says = ["broken", LINE]
    await ask_module(box.chat, brown, "student_reaction", MIA)
    with pytest.raises(UsedUp):
        await ask_module(box.chat, brown, "student_reaction", MIA)


async def test_a_strict_class_of_the_teachers_does_not_end_a_rehearsal(box: Any) -> None:
    made = Classes(box.database).add("7B", strict=True)
    box.people.add("brown", "teacher")
    box.people.join(box.accounts.named("brown").id, made.id, teaches=True)
    assert await ask_module(box.chat, box.accounts.named("brown"), "student_reaction", MIA)


async def test_what_the_safety_rules_stop_goes_to_no_model(box: Any) -> None:
    with pytest.raises(Forbidden, match="safety rules"):
        await ask_module(box.chat, box.me, "student_reaction", MIA | {"talk": "Teacher: How do I build a pipe bomb?"})
    assert box.pool.requests == []


async def test_without_a_model_that_can_the_caller_is_told_at_once(box: Any) -> None:
    box.pool.model = None
    with pytest.raises(ModelUnavailable, match="No language model"):
        await ask_module(box.chat, box.me, "student_reaction", MIA)
    for name, inputs, kind in (("student_reaction", {}, BadInput), ("nobody", MIA, NotFound)):
        with pytest.raises(kind):
            await ask_module(box.chat, box.me, name, inputs)


async def nothing(_text: str) -> list[Any]:
    return []


async def test_the_pretend_model_says_that_it_cannot(settings: Settings) -> None:
    pool = Pool(Fake(context=4096), Quotes(nothing), lambda _task: Active("fake", "Fake", False, 4096))  # type: ignore[arg-type]

    async def count(messages: Any, *_: Any) -> int:
        return sum(len(one.content.split()) for one in messages)

    pool.engine.count = count  # type: ignore[method-assign]
    box = make_box(settings, pool=pool)
    with pytest.raises(ModelUnavailable, match="cannot keep to a form"):
        await ask_module(box.chat, box.accounts.local_administrator(), "student_reaction", MIA)
    await box.chat.close()
    box.database.close()


@pytest.mark.llama
async def test_the_starter_keeps_to_the_form_of_each_short_module(settings: Settings, starter_gguf: Path) -> None:
    """Its words are nobody's; that they come in their form, within its small context, is llama.cpp's and ours."""
    inputs: dict[str, Any] = {"student_reaction": MIA, "assessment": {"criterion": "Asks why", "talk": "Teacher: Why?"}}
    async with engine_on_a_socket(starter_gguf) as engine:
        await engine.load("starter")
        pool = Pool(engine, Quotes(nothing), lambda _task: Active("starter", "Starter", True, 1024))
        box = make_box(settings, pool=pool)
        me = box.accounts.local_administrator()
        for name, given in inputs.items():
            said = await ask_module(box.chat, me, name, given, seed=3)
            assert prompts.load(name).parse(json.dumps(said)) == said and said
        for _ in range(2):  # a whole scene is too long for it: an error of ours, and the next question is answered
            with pytest.raises(ApplianceError):
                await ask_module(box.chat, me, "scenario_generator", {"challenge": "A quarrel."}, tries=1)
        assert await ask_module(box.chat, me, "student_reaction", MIA)
        await box.chat.close()
        box.database.close()
