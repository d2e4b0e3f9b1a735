"""A scene in another language than the page: what its words are marked as, and what the page says of it."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.web.staff import signed_in

ENGLISH = "/practice/scenes/larger-denominator"
SPANISH = """
version = 1
language = "es"
title = "Un octavo tiene que ser más"
category = "misconception"
phase = "primary"
subject = "matemáticas"
grade = "4"
minutes = 10
setting = "Una clase dobla tiras de papel."
opening = "Lucía dice en voz alta: un octavo es más."
objectives = ["Escuchar antes de explicar"]
[[pupils]]
name = "Lucía"
about = "Segura de sí misma."
voice = "Corta."
knowledge = 1
mood = 0
energy = 3
attention = 3
[pupils.lines]
holds = ["Ocho es más que cuatro."]
wavers = ["Mm, la tira es pequeña."]
understands = ["Más gente, menos para cada uno."]
answers = ["Son ocho partes."]
unsure = ["No sé."]
off_task = ["¿Ya es recreo?"]
withdrawn = ["Da igual."]
warms = ["¿Lo enseño?"]
[pupils.misconception]
belief = "Un octavo es más que un cuarto."
strength = 2
yields_to = ["elicit", "press"]
about = ["octavo", "cuarto"]
[[rubric]]
id = "pregunta"
name = "Pregunta por la razón"
moves = ["press"]
against = []
enough = 1
levels = ["Aún no.", "Una vez.", "Bien."]
try_this = "Pregunta por qué."
"""
ASKS = "Lucía, ¿por qué crees que un octavo es más grande?"


def plain(page: httpx.Response) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.text)).split())


@pytest.fixture
async def lopez(app: Any, box: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with signed_in(app, box, "lopez", "teacher") as client:
        yield client


async def rehearsed(client: httpx.AsyncClient, scene: str, said: str) -> tuple[httpx.Response, httpx.Response]:
    """The room after one turn, and the feedback."""
    lesson = (await client.post(f"{scene}/begin", data={"version": "1"})).headers["location"]
    await client.post(f"{lesson}/say", data={"words": said, "shown": ""})
    room = await client.get(lesson)
    await client.post(f"{lesson}/finish")
    return room, await client.get(f"{lesson}/feedback")


async def own(client: httpx.AsyncClient, text: str) -> str:
    reply = await client.post("/practice/write", data={"scene": text})
    assert reply.status_code == 303, plain(reply)
    return str(reply.headers["location"].partition("?")[0])


async def test_a_reader_of_spanish_is_told_that_a_scene_is_in_english(lopez: httpx.AsyncClient) -> None:
    lopez.headers["accept-language"] = "es"
    pages = [await lopez.get(ENGLISH), *await rehearsed(lopez, ENGLISH, "What do you think, Amara?")]
    for page in pages:
        assert '<html lang="es"' in page.text and '<p class="facts tongue">' in page.text
        assert re.search(r'<h1 lang="en" dir="ltr">One eighth', page.text)
    assert re.search(r'<p class="beat[^"]*" lang="en" dir="ltr">', pages[1].text)
    assert (await lopez.get("/practice")).text.count('<b lang="en" dir="ltr">') >= 24
    lopez.headers["accept-language"] = "en"
    assert "facts tongue" not in (await lopez.get(ENGLISH)).text, "who reads English need not be told"


async def test_a_spanish_scene_is_written_rehearsed_and_read_in_spanish(lopez: httpx.AsyncClient) -> None:
    scene = await own(lopez, SPANISH)
    page = await lopez.get(scene)
    assert "This scene is in Spanish, and is not translated. What you say is heard in Spanish." in plain(page)
    assert "not every move" in plain(page), "building on a pupil's words was learned in English alone"
    room, told = await rehearsed(lopez, scene, ASKS)
    assert re.search(r'<p class="beat" lang="es" dir="ltr"><b>Lucía</b> <span>Mm, la tira', room.text), "the belief wavers"
    assert f">{ASKS} <cite>" in told.text and '<span lang="es" dir="ltr">Bien.</span>' in told.text
    assert "Not counted" not in plain(told)


async def test_where_a_language_has_no_phrases_the_page_says_what_is_heard_and_what_not(lopez: httpx.AsyncClient) -> None:
    scene = await own(lopez, SPANISH.replace('language = "es"', 'language = "fa"'))
    page = await lopez.get(scene)
    assert '<h1 lang="fa" dir="rtl">' in page.text
    assert "In fa not every move is heard yet. What is: asks what a pupil thinks or knows;" in plain(page)
    _, told = await rehearsed(lopez, scene, ASKS)
    assert "Not counted, since it cannot be heard in this language: Pregunta por la razón" in plain(told)
    assert "Not yet" not in plain(told) and "Try the scene again" in plain(told)
    copy = (await lopez.get("/practice/export.md")).text
    assert "cannot be heard in this language" in copy


async def test_a_fault_in_a_scene_is_marked_as_english_and_the_page_says_so(lopez: httpx.AsyncClient) -> None:
    lopez.headers["accept-language"] = "es"
    broken = await lopez.post("/practice/write", data={"scene": SPANISH.replace('"es"', '"Spanish"')})
    assert broken.status_code == 400 and 'lang="en" dir="ltr"><div class="fault"' in " ".join(broken.text.split()).replace(
        "> <", "><"
    )
    assert "language has to be a tag" in plain(broken) and "Un octavo tiene" in plain(broken)
    assert "faults-english" in (await lopez.get("/practice/write")).text
