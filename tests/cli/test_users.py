"""`appliance users`: import, export, passwords, and erasing a person everywhere."""

from __future__ import annotations

import csv
import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pyotp
import pytest
import sqlalchemy as sa

from appliance.accounts import ADMINISTRATOR, PUPIL, TEACHER, Accounts, People
from appliance.audit import Audit
from appliance.classes import Classes
from appliance.db import Database
from appliance.settings import Settings
from appliance.tables import (
    collection_readers,
    collections,
    conversations,
    examples,
    flags,
    memberships,
    turns,
    users,
    withdrawals,
)
from appliance.tuning.giving import Giving
from tests.cli.test_commands import run

PASSWORD = "correct horse battery"
CSV = "name,full_name,role,classes\nmia,Mia Berg,pupil,7b\nms green,Anna Green,teacher,7b;8a\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    home.mkdir()
    database = Database(Settings(home=home).database)
    database.migrate()
    yield database
    database.close()


def test_import_dry_run_import_export_and_again(home: Path, database: Database, tmp_path: Path) -> None:
    source, out = tmp_path / "people.csv", tmp_path / "out.csv"
    source.write_text(CSV)
    dry = run(home, "users", "import", str(source), "--dry-run")
    assert dry.returncode == 0 and "new: mia, pupil, 7b" in dry.stdout and People(database).list() == []
    done = run(home, "users", "import", str(source), "--json")
    told = json.loads(done.stdout)
    assert (told["added"], told["changed"], told["classes"], told["done"]) == (2, 0, ["7b", "8a"], True)
    assert run(home, "users", "export", str(out)).returncode == 0
    again = run(home, "users", "import", str(out))
    assert again.returncode == 0 and again.stdout.startswith("0 changes:")
    listed = run(home, "users", "list", "--class", "8a")
    assert "ms green" in listed.stdout and "mia" not in listed.stdout and "no password yet" in listed.stdout
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_faults_are_told_by_line(home: Path, database: Database, tmp_path: Path) -> None:
    source = tmp_path / "people.csv"
    source.write_text("name,role\nann,king\nben,pupil\nBEN,pupil\n")
    done = run(home, "users", "import", str(source))
    assert done.returncode == 1 and done.stdout == "" and "line 2, role: " in done.stderr and "line 4, name: " in done.stderr
    assert done.stderr.count("Error: ") == 1 and done.stderr.count("Try: ") == 1 and People(database).list() == []
    assert run(home, "users", "import", str(tmp_path / "nothing.csv")).returncode == 1


def test_a_sheet_of_passwords(home: Path, database: Database, tmp_path: Path) -> None:
    source, out = tmp_path / "people.csv", tmp_path / "sheet.csv"
    source.write_text(CSV)
    run(home, "users", "import", str(source))
    (tmp_path / "a file").touch()
    assert run(home, "users", "sheet", str(tmp_path / "a file" / "x.csv")).returncode == 1
    assert all(one.waiting for one in People(database).list()), "nobody gets a password that nobody sees"
    assert run(home, "users", "sheet", str(out)).returncode == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    rows = list(csv.DictReader(out.read_text("utf-8-sig").splitlines()))
    accounts = Accounts(database, Settings(home=home))
    assert [row["name"] for row in rows] == ["mia", "ms green"]
    for row in rows:
        assert accounts.sign_in(row["name"], row["password"], "a")
    assert run(home, "users", "sheet", str(tmp_path / "again.csv")).returncode == 1


def test_adding_and_resetting(home: Path, database: Database) -> None:
    added = json.loads(
        run(home, "users", "add", "Head", "--role", "administrator", "--full-name", "Hedda Ead", "--json").stdout
    )
    accounts = Accounts(database, Settings(home=home))
    assert accounts.sign_in("head", added["password"], "a")[1].role == ADMINISTRATOR
    assert (
        run(home, "users", "add", "HEAD").returncode == 1 and run(home, "users", "add", "x", "--role", "king").returncode == 1
    )
    secret = accounts.second_step.new_secret()
    accounts.second_step.turn_on(added["id"], secret, pyotp.TOTP(secret).now())
    told = json.loads(run(home, "users", "reset-password", "head", "--second-step", "--json").stdout)
    token, _ = accounts.sign_in("Head", told["password"], "a")
    assert accounts.session(token) and told["password"] != added["password"]
    assert run(home, "users", "reset-password", "nobody").returncode == 1
    assert run(home, "users", "erase", "head", "--yes").returncode == 1, "the last administrator stays"
    assert run(home, "users", "erase", "(command line)", "--yes").returncode == 1
    assert [entry.verb for entry in Audit(database).entries()] == ["add person", "password of person", "second-step of person"]


def example(id: str, author: str) -> dict[str, object]:
    return {
        "id": id, "messages": [["user", f"secret words of {author}"], ["assistant", "Yes."]], "author": author, "created": 1.0,
        "imported": 1.0, "extra": {}, "reviewed": "approved",
    }  # fmt: skip


def test_erasing_a_person_leaves_nothing_of_theirs(home: Path, database: Database) -> None:
    people = People(database)
    mia, _ = people.add("mia", PUPIL, full_name="Mia Berg")
    ann, _ = people.add("ann", TEACHER, full_name="Ann Lee")
    accounts = Accounts(database, Settings(home=home))
    accounts.create_key(accounts.named("ann"), "Moodle")
    lesson = Classes(database).add("7b")
    for one in (mia, ann):
        people.join(one.id, lesson.id)
    with database.begin() as connection:
        for id, user in (("t1", mia.id), ("t2", ann.id)):
            row = {"id": id, "user": user, "title": f"talk of {user}", "created": 1.0, "updated": 1.0}
            connection.execute(sa.insert(conversations).values(**row))
            turn = {"id": f"r{id}", "conversation": id, "ordinal": 1, "role": "user", "text": f"wrote {user}", "state": "done"}
            connection.execute(sa.insert(turns).values(**turn, created=1.0))
        for id, author in (("e1", "mia"), ("e2", "Mia Berg"), ("e3", "ann"), ("e4", mia.id)):
            connection.execute(sa.insert(examples).values(**example(id, author)))
        connection.execute(sa.insert(collections).values(id="c1", name="shelf", created=1.0))
        connection.execute(sa.insert(collection_readers).values(collection="c1", kind="user", name=mia.id))
        flag = {"id": "f1", "at": 1.0, "user": mia.id, "category": "harm", "rule": "r", "action": "escalate", "text": "flagged"}
        connection.execute(sa.insert(flags).values(**flag))
    done = run(home, "users", "erase", "MIA", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["chats"], told["messages"], told["memberships"], told["examples"], told["flags"]) == (1, 1, 1, 3, 1)
    with database.read() as connection:
        assert list(connection.scalars(sa.select(conversations.c.id))) == ["t2"]
        assert list(connection.scalars(sa.select(turns.c.id))) == ["rt2"]
        assert list(connection.scalars(sa.select(memberships.c.user))) == [ann.id]
        assert list(connection.scalars(sa.select(examples.c.id).where(examples.c.withdrawn.is_(None)))) == ["e3"]
        assert connection.scalar(sa.select(sa.func.count()).select_from(withdrawals)) == 3
        assert connection.execute(sa.select(collection_readers)).all() == []
        assert list(connection.scalars(sa.select(flags.c.text))) == ["flagged"], "the lead's record is kept"
        assert list(connection.scalars(sa.select(users.c.name).where(users.c.role != "local"))) == ["ann"]
    stored = b"".join(path.read_bytes() for path in home.glob("appliance.sqlite3*"))
    for gone in (b"secret words of mia", b"secret words of Mia Berg", f"wrote {mia.id}".encode(), b"Mia Berg"):
        assert gone not in stored, gone
    assert f"wrote {ann.id}".encode() in stored
    entry = Audit(database).entries(thing=mia.id)[-1]
    assert entry.verb == "erase person" and "mia" not in str(entry.facts).lower()
    assert run(home, "users", "erase", "mia", "--yes").returncode == 1


def test_earlier_names_of_a_person_are_found_where_the_box_knows_them(home: Path, database: Database) -> None:
    """From what they gave under them, and from a state that a restore has kept; not where somebody else is called so now."""
    people = People(database)
    ann, _ = people.add("ann lee", TEACHER)
    ben, _ = people.add("ben", TEACHER)
    given = {"correction": None, "rating": "up"}
    talk = [("user", "Why?"), ("assistant", "secret words of ann, given")]
    Giving(database).keep("given-1", by=ann.id, messages=talk, author="ann lee", **given)
    people.change(ann.id, name="ann smith")
    Giving(database).keep("given-2", by=ann.id, messages=talk, author="ann smith", **given)
    kept = home / "backups" / "state-before-20260101-120000"
    kept.mkdir(parents=True)
    people.change(ann.id, name="ann holm", full_name="Ann Holm")
    database.fold_log()
    shutil.copy(home / "appliance.sqlite3", kept)
    people.change(ann.id, name="ann berg", full_name="Ann Berg")
    people.change(ben.id, name="ann smith")  # who is called so now is another
    with database.begin() as connection:
        for id, author in (("e1", "Ann Lee"), ("e2", "ann holm"), ("e3", "ann smith"), ("e4", "Ann Berg"), ("e5", "somebody")):
            connection.execute(sa.insert(examples).values(**example(id, author)))
    done = run(home, "users", "erase", "ann berg", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 5 and "earlier names: ann lee, ann holm" in done.stderr
    with database.read() as connection:
        left = connection.scalars(sa.select(examples.c.id).where(examples.c.withdrawn.is_(None)).order_by("id"))
        assert list(left) == ["e3", "e5"], "given-2 is hers, whoever is called so now"
    stored = b"".join(path.read_bytes() for path in home.rglob("appliance.sqlite3*"))
    assert b"words of ann, given" not in stored and b"words of ann holm" not in stored and b"words of somebody" in stored
    assert "lee" not in str(Audit(database).entries()[-1].facts)
