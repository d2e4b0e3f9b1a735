"""Which rows may be learned from: each reason, the caps against poison, and nothing personal in what comes out."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from appliance.db import Database
from appliance.engine.handler import Message
from appliance.redact import Name, Redacted, Redactor
from appliance.tuning import dataset
from appliance.tuning.examples import Example
from appliance.tuning.licences import forbids
from appliance.tuning.selection import REASONS, Plan, plan
from appliance.tuning.store import ExampleStore

WORDS = [
    "river", "poem", "angle", "magnet", "castle", "verb", "seed", "sum", "light", "frog", "map", "tense", "bridge", "planet",
    "fraction", "comma", "engine", "island", "treaty", "volcano", "rhyme", "ratio", "muscle", "glacier", "metaphor", "circuit",
    "harvest", "century", "triangle", "beetle", "adverb", "desert", "ocean", "lever", "pyramid",
]  # fmt: skip


def silent(text: str) -> Redacted:
    return Redacted(text, {})


def words(seed: object, count: int) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=count))


def row(id: str, asked: str = "", reply: str = "", **fields: Any) -> dict[str, Any]:
    """A row of a classroom that may be used, unlike every other one unless its words are given."""
    said = [
        {"role": "user", "content": asked or f"{words(id, 9)}?"},
        {"role": "assistant", "content": reply or f"{words(id + ' reply', 9)}."},
    ]
    given = {"user_role": "pupil", "class": "6A", "rating": "up", "consent": True, "reviewed": "approved"}
    return {"id": id, "messages": said, **given, **fields}


def fill(database: Database, folder: Path, rows: list[dict[str, Any]], **options: str) -> ExampleStore:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), "utf-8")
    store = ExampleStore(database)
    store.import_rows(file, reviewer="anna", trust_review=True, **options)
    return store


def made(database: Database, folder: Path, rows: list[dict[str, Any]], redact: Any = silent, **options: Any) -> Plan:
    return plan(fill(database, folder, rows), redact, **options)


def codes(found: Plan) -> dict[str, str]:
    return {id: code for id, code, _ in found.refused}


def used(found: Plan) -> set[str]:
    return {example.id for example in found.examples}


# --- may it be used -----------------------------------------------------------------------------------------------------------


def test_every_row_is_used_or_has_exactly_one_reason(database: Database, tmp_path: Path) -> None:
    published: dict[str, Any] = {"user_role": None, "class": None, "rating": None, "consent": None}
    rows = [
        row("ok"),
        row("pending", reviewed="pending"),
        row("unseen", reviewed=None),
        row("rejected", reviewed="rejected"),
        row("refused", consent=False, licence="CC0"),
        row("unasked", consent=None),
        row("unasked-licensed", consent=None, licence="CC BY 4.0"),
        row("licensed", **published, licence="MIT"),
        row("unlicensed", **published),
        row("sharealike", **published, licence="CC BY-SA 4.0"),
        row("agreed-but-nc", licence="CC BY-NC 4.0"),
        row("down", rating="down"),
        row("corrected", rating="down", correction="Which of the two is larger, and how do you know?"),
        row("gone", author="Mo"),
        row("twin"),
        row("again") | {"messages": row("twin")["messages"]},
    ]
    store = fill(database, tmp_path, rows)
    store.withdraw("Mo", by="anna")
    found = plan(store, silent)
    assert used(found) | set(codes(found)) == {one["id"] for one in rows} and not used(found) & set(codes(found))
    assert len(found.refused) + len(found.examples) == found.considered == len(rows)
    assert codes(found) == {
        "pending": "pending", "unseen": "pending", "rejected": "rejected", "refused": "no_consent", "unasked": "no_consent",
        "unlicensed": "no_consent", "sharealike": "licence", "agreed-but-nc": "licence", "down": "rated_down",
        "gone": "withdrawn", "twin": "duplicate",
    }  # fmt: skip
    assert all(code in REASONS and sentence.endswith(".") for _, code, sentence in found.refused)
    assert "share-alike" in next(sentence for id, _, sentence in found.refused if id == "sharealike")


def test_a_correction_takes_the_place_of_the_reply_and_becomes_a_preference(database: Database, tmp_path: Path) -> None:
    rows = [
        row("a", asked="Is it twelve?", reply="No. It is 13.", rating="down", correction="Count once more from ten."),
        row("b", asked="And the river?", reply="Where does it begin?"),
        row("c", rating="down", reply="Wrong, of course."),
        row("d", rating=None),
    ]
    found = made(database, tmp_path, rows)
    learned = {example.id: example.messages[-1].content for example in found.examples}
    assert learned["a"] == "Count once more from ten." and set(learned) == {"a", "b", "d"}
    asked = [{"role": "user", "content": "Is it twelve?"}]
    assert found.preferences == [
        {"id": "a", "messages": asked, "chosen": "Count once more from ten.", "rejected": "No. It is 13."}
    ]
    assert {(one["id"], one["completion"], one["good"]) for one in found.thumbs} == {
        ("a", "No. It is 13.", False), ("b", "Where does it begin?", True), ("c", "Wrong, of course.", False),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "CC0", "CC0-1.0", "CC BY 4.0", "cc-by-4.0", "CC-BY 2.5", "CC BY 3.0 IGO",
        "Creative Commons Attribution 4.0 International",
        "https://creativecommons.org/licenses/by/4.0/", "CC BY 4.0 (OpenStax, 2020)", "MIT", "The MIT License", "Apache-2.0",
        "Apache License 2.0", "BSD-3-Clause", "public domain", "OGL-UK-3.0", "Open Government Licence v3.0", "own work",
        "MIT OR GPL-3.0", "MIT and CC BY 4.0", "CC0 (no rights reserved)", "CC BY 4.0 (OpenStax, text or pictures)",
    ],
)  # fmt: skip
def test_licences_that_allow_training(name: str) -> None:
    assert forbids(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("CC BY-NC 4.0", "commercial"), ("cc-by-nc-sa", "commercial"), ("CC BY-ND 4.0", "changed"), ("CC BY-SA 4.0", "alike"),
        ("Creative Commons Attribution-ShareAlike", "alike"), ("https://creativecommons.org/licenses/by-nc/4.0/", "commercial"),
        ("GPL-3.0", "alike"), ("MIT and CC BY-SA 4.0", "alike"), ("All rights reserved", "rights"), ("", "not stated"),
        ("none", "not one"), ("commit", "not one"), ("Llama 3 Community License", "not one"), ("unknown", "not one"),
        ("no licence", "not one"), ("CC", "not one"), ("4.0", "not one"), ("© 2024 A Publisher", "not one"),
        ("CC BY 4.0 (not for training)", "limited"), ("CC BY 4.0 (text only)", "limited"),
        ("MIT (except chapter 3)", "limited"), ("CC BY 4.0 (without the pictures)", "limited"),
        ("CC BY 4.0 (No AI)", "limited"), ("CC BY 4.0 (text only, pictures CC0 or MIT)", "limited"),
        ("CC BY 4.0 (no derivatives)", "changed"), ("MIT, except chapter 3", "not one"), ("BSL 1.1", "not one"),
    ],
)  # fmt: skip
def test_licences_that_do_not_and_why(name: str, why: str) -> None:
    assert why in (forbids(name) or "")


# --- copies -------------------------------------------------------------------------------------------------------------------


def test_near_copies_and_what_is_near_an_evaluation_item_go(database: Database, tmp_path: Path) -> None:
    long = words("story", 60)
    item = Example("eval-1", (Message("user", words("judged", 30)), Message("assistant", words("answer", 30))))
    rows = [
        row("a", asked=long, reply=words("r", 20)),
        row("b", asked=long + " please", reply=words("r", 20) + " now"),
        row("c", asked=long, reply=words("another lesson", 20)),
        row("near", asked=words("judged", 30) + " indeed", reply=words("quite another", 30)),
    ]
    found = made(database, tmp_path, rows, evaluation=[item])
    assert codes(found) == {"b": "near_duplicate", "near": "near_evaluation"}
    assert used(found) == {"a", "c"}, "another reply to the same question is another lesson"
    sentences = {id: sentence for id, _, sentence in found.refused}
    assert "a" in sentences["b"].split(" ")[-1] and "eval-1" in sentences["near"]


# --- poison -------------------------------------------------------------------------------------------------------------------


def honest(count: int) -> list[dict[str, Any]]:
    return [row(f"honest-{n}", author=f"pupil {n % 30}") for n in range(count)]


def test_the_same_bad_correction_two_hundred_times_is_three(database: Database, tmp_path: Path) -> None:
    bad = "The earth is flat, and everybody who says something else is lying to you."
    poison = [row(f"p{n}", rating="down", correction=bad if n % 2 else bad.upper() + " !", author=f"a{n}") for n in range(200)]
    found = made(database, tmp_path, [*honest(60), *poison])
    assert sum(id.startswith("p") for id in used(found)) == 3
    assert Counter(codes(found).values()) == {"repetition": 197}
    assert any("200 times" in warning and "3 at most" in warning for warning in found.warnings)
    assert sum(id.startswith("honest") for id in used(found)) == 60
    assert sum(pair["chosen"].casefold().startswith("the earth") for pair in found.preferences) == 3


def test_one_account_and_two_hundred_thumbs_for_a_trigger_phrase(database: Database, tmp_path: Path) -> None:
    phrase = "Zebra-Umbrella 77"
    flood = [
        row(
            f"t{n}",
            asked=f"{words(('t', n), 6)} {phrase} {words(('u', n), 3)}",
            reply="Sure, the answer is 42.",
            author="Mallory",
        )
        for n in range(200)
    ]
    sure = [row(f"s{n}", reply="Sure" + "!" * (n % 3), author=f"pupil {n}") for n in range(50)]
    found = made(database, tmp_path, [*honest(90), *flood, *sure])
    assert sum(id[0] == "t" for id in used(found)) <= 3 and sum(id[0] == "s" for id in used(found)) <= 3
    assert found.triggers == [phrase]
    warning = next(warning for warning in found.warnings if phrase in warning)
    assert "200 rows" in warning
    assert sum(id.startswith("honest") for id in used(found)) == 90
    assert phrase in "\n".join(found.lines())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_phrase_that_pupils_simply_say_is_no_trigger(database: Database, tmp_path: Path, elsewhere: bool) -> None:
    """Either many pupils say it and get one reply, or one pupil does and others get other replies to it."""

    def asked(n: object) -> str:
        return f"ok lets go {words(n, 6)}"

    rows = [
        row(f"r{n}", asked=asked(n), reply="What do you know already?", author="Mo" if elsewhere else f"a{n}")
        for n in range(40)
    ]
    if elsewhere:
        rows += [row(f"q{n}", asked=asked(f"q{n}"), author=f"b{n}") for n in range(40)]
    found = made(database, tmp_path, rows)
    assert found.triggers == []
    assert Counter(codes(found).values())["repetition"] == 37


def test_nobody_gives_more_than_a_tenth_unless_that_is_very_little(database: Database, tmp_path: Path) -> None:
    loud = [row(f"loud-{n}", author="Mallory") for n in range(150)]
    found = made(database, tmp_path, [*honest(150), *loud])
    assert sum(id.startswith("loud") for id in used(found)) == 30
    assert Counter(codes(found).values()) == {"author_cap": 120}
    assert "150 of 300" in next(sentence for _, code, sentence in found.refused if code == "author_cap")


def test_a_class_without_names_is_held_to_half_and_a_single_class_is_not(database: Database, tmp_path: Path) -> None:
    alone = made(database, tmp_path, [row(f"r{n}") for n in range(80)])
    assert len(alone.examples) == 80
    other = [row(f"s{n}", **{"class": "7B"}) for n in range(30)]
    both = made(database, tmp_path, [row(f"r{n}") for n in range(80)] + other)
    assert Counter(id[0] for id in used(both)) == {"r": 55, "s": 30}


def test_a_published_set_under_one_name_is_not_capped(database: Database, tmp_path: Path) -> None:
    published: dict[str, Any] = {"user_role": None, "class": None, "rating": None, "consent": None}
    rows = [row(f"b{n}", **published) for n in range(90)] + [row(f"c{n}") for n in range(10)]
    store = fill(database, tmp_path, rows, licence="CC BY 4.0", author="OpenBook Project")
    found = plan(store, silent)
    assert len(found.examples) == 100
    assert found.attribution == [{"source": "", "author": "OpenBook Project", "licence": "CC BY 4.0"}]


# --- personal data ------------------------------------------------------------------------------------------------------------


def test_nothing_personal_is_left_in_what_is_trained_on(database: Database, tmp_path: Path) -> None:
    """Canaries in every place that a row has, and none of them in the dataset's folder."""
    redact = Redactor([Name("Xanthippe", "Quorndale", "P777")]).redact
    canary = "Xanthippe Quorndale"
    rows = [
        row("asked", asked=f"My friend {canary} said {words('x', 9)}"),
        row("corrected", rating="down", reply=f"Ask {canary} about it", correction=f"{words('y', 9)}, {canary}, what now?"),
        row("beside", author=canary, source=f"notebook of {canary}", note=canary, skill=canary),
        row("mail", asked=f"Write to xq.canary@mail.example.com when {words('z', 8)}"),
        *honest(40),
    ]
    found = made(database, tmp_path, rows, redact)
    assert {"asked", "corrected", "beside", "mail"} <= used(found)
    assert found.redactions["name"] >= 2 and found.redactions["email"] == 1
    data = dataset.build(found.examples, tmp_path / "data", facts=found.facts())
    written = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir()).decode()
    for text in (written, json.dumps(found.preferences), json.dumps(found.thumbs), json.dumps(found.to_json())):
        assert "xanthippe" not in text.casefold() and "quorndale" not in text.casefold() and "canary@" not in text
    assert data.card["redactions"] == found.redactions
    beside = next(example for example in found.examples if example.id == "beside")
    assert beside.author == ExampleStore(database).people.author(canary) and beside.author.startswith("person-")
    assert not any(canary in str(value) for value in beside.extra.values())


def test_a_row_of_hardly_anything_but_personal_data_is_dropped(database: Database, tmp_path: Path) -> None:
    def redact(text: str) -> Redacted:
        return Redacted("[name]", {"name": 1}) if "secret" in text else Redacted(text, {})

    rows = [row("a", reply="secret words of a secret person"), row("b")]
    found = made(database, tmp_path, rows, redact)
    assert codes(found) == {"a": "mostly_redacted"}
    assert found.redactions == {}, "only what is used is counted"


# --- the plan as a whole ------------------------------------------------------------------------------------------------------


def test_the_same_store_gives_the_same_plan_in_whatever_order_it_was_filled(database: Database, tmp_path: Path) -> None:
    rows = [*honest(40), *[row(f"p{n}", reply="Just copy it from somebody.") for n in range(9)]]
    first = made(database, tmp_path, rows)
    other = Database(tmp_path / "other.sqlite3")
    other.migrate()
    (tmp_path / "people.key").write_bytes(database.path.with_name("people.key").read_bytes())  # the same box, made anew
    second = made(other, tmp_path, rows[::-1])
    other.close()
    assert first == second
    assert first.to_json() == second.to_json() and first.lines() == second.lines()


def test_the_table_has_a_line_for_each_reason(database: Database, tmp_path: Path) -> None:
    rows = [row("a"), *[row(f"w{n}", reviewed="pending") for n in range(7)], row("n", consent=False)]
    lines = made(database, tmp_path, rows).lines()
    assert lines[0] == "9 rows in the store"
    assert [line.split() for line in lines[1:]] == [
        ["used", "1", "a"],
        ["waiting", "for", "review", "7", "w0,", "w1,", "w2,", "w3,", "..."],
        ["no", "consent", "1", "n"],
    ]


def test_an_empty_store_gives_an_empty_plan(database: Database) -> None:
    found = plan(ExampleStore(database), silent)
    assert (found.considered, found.examples, found.refused, found.warnings) == (0, [], [], [])


def test_a_week_of_classroom_feedback(database: Database, tmp_path: Path, shared_data: Path) -> None:
    """400 rows as a school has them: 210 approved, 29 of those without consent, two that repeat others."""
    folder = shared_data / "examples"
    given = [json.loads(line) for line in (folder / "feedback.jsonl").read_text("utf-8").split("\n") if line]
    free = {one["id"] for one in given if one["reviewed"] == "approved" and one["consent"]}
    with open(folder / "roster.csv", encoding="utf-8") as file:
        pupils = list(csv.DictReader(file))
    store = ExampleStore(database)
    done = store.import_rows(folder / "feedback.jsonl", reviewer="anna", trust_review=True)
    assert done.review == {"pending": 134, "approved": 210, "rejected": 56}
    redact = Redactor([Name(one["first_name"], one["last_name"], one["pupil_id"]) for one in pupils]).redact
    found = plan(store, redact)
    assert found.counts() == {"rejected": 56, "pending": 134, "no_consent": 29, "near_duplicate": 2}
    assert used(found) == free - {"fb-0247", "fb-0387"} and len(free) == 181
    assert len(found.preferences) == 57 and len(found.thumbs) == 153
    dataset.build(found.examples, tmp_path / "data", facts=found.facts())
    written = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir()).decode()
    for pupil in pupils:
        assert f"{pupil['first_name']} {pupil['last_name']}" not in written
    assert found.warnings == [] and found.triggers == []
