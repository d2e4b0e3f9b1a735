"""The store of examples: what comes in, what people decide, what goes out again and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from appliance import tables
from appliance.audit import Audit
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound
from appliance.jobs import Jobs
from appliance.redact import Roster
from appliance.redact.roster import Pupil
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning import dataset
from appliance.tuning.erasing import erase_from_jobs, erase_from_reports, erase_from_runs
from appliance.tuning.run_folder import read_json, write_json
from appliance.tuning.store import ExampleStore


def row(number: int, **fields: Any) -> dict[str, Any]:
    asked = f"How do I add {number} and {number * 7} without a calculator?"
    said = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"Which tens are near {number}?"}]
    return {"id": f"r{number}", "messages": said, "subject": "mathematics", **fields}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), "utf-8")
    return path


@pytest.fixture
def store(database: Database) -> ExampleStore:
    return ExampleStore(database)


def feedback(number: int, **fields: Any) -> dict[str, Any]:
    given = {"user_role": "pupil", "class": "6A", "rating": "up", "consent": True, "created": "2026-03-02T08:03:00+02:00"}
    return row(number, **given, **fields)


# --- importing ----------------------------------------------------------------------------------------------------------------


def test_a_row_comes_in_with_everything_and_waits_for_review(store: ExampleStore, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [feedback(1, correction="Try 10 first.", reviewed="approved", topic="sums")])
    done = store.import_rows(file, reviewer="anna")
    assert (done.added, done.updated, done.unchanged, done.withdrawn) == (1, 0, 0, 0)
    assert done.review == {"pending": 1, "approved": 0, "rejected": 0}
    found = store.get("r1")
    assert (found.correction, found.rating, found.consent, found.class_name) == ("Try 10 first.", "up", True, "6A")
    assert (found.reviewed, found.reviewer, found.origin) == ("pending", "", "a.jsonl, line 1")
    assert found.created == 1772431380.0
    assert found.extra["fields"] == {"topic": "sums"}
    assert [message.role for message in found.messages] == ["user", "assistant"]


def test_marks_of_review_count_only_where_they_are_trusted(store: ExampleStore, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [feedback(1, reviewed="approved"), feedback(2, reviewed="rejected"), feedback(3)])
    assert store.import_rows(file, reviewer="anna").review["pending"] == 3
    store.reject(["r1"], "ben")
    done = store.import_rows(file, reviewer="anna", trust_review=True)
    assert (done.added, done.updated, done.unchanged) == (0, 1, 2)
    assert done.review == {"pending": 1, "approved": 0, "rejected": 2}, "what was decided here stands"
    assert (store.get("r1").reviewer, store.get("r2").reviewer) == ("ben", "anna")


def test_the_same_file_again_changes_nothing(store: ExampleStore, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [feedback(1), row(2, licence="MIT"), row(3, author="Ms B")])
    store.import_rows(file, reviewer="anna", licence="CC0", author="Ms C")
    before = store.list()
    again = store.import_rows(file, reviewer="anna", licence="CC0", author="Ms C")
    assert (again.added, again.updated, again.unchanged) == (0, 0, 3)
    assert store.list() == before
    assert [(one.licence, one.author) for one in sorted(before, key=lambda one: one.id)] == [
        ("CC0", "Ms C"), ("MIT", "Ms C"), ("CC0", "Ms B"),
    ]  # fmt: skip
    assert [one.own_author for one in sorted(before, key=lambda one: one.id)] == ["", "", "Ms B"]


def test_a_later_import_may_fill_in_and_take_back_consent_but_not_what_was_said(store: ExampleStore, tmp_path: Path) -> None:
    store.import_rows(write(tmp_path / "a.jsonl", [row(1), row(2, licence="MIT"), feedback(3)]), reviewer="anna")
    rows = [row(1), row(2, licence="MIT"), feedback(3) | {"consent": False}]
    done = store.import_rows(write(tmp_path / "b.jsonl", rows), reviewer="anna", licence="CC0")
    assert (done.updated, done.unchanged) == (2, 1)
    assert (store.get("r1").licence, store.get("r2").licence, store.get("r3").consent) == ("CC0", "MIT", False)
    assert done.review["pending"] == 3


def test_an_id_that_stands_for_something_else_is_refused_with_its_line_and_nothing_is_taken(
    store: ExampleStore, tmp_path: Path
) -> None:
    store.import_rows(write(tmp_path / "a.jsonl", [row(1), feedback(2)]), reviewer="anna")
    other = row(1)
    other["messages"][1]["content"] = "Just say 8."
    file = write(tmp_path / "b.jsonl", [row(5), other, feedback(2, correction="Better."), feedback(6, rating_note="x")])
    with pytest.raises(BadInput) as caught:
        store.import_rows(file, reviewer="anna")
    assert "2 faults" in caught.value.message
    assert "b.jsonl, line 2" in caught.value.message and "b.jsonl, line 3" in caught.value.message
    assert "a.jsonl, line 1" in caught.value.message
    assert [one.id for one in store.list()] == ["r1", "r2"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rating", "good"), ("rating", 1), ("reviewed", "yes"), ("reviewed", True), ("consent", "yes"), ("consent", 1),
        ("correction", ["x"]), ("user_role", {}), ("created", "yesterday"), ("created", 1e30), ("created", True),
        ("class", 1.5),
    ],
)  # fmt: skip
def test_every_fault_of_a_classroom_field_is_named_with_its_line(
    store: ExampleStore, tmp_path: Path, field: str, value: Any
) -> None:
    rows = [feedback(1), feedback(2) | {field: value}, feedback(3) | {"rating": "sideways"}]
    with pytest.raises(BadInput) as caught:
        store.import_rows(write(tmp_path / "a.jsonl", rows), reviewer="anna")
    assert f'line 2: "{field}"' in caught.value.message and 'line 3: "rating"' in caught.value.message
    assert store.list() == []


def test_rows_without_ids_are_told_apart_by_who_judged_them_and_how(store: ExampleStore, tmp_path: Path) -> None:
    def nameless(**fields: Any) -> dict[str, Any]:
        return {key: value for key, value in row(1, **fields).items() if key != "id"}

    rows = [nameless(correction="One."), nameless(correction="Two."), nameless(rating="up"), nameless(), nameless()]
    assert store.import_rows(write(tmp_path / "a.jsonl", rows), reviewer="anna").added == 4
    assert store.import_rows(write(tmp_path / "a.jsonl", rows), reviewer="anna").unchanged == 4


def test_an_import_is_recorded_without_a_word_of_it(store: ExampleStore, database: Database, tmp_path: Path) -> None:
    store.import_rows(write(tmp_path / "a.jsonl", [feedback(1)]), reviewer="anna", trust_review=True)
    entry = Audit(database).entries()[-1]
    assert (entry.actor, entry.verb) == ("anna", "import examples")
    assert entry.facts == {"added": 1, "updated": 0, "withdrawn": 0, "trusted": True}


# --- reviewing ----------------------------------------------------------------------------------------------------------------


def test_a_decision_is_kept_with_who_made_it_and_what_waits_gets_less(
    store: ExampleStore, database: Database, tmp_path: Path
) -> None:
    store.import_rows(write(tmp_path / "a.jsonl", [feedback(n) for n in range(1, 6)]), reviewer="anna")
    store.approve(["r1", "r2"], "ben")
    store.reject(["r3"], "ben")
    store.correct("r4", " Which is nearer, 20 or 30? ", "cleo")
    assert [one.id for one in store.pending()] == ["r5"]
    found = {one.id: one for one in store.list()}
    assert [found[f"r{n}"].reviewed for n in range(1, 6)] == ["approved", "approved", "rejected", "approved", "pending"]
    assert (found["r4"].correction, found["r4"].reviewer) == ("Which is nearer, 20 or 30?", "cleo")
    assert [entry.verb for entry in Audit(database).entries(newest=3)] == [
        "approved examples", "rejected example", "approved example",
    ]  # fmt: skip
    store.correct("r4", "Second thought.", "cleo")
    assert store.get("r4").extra["earlier"] == ["Which is nearer, 20 or 30?"]


def test_a_correction_is_no_other_content_when_the_file_comes_again(store: ExampleStore, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [feedback(1)])
    store.import_rows(file, reviewer="anna")
    store.correct("r1", "Better.", "anna")
    assert store.import_rows(file, reviewer="anna").unchanged == 1
    assert store.get("r1").correction == "Better."


def test_several_are_decided_all_or_none(store: ExampleStore, tmp_path: Path) -> None:
    store.import_rows(write(tmp_path / "a.jsonl", [feedback(1), feedback(2, author="Mo")]), reviewer="anna")
    store.withdraw("Mo", by="anna")
    with pytest.raises(NotFound, match="nobody"):
        store.approve(["r1", "nobody"], "anna")
    with pytest.raises(Conflict, match="withdrawn"):
        store.approve(["r1", "r2"], "anna")
    with pytest.raises(BadInput, match="empty"):
        store.correct("r1", "  ", "anna")
    assert store.get("r1").reviewed == "pending"


def test_a_draft_outlives_the_process_and_ends_with_the_decision(
    store: ExampleStore, database: Database, tmp_path: Path
) -> None:
    store.import_rows(write(tmp_path / "a.jsonl", [feedback(1)]), reviewer="anna")
    store.draft("r1", "Half a sent")
    assert ExampleStore(database).get("r1").extra["draft"] == "Half a sent"
    store.approve(["r1"], "anna")
    assert "draft" not in store.get("r1").extra


# --- withdrawing --------------------------------------------------------------------------------------------------------------


def test_a_withdrawn_person_is_gone_and_does_not_come_back(store: ExampleStore, database: Database, tmp_path: Path) -> None:
    secret = "Quillfeather-Zymurgy"
    rows = [feedback(n, author="Wilhelmina Quorn", note=secret, correction=secret) for n in (1, 2)] + [feedback(3, author="Mo")]
    rows[0]["messages"][0]["content"] = f"My cat is called {secret}."
    file = write(tmp_path / "a.jsonl", rows)
    store.import_rows(file, reviewer="anna")
    assert store.withdraw(" wilhelmina  QUORN ", by="anna") == ("r1", "r2")
    assert [one.id for one in store.list()] == ["r3"]
    stone = store.get("r1")
    assert (stone.messages, stone.correction, stone.author, stone.extra) == ((), None, "", {})
    raw = b"".join(path.read_bytes() for path in database.path.parent.glob(database.path.name + "*"))
    for word in (secret, "Wilhelmina", "Quorn"):
        assert word.encode() not in raw, "the text is overwritten in the file, not only unlinked"
    again = store.import_rows(file, reviewer="anna", trust_review=True)
    assert (again.added, again.withdrawn, again.unchanged) == (0, 2, 1)
    new = write(tmp_path / "b.jsonl", [feedback(9, author="Wilhelmina Quorn")])
    assert store.import_rows(new, reviewer="anna").withdrawn == 1
    assert store.withdrawn() == {"r1", "r2"}
    entry = Audit(database).entries()
    assert [one.thing for one in entry if one.verb == "withdraw"] == [store.people.key("Wilhelmina Quorn")]
    assert "Quorn" not in json.dumps([[one.thing, one.facts] for one in entry])
    Audit(database).verify()


def test_nothing_is_left_in_the_file_of_rows_that_were_handled_before_they_were_withdrawn(
    store: ExampleStore, database: Database, tmp_path: Path
) -> None:
    """Rows that grew, moved to other pages and were decided on leave copies where nothing but every connection wipes."""
    rows = [feedback(n, author="Mo" if n % 10 == 0 else f"A{n}", note=f"Zymurgy-{n:03}x " * 9) for n in range(1, 401)]
    store.import_rows(write(tmp_path / "a.jsonl", rows), reviewer="anna")
    for n in range(1, 401, 2):
        store.approve([f"r{n}"], "ben")
    for n in range(10, 401, 10):
        store.draft(f"r{n}", f"Zymurgy-{n:03}x is half written " * 20)
        store.correct(f"r{n}", f"Zymurgy-{n:03}x should have been said " * 12, "ben")
        store.correct(f"r{n}", "Zymurgy was the word.", "ben")
    assert len(store.withdraw("Mo", by="anna")) == 40
    raw = b"".join(path.read_bytes() for path in database.path.parent.glob(database.path.name + "*"))
    assert [n for n in range(10, 401, 10) if f"Zymurgy-{n:03}x".encode() in raw] == []
    assert all(f"Zymurgy-{n:03}x".encode() in raw for n in range(1, 401, 10)), "the others are still there"


def test_a_row_that_turns_out_to_be_of_a_withdrawn_person_is_emptied(store: ExampleStore, tmp_path: Path) -> None:
    store.withdraw("Mo", by="anna")
    store.import_rows(write(tmp_path / "a.jsonl", [feedback(1), feedback(2, author="Ben"), feedback(3)]), reviewer="anna")
    store.approve(["r1", "r2"], "ben")
    later = write(tmp_path / "b.jsonl", [feedback(1, author="Mo"), feedback(2), feedback(4), feedback(4, author="Mo")])
    done = store.import_rows(later, reviewer="anna", author="mo")
    assert (done.added, done.updated, done.withdrawn, done.emptied) == (0, 0, 3, ("r1",)), "r2 is Ben's, whoever brings it"
    assert [one.id for one in store.list()] == ["r2", "r3"] and store.withdrawn() == {"r1"}
    gone = store.get("r1")
    assert (gone.messages, gone.author, gone.source, gone.origin, gone.reviewed) == ((), "", "", "", "rejected")
    assert store.import_rows(write(tmp_path / "c.jsonl", [feedback(1)]), reviewer="anna").withdrawn == 1
    other = feedback(3, author="Mo", correction="Something else.")
    with pytest.raises(BadInput, match="stands for something else"):
        store.import_rows(write(tmp_path / "d.jsonl", [other]), reviewer="anna")


def test_a_row_with_its_author_further_down_the_same_file_does_not_come_in(store: ExampleStore, tmp_path: Path) -> None:
    store.withdraw("Mo", by="anna")
    done = store.import_rows(write(tmp_path / "a.jsonl", [feedback(1), feedback(1, author="Mo")]), reviewer="anna")
    assert (done.added, done.withdrawn) == (0, 1) and store.list() == []


def test_where_it_came_from_goes_with_the_row(store: ExampleStore, database: Database, tmp_path: Path) -> None:
    file = write(tmp_path / "quorn-homework.jsonl", [feedback(1, author="Mo", source="The notebook of W. Quorn")])
    store.import_rows(file, reviewer="anna")
    store.withdraw("Mo", by="anna")
    assert (store.get("r1").source, store.get("r1").origin) == ("", "")
    raw = b"".join(path.read_bytes() for path in database.path.parent.glob(database.path.name + "*"))
    assert b"quorn-homework" not in raw and b"notebook" not in raw


def test_one_namesake_who_withdraws_does_not_take_the_other_along(
    store: ExampleStore, database: Database, tmp_path: Path
) -> None:
    Roster(database).replace([Pupil("P1", "Mei", "Zhanghe"), Pupil("P2", "Mei", "Zhanghe"), Pupil("P3", "Omar", "Hadarim")])
    store.withdraw("P1", by="anna")
    names = ["P1", "P2", "Mei Zhanghe", "Omar Hadarim"]
    file = write(tmp_path / "a.jsonl", [feedback(n, author=name) for n, name in enumerate(names, start=1)])
    assert store.import_rows(file, reviewer="anna").withdrawn == 2
    assert [one.author for one in store.list()] == ["P2", "Omar Hadarim"], "under the name alone they are taken as P1's"
    store.withdraw("Omar Hadarim", by="anna")
    store.withdraw("P2", by="anna")
    again = write(tmp_path / "b.jsonl", [feedback(8, author="P2"), feedback(9, author="P3")])
    assert store.import_rows(again, reviewer="anna").withdrawn == 2, "a name that one alone bears stands for their id"


def test_who_withdrew_by_name_before_there_was_a_roster_is_known_by_the_id_as_well(
    store: ExampleStore, database: Database, tmp_path: Path
) -> None:
    store.withdraw("Zola Umtatana", by="anna")
    Roster(database).replace([Pupil("P4", "Zola", "Umtatana"), Pupil("P5", "Omar", "Hadarim")])
    file = write(
        tmp_path / "a.jsonl", [feedback(1, author="P4"), feedback(2, author="Umtatana, Zola"), feedback(3, author="P5")]
    )
    assert store.import_rows(file, reviewer="anna").withdrawn == 2
    assert [one.id for one in store.list()] == ["r3"]


def test_a_digest_of_a_person_cannot_be_tried_out_without_the_key_of_the_box(
    store: ExampleStore, database: Database, tmp_path: Path
) -> None:
    key = database.path.with_name("people.key")
    mine = store.people.key("Mei Zhanghe")
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32
    assert ExampleStore(database).people.key(" zhanghe  MEI") != mine == ExampleStore(database).people.key(" MEI zhanghe")
    other = Database(tmp_path / "other" / "appliance.sqlite3")
    other.migrate()
    assert ExampleStore(other).people.key("Mei Zhanghe") != mine
    other.close()
    store.withdraw("Mei Zhanghe", by="anna")
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(ApplianceError, match="missing"):
        ExampleStore(database).import_rows(write(tmp_path / "a.jsonl", [feedback(1, author="Mei Zhanghe")]), reviewer="anna")
    assert not key.exists(), "a new key would let back in who has withdrawn"
    key.write_bytes(kept[:5])
    with pytest.raises(ApplianceError, match="damaged"):
        ExampleStore(database).trace("Mo")


def test_a_pupil_is_found_by_id_and_by_name_in_either_order(store: ExampleStore, database: Database, tmp_path: Path) -> None:
    Roster(database).replace([Pupil("P1", "Lerato", "Khumathi", "7A"), Pupil("P2", "Omar", "Hadarim", "7B")])
    rows = [feedback(n, author=name) for n, name in enumerate(["P1", "Lerato Khumathi", "khumathi, lerato", "P2"], start=1)]
    rows[3]["messages"][0]["content"] = "Lerato   KHUMATHI sits beside me. What is half of 9?"
    file = write(tmp_path / "a.jsonl", rows)
    store.import_rows(file, reviewer="anna")
    for person in ("P1", "p1", "lerato khumathi", "Khumathi Lerato"):
        trace = store.trace(person)
        assert (trace.known, trace.rows, trace.mentions) == (True, ("r1", "r2", "r3"), ("r4",))
    assert len(store.withdraw("Lerato Khumathi", by="anna")) == 3
    assert [one.id for one in store.list()] == ["r4"]
    later = write(tmp_path / "b.jsonl", [feedback(9, author="P1")])
    assert store.import_rows(later, reviewer="anna").withdrawn == 1
    assert store.withdraw("P1", by="anna", mentions=True) == ("r4",)


def test_a_name_that_several_bear_and_one_that_nobody_bears(store: ExampleStore, database: Database) -> None:
    Roster(database).replace([Pupil("P1", "Mei", "Zhanghe"), Pupil("P2", "Mei", "Zhanghe"), Pupil("P3", "Grace", "Thornbury")])
    with pytest.raises(Conflict, match="P1, P2"):
        store.withdraw("Mei Zhanghe", by="anna")
    trace = store.trace("Grace Thornberry")
    assert (trace.known, trace.rows, trace.similar) == (False, (), ("Grace Thornbury",))
    with pytest.raises(BadInput, match="No name"):
        store.trace("  ")


# --- lineage ------------------------------------------------------------------------------------------------------------------


def model(registry: Registry, tmp_path: Path, id: str, **facts: Any) -> None:
    folder = tmp_path / f"make-{id}"
    folder.mkdir()
    (folder / "model.gguf").write_text(id)
    registry.add(folder, id=id, kind=facts.pop("kind", "base"), title=id, licence="MIT", context=128, **facts)


def test_from_a_person_to_the_models_that_learned_from_them(store: ExampleStore, tmp_path: Path) -> None:
    rows = [feedback(n, author="Mo" if n % 10 == 0 else f"A{n}") for n in range(1, 41)]
    store.import_rows(write(tmp_path / "a.jsonl", rows), reviewer="anna")
    made = [dataset.Example(one.id, one.messages, author=store.people.author(one.author)) for one in store.list()]
    data = dataset.build(made, tmp_path / "data")
    without = dataset.build([one for one in made if one.author != store.people.author("Mo")], tmp_path / "without")
    for one in (data, data, without):
        store.record(one.digest, one)
    assert store.rows_of(data.digest) == {
        **{example.id: "train" for example in data.train}, **{example.id: "held_out" for example in data.held_out},
    }  # fmt: skip
    registry = Registry(tmp_path / "models")
    model(registry, tmp_path, "base")
    model(registry, tmp_path, "clean", kind="adapter", base="base", parents=("base",), dataset=without.digest)
    model(registry, tmp_path, "had", kind="adapter", base="base", parents=("base",), dataset=data.digest)
    model(registry, tmp_path, "child", kind="adapter", base="base", parents=("base", "had"), dataset=without.digest)
    registry.promote("had")
    ids = store.withdraw("Mo", by="anna")
    assert len(ids) == 4
    found = {one.id: one for one in store.models_with(ids, registry)}
    assert set(found) == {"had", "child"}
    assert found["had"].aliases == ("champion",)
    assert found["had"].rows == len(set(ids) & set(store.rows_of(data.digest))) > 0
    assert (found["child"].rows, found["child"].through) == (0, "had")
    assert set(store.withdrawn_from(data.digest)) == set(ids) & set(store.rows_of(data.digest))
    assert list(store.withdrawn_from(without.digest)) == []
    assert store.trace("Mo").earlier == tuple(sorted(set(ids) & set(store.rows_of(data.digest)))), (
        "a second call finds them too"
    )


def test_the_texts_leave_the_runs_and_the_reports_stay(tmp_path: Path) -> None:
    def run(name: str, ids: list[str], *, finished: bool) -> Path:
        folder = tmp_path / "runs" / name
        (folder / "data").mkdir(parents=True)
        said = [{"role": "user", "content": "One\u2028two\x85three"}, {"role": "assistant", "content": "Go on."}]
        write(folder / "data" / "train.jsonl", [{"messages": said, "id": id} for id in ids])
        for file in ("job.json", "report.json", "loss.jsonl", "plan.json", *(["result.json"] if finished else [])):
            (folder / file).write_text("{}")
        (folder / "adapter").mkdir()
        return folder

    had, clean, broken = (
        run("had", ["r1", "r2"], finished=True),
        run("clean", ["r3"], finished=True),
        run("b", ["r1"], finished=False),
    )
    half = tmp_path / "runs" / ".new"
    half.mkdir()
    write(half / "held_out.jsonl", [row(1)])
    (had / "named" / "second" / "export").mkdir(parents=True)
    (had / "named" / "second" / "report.json").write_text("{}")
    assert erase_from_runs(tmp_path / "runs", {"r1"}) == (".new", "b", "had")
    left = sorted(path.relative_to(had).as_posix() for path in had.rglob("*") if path.is_file())
    assert left == ["loss.jsonl", "named/second/report.json", "plan.json", "report.json", "result.json"]
    assert (clean / "data" / "train.jsonl").is_file() and (clean / "job.json").is_file()
    assert not broken.exists() and not half.exists(), "what was broken off must not be taken up again with those rows"
    assert erase_from_runs(tmp_path / "runs", {"r1"}) == () == erase_from_runs(tmp_path / "nowhere", {"r1"})


def test_a_run_that_learns_from_preferences_is_known_by_them(store: ExampleStore, tmp_path: Path) -> None:
    broken = tmp_path / "runs" / "broken"
    broken.mkdir(parents=True)
    write_json(broken / "job.json", {"train": [], "preferences": [{"id": "r1", "chosen": "a", "rejected": "b"}, "x"]})
    assert erase_from_runs(tmp_path / "runs", {"r2"}) == ()
    assert erase_from_runs(tmp_path / "runs", {"r1"}) == ("broken",) and not broken.exists()
    store.import_rows(write(tmp_path / "a.jsonl", [feedback(1, author="Mo"), feedback(2)]), reviewer="anna")
    asked = dataset.Example("r2", store.get("r2").messages)
    data = dataset.Dataset(tmp_path, [asked], [], {})
    store.record("d", data, ["r1", "r2"])
    assert store.rows_of("d") == {"r1": "preference", "r2": "train"}
    store.withdraw("Mo", by="anna")
    assert list(store.withdrawn_from("d")) == ["r1"] and store.trace("Mo").earlier == ("r1",)


def test_words_and_names_go_from_plans_cards_manifests_and_jobs(
    store: ExampleStore, database: Database, settings: Settings, tmp_path: Path
) -> None:
    rows = [row(1, author="Mo", licence="MIT"), row(2, author="Ben", licence="MIT")]
    store.import_rows(write(tmp_path / "a.jsonl", rows), reviewer="anna")
    named = [{"source": "", "author": who, "licence": "MIT"} for who in ("Mo", "Ben")]
    report = {"sets": {"triggers": {"value": 0.5, "note": 'This one changed most: "Thabo asked".'}}, "samples": []}
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "model.gguf").write_text("weights")
    write_json(tmp_path / "made" / "dataset.json", {"train": 2, "attribution": named})
    registry = Registry(tmp_path / "models")
    facts: dict[str, Any] = {"kind": "base", "title": "T", "licence": "MIT", "context": 64, "report": report}
    registry.add(tmp_path / "made", id="tuned", **facts)
    run = tmp_path / "runs" / "run"
    (run / "named" / "second").mkdir(parents=True)
    write_json(
        run / "plan.json", {"triggers": ["Thabo asked"], "warnings": ["Thabo asked it"], "used": ["r1"], "attribution": named}
    )
    write_json(run / "named" / "second" / "report.json", {"passed": True})
    (run / "named" / "second" / "report.html").write_text("<p>Thabo asked it</p>")
    queue = Jobs(database, settings)
    id = queue.enqueue("retrain", {}).id
    with database.begin() as connection:
        connection.execute(tables.jobs.update().where(tables.jobs.c.id == id).values(result={"report": report}))
    store.withdraw("mo", by="anna")
    folders = [tmp_path / "models", tmp_path / "runs"]
    assert erase_from_reports(folders, {"r1"}, store.gone()) > 0 and erase_from_jobs(database, {"r1"}, store.gone()) == 1
    left = [path.read_text("utf-8") for folder in folders for path in folder.rglob("*.*") if path.is_file()]
    assert len(left) >= 5 and not any("Thabo" in text or '"Mo"' in text for text in left)
    assert read_json(registry.folder("tuned") / "dataset.json")["attribution"] == named[1:]
    assert read_json(run / "plan.json")["used"] == ["r1"]
    assert Registry(tmp_path / "models").verify("tuned").report == {
        "sets": {"triggers": {"value": 0.5, "note": ""}},
        "samples": [],
    }
    with database.read() as connection:
        assert "Thabo" not in json.dumps(connection.execute(sa.select(tables.jobs.c.result)).scalars().all())
    assert erase_from_reports(folders, {"r1"}, store.gone()) == 0 == erase_from_jobs(database, {"r1"}, store.gone())


def test_what_a_report_quotes_of_a_withdrawn_row_goes_as_well(tmp_path: Path) -> None:
    sample = {"question": "q", "wanted": "w", "before": "b", "after": "a"}
    report = {
        "passed": True,
        "reasons": [],
        "samples": [{"id": "r1", **sample, "question": "Thabo asked this"}, {"id": "r2", **sample}],
    }
    model = tmp_path / "models" / "tuned"
    run = tmp_path / "runs" / "run"
    for folder in (model, run):
        folder.mkdir(parents=True)
    write_json(model / "manifest.json", {"id": "tuned", "report": report})
    write_json(run / "report.json", report)
    (run / "report.html").write_text("<p>Thabo asked this</p>")
    assert erase_from_reports([tmp_path / "models", tmp_path / "runs"], {"r1"}) == 2
    left = [path.read_text("utf-8") for path in tmp_path.rglob("*.*") if path.is_file()]
    assert len(left) >= 2 and not any("Thabo" in text for text in left)
    assert [one["id"] for one in read_json(model / "manifest.json")["report"]["samples"]] == ["r2"]
    assert erase_from_reports([tmp_path / "models", tmp_path / "runs"], {"r1"}) == 0
