"""The pages' languages: every sentence stands in every catalogue, with its gaps, and a page comes in the reader's own."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from babel.messages.pofile import read_po
from hypothesis import given
from hypothesis import strategies as st

from appliance.web import words
from appliance.web.sentences import sentences
from tests.web.staff import signed_in

OTHERS = [language for language in words.LANGUAGES if language != "en"]
GAP = re.compile(r"%\((\w+)\)[sd]|`[^`]+`")


def catalogue(language: str) -> Any:
    with (words.LOCALE / f"{language}.po").open("rb") as source:
        return read_po(source, locale=language)


@pytest.mark.parametrize("language", OTHERS)
def test_every_sentence_is_translated_with_its_gaps(language: str) -> None:
    """Where this fails: run scripts/words, and fill in what is empty in the language's file."""
    found = {}
    for message in catalogue(language):
        if message.id:
            singular = message.id if isinstance(message.id, str) else message.id[0]
            found[singular] = (message.id, message.string if isinstance(message.string, tuple | list) else (message.string,))
    wanted = sentences()
    assert len(wanted) > 500, "the walk must have found the templates"
    missing = [singular for singular, _ in wanted if singular not in found or not all(found[singular][1])]
    assert not missing, missing
    wrong = []
    for ids, strings in found.values():
        gaps = {gap for one in ([ids] if isinstance(ids, str) else ids) for gap in set(re.findall(GAP, one))}
        for string in strings:
            # A form for one or two may leave the number out; nothing may stand there that nobody fills.
            extra = set(re.findall(GAP, string)) - gaps
            lost = isinstance(ids, str) and set(re.findall(GAP, string)) != gaps
            wrong += [(ids, string)] if extra or lost else []
    assert not wrong, wrong


@pytest.mark.parametrize(("language", "title"), [("es", "Iniciar sesión"), ("fr", "Se connecter"), ("ar", "تسجيل الدخول")])
async def test_the_browsers_language_and_ones_own(
    box: Any, app: Any, person: httpx.AsyncClient, language: str, title: str
) -> None:
    await person.post("/sign-out")
    page = (await person.get("/", headers={"accept-language": f"de, {language};q=0.9, en;q=0.5"})).text
    way = "rtl" if language == "ar" else "ltr"
    assert f'<html lang="{language}" dir="{way}"' in page and title in page
    async with signed_in(app, box, "tim", "pupil") as pupil:
        assert '<html lang="en" dir="ltr"' in (await pupil.get("/chat")).text
        assert (await pupil.post("/me", data={"chosen": language})).status_code == 303
        for path in ("/chat", "/library", "/me", "/about", "/chats"):
            page = (await pupil.get(path, headers={"accept-language": "en"})).text
            assert f'<html lang="{language}" dir="{way}"' in page, path
        assert "%(" not in page


@given(st.text(max_size=60))
def test_whatever_a_browser_says_there_is_a_language(accepted: str) -> None:
    assert words.choose("", accepted) in words.LANGUAGES
    assert words.choose("fr", accepted) == "fr"


def test_the_likeliest_language_wins() -> None:
    assert words.choose("", "en;q=0.2, ar;q=0.9") == "ar"
    assert words.choose("", "es-MX") == "es"
    assert words.choose("xx", "de") == "en"
