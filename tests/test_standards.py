"""The school's curriculum standards: taken from a spreadsheet whole or not at all, tagged, counted, and back in a file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from appliance.accounts import Accounts, People, User
from appliance.audit import Audit
from appliance.classes import Classes
from appliance.cli import group
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Forbidden, NotFound, TooLarge
from appliance.settings import Settings
from appliance.standards import Standard, Standards
from appliance.tables import examples
from appliance.tables.practice import rehearsals, scenarios, standard_tags

LIST = """code,subject,grade,text
M.4.1,Mathematics,4,"Compare two fractions, also with unlike denominators"
S.7.2,Science,7,Explain how plants make sugar
H.9,History,,Tell a source from what is said about it
"""


@pytest.fixture
def kept(settings: Settings, database: Database) -> Standards:
    return Standards(database, Accounts(database, settings), Audit(database))


@pytest.fixture
def me(settings: Settings, database: Database) -> User:
    return Accounts(database, settings).local_administrator()


def person(settings: Settings, database: Database, name: str, role: str, class_id: str = "") -> User:
    People(database).add(name, role)
    accounts = Accounts(database, settings)
    if class_id:
        People(database).join(accounts.named(name).id, class_id, teaches=role != "pupil")
    return accounts.named(name)


# --- files ----------------------------------------------------------------------------------------------------------------
def test_a_list_is_taken_in_and_goes_there_and_back(kept: Standards, me: User, database: Database) -> None:
    dry = kept.take(me, LIST.encode(), "list.csv", dry_run=True)
    assert list(dry.new) == ["M.4.1", "S.7.2", "H.9"] and list(kept.list(me)) == []
    assert not kept.take(me, LIST.encode(), "list.csv").faults
    found = kept.list(me)
    assert found[0] == Standard("M.4.1", "Compare two fractions, also with unlike denominators", "Mathematics", "4")
    assert [one.code for one in found] == ["M.4.1", "S.7.2", "H.9"]
    again = kept.take(me, kept.export(me).encode(), "back.csv")
    assert not (again.new or again.changed or again.gone or again.faults or again.notes) and kept.list(me) == found
    assert [one.code for one in kept.list(me, subject="mathematics ")] == ["M.4.1"] and not kept.list(me, grade="5")
    noted = [row for row in Audit(database).entries(thing="standards") if row.verb == "import standards"]
    assert [row.facts["new"] for row in noted] == [3, 0]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (LIST.encode("utf-8-sig"), "with a mark"), (LIST.encode("utf-16"), "Unicode text"), (LIST.encode("cp1252"), "Windows"),
        (LIST.replace("\n", "\r\n").encode(), "line ends"),
        (b"Text;Grade;Standard;Area\nExplain;7;S.7.2;Science\n", "semicolons, other names and order"),
        (b"code\ttext\nS.7.2\tExplain\n\n\n", "tabs, empty lines"),
    ],
)  # fmt: skip
def test_whatever_a_spreadsheet_saves_is_read(kept: Standards, me: User, data: bytes, name: str) -> None:
    done = kept.take(me, data, f"{name}.csv")
    assert not done.faults and "S.7.2" in [one.code for one in kept.list(me)]


def test_letters_of_all_languages_and_formulas_survive(kept: Standards, me: User) -> None:
    kept.take(me, "code,text\n=1+1,Comparer des œuvres é\n@x,قارن بين كسرين\n".encode(), "list.csv")
    text = kept.export(me)
    assert "'=1+1" in text and "'@x" in text, "no spreadsheet runs them"
    assert not kept.take(me, text.encode(), "back.csv").changed and kept.list(me)[1].text == "قارن بين كسرين"
    done = kept.take(me, "code,text\nA,Caf\xe9\n".encode("cp1252"), "old.csv")
    assert "Windows-1252" in done.notes[0] and kept.list(me)[0].text == "Café"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "column called code"), ("name,text\nA,b\n", "no column called code"), ("code\nA\n", "no column called text"),
        ("code,code,text\nA,B,c\n", "more than one column called code"), ('code,text\n"A,b\n', "line"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_refused(kept: Standards, me: User, text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        kept.take(me, text.encode(), "list.csv")
    assert caught.value.hint
    with pytest.raises(TooLarge):
        kept.take(me, b"code,text\n" + b"A,b\n" * 10_001, "list.csv")


def test_each_fault_is_told_with_its_line_and_nothing_is_changed(kept: Standards, me: User) -> None:
    kept.take(me, LIST.encode(), "list.csv")
    wrong = f"code,text,grade\n,nothing\nA,\nB,{'x' * 2001}\nC,fine\nc,twice\nD,\x07\nE,ok,4,much,more\n"
    done = kept.take(me, wrong.encode(), "wrong.csv", replace=True)
    assert {(one.line, one.column) for one in done.faults} == {
        (2, "code"), (3, "text"), (4, "text"), (6, "code"), (7, "text"), (8, ""),
    }  # fmt: skip
    assert "line 5" in next(one.message for one in done.faults if one.line == 6)
    assert [one.code for one in kept.list(me)] == ["M.4.1", "S.7.2", "H.9"]
    assert kept.take(me, b"code,text\n", "empty.csv").faults


def test_what_a_newer_file_lacks_stays_unless_it_is_to_go(kept: Standards, me: User, database: Database) -> None:
    kept.take(me, LIST.encode(), "list.csv")
    made = Classes(database).add("7B")
    kept.tag(me, "S.7.2", "class", made.id)
    newer = b"code,subject,grade,text\nH.9,History,9,Tell a source from a tale\nM.9,Mathematics,9,Prove it\n"
    done = kept.take(me, newer, "newer.csv")
    assert (list(done.new), list(done.changed), list(done.gone)) == (["M.9"], ["H.9"], ["M.4.1", "S.7.2"])
    assert [one.code for one in kept.list(me)] == ["H.9", "M.9", "M.4.1", "S.7.2"]
    assert list(kept.tags(me, "class", made.id)) == ["S.7.2"]
    kept.take(me, newer, "newer.csv", replace=True)
    assert [one.code for one in kept.list(me)] == ["H.9", "M.9"] and not kept.tags(me, "class", made.id)


# --- tags and counts ------------------------------------------------------------------------------------------------------
def scene(database: Database, id: str, version: int, state: str, *codes: str) -> None:
    row = {"id": id, "version": version, "facts": {"standards": list(codes)}, "state": state, "created": time.time()}
    with database.begin() as connection:
        connection.execute(sa.insert(scenarios).values(**row))


def test_what_there_is_for_each_standard_is_counted(kept: Standards, me: User, database: Database, settings: Settings) -> None:
    kept.take(me, LIST.encode(), "list.csv")
    made = Classes(database).add("7B")
    scene(database, "leaves", 1, "approved", "H.9")
    scene(database, "leaves", 2, "draft", "S.7.2")
    scene(database, "old", 1, "archived", "S.7.2")
    scene(database, "other", 1, "approved")
    brown = person(settings, database, "brown", "teacher")
    with database.begin() as connection:
        example = {"id": "e1", "messages": [], "created": time.time(), "imported": time.time()}
        connection.execute(sa.insert(examples).values(**example))
        for number, id in enumerate(("leaves", "leaves", "other")):
            row = {"id": str(number), "user": brown.id, "scenario": id, "version": 1, "facts": {}, "seed": 1, "created": 1.0}
            connection.execute(sa.insert(rehearsals).values(**row, changed=1.0, until=2.0))
    for kind, thing in (("class", made.id), ("example", "e1"), ("scenario", "leaves"), ("scenario", "other")):
        kept.tag(me, "S.7.2", kind, thing)
        kept.tag(me, "S.7.2", kind, thing)
    counts = {one.standard.code: (one.classes, one.examples, one.scenarios, one.rehearsals) for one in kept.counts(brown)}
    assert counts == {"M.4.1": (0, 0, 0, 0), "S.7.2": (1, 1, 2, 3), "H.9": (0, 0, 0, 0)}
    kept.untag(me, "S.7.2", "scenario", "other")
    kept.untag(me, "S.7.2", "scenario", "other")
    assert [one.scenarios for one in kept.counts(me)] == [0, 1, 0]


def test_who_may_change_what(kept: Standards, me: User, database: Database, settings: Settings) -> None:
    kept.take(me, LIST.encode(), "list.csv")
    mine, other = (Classes(database).add(name).id for name in ("7B", "8A"))
    brown, ann = (person(settings, database, name, role, mine) for name, role in (("brown", "teacher"), ("ann", "pupil")))
    kept.tag(brown, "S.7.2", "class", mine)
    assert kept.list(brown) and kept.counts(brown) and kept.tags(brown, "class", mine)
    for act in (
        lambda: kept.tag(brown, "S.7.2", "class", other), lambda: kept.take(brown, LIST.encode(), "x"), lambda: kept.list(ann),
        lambda: kept.tag(ann, "S.7.2", "class", mine), lambda: kept.counts(ann), lambda: kept.export(ann),
        lambda: kept.tag(ann, "S.7.2", "scenario", "x"), lambda: kept.untag(ann, "S.7.2", "class", mine),
    ):  # fmt: skip
        with pytest.raises((Forbidden, NotFound)):
            act()
    for code, kind, thing, error in (
        ("none", "class", mine, NotFound), ("S.7.2", "class", "none", NotFound), ("S.7.2", "scenario", "none", NotFound),
        ("S.7.2", "example", "none", NotFound), ("S.7.2", "teacher", "x", BadInput),
    ):  # fmt: skip
        with pytest.raises(error):
            kept.tag(me, code, kind, thing)
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(standard_tags)) == 1


# --- the command line -----------------------------------------------------------------------------------------------------
def test_the_command_line(settings: Settings, database: Database, tmp_path: Path) -> None:
    def said(*arguments: str) -> Any:
        command = ["--home", str(settings.home), "standards", *arguments, "--json"]
        result = CliRunner().invoke(group, command, standalone_mode=False)
        if isinstance(result.exception, ApplianceError):
            raise result.exception
        assert result.exception is None, result.exception
        return json.loads(result.stdout)

    file, back = tmp_path / "list.csv", tmp_path / "back.csv"
    file.write_text(LIST)
    assert said("list") == {"standards": []}
    assert said("import", str(file), "--dry-run")["done"] is False and said("list") == {"standards": []}
    done = said("import", str(file))
    assert done["done"] is True and done["found"] == 3
    Classes(database).add("7 B")
    assert said("tag", "S.7.2", "class", "7b")["standards"] == ["S.7.2"]
    listed = said("list", "--subject", "science")["standards"]
    assert [(one["code"], one["classes"], one["rehearsals"]) for one in listed] == [("S.7.2", 1, 0)]
    assert said("untag", "S.7.2", "class", "7B")["standards"] == []
    said("export", str(back))
    assert said("import", str(back), "--replace")["changed"] == []
    file.write_text("code,text\n,x\n")
    with pytest.raises(BadInput, match="1 faults; nothing was changed"):
        said("import", str(file))
    for wrong in (("import", str(tmp_path / "none.csv")), ("tag", "none", "class", "7 B"), ("tag", "H.9", "class", "9")):
        with pytest.raises(NotFound):
            said(*wrong)
    shown = CliRunner().invoke(group, ["--home", str(settings.home), "standards", "list"])
    assert "S.7.2" in shown.output and "Explain how plants" in shown.output
