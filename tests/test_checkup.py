"""What the doctor looks at: each fault is planted for real, found, and told with a way out of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from appliance.audit import Audit
from appliance.checkup import border, kept, machine
from appliance.cli.doctor import examine
from appliance.db import Database
from appliance.errors import NotFound
from appliance.jobs import Jobs
from appliance.network import Policy, host
from appliance.registry import Registry
from appliance.settings import CLONE, Settings

DAY = 86400.0
ROOT = Path(__file__).resolve().parents[1]


def test_the_clock_may_not_stand_before_what_was_written(database: Database) -> None:
    assert machine.clock(database).ok
    assert not machine.clock(database, now=0.0).ok and "1970" in machine.clock(database, now=0.0).detail
    Audit(database).note("close class", "c1")
    back = machine.clock(database, now=time.time() - DAY)
    assert not back.ok and "has written something" in back.detail and back.command.startswith("timedatectl")
    assert machine.clock(database, now=time.time() - 60).ok, "a clock is set by a minute now and then"


def test_a_database_of_another_release_is_told_and_not_touched(database: Database) -> None:
    assert kept.migrations(database).ok
    for number, words in (("0004", "Start the services"), ("9999", "newer")):
        with database.begin() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{number}'")
        check = kept.migrations(database)
        assert not check.ok and words in check.detail + check.remedy, check
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "9999"


def test_a_changed_byte_of_a_model_is_found_by_the_thorough_look(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model.gguf").write_bytes(b"GGUF whole")
    registry = Registry(settings.models)
    registry.add(tmp_path / "new", id="green", kind="base", title="Green", licence="MIT", context=1024)
    assert kept.models(registry, thorough=True).ok
    (registry.folder("green") / "model.gguf").write_bytes(b"GGUF Whole")
    check = kept.models(Registry(settings.models), thorough=True)
    assert not check.ok and "green" in check.detail and check.remedy


def test_a_changed_record_is_found(database: Database) -> None:
    audit = Audit(database)
    audit.note("promote", "m1")
    assert kept.record(audit).ok
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE audit SET thing = 'm2'")
    assert not kept.record(audit).ok


def test_what_may_go_out_is_told_and_whether_it_can(settings: Settings, database: Database) -> None:
    jobs, policy = Jobs(database, settings), Policy(settings.network)
    assert border.air_gap(settings).detail.startswith("Air-gapped")
    with jobs.lock(settings.run / "egress.lock"):
        assert "yet the way out is running" in border.air_gap(settings).detail
        policy.allow(host("ldap.school.example:636"))
        assert border.air_gap(settings).ok and "ldap.school.example:636" in border.air_gap(settings).detail
    assert "not running" in border.air_gap(settings).detail
    other = settings.model_copy(update={"ldap_url": "ldaps://other.example"})
    assert border.air_gap(other).command == "appliance network allow other.example:636"


def test_a_card_without_its_driver_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert machine.gpu(tmp_path).ok
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030000\n")
    assert not machine.gpu(tmp_path).ok


def test_memory_is_known_to_a_service_that_sees_no_proc(tmp_path: Path) -> None:
    node = tmp_path / "node0"
    node.mkdir()
    (node / "meminfo").write_text(
        "Node 0 MemTotal: 8000 kB\nNode 0 MemFree: 1000 kB\nNode 0 Active(file): 2000 kB\nNode 0 Inactive(file): 500 kB\n"
    )
    assert machine.memory_bytes(tmp_path / "none", tmp_path) == (3500 * 1024, 8000 * 1024)
    assert machine.memory_bytes(tmp_path / "none", tmp_path / "none") == (0, 0)
    free, whole = machine.memory_bytes()
    assert 0 < free <= whole


# --- pages and certificates ---------------------------------------------------------------------------------------------
class Alive(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def page() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Alive)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_pages_answer_or_not(page: HTTPServer, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, port=page.server_port)
    assert border.pages(settings, tmp_path / "none").ok
    Alive.status = 500
    try:
        assert "status 500" in border.pages(settings, tmp_path / "none").detail
    finally:
        Alive.status = 200
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        check = border.pages(Settings(home=tmp_path, port=free.getsockname()[1]), tmp_path / "none")
    assert not check.ok and check.command == "appliance serve"


def test_the_doctor_may_look_at_the_box_s_own_doors_and_at_no_other(page: HTTPServer, tmp_path: Path) -> None:
    """In a process of its own, as the command is: there the guard stands, and refuses whatever reaches out."""
    lines = (
        "import socket, sys; from pathlib import Path; from appliance import guard; guard.install()",
        "from appliance.checkup import border; from appliance.settings import Settings",
        "settings = Settings(home=Path(sys.argv[1]), port=int(sys.argv[2]))",
        "print(border.pages(settings, Path('/none')).detail)",
        "border._authority(Path('/none'), settings.port)",
        "try: socket.create_connection(('127.0.0.1', settings.port))",
        "except PermissionError: print('refused')",
    )
    words = [sys.executable, "-c", "\n".join(lines), tmp_path, str(page.server_port)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines() == ["They answer.", "refused"], done.stderr
    assert done.stderr.count("was refused") == 1, done.stderr


GUARDED = """
import sys
from pathlib import Path
from appliance import guard
guard.install()
from appliance.checkup import border
from appliance.settings import CLONE, Settings
nowhere = Path(sys.argv[1]) / "none"
for host in ("127.0.0.1", "0.0.0.0", "localhost"):
    assert border.pages(Settings(home=sys.argv[1], host=host, port=int(sys.argv[2])), nowhere).ok, host
assert not guard.attempts, guard.attempts
"""


def test_the_doctor_hears_the_pages_from_behind_the_guard(page: HTTPServer, tmp_path: Path) -> None:
    """As every command runs: its own look at this machine is no attempt to get out."""
    command = [sys.executable, "-c", GUARDED, str(tmp_path), str(page.server_port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(CLONE)})
    assert done.returncode == 0, done.stderr


def certificate(folder: Path, *, root_days: float, leaf_days: float) -> tuple[Path, Path]:
    """An authority, and a file with a key and a certificate of appliance.local from it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def made(name: str, days: float, issuer: Any, key: Any, signer: Any, *, ca: bool) -> Any:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=400)).not_valid_after(now + timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return builder.sign(signer, hashes.SHA256())

    pem = serialization.Encoding.PEM
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    root = made("authority", root_days, None, keys[0], keys[0], ca=True)
    leaf = made("appliance.local", leaf_days, root.subject, keys[1], keys[0], ca=False)
    authority, shown = folder / "root.crt", folder / "leaf.pem"
    authority.write_bytes(root.public_bytes(pem))
    private = keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown.write_bytes(private + leaf.public_bytes(pem))
    return authority, shown


@pytest.mark.parametrize(
    ("root_days", "leaf_days", "words"),
    [(3000, 1, ""), (3000, -1, "ended on"), (10, 1, "authority that devices trust ends")],
)
def test_certificates_of_the_proxy(tmp_path: Path, root_days: float, leaf_days: float, words: str) -> None:
    authority, shown = certificate(tmp_path, root_days=root_days, leaf_days=leaf_days)
    proxy = tmp_path / "Caddyfile"
    assert border.certificates(Settings(), proxy=proxy) is None, "no proxy was set up"
    proxy.write_text("# Written by the school appliance's installer.\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    link = listener.accept()[0]
                    with contextlib.suppress(OSError), context.wrap_socket(link, server_side=True):
                        pass

        threading.Thread(target=answer, daemon=True).start()
        check = border.certificates(Settings(), proxy=proxy, authority=authority, port=listener.getsockname()[1])
    assert check is not None and check.ok is (not words) and words.lower() in check.detail.lower(), check


def test_an_encrypted_door_that_is_shut_is_told(tmp_path: Path) -> None:
    authority, _ = certificate(tmp_path, root_days=3000, leaf_days=1)
    (tmp_path / "Caddyfile").write_text("# Written by the school appliance's installer.\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        check = border.certificates(Settings(), proxy=tmp_path / "Caddyfile", authority=authority, port=free.getsockname()[1])
    assert check and not check.ok and "does not answer" in check.detail and check.command


# --- all of them ----------------------------------------------------------------------------------------------------------
async def test_with_everything_stopped_each_check_is_made_and_nothing_is_changed(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    database.close()
    before = {path: path.stat().st_mtime_ns for path in settings.home.rglob("*") if path.suffix == ".sqlite3"}
    found = {one.name: one for one in await examine(settings)}
    wanted = {"Answers", "Database", "Migrations", "Disk", "Memory", "GPU", "Clock", "Air gap", "Model files", "Worker", "Jobs",
              "Safeguarding", "Engine", "Audit record", "Pages"}  # fmt: skip
    assert wanted <= found.keys()
    assert all(one.remedy for one in found.values() if not one.ok) and not found["Engine"].ok and found["Database"].ok
    assert before == {path: path.stat().st_mtime_ns for path in before}
    from appliance.cli import main

    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main, ["--home", str(settings.home), "doctor", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1 and said["ok"] is False and len(said["checks"]) == len(found)


async def test_where_nothing_was_set_up_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no appliance"):
        await examine(Settings(home=tmp_path / "home"))
    assert not (tmp_path / "home").exists()


async def test_a_damaged_database_is_told_and_the_other_checks_are_made(settings: Settings, database: Database) -> None:
    database.close()
    raw = bytearray(settings.database.read_bytes())
    raw[100:] = os.urandom(len(raw) - 100)
    settings.database.write_bytes(raw)
    found = {one.name: one for one in await examine(settings)}
    assert not found["Database"].ok and found["Disk"].detail and found["Air gap"].ok
