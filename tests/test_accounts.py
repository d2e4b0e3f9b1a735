"""Accounts: what is kept of a secret, who gets in, who is slowed down, and who may do what."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from appliance.accounts import FREE_FAILURES, KEY_PREFIX, Accounts, User, wait_after
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Busy, Conflict, Forbidden, NotFound, NotSignedIn
from appliance.settings import Settings
from appliance.tables import attempts, collection_readers, collections, sessions, setup_codes, users

PASSWORD = "correct horse battery"


@pytest.fixture
def accounts(database: Database, settings: Settings) -> Accounts:
    return Accounts(database, settings)


@pytest.fixture
def head(accounts: Accounts) -> User:
    code = accounts.ensure_setup_code()
    assert code
    return accounts.create_first_administrator(code, "Ms Green", PASSWORD)


# --- first administrator ---------------------------------------------------------------------------------------------
def test_a_setup_code_works_once(accounts: Accounts) -> None:
    code = accounts.ensure_setup_code()
    assert code and len(code) == 14 and code.count("-") == 2
    user = accounts.create_first_administrator(code.lower().replace("-", " "), "  Ms   Green ", PASSWORD)
    assert (user.name, user.role) == ("Ms Green", "administrator")
    with pytest.raises(Conflict):
        accounts.create_first_administrator(code, "Mr Brown", PASSWORD)
    assert accounts.ensure_setup_code() is None


def test_a_new_setup_code_replaces_the_older_one(accounts: Accounts) -> None:
    old, new = accounts.ensure_setup_code(), accounts.ensure_setup_code()
    assert old and new
    with pytest.raises(Forbidden):
        accounts.create_first_administrator(old, "Ms Green", PASSWORD)
    assert accounts.create_first_administrator(new, "Ms Green", PASSWORD)


def test_an_expired_setup_code_is_refused(accounts: Accounts, database: Database) -> None:
    code = accounts.ensure_setup_code()
    assert code
    with database.begin() as connection:
        connection.execute(sa.update(setup_codes).values(expires=time.time() - 1))
    with pytest.raises(Forbidden, match="expired"):
        accounts.create_first_administrator(code, "Ms Green", PASSWORD)


def test_two_at_once_make_one_administrator(accounts: Accounts) -> None:
    code = accounts.ensure_setup_code()
    assert code

    def create(name: str) -> str:
        try:
            return accounts.create_first_administrator(code, name, PASSWORD, name).name
        except ApplianceError as error:
            return error.code

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(create, ["Ann", "Ben", "Cem", "Dan"]))
    assert sorted(name in ("Ann", "Ben", "Cem", "Dan") for name in made) == [False, False, False, True]


@pytest.mark.parametrize("password", ["", "123456789", "x" * 1025, "ten letters \ud800"])
def test_bad_passwords_do_not_spend_the_code(accounts: Accounts, password: str) -> None:
    code = accounts.ensure_setup_code()
    assert code
    with pytest.raises(BadInput):
        accounts.create_first_administrator(code, "Ms Green", password)
    assert accounts.create_first_administrator(code, "Ms Green", PASSWORD)


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "a\x00b", "(command line)", "a\u202eb", "x" * 100_000])
def test_bad_names_are_refused(accounts: Accounts, name: str) -> None:
    with pytest.raises(BadInput):
        accounts.create_first_administrator("any", name, PASSWORD)


# --- signing in ------------------------------------------------------------------------------------------------------
def test_sign_in_session_sign_out(accounts: Accounts, head: User) -> None:
    token, user = accounts.sign_in("ms green", PASSWORD, "10.0.0.1")
    assert user == head
    session = accounts.session(token)
    assert session and session.user == head and len(session.csrf) >= 32
    accounts.sign_out(token)
    assert accounts.session(token) is None
    assert accounts.session("") is None and accounts.session("\ud800") is None


def test_a_session_ends_with_time_and_with_its_user(accounts: Accounts, head: User, database: Database) -> None:
    first, _ = accounts.sign_in("Ms Green", PASSWORD, "a")
    second, _ = accounts.sign_in("Ms Green", PASSWORD, "a")
    with database.begin() as connection:
        connection.execute(sa.update(sessions).values(expires=time.time() - 1))
    assert accounts.session(first) is None
    with database.begin() as connection:
        connection.execute(sa.update(sessions).values(expires=time.time() + 60))
        connection.execute(sa.update(users).where(users.c.id == head.id).values(disabled=True))
    assert accounts.session(second) is None
    with pytest.raises(NotSignedIn):
        accounts.sign_in("Ms Green", PASSWORD, "a")


def test_nothing_secret_is_in_the_file(accounts: Accounts, head: User, settings: Settings) -> None:
    token, _ = accounts.sign_in("Ms Green", PASSWORD, "a")
    _, key = accounts.create_key(head, "Moodle")
    stored = b"".join(path.read_bytes() for path in settings.home.glob("appliance.sqlite3*"))
    assert b"$argon2id$v=19$m=19456,t=2,p=1$" in stored
    for secret in (PASSWORD, token, key, key.removeprefix(KEY_PREFIX)):
        assert secret.encode() not in stored


def test_wrong_name_and_wrong_password_look_the_same(accounts: Accounts, head: User) -> None:
    assert head
    with pytest.raises(NotSignedIn):
        accounts.sign_in("warm", "up the hash of nobody", "a")
    answers, seconds = [], []
    for name in ("Ms Green", "Nobody"):
        took = []
        for number in range(5):
            started = time.perf_counter()
            with pytest.raises(NotSignedIn) as caught:
                accounts.sign_in(name, "wrong password", f"source {number}")
            took.append(time.perf_counter() - started)
            answers.append((caught.value.message, caught.value.hint))
        seconds.append(min(took))
    assert len(set(answers)) == 1
    assert 0.4 < seconds[0] / seconds[1] < 2.5


def test_the_eleventh_try_waits_and_a_restart_does_not_help(accounts: Accounts, head: User, database: Database) -> None:
    for _ in range(FREE_FAILURES):
        with pytest.raises(NotSignedIn):
            accounts.sign_in("Ms Green", "wrong password", "desk 7")
    with pytest.raises(Busy) as caught:
        accounts.sign_in("Ms Green", PASSWORD, "desk 7")
    assert 0 < caught.value.retry_after <= 2
    restarted = Accounts(database, accounts._settings)
    with pytest.raises(Busy):
        restarted.sign_in("MS GREEN", PASSWORD, "desk 7")
    assert restarted.sign_in("Ms Green", PASSWORD, "her own desk")[1] == head, "a prank must not lock her out elsewhere"
    with database.begin() as connection:
        connection.execute(sa.update(attempts).values(last=attempts.c.last - 5))
    assert accounts.sign_in("Ms Green", PASSWORD, "desk 7")[1] == head
    assert accounts.sign_in("Ms Green", PASSWORD, "desk 7")[1] == head, "success forgets the failures"


def test_the_wait_grows_to_a_quarter_of_an_hour() -> None:
    waits = [wait_after(failures) for failures in (9, 10, 11, 12, 18, 19, 1000)]
    assert waits == [0, 2, 4, 8, 512, 900, 900]


def test_a_burst_of_guesses_is_counted_whole(accounts: Accounts, head: User) -> None:
    assert head

    def guess(number: int) -> str:
        try:
            accounts.sign_in("Ms Green", f"guess number {number}", "a")
        except ApplianceError as error:
            return error.code
        return "in"

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(guess, range(40)))
    assert answers.count("not_signed_in") <= FREE_FAILURES + 1 and answers.count("busy") >= 29


# --- keys ------------------------------------------------------------------------------------------------------------
def test_a_key_speaks_for_its_owner_within_its_scope(accounts: Accounts, head: User) -> None:
    id, key = accounts.create_key(head, "Moodle", "embed")
    assert key.startswith(KEY_PREFIX)
    user = accounts.key(key)
    assert user and (user.id, user.scope) == (head.id, "embed")
    assert accounts.can(user, "embed", "text") and not accounts.can(user, "ask", "chat")
    assert not accounts.can(user, "create", "key"), "a key must not make keys"
    assert [(one.id, one.revoked, one.used is not None) for one in accounts.list_keys(head)] == [(id, None, True)]
    accounts.revoke_key(head, id)
    assert accounts.key(key) is None and accounts.list_keys(head)[0].revoked
    assert accounts.key(KEY_PREFIX) is None and accounts.key("") is None and accounts.key(KEY_PREFIX + "\udc80") is None


def test_keys_are_their_owners_alone(accounts: Accounts, head: User) -> None:
    stranger = User("stranger", "Stranger", "administrator")
    id, key = accounts.create_key(head, "Moodle")
    with pytest.raises(NotFound):
        accounts.revoke_key(stranger, id)
    with pytest.raises(NotFound):
        accounts.revoke_key(head, "none")
    assert accounts.list_keys(stranger) == [] and accounts.key(key)
    accounts.revoke_key(accounts.local_administrator(), id)
    assert accounts.key(key) is None
    with pytest.raises(NotFound):
        accounts.revoke_key(accounts.local_administrator(), "none")


def test_bad_keys_are_not_made(accounts: Accounts, head: User) -> None:
    for name, scope in (("", "chat"), ("x", "root"), ("x" * 65, "chat")):
        with pytest.raises(BadInput):
            accounts.create_key(head, name, scope)


# --- policy ----------------------------------------------------------------------------------------------------------
def test_what_is_not_allowed_is_denied(accounts: Accounts, head: User) -> None:
    assert not accounts.can(None, "ask", "chat")
    assert not accounts.can(head, "fly", "moon")
    assert not accounts.can(User("x", "x", "unheard of"), "ask", "chat")
    assert not accounts.can(User("x", "x", "administrator", "unheard of"), "ask", "chat")
    assert accounts.can(head, "read", "conversation", head.id)
    assert not accounts.can(head, "read", "conversation", "another") and not accounts.can(head, "read", "conversation")
    with pytest.raises(NotSignedIn):
        accounts.require(None, "ask", "chat")
    with pytest.raises(NotFound):
        accounts.require(head, "read", "conversation", "another")
    with pytest.raises(Forbidden):
        accounts.require(head, "fly", "moon")


def test_what_may_be_seen_is_what_a_reader_was_let_into(accounts: Accounts, database: Database, head: User) -> None:
    rows = [{"id": id, "name": id, "created": 0, "owner": owner} for id, owner in (("a", ""), ("b", head.id), ("c", ""))]
    with database.begin() as connection:
        connection.execute(sa.insert(collections), rows)
        connection.execute(sa.insert(collection_readers).values(collection="c", kind="everyone", name=""))
    assert accounts.visible(head, "collection") == {"b", "c"}
    assert accounts.visible(User("x", "x", "administrator", "chat"), "collection") == {"c"}
    assert accounts.visible(accounts.local_administrator(), "collection") == {"a", "b", "c"}
    for nobody in (None, User(head.id, "x", "unheard of"), User(head.id, "x", "administrator", "embed")):
        assert accounts.visible(nobody, "collection") == frozenset()
    with pytest.raises(Forbidden):
        accounts.visible(head, "conversation")


def test_the_command_line_has_no_password(accounts: Accounts) -> None:
    local = accounts.local_administrator()
    assert accounts.local_administrator() == local
    assert accounts.can(local, "ask", "chat") and not accounts.has_administrator()
    for password in ("!", "", "anything at all"):
        with pytest.raises(NotSignedIn):
            accounts.sign_in(local.name, password, "a")
