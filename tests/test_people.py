"""People: their names, their passwords, and what ends at once when one of them is changed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from appliance.accounts import ADMINISTRATOR, PUPIL, TEACHER, Accounts, People, Person
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Busy, Conflict, NotFound, NotSignedIn
from appliance.settings import Settings
from appliance.tables import attempts, sessions, users

PASSWORD = "correct horse battery"
OTHER = "another horse battery"


@pytest.fixture
def accounts(database: Database, settings: Settings) -> Accounts:
    return Accounts(database, settings)


@pytest.fixture
def people(database: Database) -> People:
    return People(database)


@pytest.fixture
def ann(people: People) -> Person:
    return people.add("Ann", TEACHER, password=PASSWORD)[0]


# --- names -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("there", "same"),
    [
        ("Élodie", "éLODIE"),
        ("Ünal Çelik", "ÜNAL ÇELIK"),
        ("Weiß", "WEISS"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
        ("Ann", "\uff21\uff4e\uff4e"),
        ("Jose\u0301", "JOSÉ"),
        ("Жанна", "жАННА"),
    ],
)
def test_names_that_differ_in_case_width_or_encoding_are_one_name(
    accounts: Accounts, people: People, there: str, same: str
) -> None:
    person, _ = people.add(there, PUPIL, password=PASSWORD)
    with pytest.raises(Conflict):
        people.add(same, PUPIL)
    other, _ = people.add("Somebody else", PUPIL)
    with pytest.raises(Conflict):
        people.change(other.id, name=same)
    assert accounts.sign_in(same, PASSWORD, "a")[1].id == person.id
    assert accounts.named(same).id == person.id
    assert people.change(person.id, name=same).name != there or there == same, "a person may change how their own is written"


@pytest.mark.parametrize(
    "name",
    ["A\u200bnn", "A\u200dnn", "\u202eAnn", "Ann\u2066x", "Ann\ufeff", "A\u00adnn", "\u3164", "\u2800", "A\u034fnn",
     "Ann\ufe0f", "A\U000e0061nn", "Ann\x1b[31m", "...", "A" + "\u0301" * 9, "\u0410nn", "Anni\u03b1", "(Ann)", "a\ud800"],
)  # fmt: skip
def test_tricks_with_names_are_refused(people: People, ann: Person, name: str) -> None:
    if name == "a\ud800":
        assert people.add(name, PUPIL)[0].name == "a?", "half a letter cannot be stored, and is not"
        return
    for tricky in (lambda: people.add(name, PUPIL), lambda: people.change(ann.id, name=name)):
        with pytest.raises(BadInput):
            tricky()
    with pytest.raises(BadInput):
        people.add("Other", PUPIL, full_name=name)


@pytest.mark.parametrize(
    "name", ["Ann-Marie O'Neill", "Søren 7b", "محمد علي", "王小明", "Nguyễn Thị Hạnh", "Анна Green", "x" * 64]
)
def test_names_of_the_world_are_taken(accounts: Accounts, people: People, name: str) -> None:
    person, given = people.add(name, PUPIL, full_name=name)
    assert (person.name, person.full_name) == (name, name)
    assert accounts.sign_in(name, given, "a")[1].name == name


def test_people_are_found_by_a_part_of_either_name(people: People) -> None:
    people.add("élodie", PUPIL, full_name="Élodie Durand")
    people.add("ms green", TEACHER, full_name="Anna Green")
    assert [one.name for one in people.list(search="DUR")] == ["élodie"]
    assert [one.name for one in people.list(search="ÉLO")] == ["élodie"]
    assert [one.name for one in people.list(role=TEACHER)] == ["ms green"]
    assert people.list(search="Durand", role=TEACHER) == []


# --- what ends at once -----------------------------------------------------------------------------------------------
CHANGES: dict[str, Callable[[People, str], object]] = {
    "disabled": lambda people, id: people.change(id, disabled=True),
    "role": lambda people, id: people.change(id, role=ADMINISTRATOR),
    "password changed": lambda people, id: people.change_password(id, PASSWORD, OTHER),
    "password reset": lambda people, id: people.reset_password(id),
    "on a sheet": lambda people, id: people.sheet([id]),
    "removed": lambda people, id: people.remove(id),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_ends_sessions_and_keys(accounts: Accounts, people: People, ann: Person, change: str) -> None:
    other, _ = people.add("Ben", TEACHER, password=PASSWORD)
    tokens = [accounts.sign_in("Ann", PASSWORD, "a")[0] for _ in range(2)]
    _, key = accounts.create_key(accounts.named("Ann"), "Moodle")
    stranger, _ = accounts.sign_in("Ben", PASSWORD, "a")
    assert accounts.key(key) and all(accounts.session(token) for token in tokens)
    CHANGES[change](people, ann.id)
    assert accounts.key(key) is None and not any(accounts.session(token) for token in tokens)
    assert accounts.session(stranger), "nobody else is touched"
    assert people.get(other.id) == other


def test_a_new_language_or_name_ends_nothing(accounts: Accounts, people: People, ann: Person) -> None:
    token, _ = accounts.sign_in("Ann", PASSWORD, "a")
    people.change(ann.id, language="fr", full_name="Ann Lee")
    people.prefer(ann.id, text="large")
    session = accounts.session(token)
    assert session and session.user.language == "fr" and session.preferences == {"text": "large"}


def test_who_is_disabled_or_removed_cannot_come_back(accounts: Accounts, people: People, ann: Person) -> None:
    people.change(ann.id, disabled=True)
    with pytest.raises(NotSignedIn):
        accounts.sign_in("Ann", PASSWORD, "a")
    with pytest.raises(NotSignedIn):
        accounts.begin(ann.id)
    people.change(ann.id, disabled=False)
    assert accounts.sign_in("Ann", PASSWORD, "a")
    people.remove(ann.id)
    with pytest.raises(NotFound):
        people.get(ann.id)


def test_each_sign_in_has_a_token_of_its_own(accounts: Accounts, people: People, ann: Person) -> None:
    tokens = {accounts.sign_in("Ann", PASSWORD, "a")[0] for _ in range(3)}
    found = [accounts.session(token) for token in tokens]
    assert len(tokens) == 3 and len({one.csrf for one in found if one}) == 3
    me = accounts.named("Ann")
    first = next(iter(tokens))
    assert [one.current for one in accounts.sessions_of(me, first)].count(True) == 1
    assert accounts.end_sessions(me, but=first) == 2
    assert [bool(accounts.session(token)) for token in tokens].count(True) == 1
    assert people.get(ann.id).name == "Ann"


# --- passwords -------------------------------------------------------------------------------------------------------
def test_a_given_password_is_typed_as_people_type(accounts: Accounts, people: People) -> None:
    person, given = people.add("Ann", PUPIL)
    assert person.temporary
    for typed in (given, given.lower(), given.replace("-", ""), f" {given.replace('-', ' ').lower()}"):
        token, _ = accounts.sign_in("Ann", typed, "a")
        session = accounts.session(token)
        assert session and session.temporary
    people.choose_password(person.id, PASSWORD)
    assert not people.get(person.id).temporary
    with pytest.raises(NotSignedIn):
        accounts.sign_in("Ann", PASSWORD.upper(), "a")
    with pytest.raises(Conflict):
        people.choose_password(person.id, OTHER)


def test_the_given_password_is_not_ones_own(people: People) -> None:
    person, given = people.add("Ann", PUPIL)
    for new in (given, given.lower()):
        with pytest.raises(BadInput):
            people.choose_password(person.id, new)
    assert people.get(person.id).temporary


def test_a_borrowed_page_cannot_guess_the_password(people: People, ann: Person, database: Database) -> None:
    for _ in range(10):
        with pytest.raises(NotSignedIn):
            people.change_password(ann.id, "a wrong password", OTHER)
    with pytest.raises(Busy):
        people.change_password(ann.id, PASSWORD, OTHER)
    with database.begin() as connection:
        connection.execute(sa.update(attempts).values(last=attempts.c.last - 5))
    people.change_password(ann.id, PASSWORD, OTHER)


def test_a_sheet_gives_passwords_to_those_who_have_none(accounts: Accounts, people: People, database: Database) -> None:
    made = [people.add(f"Pupil {number}", PUPIL)[0] for number in range(5)]
    with database.begin() as connection:
        connection.execute(sa.update(users).values(password_hash="", temporary=False))
    assert all(one.waiting for one in people.list())
    for password in ("", "!", "any at all"):
        with pytest.raises(NotSignedIn):
            accounts.sign_in("Pupil 1", password, "a")
    told: list[tuple[int, int]] = []
    sheet = people.sheet([one.id for one in made], lambda done, all_of: told.append((done, all_of)))
    assert told[-1] == (5, 5) and [one.name for one, _ in sheet] == [f"Pupil {number}" for number in range(5)]
    assert len({password for _, password in sheet}) == 5
    for person, password in sheet:
        assert accounts.sign_in(person.name, password, "a")[1].id == person.id
    assert not any(one.waiting for one in people.list()) and all(one.temporary for one in people.list())


def test_a_password_kept_elsewhere_is_not_changed_here(accounts: Accounts, people: People) -> None:
    person, _ = people.add("Ann", TEACHER, source="ldap")
    for change in (
        lambda: people.reset_password(person.id),
        lambda: people.change_password(person.id, "", PASSWORD),
        lambda: people.choose_password(person.id, PASSWORD),
    ):
        with pytest.raises(Conflict):
            change()
    assert people.sheet([person.id]) == [] and not person.waiting
    with pytest.raises(NotSignedIn):
        accounts.sign_in("Ann", "", "a")


def test_the_last_administrator_stays(people: People) -> None:
    first, _ = people.add("Head", ADMINISTRATOR)
    for change in (
        lambda: people.change(first.id, role=TEACHER),
        lambda: people.change(first.id, disabled=True),
        lambda: people.remove(first.id),
    ):
        with pytest.raises(Conflict):
            change()
    second, _ = people.add("Deputy", ADMINISTRATOR)
    people.change(first.id, disabled=True)
    with pytest.raises(Conflict):
        people.remove(second.id)


def test_odd_wishes_are_refused(people: People, ann: Person) -> None:
    for wish in ({"text": "huge"}, {"spacing": "x" * 10_000}):
        with pytest.raises(BadInput):
            people.prefer(ann.id, **wish)
    with pytest.raises(BadInput):
        people.change(ann.id, role="king")
    with pytest.raises(BadInput):
        people.add("Ben", "king")
    with pytest.raises(NotFound):
        people.prefer("nobody", text="large")


# --- enumeration, locking, clocks ------------------------------------------------------------------------------------
def test_who_is_unknown_disabled_or_kept_elsewhere_costs_the_same(
    accounts: Accounts, people: People, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    from argon2 import PasswordHasher

    people.add("Ldap", TEACHER, source="ldap")
    people.change(people.add("Gone", TEACHER, password=PASSWORD)[0].id, disabled=True)
    hashes: list[str] = []
    verify = PasswordHasher.verify

    def counted(self: PasswordHasher, hash: str | bytes, password: str | bytes) -> bool:
        hashes.append(str(hash))
        return verify(self, hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    answers = set()
    for name in ("Ann", "Nobody", "Ldap", "Gone", "(command line)"):
        before = len(hashes)
        with pytest.raises(NotSignedIn) as caught:
            accounts.sign_in(name, "a wrong password", "a")
        answers.add((caught.value.message, caught.value.hint))
        assert len(hashes) == before + 1, name
    assert len(answers) == 1 and all("m=19456,t=2,p=1" in one for one in hashes)
    assert people.get(ann.id)


def test_a_prank_on_one_name_leaves_the_class_alone(accounts: Accounts, people: People, ann: Person) -> None:
    people.add("Ben", PUPIL, password=PASSWORD)
    for number in range(12):
        with pytest.raises((NotSignedIn, Busy)):
            accounts.sign_in("Ann", f"wrong password {number}", "the school's one address")
    with pytest.raises(Busy):
        accounts.sign_in("ANN", PASSWORD, "the school's one address")
    assert accounts.sign_in("Ben", PASSWORD, "the school's one address")
    assert accounts.sign_in("Ann", PASSWORD, "her own desk")[1].id == ann.id


def test_a_thousand_guesses(accounts: Accounts, ann: Person) -> None:
    answers = []
    for number in range(1000):
        try:
            accounts.sign_in("Ann", f"wrong password {number}", "a")
        except ApplianceError as error:
            answers.append(error.code)
    assert answers.count("not_signed_in") <= 20 and answers.count("busy") >= 980 and ann.name == "Ann"


def test_a_clock_set_back_a_year_locks_nobody_out_and_keeps_nobody_in(
    accounts: Accounts, ann: Person, database: Database
) -> None:
    token, user = accounts.sign_in("Ann", PASSWORD, "a")
    for number in range(11):
        with pytest.raises((NotSignedIn, Busy)):
            accounts.sign_in("Ann", f"wrong password {number}", "b")
    year = 365 * 86400
    with database.begin() as connection:
        connection.execute(sa.update(attempts).values(last=attempts.c.last + year))
        connection.execute(sa.update(sessions).values(created=sessions.c.created + year, expires=sessions.c.expires + year))
    assert accounts.session(token) is None and accounts.sessions_of(user, token) == []
    with pytest.raises(Busy) as caught:
        accounts.sign_in("Ann", PASSWORD, "b")
    assert caught.value.retry_after <= 2
    with database.begin() as connection:
        assert connection.scalar(sa.select(sa.func.max(attempts.c.last))) <= time.time()
        connection.execute(sa.update(attempts).values(last=attempts.c.last - 3))
    assert accounts.sign_in("Ann", PASSWORD, "b")[1].id == ann.id
