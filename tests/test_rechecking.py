"""People of a real directory who are removed or switched off there while they are signed in here."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance import network
from appliance.accounts import Accounts, People
from appliance.accounts import rechecking as module
from appliance.accounts.directory import Directory
from appliance.audit import Audit
from appliance.db import Database
from appliance.errors import Unreachable
from appliance.network import Host, Policy
from appliance.settings import Settings
from tests.outside import allow, until, way_out
from tests.slapd import BASE, BOX, BOX_PASSWORD, GROUPS, PEOPLE, SLAPD, Slapd, change, slapd

pytestmark = [
    pytest.mark.optional,
    pytest.mark.skipif(SLAPD is None, reason="slapd is not installed (apt-get install slapd ldap-utils)"),
]
ADA, GRACE, _, ZOE = (f"cn=person {number},ou=people,{BASE}" for number in range(len(PEOPLE)))


@dataclass
class School:
    """`asked`: one entry for each time that the directory was dialled."""

    server: Slapd
    settings: Settings
    accounts: Accounts
    people: People
    audit: Audit
    asked: list[str]

    def enter(self, number: int) -> str:
        name, password, *_ = PEOPLE[number]
        return self.accounts.sign_in(name, password, "here")[0]

    def use(self, token: str) -> bool:
        """Whether the session is good, once all that this sets going has ended."""
        self.accounts.session(token)
        until(lambda: not any(one.name == module.THREAD for one in threading.enumerate()), "the end of asking")
        return self.accounts.session(token) is not None


@pytest.fixture
def school(tmp_path: Path, database: Database, settings: Settings) -> Iterator[School]:
    with slapd(tmp_path / "slapd") as server:
        (tmp_path / "password").touch(0o600)
        (tmp_path / "password").write_text(BOX_PASSWORD)
        settings = settings.model_copy(
            update={
                "ldap_url": f"ldaps://localhost:{server.tls}", "ldap_ca_file": server.ca, "ldap_base": BASE,
                "ldap_bind_dn": BOX, "ldap_bind_password_file": tmp_path / "password", "ldap_role": "pupil",
                "ldap_groups": {f"cn=teachers,{GROUPS}": "teacher"},
            }
        )  # fmt: skip
        allow(settings, Host("localhost", server.tls))
        asked: list[str] = []

        def dial(host: str, port: int) -> socket.socket:
            asked.append(host)
            return network.dial(settings, host, port)

        audit = Audit(database)
        accounts = Accounts(database, settings, Directory(settings, dial), audit)
        with way_out(settings):
            yield School(server, settings, accounts, People(database), audit, asked)


def wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of an hour is over, however often."""
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.0)


def test_who_is_gone_there_is_out_here_with_keys_and_all(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    early = school.enter(0)
    change(school.server, f"dn: {ADA}\nchangetype: delete")
    before = len(school.asked)
    assert all(school.use(early) for _ in range(3)) and len(school.asked) == before, "the sign-in was a moment ago"
    wait(monkeypatch)
    ada, grace, zoe = early, school.enter(1), school.enter(3)
    school.people.change(school.people.list(search="zoë")[0].id, language="fr")
    teacher = school.accounts.named("grace")
    assert teacher.role == "teacher"
    _, key = school.accounts.create_key(teacher, "Moodle")
    restarted = Accounts(school.accounts._database, school.settings, school.accounts._directory, school.audit)
    school.accounts = restarted
    assert not school.use(ada) and school.use(grace) and school.use(zoe)
    change(school.server, f"dn: {GRACE}\nchangetype: modify\nadd: pwdAccountLockedTime\npwdAccountLockedTime: 000001010000Z")
    assert school.accounts.key(key), "a key is asked about as well, when it is used"
    assert not school.use(grace) and school.accounts.key(key) is None and school.use(zoe)
    gone = dict.fromkeys(row.thing for row in school.audit.entries() if row.verb == "gone from directory")
    assert list(gone) == [f"person {school.people.list(search=name)[0].id}" for name in ("ada", "grace")]
    assert not school.people.list(search="grace")[0].disabled, "let in again there, they sign in again here"
    change(school.server, f"dn: {GRACE}\nchangetype: modify\ndelete: pwdAccountLockedTime")
    assert school.use(school.enter(1))


def test_a_new_role_there_is_theirs_here(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    wait(monkeypatch)
    school.accounts.sign_in("grace", PEOPLE[1][1], "here")
    token = school.enter(3)
    change(school.server, f"dn: cn=teachers,{GROUPS}\nchangetype: modify\nadd: member\nmember: {ZOE}")
    assert not school.use(token), "a new role signs out, as everywhere"
    assert school.people.list(search="zoë")[0].role == "teacher"


def test_while_the_directory_cannot_be_asked_everybody_stays(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    token = school.enter(0)
    change(school.server, f"dn: {ADA}\nchangetype: delete")
    Policy(school.settings.network).deny("localhost", school.server.tls)
    wait(monkeypatch)
    school.accounts._rechecking._due.clear()  # type: ignore[union-attr]
    seen: list[Any] = []
    look = Directory.look

    def looked(self: Directory, number: str) -> Any:
        seen.append(number)
        return look(self, number)

    monkeypatch.setattr(Directory, "look", looked)
    assert school.use(token) and len(seen) == 1
    with pytest.raises(Unreachable):
        school.enter(3)
    assert school.use(token) and len(seen) == 1, "it is left alone for a minute"
    allow(school.settings, Host("localhost", school.server.tls))
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    school.accounts._rechecking._due.clear()  # type: ignore[union-attr]
    school.accounts._directory._away = 0.0  # type: ignore[union-attr]
    assert not school.use(token) and len(seen) == 2
