"""Sign-in by a directory: a real slapd behind the real way out, good and bad sign-ins, and a directory that fails."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from appliance import network
from appliance.accounts import Accounts, People, User
from appliance.accounts import directory as module
from appliance.accounts.directory import Directory
from appliance.audit import Audit
from appliance.classes import Classes
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Busy, Forbidden, NotSignedIn, Unreachable
from appliance.network import Host, Policy
from appliance.settings import Settings, load
from tests.outside import allow, machine, until, way_out
from tests.slapd import BASE, BOX, BOX_PASSWORD, GROUPS, SLAPD, Slapd, slapd

needs_slapd = [
    pytest.mark.optional,
    pytest.mark.skipif(SLAPD is None, reason="slapd is not installed (apt-get install slapd ldap-utils)"),
]
ADA, GRACE = "photosynthesis 1", "compilers compile"
LOCAL = "correct horse battery"


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Slapd, Settings]]:
    """A directory, and settings of a box that may reach it, with its way out running."""
    folder = tmp_path_factory.mktemp("directory")
    with slapd(folder / "slapd") as server:
        (folder / "password").touch(0o600)
        (folder / "password").write_text(BOX_PASSWORD + "\n")
        settings = Settings(
            home=folder / "home", ldap_url=f"ldaps://localhost:{server.tls}", ldap_ca_file=server.ca, ldap_base=BASE,
            ldap_bind_dn=BOX, ldap_bind_password_file=folder / "password", ldap_class_attribute="employeeNumber",
        )  # fmt: skip
        allow(settings, Host("localhost", server.tls), *(Host("127.0.0.1", one) for one in (server.tls, server.plain)))
        with way_out(settings):
            yield server, settings


def ask(settings: Settings, dial: Callable[..., socket.socket] = network.dial, **changes: Any) -> Directory:
    settings = settings.model_copy(update=changes)
    return Directory(settings, lambda host, port: dial(settings, host, port))


class TestSlapd:
    pytestmark = needs_slapd

    @pytest.mark.parametrize("way", ["ldaps", "StartTLS", "plain"])
    def test_the_right_password_brings_who_it_is(self, school: tuple[Slapd, Settings], way: str) -> None:
        server, settings = school
        url = settings.ldap_url if way == "ldaps" else f"ldap://127.0.0.1:{server.plain}"
        found = ask(settings, ldap_url=url, ldap_plain=way == "plain")("ADA", ADA)
        assert found is not None
        assert (found.source, found.name, found.full_name, found.role) == ("ldap", "ada", "Ada Byron", "pupil")
        assert found.classes == ("7 B",) and len(found.external) == 36 and not found.ruled

    @pytest.mark.parametrize(
        ("name", "password"),
        [
            ("ada", "wrong"), ("ada", ADA + " "), ("ada", ADA.upper()), ("ada", GRACE), ("nobody", ADA),
            ("alan", "enigma enigma"), ("twin", "twin twin"), ("box", BOX_PASSWORD), ("person 0", ADA),
            ("ada", "\ud800"), ("ada", "x" * 1000),
        ],
    )  # fmt: skip
    def test_a_wrong_password_an_unknown_name_a_locked_account_and_twins_stay_out(
        self, school: tuple[Slapd, Settings], name: str, password: str
    ) -> None:
        assert ask(school[1])(name, password) is None

    def test_a_password_that_is_nothing_once_it_is_prepared_is_no_sign_in_as_nobody(
        self, school: tuple[Slapd, Settings]
    ) -> None:
        server, settings = school
        ada = f"cn=person 0,ou=people,{BASE}"
        words = ["ldapwhoami", "-x", "-H", f"ldap://127.0.0.1:{server.plain}", "-D", ada, "-w", ""]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "anonymous" in done.stdout, "the control: this directory answers it with success"
        for password in (
            "\u00ad",
            "\u200b",
            "\ufe00\u2060",
        ):  # a soft hyphen and its like: prepared by RFC 4013, nothing is left
            assert ask(settings)("ada", password) is None

    def test_an_empty_password_or_name_is_refused_before_anything_is_dialled(self, school: tuple[Slapd, Settings]) -> None:
        dialled: list[str] = []

        def dial(settings: Settings, host: str, port: int) -> socket.socket:
            dialled.append(host)
            return network.dial(settings, host, port)

        asked = ask(school[1], dial)
        assert asked("ada", ADA) is not None and dialled == ["localhost"]
        for name, password in (("ada", ""), ("", ADA), ("ada\0", ADA), ("ada", "\0")):
            assert asked(name, password) is None
        assert dialled == ["localhost"]

    @pytest.mark.parametrize(
        "name",
        [
            "*",
            "a*",
            "*da",
            "ada)(uid=*",
            "*)(uid=ada",
            "ada)(|(uid=*",
            "ada))(&(uid=*",
            "\\61da",
            "(uid=ada)",
            "ada\\",
            "ad\\61",
        ],
    )
    def test_a_name_is_a_name_and_no_part_of_the_question(self, school: tuple[Slapd, Settings], name: str) -> None:
        assert ask(school[1])(name, ADA) is None

    @hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
    @hypothesis.given(strategies.text(max_size=40), strategies.text(max_size=40))
    def test_nothing_that_can_be_typed_makes_the_directory_seem_away(
        self, school: tuple[Slapd, Settings], name: str, password: str
    ) -> None:
        assert ask(school[1])(name, password) is None

    def test_a_name_with_such_letters_is_found(self, school: tuple[Slapd, Settings]) -> None:
        found = ask(school[1])("zoë*(x)", "brackets & stars")
        assert found is not None and found.name == "zoë*(x)"

    def test_groups_are_known_by_their_whole_names(self, school: tuple[Slapd, Settings]) -> None:
        teachers = {f"CN=Teachers, {GROUPS}": "teacher"}
        asked = ask(school[1], ldap_groups=teachers)
        grace, ada = asked("grace", GRACE), asked("ada", ADA)
        assert grace is not None and (grace.role, grace.ruled) == ("teacher", True)
        assert ada is not None and ada.role == "pupil", "a group of the same short name elsewhere is another one"
        with pytest.raises(Forbidden, match="no group that may use this box"):
            ask(school[1], ldap_groups=teachers, ldap_role="")("ada", ADA)
        assert ask(school[1], ldap_groups=teachers, ldap_role="")("ada", "wrong") is None, (
            "told only who has shown who they are"
        )
        both = {f"cn=nothing,{GROUPS}": "administrator", **teachers, f"cn=teachers,{BASE}": "safeguarding"}
        found = ask(school[1], ldap_groups=both)("grace", GRACE)
        assert found is not None and found.role == "teacher", "the first that fits"

    @pytest.mark.parametrize("way", ["ldaps", "StartTLS"])
    def test_a_certificate_of_a_strange_authority_or_for_another_host_is_refused(
        self, school: tuple[Slapd, Settings], way: str
    ) -> None:
        server, settings = school
        scheme, port = ("ldaps", server.tls) if way == "ldaps" else ("ldap", server.plain)
        sent: list[bytes] = []

        def dial(settings: Settings, _host: str, port: int) -> socket.socket:
            return _Watched(network.dial(settings, "127.0.0.1", port), sent)

        here, elsewhere = f"{scheme}://127.0.0.1:{port}", f"{scheme}://elsewhere.example:{port}"
        strange = server.folder / "other.pem"
        for url, ca in ((here, strange), (elsewhere, server.ca), (here, None)):
            with pytest.raises(Unreachable, match="cannot be asked just now") as caught:
                ask(settings, dial, ldap_url=url, ldap_ca_file=ca)("ada", ADA)
            assert "its certificate is not trusted" in caught.value.hint and "no password was sent" in caught.value.hint
        assert ADA.encode() not in b"".join(sent) and BOX_PASSWORD.encode() not in b"".join(sent)

    def test_the_box_being_refused_is_said_to_the_administrator(self, school: tuple[Slapd, Settings], tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        asked = ask(school[1], ldap_bind_password_file=secret)
        for content, mode, hint in (
            (None, 0, "cannot be read"), ("", 0o600, "is empty"), ("wrong", 0o644, "Others than the appliance may read"),
            ("wrong", 0o600, "does not let the box's own account in"),
        ):  # fmt: skip
            if content is not None:
                secret.write_text(content)
                secret.chmod(mode)
            with pytest.raises(Unreachable) as caught:
                asked("ada", ADA)
            assert hint in caught.value.hint
        secret.write_text(BOX_PASSWORD)
        assert asked("ada", ADA) is not None, "what is mended works at once"

    def test_a_directory_that_is_killed_in_the_middle(self, tmp_path: Path, settings: Settings) -> None:
        with slapd(tmp_path / "slapd") as server:
            allow(settings, Host("127.0.0.1", server.plain))

            def dial(settings: Settings, host: str, port: int) -> socket.socket:
                line = network.dial(settings, host, port)
                server.process.send_signal(signal.SIGKILL)
                server.process.wait()
                return line

            with way_out(settings):
                kept = {"ldap_url": f"ldap://127.0.0.1:{server.plain}", "ldap_base": BASE, "ldap_ca_file": server.ca}
                with pytest.raises(Unreachable, match="only accounts of this box"):
                    ask(settings, dial, **kept)("ada", ADA)
                with pytest.raises(Unreachable, match="only accounts of this box") as caught:
                    ask(settings, **kept)("ada", ADA)
                assert "does not answer" in caught.value.hint

    def test_first_allowed_and_seen_then_denied_and_nothing_is_dialled(self, school: tuple[Slapd, Settings]) -> None:
        server, settings = school
        host = Host("127.0.0.1", server.tls)
        asked = ask(settings, ldap_url=f"ldaps://127.0.0.1:{server.tls}")
        assert asked("ada", ADA) is not None
        Policy(settings.network).deny("127.0.0.1", server.tls)
        try:
            with pytest.raises(Unreachable, match="only accounts of this box") as caught:
                asked("ada", ADA)
            assert str(host) in caught.value.hint and "may not be dialled" in caught.value.hint
        finally:
            allow(settings, host)

    def test_people_sign_in_and_are_the_same_people_the_next_time(
        self, school: tuple[Slapd, Settings], database: Database
    ) -> None:
        audit, people, classes = Audit(database), People(database), Classes(database)
        seven = classes.add("7b")
        accounts = Accounts(database, school[1], ask(school[1]), audit)
        head = first(accounts)
        token, ada = accounts.sign_in("Ada", ADA, "here")
        found = accounts.session(token)
        assert found is not None and found.user == ada and ada.role == "pupil" and ada.classes == {seven.name}
        person = people.get(ada.id)
        assert (person.name, person.full_name, person.source) == ("ada", "Ada Byron", "ldap") and not person.waiting
        assert accounts.sign_in("ada", ADA, "here")[1].id == ada.id
        rows = [(row.verb, row.thing, row.actor) for row in audit.entries()]
        assert rows == [("admit", f"person {ada.id}", ada.id)], "once: nothing has changed the second time"
        said = set()
        for name, password in (
            ("ada", "wrong"),
            ("nobody", "wrong"),
            ("Ms Green", "wrong"),
            ("ada", ""),
            ("alan", "enigma enigma"),
        ):
            with pytest.raises(NotSignedIn) as caught:
                accounts.sign_in(name, password, "there")
            said.add((caught.value.message, caught.value.hint))
        assert len(said) == 1, "one answer for all"
        people.change(ada.id, disabled=True)
        with pytest.raises(NotSignedIn) as caught:
            accounts.sign_in("ada", ADA, "here")
        assert (caught.value.message, caught.value.hint) in said and accounts.session(token) is None
        assert accounts.sign_in("Ms Green", LOCAL, "here")[1].id == head.id

    def test_a_local_account_is_never_looked_for_in_the_directory(
        self, school: tuple[Slapd, Settings], database: Database
    ) -> None:
        dialled: list[str] = []

        def dial(settings: Settings, host: str, port: int) -> socket.socket:
            dialled.append(host)
            return network.dial(settings, host, port)

        accounts, people = Accounts(database, school[1], ask(school[1], dial)), People(database)
        ada, _ = people.add("Ada", "teacher", password=LOCAL)
        assert accounts.sign_in("ada", LOCAL, "here")[1].role == "teacher" and dialled == []
        with pytest.raises(NotSignedIn):
            accounts.sign_in("ada", ADA, "here")
        people.change(ada.id, disabled=True)
        with pytest.raises(NotSignedIn):
            accounts.sign_in("ada", ADA, "here")
        assert accounts.sign_in("grace", GRACE, "here")[1].name == "grace"

    def test_neither_words_nor_steps_tell_whose_name_it_is(self, school: tuple[Slapd, Settings], database: Database) -> None:
        """Of the directory, of this box, disabled, or nobody's; while it answers, and while it cannot be asked."""
        server, settings = school
        lines: list[list[bytes]] = []

        def dial(settings: Settings, host: str, port: int) -> socket.socket:
            lines.append([])
            return _Watched(network.dial(settings, host, port), lines[-1])

        directory = ask(settings, dial, ldap_url=f"ldap://127.0.0.1:{server.plain}", ldap_plain=True)
        accounts, people = Accounts(database, settings, directory), People(database)
        first(accounts)
        people.change(people.add("Old Head", "teacher", password=LOCAL)[0].id, disabled=True)
        accounts.sign_in("ada", ADA, "here")
        names = ("ada", "grace", "Ms Green", "Old Head", "nobody", "(command line)")

        def told(password: str) -> tuple[set[tuple[str, str]], set[int]]:
            said, steps = set(), set()
            for name in names:
                lines.clear()
                with pytest.raises((NotSignedIn, Unreachable)) as caught:
                    accounts.sign_in(name, password, f"there, {password}")
                said.add((caught.value.message, caught.value.hint))
                steps.add(len(lines[0]) if lines else 0)
                if name in ("Ms Green", "Old Head"):
                    sent = b"".join(piece for line in lines for piece in line)
                    assert name.encode() not in sent and b"wrong" not in sent, "what is of this box stays here"
            return said, steps

        assert told("a wrong one") == ({("The name or the password is not right.", "Check both, then try again.")}, {4})
        assert told("") == ({("The name or the password is not right.", "Check both, then try again.")}, {0})
        server_host = Host("127.0.0.1", server.plain)
        Policy(settings.network).deny("127.0.0.1", server.plain)
        try:
            said, _ = told("wrong again")
        finally:
            allow(settings, server_host)
        assert len(said) == 1 and "only accounts of this box" in next(iter(said))[0]


class _Watched(socket.socket):
    """A socket that keeps what is sent over it as it is typed, and nothing of what is encrypted first."""

    def __init__(self, line: socket.socket, sent: list[bytes]) -> None:
        timeout = line.gettimeout()
        super().__init__(line.family, line.type, line.proto, fileno=line.detach())
        self.settimeout(timeout)
        self._sent = sent

    def sendall(self, data: Any, flags: int = 0) -> None:
        self._sent.append(bytes(data))
        super().sendall(data, flags)


def first(accounts: Accounts) -> User:
    code = accounts.ensure_setup_code()
    assert code
    return accounts.create_first_administrator(code, "Ms Green", LOCAL)


# --- a directory that does not answer as one --------------------------------------------------------------------------------
def plain(settings: Settings, port: int, **changes: Any) -> Directory:
    return ask(settings, ldap_url=f"ldap://127.0.0.1:{port}", ldap_base=BASE, **changes)


def test_while_air_gapped_nothing_is_dialled_and_people_of_the_box_sign_in(settings: Settings, database: Database) -> None:
    with machine() as outside:
        allow(settings, outside.host)
        with way_out(settings):
            with pytest.raises(Unreachable):
                plain(settings, outside.port)("ada", ADA)
            assert len(outside.came) == 1, "the control: allowed, it is dialled"
            Policy(settings.network).deny("127.0.0.1")
            accounts = Accounts(database, settings, plain(settings, outside.port))
            first(accounts)
            with pytest.raises(Unreachable, match="only accounts of this box") as caught:
                accounts.sign_in("ada", ADA, "here")
            assert "air-gapped" in caught.value.hint
            assert accounts.sign_in("Ms Green", LOCAL, "here")[1].name == "Ms Green"
        assert len(outside.came) == 1


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x02\x01\x09", b"\0"]
)
def test_what_is_no_directory_is_said_in_one_sentence(
    settings: Settings, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                with line:
                    line.recv(4096)
                    line.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        allow(settings, Host("127.0.0.1", port))
        with way_out(settings):
            for plainly in (True, False):
                with pytest.raises(Unreachable, match="only accounts of this box"):
                    plain(settings, port, ldap_plain=plainly)("ada", ADA)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_directory_that_hangs_holds_few_and_is_then_left_alone(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 1.0)
    monkeypatch.setattr(module, "REST_SECONDS", 600.0)
    with machine(mute=True) as outside:
        allow(settings, outside.host)
        with way_out(settings):
            accounts = Accounts(database, settings, plain(settings, outside.port))
            first(accounts)
            faults: list[ApplianceError] = []

            def sign_in(number: int) -> None:
                try:
                    accounts.sign_in(f"pupil {number}", ADA, "here")
                except ApplianceError as error:
                    faults.append(error)

            crowd = [threading.Thread(target=sign_in, args=(number,)) for number in range(12)]
            for one in crowd:
                one.start()
            assert accounts.sign_in("Ms Green", LOCAL, "here"), "meanwhile people of the box sign in"
            for one in crowd:
                one.join()
            assert len(faults) == 12 and all(isinstance(one, (Unreachable, Busy)) for one in faults)
            assert 1 <= len(outside.came) <= module.AT_ONCE
            before = len(outside.came)
            with pytest.raises(Unreachable):
                accounts.sign_in("pupil 99", ADA, "here")
            assert len(outside.came) == before
            monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
            with pytest.raises(Unreachable):
                accounts.sign_in("pupil 99", ADA, "here")
            monkeypatch.undo()
            until(lambda: len(outside.came) == before + 1, "another try after the rest")


# --- settings ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrong",
    [
        {"ldap_url": "http://ldap.school.example"}, {"ldap_url": "ldap.school.example"}, {"ldap_url": "ldaps://a@b.example"},
        {"ldap_url": "ldapi:///run/slapd"}, {"ldap_user_filter": "(uid=ada)"}, {"ldap_user_filter": "uid={name}"},
        {"ldap_groups": {"cn=a": "king"}}, {"ldap_role": "king"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as caught:
        load(**wrong)
    assert next(iter(wrong)) in caught.value.message


def test_settings_that_contradict_each_other_are_refused(settings: Settings, tmp_path: Path) -> None:
    for wrong in (
        {"ldap_url": "ldaps://a.example"},
        {"ldap_url": "ldaps://a.example", "ldap_base": BASE, "ldap_bind_dn": BOX},
        {"ldap_url": "ldaps://a.example", "ldap_base": BASE, "ldap_bind_password_file": tmp_path / "x"},
    ):
        with pytest.raises(BadInput, match="ldap_"):
            ask(settings, **wrong)


def test_the_status_of_the_network_names_what_the_settings_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cli.test_commands import run

    monkeypatch.setenv("APPLIANCE_LDAP_URL", "ldaps://ldap.school.example")
    monkeypatch.setenv("APPLIANCE_LDAP_BASE", BASE)
    assert "`appliance network allow ldap.school.example:636`" in run(tmp_path, "network", "status").stdout
    assert run(tmp_path, "network", "allow", "ldap.school.example:636").returncode == 0
    assert "A setting names" not in run(tmp_path, "network", "status").stdout
