"""Guessing at sign-in: what slows it down by name and by address, and whom that must not keep out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from appliance.accounts import PUPIL, TEACHER, Accounts, People
from appliance.accounts import devices as module
from appliance.accounts.credentials import Passwords
from appliance.accounts.devices import FREE_OF_ADDRESS, FREE_OF_NAME, LONGEST_OF_NAME, MOST, PACE_OF_ADDRESS
from appliance.accounts.guessing import Limit, count
from appliance.db import Database
from appliance.errors import ApplianceError, Busy
from appliance.settings import Settings
from appliance.tables import attempts

PASSWORD = "correct horse battery"
ROUTER = "192.168.1.1"
YEAR = 365 * 86400


@pytest.fixture
def accounts(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Accounts:
    """With hashing that takes no time: hundreds of tries are made here, and none is about hashing."""
    monkeypatch.setattr(Passwords, "hash", lambda _self, password: f"$argon2 {password}")
    monkeypatch.setattr(Passwords, "fits", lambda _self, hashed, password: hashed == f"$argon2 {password}")
    return Accounts(database, settings)


@pytest.fixture
def people(accounts: Accounts, database: Database) -> People:
    assert accounts
    return People(database)


def said(accounts: Accounts, name: str, password: str, source: str = ROUTER, mark: str = "") -> str:
    try:
        accounts.sign_in(name, password, source, device=mark)
    except ApplianceError as error:
        return error.code
    return "in"


def later(database: Database, seconds: float) -> None:
    """So much time passes; a negative number sets the clock back."""
    with database.begin() as connection:
        connection.execute(sa.update(attempts).values(last=attempts.c.last - seconds))


def rows(database: Database, kind: str) -> dict[str, int]:
    with database.read() as connection:
        return {row.key: row.failures for row in connection.execute(sa.select(attempts)) if row.key.startswith(kind)}


# --- one name, from everywhere -----------------------------------------------------------------------------------------
def test_whoever_changes_addresses_is_slowed_down_too(accounts: Accounts, people: People, database: Database) -> None:
    people.add("Ann", TEACHER, password=PASSWORD)
    answers = [said(accounts, "Ann", f"guess {number}", f"10.0.0.{number}") for number in range(250)]
    assert answers.count("not_signed_in") == FREE_OF_NAME and answers.count("busy") == 250 - FREE_OF_NAME
    same = [said(accounts, name, "guess", f"10.0.1.{number}") for number, name in enumerate(["Nobody"] * 40)]
    assert same == answers[:40], "a name that nobody has is counted as one that somebody has"
    with pytest.raises(Busy) as caught:
        accounts.sign_in("ANN", PASSWORD, "10.9.9.9")
    assert caught.value.retry_after <= 2
    waits = []
    for number in range(12):
        later(database, LONGEST_OF_NAME)
        assert said(accounts, "Ann", "another guess", f"10.1.0.{number}") == "not_signed_in"
        with pytest.raises(Busy) as caught:
            accounts.sign_in("Ann", PASSWORD, "10.9.9.9")
        waits.append(round(caught.value.retry_after))
    assert waits[:4] == [4, 8, 16, 32] and set(waits[4:]) == {60}, "held up for a minute at most, never shut out"
    later(database, LONGEST_OF_NAME)
    assert said(accounts, "Ann", PASSWORD, "10.9.9.9") == "in"
    assert said(accounts, "Ann", "a guess", "10.2.0.2") == "busy", "that she got in gives others no new tries"


def test_where_somebody_signed_in_before_they_get_in_whatever_others_try(
    accounts: Accounts, people: People, database: Database
) -> None:
    ann, _ = people.add("Ann", TEACHER, password=PASSWORD)
    ben, _ = people.add("Ben", TEACHER, password=PASSWORD)
    mark = accounts.devices.remember("", ann.id)
    for number in range(FREE_OF_ADDRESS + 60):
        said(
            accounts,
            "Ann" if number % 3 else f"nobody {number}",
            f"guess {number}",
            ROUTER if number % 2 else f"10.0.0.{number}",
        )
    assert said(accounts, "Ann", PASSWORD, "10.9.9.9") == "busy", "where she never was"
    assert said(accounts, "Ann", PASSWORD, ROUTER, mark) == "in" and said(accounts, "Ann", PASSWORD, "10.9.9.9", mark) == "in"
    assert said(accounts, "Ann", PASSWORD, "10.9.9.9", accounts.devices.remember("", ben.id)) == "busy"
    answers = [said(accounts, "Ann", f"guess {number}", f"10.8.0.{number}", mark) for number in range(50)]
    assert answers.count("not_signed_in") == 10, "the mark is no way round: tries with it are counted wherever they come from"
    assert said(accounts, "Ann", PASSWORD, ROUTER, mark) == "busy"
    later(database, 2)
    assert said(accounts, "Ann", PASSWORD, ROUTER, mark) == "in"


def test_a_mark_is_the_boxs_to_make(accounts: Accounts, people: People, settings: Settings, database: Database) -> None:
    ids = [people.add(f"pupil {number}", PUPIL, password=PASSWORD)[0].id for number in range(MOST + 3)]
    devices, mark = accounts.devices, ""
    for id in ids:
        mark = devices.remember(mark, id)
    assert [devices.knows(mark, id) for id in ids] == [False] * 3 + [True] * MOST, "the latest of a shared tablet"
    assert devices.remember(mark, ids[5]).count(".") == MOST and len(mark) < 400
    assert not any(id in mark for id in ids) and Accounts(database, settings).devices.knows(mark, ids[-1]), "after a restart"
    nonce, first, *_ = mark.split(".")
    other = devices.remember("", ids[-1])
    assert other.split(".")[0] != nonce
    for made_up in (
        "",
        nonce,
        f"{nonce}.",
        f"{'x' * 22}.{first}",
        f"{other.split('.')[0]}.{first}",
        "." * 900,
        "é" * 22,
        "x" * 5000,
    ):
        assert not devices.knows(made_up, ids[-1]), made_up
        assert devices.knows(devices.remember(made_up, ids[0]), ids[0])
    (settings.home / "devices.secret").unlink()
    assert not Accounts(database, settings).devices.knows(mark, ids[-1])


# --- one address, for every name ---------------------------------------------------------------------------------------
def test_a_class_behind_one_router_signs_in_with_a_typo_each(accounts: Accounts, people: People, database: Database) -> None:
    names = [f"pupil {number}" for number in range(90)]
    for name in names:
        people.add(name, PUPIL, password=PASSWORD)
    with ThreadPoolExecutor(8) as threads:  # three classes within one minute
        assert set(threads.map(lambda name: said(accounts, name, "corect horse"), names)) == {"not_signed_in"}
        assert rows(database, "address:") == {f"address:{ROUTER}": 90}
        assert set(threads.map(lambda name: said(accounts, name, PASSWORD), names)) == {"in"}
    assert rows(database, "") == {}, "those were slips: nothing is left of them"


def test_one_password_for_every_name_is_slowed_down(accounts: Accounts, people: People, database: Database) -> None:
    people.add("Ann", TEACHER, password=PASSWORD)
    answers = [said(accounts, f"name {number}", "password12") for number in range(300)]
    assert answers.count("not_signed_in") == FREE_OF_ADDRESS and answers.count("busy") == 300 - FREE_OF_ADDRESS
    assert len(rows(database, "sign-in:")) == FREE_OF_ADDRESS, "what is refused leaves no row: a disk is not filled so"
    with pytest.raises(Busy) as caught:
        accounts.sign_in("Ann", PASSWORD, ROUTER)
    assert caught.value.retry_after <= PACE_OF_ADDRESS
    assert said(accounts, "Ann", PASSWORD, "192.168.1.2") == "in"
    for _ in range(3):  # however long it goes on, the wait stays as short
        later(database, PACE_OF_ADDRESS)
        assert [said(accounts, f"more {number}", "password12") for number in range(3)] == ["not_signed_in", "busy", "busy"]
    later(database, PACE_OF_ADDRESS)
    assert said(accounts, "Ann", PASSWORD) == "in"
    later(database, 1000 * PACE_OF_ADDRESS)
    assert [said(accounts, f"again {number}", "x") for number in range(FREE_OF_ADDRESS + 1)].count("busy") == 1, "all forgotten"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("fd00:1:2:3::1", "fd00:1:2:3:ffff::9", True),
        ("fe80::1%eth0", "fe80::2%wlan0", True),
        ("fd00:1:2:3::1", "fd00:1:2:4::1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("", "testclient", False),
    ],
)
def test_what_one_address_is(one: str, other: str, same: bool) -> None:
    first, second = (module.limits("Ann", source)[2].key for source in (one, other))
    assert (first == second) is same


# --- clocks ------------------------------------------------------------------------------------------------------------
def test_a_clock_set_back_a_year_makes_no_wait_longer(accounts: Accounts, people: People, database: Database) -> None:
    people.add("Ann", TEACHER, password=PASSWORD)
    people.add("Ben", TEACHER, password=PASSWORD)
    for number in range(FREE_OF_ADDRESS):
        said(accounts, f"name {number}", "guess")
    for number in range(FREE_OF_NAME + 5):
        said(accounts, "Ann", "guess", f"10.0.0.{number}")
    later(database, -YEAR)
    for name, source, longest in (("Ben", ROUTER, PACE_OF_ADDRESS), ("Ann", "10.9.9.9", LONGEST_OF_NAME)):
        with pytest.raises(Busy) as caught:
            accounts.sign_in(name, PASSWORD, source)
        assert caught.value.retry_after <= longest
    later(database, LONGEST_OF_NAME)
    assert said(accounts, "Ann", PASSWORD, "10.9.9.9") == "in" and said(accounts, "Ben", PASSWORD) == "in"


def test_a_steady_pace_goes_on_through_it(database: Database) -> None:
    limit = Limit("x", 3, every=10.0)
    for _ in range(3):
        count(database, [limit])
    later(database, -YEAR)
    with pytest.raises(Busy) as caught:
        count(database, [limit])
    assert 9 < caught.value.retry_after <= 10
    later(database, 10)
    count(database, [limit])
    with pytest.raises(Busy):
        count(database, [Limit("y"), limit])
    assert rows(database, "y") == {}, "the wait of one key is no try of another"
