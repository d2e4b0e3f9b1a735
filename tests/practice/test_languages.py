"""A scene in the school's own language: what is heard in it, how minds change by it, and what its feedback leaves out."""

from __future__ import annotations

import tomllib
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.practice import moves, pupils, scene_file
from appliance.practice.exchange import MOVES, Beat, Exchange
from appliance.practice.feedback import Feedback, assess
from appliance.practice.moves import detect, heard_in
from appliance.practice.scenario import Criterion, Misconception, Scenario, read, written
from tests.practice.rooms import scene, spec, state

HERE = Path(__file__).parent
TOLD = {path.stem.removeprefix("moves-"): path for path in moves.CONTENT.parent.glob("moves-*.toml")}
BELIEF = Misconception("Un octavo es más que un cuarto.", 2, ("elicit", "press", "hint"), ("octavo", "trozo"))


def ids(said: str, language: str, *before: str) -> set[str]:
    return {one.id for one in detect(said, before, language=language)}


def spanish(language: str = "es") -> Scenario:
    return replace(scene(spec("Lucía", BELIEF), spec("Mateo")), language=language)


# --- what is heard -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("language", sorted(TOLD))
def test_every_move_that_a_language_has_phrases_for_is_found_and_near_misses_are_not(language: str) -> None:
    sets: dict[str, dict[str, list[str]]] = tomllib.loads((HERE / f"moves-{language}.toml").read_text("utf-8"))
    assert set(sets) >= heard_in(language) - {"wait"}
    for move, lines in sets.items():
        assert min(len(lines["yes"]), len(lines["no"])) >= 6
        right = sum(move in ids(line, language) for line in lines["yes"])
        wrong = sum(move in ids(line, language) for line in lines["no"])
        assert right >= 0.8 * len(lines["yes"]) and wrong <= 0.2 * len(lines["no"]), move


# Precision and recall when they were tried, once: Spanish 0.92 and 0.75, French 0.93 and 0.95 (before its phrases were widened,
# on sentences that are among the known ones now, 0.76 and 0.50), Arabic 0.96 and 0.75.
@pytest.mark.parametrize("language", sorted(TOLD))
def test_on_sentences_written_afterwards_most_are_found_too(language: str) -> None:
    sets: dict[str, dict[str, list[str]]] = tomllib.loads((HERE / f"moves-{language}-later.toml").read_text("utf-8"))
    assert len(sets) >= 10 and all(len(lines["yes"]) >= 3 and len(lines["no"]) >= 3 for lines in sets.values())
    right = sum(move in ids(line, language) for move, lines in sets.items() for line in lines["yes"])
    wrong = sum(move in ids(line, language) for move, lines in sets.items() for line in lines["no"])
    assert right / (right + wrong) >= 0.85 and right / sum(len(lines["yes"]) for lines in sets.values()) >= 0.7


def test_vowel_marks_and_accents_that_are_typed_apart_change_nothing() -> None:
    assert ids("لِماذا تَظُنُّ ذلك؟", "ar") == ids("لماذا تظن ذلك؟", "ar") == {"press"}
    assert (
        ids(unicodedata.normalize("NFD", "Ta réponse est exacte."), "fr") == ids("Ta réponse est exacte.", "fr") == {"confirm"}
    )


def test_there_are_phrases_in_the_languages_of_the_pages() -> None:
    assert set(TOLD) == {"ar", "es", "fr"}
    assert heard_in("es-MX") == heard_in("fr-CA") == heard_in("ar-EG") == frozenset(MOVES) - {"uptake"}


@pytest.mark.parametrize(
    ("language", "said", "found"),
    [
        ("pt", "Lúcia, o que achas desta figura?", {"elicit"}),
        ("pt", "De acordo?", set()),
        ("pt", "Abre o caderno.", set()),
        ("fa", "سارا، نظرت درباره این شکل چیست؟", {"elicit"}),
        ("zh-Hans", "x", set()),
        ("es", "What do you think, Lucía?", set()),
        ("en", "¿Por qué crees que es así?", set()),
    ],
)
def test_without_phrases_a_question_is_known_by_its_mark(language: str, said: str, found: set[str]) -> None:
    assert ids(said, language) == found


def test_a_thought_given_back_and_a_pause_need_no_phrases() -> None:
    assert heard_in("pt") == heard_in("x/../es") == {"elicit", "revoice", "wait"}
    back = detect("O triângulo vermelho tem três lados.", ["O triângulo vermelho tem três lados iguais."], 4.0, "pt")
    assert {one.id for one in back} == {"revoice", "wait"}


def test_in_a_language_file_moves_may_be_missing_but_not_misspelt() -> None:
    found = moves.read({"negations": ["ne"], "hint": {"opens": ["regarde"]}}, every=False)
    assert set(found) == {"hint"} and found["hint"].negations == {"ne"}
    with pytest.raises(BadInput, match="no spoken move 'hnit'"):
        moves.read({"hnit": {"opens": ["regarde"]}}, every=False)
    with pytest.raises(BadInput, match="list of words"):
        moves.read({"negations": "ne"}, every=False)


# --- what it does --------------------------------------------------------------------------------------------------------
def test_a_belief_in_spanish_falls_by_reasons_in_spanish_and_by_nothing_else() -> None:
    scenario, room = spanish(), pupils.opening(spanish(), 3)

    def turn(said: str) -> int:
        nonlocal room
        room, _ = pupils.respond(scenario, room, said, detect(said, language=scenario.language))
        return state(room, "Lucía").hold

    assert turn("Lucía, un octavo es más pequeño.") == 2
    assert turn("La respuesta es un cuarto, y el octavo es menor.") == 2
    assert turn("Lucía, ¿por qué crees que un octavo es más grande?") == 1
    assert turn("¿Qué pasa si cortas cada trozo en dos?") == 0


def rubric(id: str, *made: str) -> Criterion:
    return Criterion(id, f"Línea {id}", made, (), 2, ("Aún no.", "Empezado.", "Bien."), f"Prueba {id}.")


def asked(scenario: Scenario, said: str) -> Feedback:
    beat = Beat("Lucía", "answers", "No sé.")
    return assess(scenario, [Exchange(1, said, detect(said, language=scenario.language), (beat,))])


def test_a_line_of_the_rubric_that_cannot_be_heard_is_named_and_not_judged() -> None:
    scenario = replace(spanish("pt"), rubric=(rubric("a", "hint", "check"), rubric("b", "elicit", "press")))
    found = asked(scenario, "O que achas desta parte?")
    assert [one.criterion.id for one in found.scores] == ["b"] and found.scores[0].level == 1
    assert found.unheard == ("Línea a",) and found.next_step == "Prueba b."
    deaf = asked(replace(scenario, rubric=scenario.rubric[:1]), "E tu?")
    assert deaf.scores == () and deaf.unheard and deaf.next_step == ""
    assert Feedback.from_facts(found.as_facts()) == found
    assert asked(replace(scenario, language="es"), "¿Qué piensas tú?").unheard == ()


# --- how it is written ---------------------------------------------------------------------------------------------------
def test_the_language_stands_in_the_file_and_is_english_where_none_is_named() -> None:
    assert {one.language for one in written().values()} == {"en"}
    facts = scene_file.read(scene_file.write(spanish("pt-BR")).encode(), "x")
    assert facts["language"] == "pt-BR" and read(facts, "x").language == "pt-BR"
    assert [replace(spanish(), language=one).direction for one in ("ar", "he", "es", "ar-EG")] == ["rtl", "rtl", "ltr", "rtl"]


@pytest.mark.parametrize("tag", ["", "Spanish", "es_ES", "../en", 'es" onclick="x', 7, None, "e"])
def test_what_is_no_tag_of_a_language_is_told_as_a_fault(tag: Any) -> None:
    with pytest.raises(BadInput, match='language has to be a tag such as "en"'):
        read({**spanish().as_facts(), "language": tag}, "x")
