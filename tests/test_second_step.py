"""The second step and the class's code, without pages: what is asked, what works once, what is slowed down, what ends when."""

from __future__ import annotations

import time
from typing import Any

import pyotp
import pytest
import sqlalchemy as sa

from appliance.accounts import PUPIL, TEACHER, Accounts, People, Person
from appliance.classes import Classes, SchoolClass
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Busy, Conflict, NotFound, NotSignedIn
from appliance.settings import Settings
from appliance.tables import attempts, sessions, users
from appliance.tables import classes as table

PASSWORD = "correct horse battery"


@pytest.fixture
def accounts(database: Database, settings: Settings) -> Accounts:
    return Accounts(database, settings)


@pytest.fixture
def people(database: Database) -> People:
    return People(database)


@pytest.fixture
def ann(people: People) -> Person:
    return people.add("Ann", TEACHER, password=PASSWORD)[0]


class Phone:
    """Shows codes; `wait` lets half a minute pass for it and for the box's memory of what was used."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.secret = ""

    def code(self, steps: int = 0) -> str:
        return pyotp.TOTP(self.secret).at(time.time() + 30 * steps)

    def wait(self) -> None:
        with self.database.begin() as connection:
            connection.execute(sa.update(users).values(totp_step=users.c.totp_step - 3))


@pytest.fixture
def phone(accounts: Accounts, ann: Person, database: Database) -> Phone:
    """Ann's, with her second step on."""
    phone = Phone(database)
    phone.secret = accounts.second_step.new_secret()
    accounts.second_step.turn_on(ann.id, phone.secret, phone.code())
    phone.wait()
    return phone


# --- the second step -------------------------------------------------------------------------------------------------
def test_a_password_alone_is_not_enough(accounts: Accounts, ann: Person, phone: Phone) -> None:
    token, user = accounts.sign_in("Ann", PASSWORD, "a")
    assert user.id == ann.id and accounts.session(token) is None and accounts.second_step.waits(token)
    assert accounts.sessions_of(user, token) == []
    with pytest.raises(NotSignedIn):
        accounts.second_step.finish(token, "000000" if phone.code() != "000000" else "000001")
    full = accounts.second_step.finish(token, f"{phone.code()[:3]} {phone.code()[3:]}", "Firefox, Linux")
    session = accounts.session(full)
    assert session and session.user.id == ann.id and full != token
    assert not accounts.second_step.waits(token) and not accounts.second_step.waits(full)
    with pytest.raises(NotSignedIn):
        accounts.second_step.finish(token, phone.code())
    assert [one.about for one in accounts.sessions_of(user, full)] == ["Firefox, Linux"]


def test_another_proof_needs_the_second_step_too(accounts: Accounts, ann: Person, phone: Phone) -> None:
    token = accounts.begin(ann.id)
    assert accounts.session(token) is None and accounts.second_step.waits(token) and phone.secret


def test_each_code_works_once(accounts: Accounts, ann: Person, phone: Phone) -> None:
    code = phone.code()
    assert accounts.second_step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], code)
    with pytest.raises(NotSignedIn):
        accounts.second_step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], code)
    with pytest.raises(NotSignedIn):
        accounts.second_step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], phone.code(-1))
    assert accounts.second_step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], phone.code(1)) and ann.id


def test_the_code_that_turned_it_on_is_spent(accounts: Accounts, ann: Person) -> None:
    secret = accounts.second_step.new_secret()
    code = pyotp.TOTP(secret).now()
    accounts.second_step.turn_on(ann.id, secret, code)
    with pytest.raises(NotSignedIn):
        accounts.second_step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], code)


def test_a_clock_set_back_does_not_lock_out(accounts: Accounts, ann: Person, phone: Phone, database: Database) -> None:
    with database.begin() as connection:
        connection.execute(sa.update(users).values(totp_step=users.c.totp_step + 365 * 2880))
    assert accounts.second_step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], phone.code())
    with pytest.raises(NotSignedIn):
        accounts.second_step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], phone.code())
    assert ann.id


def test_recovery_codes(accounts: Accounts, ann: Person, settings: Settings) -> None:
    step = accounts.second_step
    secret = step.new_secret()
    codes = step.turn_on(ann.id, secret, pyotp.TOTP(secret).now())
    assert len(set(codes)) == 10 == step.codes_left(ann.id)
    stored = b"".join(path.read_bytes() for path in settings.home.glob("appliance.sqlite3*"))
    assert not any(code.encode() in stored or code.replace("-", "").encode() in stored for code in codes)
    assert step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], codes[3].lower().replace("-", " "))
    assert step.codes_left(ann.id) == 9
    with pytest.raises(NotSignedIn):
        step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], codes[3])
    fresh = step.fresh_codes(ann.id)
    with pytest.raises(NotSignedIn):
        step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], codes[4])
    assert step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], fresh[0])


def test_a_recovery_code_is_its_owners(accounts: Accounts, people: People, ann: Person, phone: Phone) -> None:
    ben, _ = people.add("Ben", TEACHER, password=PASSWORD)
    secret = accounts.second_step.new_secret()
    codes = accounts.second_step.turn_on(ben.id, secret, pyotp.TOTP(secret).now())
    with pytest.raises(NotSignedIn):
        accounts.second_step.finish(accounts.sign_in("Ann", PASSWORD, "a")[0], codes[0])
    assert accounts.second_step.codes_left(ben.id) == 10 and phone.secret != secret and ann.id != ben.id


def test_wrong_codes_are_slowed_down(accounts: Accounts, ann: Person, phone: Phone, database: Database) -> None:
    answers = []
    for number in range(40):
        token, _ = accounts.sign_in("Ann", PASSWORD, f"address {number}")
        try:
            accounts.second_step.finish(token, f"{number:06}")
        except ApplianceError as error:
            answers.append(error.code)
    assert answers.count("not_signed_in") <= 10 and answers.count("busy") >= 30
    token, _ = accounts.sign_in("Ann", PASSWORD, "a")
    with pytest.raises(Busy):
        accounts.second_step.finish(token, phone.code())
    with database.begin() as connection:
        connection.execute(sa.update(attempts).values(last=attempts.c.last - 60))
    assert accounts.second_step.finish(token, phone.code()) and ann.id


def test_the_second_step_waits_five_minutes(accounts: Accounts, ann: Person, phone: Phone, database: Database) -> None:
    token, _ = accounts.sign_in("Ann", PASSWORD, "a")
    with database.begin() as connection:
        left = connection.scalar(sa.select(sessions.c.expires)) - time.time()
        connection.execute(sa.update(sessions).values(expires=time.time() - 1))
    assert 290 < left <= 300
    with pytest.raises(NotSignedIn, match="too long"):
        accounts.second_step.finish(token, phone.code())
    assert ann.id and not accounts.second_step.waits("") and not accounts.second_step.waits("x" * 5000)


def test_what_ends_a_session_ends_one_that_waits(accounts: Accounts, people: People, ann: Person, phone: Phone) -> None:
    token, _ = accounts.sign_in("Ann", PASSWORD, "a")
    people.reset_password(ann.id)
    with pytest.raises(NotSignedIn):
        accounts.second_step.finish(token, phone.code())


def test_turning_it_off(accounts: Accounts, ann: Person, phone: Phone) -> None:
    waiting, _ = accounts.sign_in("Ann", PASSWORD, "a")
    accounts.second_step.turn_off(ann.id)
    assert not accounts.second_step.waits(waiting) and accounts.second_step.codes_left(ann.id) == 0
    assert accounts.session(accounts.sign_in("Ann", PASSWORD, "a")[0]) and phone.secret
    with pytest.raises(NotFound):
        accounts.second_step.turn_off("nobody")


def test_turning_it_on_or_off_ends_every_session_but_the_one_that_asks(accounts: Accounts, ann: Person) -> None:
    step, secret = accounts.second_step, accounts.second_step.new_secret()
    mine, other = (accounts.sign_in("Ann", PASSWORD, "a")[0] for _ in range(2))
    step.turn_on(ann.id, secret, pyotp.TOTP(secret).now(), mine)
    assert accounts.session(mine) and accounts.session(other) is None
    waiting, other = accounts.sign_in("Ann", PASSWORD, "a")[0], accounts.renew(ann.id)
    step.turn_off(ann.id, mine)
    assert accounts.session(mine) and accounts.session(other) is None and not step.waits(waiting)
    step.turn_off(ann.id)  # by somebody else: the phone is lost
    assert accounts.session(mine) is None


@pytest.mark.parametrize("secret", ["", "x", "A" * 31, "a" * 32, "A" * 33, "1" * 32, "é" * 32])
def test_odd_secrets_are_refused(accounts: Accounts, ann: Person, secret: str) -> None:
    for code in ("", "123456", "٣٤٥٦٧٨", "x" * 5000):
        with pytest.raises(BadInput):
            accounts.second_step.turn_on(ann.id, secret, code)


def test_the_address_in_the_picture(accounts: Accounts) -> None:
    address = accounts.second_step.address("A" * 32, "Ms Green & Co")
    assert address.startswith("otpauth://totp/") and "secret=" + "A" * 32 in address and "Ms%20Green%20%26%20Co" in address


# --- the class's code ------------------------------------------------------------------------------------------------
@pytest.fixture
def lesson(database: Database, people: People, ann: Person) -> SchoolClass:
    """Ann's class 2b, with Mia, Noah, Rosa, Olga who is disabled, and a teacher who sits in as a pupil."""
    made = Classes(database).add("2b")
    people.join(ann.id, made.id, teaches=True)
    for name in ("Noah", "Mia", "Olga"):
        people.join(people.add(name, PUPIL, full_name=f"{name} Berg")[0].id, made.id)
    people.join(people.add("Rosa", PUPIL, password=PASSWORD)[0].id, made.id)  # what is hers stands behind her own password
    people.change(next(one for one in people.list() if one.name == "Olga").id, disabled=True)
    people.join(people.add("Guest", TEACHER)[0].id, made.id)
    people.add("Pat", PUPIL)
    return made


def ids(people: People) -> dict[str, str]:
    return {one.name: one.id for one in people.list()}


def test_pupils_come_in_by_the_code_and_their_name(accounts: Accounts, people: People, lesson: SchoolClass) -> None:
    codes = accounts.class_codes
    assert not codes.in_use() and codes.until(lesson.id) is None
    code = codes.make(lesson.id)
    until = codes.until(lesson.id)
    assert codes.in_use() and until and 7100 < until - time.time() <= 7200
    roll = codes.roll(code.lower().replace("-", " "), "a")
    assert roll.class_name == "2b"
    assert [(one.called, one.here) for one in roll.pupils] == [("Mia Berg", False), ("Noah Berg", False)]
    session = accounts.session(codes.sign_in(code, ids(people)["Mia"], "a"))
    assert session and session.user.name == "Mia" and session.kind == "class" and not session.temporary
    assert [one.here for one in codes.roll(code, "a").pupils] == [True, False]


def test_a_name_is_taken_once_and_the_teacher_is_told_and_frees_it(
    accounts: Accounts, people: People, lesson: SchoolClass
) -> None:
    codes, mia, noah = accounts.class_codes, ids(people)["Mia"], ids(people)["Noah"]
    code = codes.make(lesson.id)
    first = codes.sign_in(code, mia, "a")
    assert [(one.called, one.tried) for one in codes.here(lesson.id)] == [("Mia Berg", None)]
    noahs = codes.sign_in(code, noah, "a")
    for token in ("", "x" * 2000, noahs):  # a classmate, with or without a session of their own
        with pytest.raises(Conflict, match="signed in with this name already"):
            codes.sign_in(code, mia, "a", token=token)
    assert accounts.session(first), "who came first is not disturbed"
    tried = codes.here(lesson.id)[0].tried
    assert tried and abs(tried - time.time()) < 60 and codes.here(lesson.id)[1].tried is None
    again = codes.sign_in(code, mia, "a", token=first)
    assert accounts.session(again), "the browser that has it may pick it once more"
    accounts.sign_out(first)
    accounts.sign_out(again)
    third = codes.sign_in(code, mia, "another room")  # whoever signs out leaves the name free
    with pytest.raises(Conflict):
        codes.sign_in(code, mia, "a")
    codes.out(lesson.id, mia)
    assert accounts.session(third) is None and accounts.session(noahs)
    assert codes.sign_in(code, mia, "a") and codes.here(lesson.id)[0].tried is None
    with pytest.raises(Conflict):
        codes.sign_in(code, mia, "a")
    codes.end(lesson.id)
    assert codes.here(lesson.id) == [] and codes.sign_in(codes.make(lesson.id), mia, "a")
    assert codes.here(lesson.id)[0].tried is None, "the tries of an earlier lesson are forgotten"


def test_a_name_is_free_where_its_session_has_ended_or_came_another_way(
    accounts: Accounts, people: People, lesson: SchoolClass, database: Database
) -> None:
    codes, mia = accounts.class_codes, ids(people)["Mia"]
    code = codes.make(lesson.id)
    accounts.begin(mia)
    assert codes.sign_in(code, mia, "a")
    with database.begin() as connection:
        connection.execute(sa.update(sessions).values(expires=time.time() - 1))
    assert codes.sign_in(code, mia, "a")


@pytest.mark.parametrize("name", ["Ann", "Guest", "Olga", "Pat", "Rosa", "nobody"])
def test_nobody_else_can_be_picked(accounts: Accounts, people: People, lesson: SchoolClass, name: str) -> None:
    code = accounts.class_codes.make(lesson.id)
    with pytest.raises(NotSignedIn):
        accounts.class_codes.sign_in(code, ids(people).get(name, name), "a")


def close(database: Database, lesson: SchoolClass, **columns: Any) -> None:
    with database.begin() as connection:
        connection.execute(sa.update(table).where(table.c.id == lesson.id).values(**columns))


@pytest.mark.parametrize(
    "columns", [{"open": False}, {"until": 1.0}, {"archived": 1.0}], ids=["closed", "its time is over", "archived"]
)
def test_a_closed_class_lets_nobody_in_and_nobody_stay(
    accounts: Accounts, people: People, lesson: SchoolClass, database: Database, columns: dict[str, Any]
) -> None:
    code = accounts.class_codes.make(lesson.id)
    mia = ids(people)["Mia"]
    token = accounts.class_codes.sign_in(code, mia, "a")
    own = accounts.begin(mia)
    close(database, lesson, **columns)
    assert accounts.session(token) is None and accounts.session(own), "only what came by the code ends"
    for act in (lambda: accounts.class_codes.roll(code, "a"), lambda: accounts.class_codes.sign_in(code, mia, "a")):
        with pytest.raises(NotSignedIn):
            act()
    assert not accounts.class_codes.in_use()


def test_ending_the_code_ends_what_came_by_it(accounts: Accounts, people: People, lesson: SchoolClass) -> None:
    code = accounts.class_codes.make(lesson.id)
    token = accounts.class_codes.sign_in(code, ids(people)["Mia"], "a")
    own = accounts.begin(ids(people)["Mia"])
    assert accounts.class_codes.end(lesson.id) == [ids(people)["Mia"]]
    assert accounts.session(token) is None and accounts.session(own)
    with pytest.raises(NotSignedIn):
        accounts.class_codes.roll(code, "a")


def test_such_a_session_ends_with_the_code(accounts: Accounts, people: People, lesson: SchoolClass, database: Database) -> None:
    code = accounts.class_codes.make(lesson.id, hours=1)
    token = accounts.class_codes.sign_in(code, ids(people)["Mia"], "a")
    with database.read() as connection:
        left = connection.scalar(sa.select(sessions.c.expires)) - time.time()
    assert 3500 < left <= 3600
    close(database, lesson, code_until=time.time() - 1)
    assert accounts.class_codes.until(lesson.id) is None and accounts.session(token)
    with pytest.raises(NotSignedIn):
        accounts.class_codes.roll(code, "a")


def test_a_new_code_takes_the_olders_place(accounts: Accounts, lesson: SchoolClass, settings: Settings) -> None:
    old, new = (accounts.class_codes.make(lesson.id) for _ in range(2))
    with pytest.raises(NotSignedIn):
        accounts.class_codes.roll(old, "a")
    assert accounts.class_codes.roll(new, "a").pupils
    stored = b"".join(path.read_bytes() for path in settings.home.glob("appliance.sqlite3*"))
    assert new.encode() not in stored and new.replace("-", "").encode() not in stored


def test_guessing_a_code_is_slowed_down_and_right_ones_are_not_counted(
    accounts: Accounts, lesson: SchoolClass, database: Database
) -> None:
    code = accounts.class_codes.make(lesson.id)
    for _ in range(100):
        assert accounts.class_codes.roll(code, "the school's one address")
    answers = []
    for number in range(100):
        try:
            accounts.class_codes.roll(f"guess{number}", "the school's one address")
        except ApplianceError as error:
            answers.append(error.code)
        if number == 50:
            assert accounts.class_codes.roll(code, "the school's one address"), "a right one does not reset the count"
    assert 55 <= answers.count("not_signed_in") <= 63
    with pytest.raises(Busy) as caught:
        accounts.class_codes.roll(code, "the school's one address")
    assert caught.value.retry_after <= 10, "a prank holds the class up for moments, not for the lesson"
    assert accounts.class_codes.roll(code, "another room")
    with database.begin() as connection:
        connection.execute(sa.update(attempts).values(last=attempts.c.last - 60))
    assert accounts.class_codes.roll(code, "the school's one address")


def test_a_clock_set_back_a_year_gives_no_code_a_year(accounts: Accounts, lesson: SchoolClass, database: Database) -> None:
    code = accounts.class_codes.make(lesson.id)
    close(database, lesson, code_until=time.time() + 365 * 86400)
    with pytest.raises(NotSignedIn):
        accounts.class_codes.roll(code, "a")
    assert not accounts.class_codes.in_use() and accounts.class_codes.until(lesson.id) is None
    assert accounts.class_codes.roll(accounts.class_codes.make(lesson.id, hours=12), "a").pupils


@pytest.mark.parametrize("code", ["", "-", "x" * 5000, "\ud800", "' OR 1=1"])
def test_odd_codes_open_nothing(accounts: Accounts, lesson: SchoolClass, code: str) -> None:
    Classes(accounts._database).add("without a code")
    accounts.class_codes.make(lesson.id)
    with pytest.raises(NotSignedIn):
        accounts.class_codes.roll(code, "a")


def test_codes_are_made_for_real_classes_and_hours(accounts: Accounts, lesson: SchoolClass) -> None:
    with pytest.raises(NotFound):
        accounts.class_codes.make("nothing")
    for hours in (0, -1, 13, float("nan")):
        with pytest.raises(BadInput):
            accounts.class_codes.make(lesson.id, hours)
