"""The support bundle: people, their words and secrets are planted in every place, and none of it comes out; what helps does."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from appliance import cli
from appliance import settings as settings_module
from appliance.accounts import People
from appliance.audit import Audit
from appliance.checkup import Check
from appliance.classes import Classes
from appliance.db import Database
from appliance.jobs import Jobs
from appliance.network import Policy, host
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.support import OwnWords, contents, pack
from appliance.tables import metadata

NAME, OTHER, CLASS = "Wilhelmina Quorn", "Answers Pages", "Zebrafish 7"
CHAT = "My stepfather hurts me when the worker is not running home late and I want Kuchenblech"
MAIL, PHONE, KEY = "w.quorn@hillschool.example", "+44 7700 900123", "sk-school-8h2kq0xw4m5n6p7r"
PASSWORD, TOKEN = "Pfirsich-Kuchen!22", "JBSWY3DPEHPK3PXP"
HOST, PATH = "ldap.hillschool.example", "/home/wquorn/Private/essay-quorn.docx"
SCHOOL, CONTACT = "Grimsby Hill Academy", "Mrs Featherstonehaugh, room 12"
PLANTED = f"{NAME} {MAIL} {PHONE} {KEY} {PASSWORD} {TOKEN} {PATH} {CHAT} {CLASS}"
# Not one of these, in any case; and no four words in a row of what somebody wrote.
CANARIES = ("wilhelmina", "quorn", "zebrafish", "stepfather", "kuchen", "hillschool", "7700", "900123", KEY[:14].lower(),
            "pfirsich", "jbswy3", "essay", "wquorn", "grimsby", "academy", "featherstone", "room 12")  # fmt: skip


OURS = ("the worker is not", "worker is not running")  # what a person writes in our very words tells nothing


def amiss(text: str) -> list[str]:
    words = CHAT.lower().split()
    fours = (" ".join(words[at : at + 4]) for at in range(len(words) - 3))
    low = " ".join(text.lower().split())
    return [one for one in (*CANARIES, *fours) if one in low and one not in OURS]


@pytest.fixture(scope="module")
def own() -> OwnWords:
    return OwnWords(Path(settings_module.__file__).parent, [NAME, OTHER, CLASS])


def full(column: Any, number: int) -> Any:
    """Something planted for any column of any table."""
    kind = column.type
    if isinstance(kind, sa.JSON):
        return {"words": PLANTED, "error": PLANTED, "message": PLANTED}
    if isinstance(kind, sa.Boolean):
        return False
    if isinstance(kind, sa.Integer | sa.Float):
        return number
    if isinstance(kind, sa.LargeBinary):
        return PLANTED.encode()
    if column.name in ("name", "full_name", "first_name", "last_name"):
        return f"{NAME} {number}"
    return f"{PLANTED} {number}"


def plant(settings: Settings, database: Database) -> None:
    """A row in every table, each of its texts a person's; jobs, models, logs and files of that kind as well."""
    with database.begin() as connection:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        for number, table in enumerate(metadata.sorted_tables, start=1):
            if table.name not in ("audit", "figures"):
                connection.execute(table.insert().values({one.name: full(one, number) for one in table.columns}))
        for table in reversed(metadata.sorted_tables):  # rows without their owner could not be committed
            for key in list(table.foreign_keys):
                found = connection.execute(sa.select(key.column)).scalars().first()
                connection.execute(table.update().values({key.parent.name: found}))
    people = People(database)
    for name in (NAME, OTHER):
        people.add(name, "pupil", password=PASSWORD, full_name=name)
    Classes(database).add(CLASS)
    audit = Audit(database)
    audit.note("promote", PLANTED, {"reason": PLANTED}, actor=NAME)
    audit.note(PLANTED, PLANTED, actor=NAME)
    job = Jobs(database, settings).enqueue("ingest", {"paths": [PATH], "collection": CLASS}, lane="light", owner=NAME)
    settings.jobs.mkdir(parents=True)
    (settings.jobs / f"{job.id}.log").write_text(f"reading {PATH}\n{PLANTED}\n")
    settings.run.mkdir(parents=True, exist_ok=True)
    (settings.run / f"{NAME}.log").write_text("\n".join(log_lines()), "utf-8")
    weights = settings.home / "new"
    weights.mkdir()
    (weights / "model.gguf").write_bytes(b"GGUF" + PLANTED.encode())
    Registry(settings.models).add(weights, id="quorn-1", kind="base", title=PLANTED, licence=NAME, context=1024)
    Policy(settings.network).allow(host(HOST))
    settings.selftest.write_text(json.dumps({"at": 1, "model": PLANTED}))


def log_lines() -> list[str]:
    return [
        f"2026-11-29 10:00:00,123 ERROR answer failed: {PLANTED}",
        f"ERROR:    POST: KeyError at /home/wquorn/appliance/chat.py:31 {NAME}",
        f'  File "/home/wquorn/appliance/chat.py", line 31, in answer\n    raise KeyError({CHAT!r})\nKeyError: {CHAT!r}',
        f"password={PASSWORD} Authorization: Bearer {KEY}",
        json.dumps({"time": "2026-11-29T10:00:00.000Z", "level": "error", "process": "web", "logger": NAME, "method": "GET",
                    "route": "/chat/{id}", "status": 500, "ms": 12.5, "message": PLANTED, "user": NAME, "fault": PLANTED,
                    "request": TOKEN, "facts": {"words": PLANTED}}),
        json.dumps({"time": NAME, "level": NAME, "process": MAIL, "method": NAME, "route": f"/chat/{NAME}", "code": PASSWORD}),
        json.dumps([PLANTED]),
        CHAT,
        MAIL,
        PLANTED.upper(),
    ]  # fmt: skip


@pytest.fixture
def planted(settings: Settings, database: Database) -> Settings:
    plant(settings, database)
    return settings.model_copy(
        update={
            "school": SCHOOL, "safeguarding_contact": CONTACT, "ldap_url": f"ldaps://{HOST}", "ldap_bind_dn": f"cn={NAME}",
            "oidc_client_id": KEY, "ldap_groups": {f"cn={NAME}": "teacher"}, "openai_key_file": Path(PATH), "slots": 6,
            "allowed_hosts": (HOST,),
        }
    )  # fmt: skip


def test_nothing_of_anybody_is_in_it(planted: Settings, database: Database, tmp_path: Path) -> None:
    checks = [
        Check("Jobs", False, f"1 under way or waiting. The last failure: {PLANTED}", PLANTED, PLANTED),
        Check(PLANTED, False, PLANTED),
        Check("Air gap", True, f"Open to {HOST}:636; nothing else may be reached."),
        Check("Worker", False, "The worker is not running: documents wait to be read, and nothing is tuned.", "Start it."),
    ]
    parts = contents(planted, database, checks)
    assert {"settings.json", "doctor.json", "record.json", "jobs.json", "rows.json", "logs/run-2.log"} <= parts.keys()
    size = pack(parts, tmp_path / "bundle.tar.gz")
    assert size == (tmp_path / "bundle.tar.gz").stat().st_size and (tmp_path / "bundle.tar.gz").stat().st_mode & 0o077 == 0
    read = 0
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None
            text = stream.read().decode()
            read += len(text)
            assert not amiss(member.name) and not amiss(text), (member.name, amiss(text), text)
    assert read > 3000, "there must have been something to look through"


def test_what_helps_is_in_it(planted: Settings, database: Database) -> None:
    check = Check("Worker", False, "The worker is not running: documents wait to be read, and nothing is tuned.", "Start it.")
    parts = contents(planted, database, [check])
    found = {name: json.loads(text) for name, text in parts.items() if name.endswith(".json")}
    assert found["settings.json"]["slots"] == 6 and found["settings.json"]["backend"] == "auto"
    assert found["settings.json"]["school"] == "set, not shown" and found["settings.json"]["ldap_ca_file"] == "as usual"
    (told,) = found["doctor.json"]
    assert told["detail"] == check.detail and told["remedy"] == "Start it." and told["name"] == "Worker"
    assert found["record.json"]["verbs"] == {"promote": 1, "[...]": 1} and found["record.json"]["rows that fit the chain"] == 2
    assert {"ingest"} <= {one["kind"] for one in found["jobs.json"]}
    assert found["rows.json"]["users"] == 3 and found["versions.json"]["packages"]["fastapi"]
    log = next(text for name, text in parts.items() if name.startswith("logs/run"))
    assert "2026-11-29 10:00:00,123 ERROR answer failed" in log or "2026-11-29 10:00:00,123 ERROR" in log
    assert "KeyError" in log and "chat.py:31" in log and 'chat.py", line 31, in answer' in log
    assert '"route": "/chat/{id}"' in log and '"status": 500' in log


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("The worker is not running: documents wait to be read.", "The worker is not running: documents wait to be read"),
        ("65.0 GB of 271 GB are free.", "65.0 GB of 271 GB are free"),
        ("Quorn worker is not running", "[...] worker is not running"),
        ("07700900123 GB of 2020010112 GB are free", "[...] GB are free"),
        ("AttributeError: Quorn", "AttributeError [...]"),
        ("at /home/quorn/quorn.py:7", "[...]"),
        ("", ""),
    ],
)
def test_only_our_own_words_stay(own: OwnWords, line: str, kept: str) -> None:
    assert own.line(line).rstrip(".") == kept


def test_a_name_goes_even_where_it_is_a_word_of_ours(own: OwnWords) -> None:
    assert "pages" not in own.line("The pages do not answer.").casefold()
    assert OwnWords(Path(settings_module.__file__).parent).line("The pages do not answer.") == "The pages do not answer."


def test_the_command_writes_it_once_and_says_what_is_in_it(
    settings: Settings, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Audit(database).note("promote", "m1")
    database.close()
    file = tmp_path / "box.tar.gz"

    def call() -> object:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--home", str(settings.home), "support-bundle", str(file), "--json"])
        return ended.value.code

    assert call() == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == file.stat().st_size and "doctor.json" in said["parts"]
    assert call() == 1 and "there already" in capsys.readouterr().err


def test_a_database_that_cannot_be_read_does_not_hinder_it(settings: Settings, database: Database) -> None:
    database.close()
    settings.database.write_bytes(b"no database at all" * 100)
    parts = contents(settings, Database(settings.database), [])
    assert "error" in json.loads(parts["rows.json"]) and json.loads(parts["versions.json"])["python"]
