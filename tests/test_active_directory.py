"""Sign-in by what Active Directory is like: its names for things, its groups, accounts that are off, and why it refuses.

A real slapd holds entries with its attributes, and refuses some of them with its very words.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance import network
from appliance.accounts.directory import Directory
from appliance.errors import Forbidden
from appliance.network import Host
from appliance.settings import Settings
from tests.outside import allow, way_out
from tests.slapd import BASE, BOX, BOX_PASSWORD, PASSWORD, SLAPD, slapd

pytestmark = [
    pytest.mark.optional,
    pytest.mark.skipif(SLAPD is None, reason="slapd is not installed (apt-get install slapd ldap-utils)"),
]


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings as the ones for Active Directory are described, and a directory that has its attributes."""
    folder = tmp_path_factory.mktemp("active")
    with slapd(folder / "slapd") as server:
        (folder / "password").touch(0o600)
        (folder / "password").write_text(BOX_PASSWORD + "\n")
        settings = Settings(
            home=folder / "home", ldap_url=f"ldaps://localhost:{server.tls}", ldap_ca_file=server.ca, ldap_base=BASE,
            ldap_bind_dn=BOX, ldap_bind_password_file=folder / "password", ldap_name_attribute="sAMAccountName",
            ldap_user_filter="(&(objectClass=user)(|(sAMAccountName={name})(userPrincipalName={name})))", ldap_group_filter="",
        )  # fmt: skip
        allow(settings, Host("localhost", server.tls))
        with way_out(settings):
            yield settings


def ask(settings: Settings, dial: Callable[..., socket.socket] = network.dial, **changes: Any) -> Directory:
    settings = settings.model_copy(update=changes)
    return Directory(settings, lambda host, port: dial(settings, host, port))


def test_either_name_and_the_same_person(school: Settings) -> None:
    asked = ask(school)
    found = [asked(name, PASSWORD) for name in ("ADA", "ada@school.example", "Ada@School.Example")]
    assert {one and (one.name, one.external) for one in found} == {("ada", str(uuid.UUID(int=1)))}
    assert asked("ada@other.example", PASSWORD) is None and asked("SCHOOL\\ada", PASSWORD) is None


def test_once_more_by_the_number_whatever_the_name_is_by_now(school: Settings) -> None:
    asked = ask(school)
    again = asked.again(str(uuid.UUID(int=1)), PASSWORD)
    assert again is not None and again.external == str(uuid.UUID(int=1))
    for number, password in ((str(uuid.UUID(int=1)), "wrong"), (str(uuid.UUID(int=999)), PASSWORD), ("", PASSWORD),
                             ("*", PASSWORD), (str(uuid.UUID(int=1)), "")):  # fmt: skip
        assert asked.again(number, password) is None


@pytest.mark.parametrize(
    "written",
    [
        "cn=Teachers\\, Year 7 (été),ou=Groups,{base}", "CN = Teachers\\2C Year 7 (\\C3\\A9t\\C3\\A9), OU=groups,{base}",
        "cn=teachers\\2c year 7 \\28été\\29,ou=groups,{base}",
    ],
)  # fmt: skip
def test_a_group_is_known_however_its_name_is_escaped(school: Settings, written: str) -> None:
    found = ask(school, ldap_groups={written.format(base=BASE): "teacher"})("ada", PASSWORD)
    assert found is not None and found.role == "teacher"


@pytest.mark.parametrize(
    "written",
    [
        "cn=Teachers,cn=Year 7 (été),ou=Groups,{base}", "cn=Teachers, Year 7 (été),ou=Groups,{base}",
        "cn=Teachers\\\\, Year 7 (été),ou=Groups,{base}", "cn=Teachers,ou=Groups,{base}",
    ],
)  # fmt: skip
def test_a_group_of_another_name_is_another_group(school: Settings, written: str) -> None:
    found = ask(school, ldap_groups={written.format(base=BASE): "teacher"})("ada", PASSWORD)
    assert found is not None and found.role == "pupil"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("p530", "at this time"), ("p531", "certain computers only"), ("p532", "has expired"), ("p533", "switched off"),
        ("p701", "has ended"), ("p773", "choose a new password"), ("p775", "locked"),
    ],
)  # fmt: skip
def test_why_it_refuses_somebody_is_said_in_a_sentence(school: Settings, name: str, said: str) -> None:
    with pytest.raises(Forbidden) as caught:
        ask(school)(name, PASSWORD)
    assert said in caught.value.message and caught.value.hint and "AcceptSecurityContext" not in str(caught.value)


@pytest.mark.parametrize("name", ["p52e", "p999"])
def test_a_wrong_password_and_what_nobody_knows_are_the_same(school: Settings, name: str) -> None:
    assert ask(school)(name, PASSWORD) is None


def test_an_account_that_is_switched_off_is_told_so_only_with_the_right_password(school: Settings) -> None:
    asked = ask(school)
    with pytest.raises(Forbidden, match="switched off"):
        asked("off", PASSWORD)
    assert asked("off", "wrong") is None


def test_nobody_is_looked_for_on_another_server(school: Settings) -> None:
    """A part of the tree lies elsewhere: every search is told so, and nothing but the directory itself is dialled."""
    dialled: list[tuple[str, int]] = []

    def dial(settings: Settings, host: str, port: int) -> socket.socket:
        dialled.append((host, port))
        return network.dial(settings, host, port)

    assert ask(school, dial)("ada", PASSWORD) is not None
    assert ask(school, dial)("nobody", PASSWORD) is None
    assert {host for host, _ in dialled} == {"localhost"} and len(dialled) == 2
