"""People whom another system vouches for: found again by its number, brought up to date, and never taken for somebody else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.accounts import Accounts, People
from appliance.accounts.vouched import Vouched, admit
from appliance.audit import Audit
from appliance.classes import Classes
from appliance.db import Database
from appliance.errors import BadInput, Conflict, NotSignedIn
from appliance.settings import Settings

ADA = Vouched("ldap", "number-1", "ada", "Ada Byron")


def test_a_new_person_is_made_once_and_renamed_with_the_directory(database: Database) -> None:
    people = People(database)
    made = admit(database, ADA)
    assert made is not None and made.changed == {"new": "ldap", "role": "pupil"}
    again = admit(database, replace(ADA, name="ada.lovelace", full_name="Ada Lovelace"))
    assert again is not None and again.id == made.id and not again.changed
    person = people.get(made.id)
    assert (person.name, person.full_name, person.source, person.external) == (
        "ada.lovelace", "Ada Lovelace", "ldap", "number-1",
    )  # fmt: skip


def test_a_name_that_came_to_mean_another_person_does_not_open_the_account(database: Database) -> None:
    admit(database, ADA)
    for other in (
        replace(ADA, external="number-2"),
        replace(ADA, source="oidc"),
        replace(ADA, external="number-2", name="ADA"),
    ):
        with pytest.raises(Conflict, match="somebody else named"):
            admit(database, other)
    People(database).add("Ärmin", "teacher", password="correct horse battery")
    with pytest.raises(Conflict):
        admit(database, Vouched("ldap", "number-3", "ärmin"))


def test_a_person_prepared_for_the_directory_is_linked_at_the_first_sign_in(database: Database) -> None:
    prepared, _ = People(database).add("Ada", "teacher", source="ldap")
    linked = admit(database, ADA)
    assert linked is not None and linked.id == prepared.id and linked.changed == {"linked": "ldap"}
    assert People(database).get(prepared.id).role == "teacher", "the directory does not rule the role"
    with pytest.raises(Conflict):
        admit(database, replace(ADA, external="number-2"))


def test_a_rename_to_a_name_that_is_taken_waits(database: Database) -> None:
    made = admit(database, ADA)
    People(database).add("grace", "pupil", password="correct horse battery")
    again = admit(database, replace(ADA, name="Grace"))
    assert made is not None and again is not None and again.id == made.id
    assert People(database).get(made.id).name == "ada"


def test_a_role_that_the_directory_rules_changes_and_ends_sessions_and_is_recorded(
    database: Database, settings: Settings
) -> None:
    audit = Audit(database)
    accounts = Accounts(database, settings, audit=audit)
    teacher = replace(ADA, role="teacher", ruled=True)
    id = accounts.admit(teacher)
    assert id
    token = accounts.begin(id)
    assert accounts.admit(teacher) == id and accounts.session(token) is not None
    assert accounts.admit(replace(teacher, role="pupil")) == id
    assert accounts.session(token) is None and People(database).get(id).role == "pupil"
    facts = [row.facts for row in audit.entries(thing=f"person {id}")]
    assert facts == [{"new": "ldap", "role": "teacher"}, {"role": "pupil", "before": "teacher"}]


def test_the_last_administrator_stays_one(database: Database) -> None:
    head = replace(ADA, role="administrator", ruled=True)
    made = admit(database, head)
    with pytest.raises(Conflict, match="last administrator"):
        admit(database, replace(head, role="pupil"))
    assert made is not None and People(database).get(made.id).role == "administrator"


def test_who_is_disabled_here_stays_out(database: Database, settings: Settings) -> None:
    accounts = Accounts(database, settings, lambda _name, _password: ADA)
    _, user = accounts.sign_in("ada", "anything", "here")
    People(database).change(user.id, disabled=True)
    assert admit(database, ADA) is None
    with pytest.raises(NotSignedIn):
        accounts.sign_in("ada", "anything", "here")


@pytest.mark.parametrize("name", ["", "(command line)", "a\u202eb", "x" * 65, "a\nb\x07"])
def test_a_name_that_cannot_be_one_here_is_refused(database: Database, name: str) -> None:
    with pytest.raises(BadInput):
        admit(database, replace(ADA, name=name))


def test_a_full_name_that_cannot_be_shown_is_left_out(database: Database) -> None:
    made = admit(database, replace(ADA, full_name="Ada \u202e Byron"))
    assert made is not None and People(database).get(made.id).full_name == ""


def test_classes_of_the_directory_are_joined_and_left_and_others_left_alone(database: Database) -> None:
    classes, people = Classes(database), People(database)
    seven, eight, club = (classes.add(name) for name in ("7 B", "8 B", "Chess"))
    made = admit(database, replace(ADA, classes=("7b", "no such class")))
    assert made is not None
    people.join(made.id, club.id)
    assert people.get(made.id).classes == {"7 B": "pupil", "Chess": "pupil"}
    people.prefer(made.id, text="large")
    admit(database, replace(ADA, classes=("8B",)))
    assert people.get(made.id).classes == {"8 B": "pupil", "Chess": "pupil"}
    admit(database, ADA)
    assert people.get(made.id).classes == {"8 B": "pupil", "Chess": "pupil"}, "a directory that does not say changes nothing"
    admit(database, replace(ADA, classes=("chess",)))
    admit(database, replace(ADA, classes=()))
    assert people.get(made.id).classes == {"Chess": "pupil"}, "a person of the box put her there"
    teacher = admit(database, Vouched("ldap", "number-2", "grace", role="teacher", classes=("7 B",)))
    assert teacher is not None and people.get(teacher.id).classes == {"7 B": "teacher"} and seven.id != eight.id
