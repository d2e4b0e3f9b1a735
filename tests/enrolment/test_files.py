"""People from files: what a CSV may look like, what is wrong with it line by line, and that an export changes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as rules
from hypothesis import strategies as st

from appliance.accounts import ADMINISTRATOR, PUPIL, ROLES, TEACHER, Accounts, People
from appliance.audit import Audit
from appliance.classes import Classes
from appliance.classes import clean as clean_class
from appliance.db import Database
from appliance.enrolment import Plan, apply, compare, export, read, read_csv
from appliance.enrolment.cells import escape, join_list, split_list, unescape
from appliance.errors import BadInput, Conflict, TooLarge
from appliance.settings import Settings
from appliance.tables import classes, users

HEAD = "name,full_name,role,classes,language,external\n"


@pytest.fixture
def people(database: Database) -> People:
    return People(database)


def take(database: Database, text: str | bytes) -> Plan:
    roll = read(text.encode() if isinstance(text, str) else text, "people.csv")
    return apply(database, roll, compare(database, roll).digest, actor="me")


def faults(database: Database, text: str) -> Sequence[tuple[int, str]]:
    return [(fault.line, fault.column) for fault in compare(database, read(text.encode(), "people.csv")).faults]


# --- reading ---------------------------------------------------------------------------------------------------------
ROWS = [
    ("name", "full_name", "role", "classes"),
    ("élodie", "Élodie Dürr", "pupil", "7b; 8a"),
    ("Ms Größ", "", "teacher", "7b"),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("split", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_as_spreadsheets_save_it(database: Database, people: People, encoding: str, split: str, end: str) -> None:
    text = end.join(split.join(f'"{cell}"' if split in cell else cell for cell in row) for row in ROWS)
    plan = take(database, text.encode(encoding))
    assert [one.name for one in plan.added] == ["élodie", "Ms Größ"] and plan.new_classes == ["7b", "8a"]
    assert bool(plan.notes) == (encoding == "cp1252")
    found = {one.name: one for one in people.list()}
    assert found["élodie"].full_name == "Élodie Dürr" and found["élodie"].classes == {"7b": "pupil", "8a": "pupil"}
    assert found["Ms Größ"].role == TEACHER and found["Ms Größ"].classes == {"7b": "teacher"}
    assert all(one.waiting for one in found.values())


ROSTERS = {
    "Polish": ("cp1250", "Łukasz Wójcik;Małgorzata Żak"),
    "Polish, a few": ("cp1250", "Źdźbło Ewa;Michał Gałka"),
    "Polish, of Unix": ("iso8859-2", "Łukasz Wójcik;Małgorzata Żak;Paweł Śliwa"),
    "Czech": ("cp1250", "Jiří Novák;Zdeněk Černý;Tomáš Řezníček"),
    "Hungarian": ("cp1250", "Kovács Győző;Erdős Enikő;Tóth Ödön"),
    "Croatian": ("cp1250", "Ana Žnidarič;Šime Čović"),
    "Romanian": ("cp1250", "Ştefan Mureşan;Ţuţea Cătălin;Brânduşa"),
    "Turkish": ("cp1254", "Ayşe Yıldız;Özgür Şahin;Çiğdem Öztürk"),  # noqa: RUF001
    "German": ("cp1252", "Jürgen Größ;Käthe Müller"),
    "French": ("cp1252", "Zoë Lefèvre;Noël Français;Chloé Dubœuf"),
    "Spanish": ("cp1252", "Mª José Peña;Íñigo Núñez;Begoña Ibáñez"),
    "Portuguese": ("cp1252", "João Gonçalves;Conceição Simões"),
    "Icelandic": ("cp1252", "Jón Þórðarson;Guðrún Ægisdóttir"),
    "Danish": ("cp1252", "Søren Kjær;Åse Bjørnstad"),
    "Catalan": ("cp1252", "Gal·la Puigcorbé;Núria Gràcia"),
    "Irish": ("cp1252", "Seán O´Brien;Róisín D’Arcy"),  # noqa: RUF001
    "one letter": ("cp1252", "René"),
}


@pytest.mark.parametrize("language", ROSTERS)
@pytest.mark.parametrize("group", ["7b", "1ºA", "2ª B"])
def test_the_letters_of_an_old_spreadsheet(language: str, group: str) -> None:
    """Each name once, as a class of a school in that country might be saved there, with its classes as Spain writes them."""
    page, names = ROSTERS[language]
    group = group if page == "cp1252" else "7b"
    text = "name;full_name;classes\r\n" + "".join(f"p{n};{one};{group}\r\n" for n, one in enumerate(names.split(";")))
    roll = read_csv(text.encode(page), "people.csv")
    assert [one.full_name for one in roll.entries] == names.split(";") and not roll.faults
    assert all(one.classes == (group,) for one in roll.entries)
    (note,) = roll.notes
    called = {"cp1250": "Windows-1250 (", "iso8859-2": "ISO 8859-2 (", "cp1254": "Windows-1254 (", "cp1252": "Windows-1252."}
    assert called[page] in note or (page == "cp1250" and "ISO 8859-2" in note), "where both read the same, either will do"
    assert "Check that letters such as" in note


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"first,last\nA,B\n", b"\x00\x01\x02", b"name\n\x81\x8d", b'name\n"open', b"PK\x03\x04 no archive",
     b"\xff\xfe\x00", b"name,name\na,b\n", b"\x89PNG\r\n\x1a\n" + bytes(100)],
)  # fmt: skip
def test_what_is_no_such_file_is_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(BadInput) as caught:
        read(data, "people.csv")
    assert "people.csv" in caught.value.message and caught.value.hint


def test_too_much_is_refused() -> None:
    with pytest.raises(TooLarge):
        read_csv(b"name\n" + b"x\n" * 20_002, "people.csv")
    with pytest.raises(TooLarge):
        read_csv(b"name\n" + b"x" * 20_000_001, "people.csv")
    with pytest.raises(BadInput):
        read_csv(b'name\n"' + b"x" * 200_000 + b'"', "people.csv")


def test_each_line_says_what_is_wrong_with_it(database: Database, people: People) -> None:
    people.add("Head", ADMINISTRATOR, external="77")
    text = HEAD + (
        "mia,Mia,pupil,7b,,1\n"
        "MIA,Mia again,pupil,7b,,2\n"
        "noah,,king,,,\n"
        ",nobody,pupil,,,\n"
        f"{'x' * 65},,pupil,,,\n"
        f"long,{'x' * 121},pupil,,,\n"
        f"class,,pupil,{'x' * 81},,\n"
        "zero\u200bwidth,,pupil,,,\n"
        "bidi,\u202egnihton,pupil,,,\n"
        "tongue,,pupil,,English,\n"
        "same,,pupil,,,1\n"
        "many,,pupil,,,9,more,cells\n"
        "head,,administrator,,,78\n"
        "\n"
        "fine,,,,,\n"
    )
    found = faults(database, text)
    assert found == [
        (3, "name"), (4, "role"), (5, "name"), (6, "name"), (7, "full_name"), (8, "classes"), (9, "name"), (10, "full_name"),
        (11, "language"), (12, "external"), (13, ""), (14, "external"), (16, "role"),
    ]  # fmt: skip
    roll = read(text.encode(), "people.csv")
    with pytest.raises(BadInput, match="line 3"):
        apply(database, roll, compare(database, roll).digest)
    assert len(people.list()) == 1, "all or nothing"


def test_a_file_without_columns_changes_nothing_of_them(database: Database, people: People) -> None:
    people.join(
        people.add("ann", TEACHER, full_name="Ann Lee", language="fr", external="9")[0].id, Classes(database).add("7b").id
    )
    before = people.list()
    plan = take(database, "Name\nANN\n")
    assert plan.count == 1 and dict(plan.changed[0].columns) == {"name": ("ann", "ANN")}
    assert people.list()[0].full_name == "Ann Lee" and people.list()[0].classes == before[0].classes
    plan = take(database, "name;full name\nann;\n")
    assert people.list()[0].full_name == "" and people.list()[0].language == "fr" and plan.count == 1


# --- changing --------------------------------------------------------------------------------------------------------
def test_a_change_of_role_ends_sessions_and_changes_the_part(database: Database, people: People, settings: Settings) -> None:
    accounts = Accounts(database, settings)
    ann, _ = people.add("ann", PUPIL, password="correct horse battery")
    people.join(ann.id, Classes(database).add("7b").id)
    token, _ = accounts.sign_in("ann", "correct horse battery", "a")
    take(database, "name,language\nann,fr\n")
    assert accounts.session(token)
    take(database, "name,role\nann,teacher\n")
    assert accounts.session(token) is None and people.get(ann.id).classes == {"7b": "teacher"}
    assert accounts.sign_in("ann", "correct horse battery", "a"), "the password stays"


def test_names_may_be_exchanged_and_not_taken(database: Database, people: People) -> None:
    take(database, "name,external\nann,1\nben,2\ncem,3\n")
    take(database, "name,external\nben,1\nANN,2\n")
    assert {one.external: one.name for one in people.list()} == {"1": "ben", "2": "ANN", "3": "cem"}
    assert faults(database, "name,external\nCEM,1\n") == [(2, "name")]
    assert faults(database, "name,external\ncem,4\n") == [(2, "external")]
    assert faults(database, "name,external\nnew,1\nNEW,5\n") == [(3, "name")]


def test_classes_are_joined_and_left(database: Database, people: People) -> None:
    take(database, "name,classes\nann,7b;8a\n")
    plan = take(database, "name,classes\nann,7 B ; 9c\n")
    assert (plan.changed[0].joins, plan.changed[0].leaves, plan.new_classes) == (("9c",), ("8a",), ["9c"])
    assert sorted(people.list()[0].classes) == ["7b", "9c"]
    take(database, "name,classes\nann,\n")
    assert people.list()[0].classes == {}


def test_an_archived_class_is_not_joined_and_not_left(database: Database) -> None:
    take(database, "name,classes\nann,7b\n")
    with database.begin() as connection:
        connection.execute(sa.update(classes).values(archived=1.0))
    assert faults(database, "name,classes\nann,7B\n") == [(2, "classes")]
    assert compare(database, read_csv(b"name,classes\nann,\n", "x.csv")).count == 0


def test_the_last_administrator_stays(database: Database, people: People) -> None:
    people.add("Head", ADMINISTRATOR)
    assert faults(database, "name,role\nhead,teacher\n") == [(2, "role")]
    people.add("Ann", TEACHER)
    assert faults(database, "name,role\nhead,teacher\nann,administrator\n") == []


def test_only_what_was_shown_is_done(database: Database, people: People) -> None:
    roll = read_csv(b"name,full_name\nann,Ann Lee\n", "people.csv")
    shown = compare(database, roll).digest
    people.add("Ann", TEACHER)
    with pytest.raises(Conflict):
        apply(database, roll, shown)
    assert people.list()[0].full_name == ""
    apply(database, roll, compare(database, roll).digest)
    assert people.list()[0].full_name == "Ann Lee"


def test_the_record_holds_counts_and_no_names(database: Database) -> None:
    take(database, "name,classes\nann,7b\n")
    entry = Audit(database).entries()[0]
    assert (entry.verb, entry.actor) == ("import people", "me")
    assert (entry.facts["added"], entry.facts["changed"], entry.facts["classes"]) == (1, 0, 1) and "ann" not in str(entry.facts)


def test_two_thousand_people_take_seconds(database: Database, people: People) -> None:
    text = HEAD + "".join(f"pupil{n:04},Pupil {n},pupil,{n // 25}a;all,en,{n}\n" for n in range(2000))
    started = time.monotonic()
    plan = take(database, text)
    assert time.monotonic() - started < 20 and len(plan.added) == 2000 and len(plan.new_classes) == 81
    assert compare(database, read_csv(export(people).encode(), "again.csv")).unchanged == 2000


# --- cells -----------------------------------------------------------------------------------------------------------
@given(st.text(max_size=12) | st.text(alphabet="'=+-@\t\r ax", max_size=6))
def test_no_cell_is_a_formula_and_each_comes_back(cell: str) -> None:
    assert unescape(escape(cell)) == cell
    assert escape(cell)[:1] not in tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20")


@given(st.lists(st.text(alphabet="ab;\\ '=", min_size=1, max_size=5).map(str.strip).filter(bool), max_size=5))
def test_a_list_in_a_cell_comes_back(names: list[str]) -> None:
    assert split_list(join_list(names)) == names


NAMES = st.text(min_size=1, max_size=20) | st.text(alphabet="'=+-@;\\,\"abÄ \t\n", min_size=1, max_size=12)


@given(
    people_of=st.lists(st.tuples(NAMES, NAMES, st.sampled_from(ROLES), st.sampled_from(["", "fr"])), max_size=6),
    classes_of=st.lists(NAMES, max_size=4),
    members=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=10),
)
@rules(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_export_read_again_changes_nothing(
    database: Database,
    people_of: list[tuple[str, str, str, str]],
    classes_of: list[str],
    members: list[tuple[int, int, bool]],
) -> None:
    with database.begin() as connection:
        connection.execute(sa.delete(users))
        connection.execute(sa.delete(classes))
    people, made = People(database), []
    for name, full_name, role, language in people_of:
        try:
            made.append(people.add(name, role, full_name=full_name, language=language, source="oidc")[0])
        except (BadInput, Conflict):
            continue
    lessons = []
    for name in classes_of:
        try:
            lessons.append(Classes(database).add(clean_class(name)))
        except (BadInput, Conflict):
            continue
    for who, where, teaches in members:
        if who < len(made) and where < len(lessons):
            people.join(made[who].id, lessons[where].id, teaches=teaches)
    text = export(people)
    before = people.list()
    for data in (text.encode(), text.removeprefix("\ufeff").encode("utf-16")):
        roll = read(data, "export.csv")
        plan = compare(database, roll)
        assert (plan.count, plan.faults, plan.unchanged) == (0, [], len(made)), text
        apply(database, roll, plan.digest)
    assert people.list() == before and export(people) == text
