"""A school's box, from a USB stick to an upgrade that is undone: on a real booted Debian 12 without any network but its LAN."""

from __future__ import annotations

import re
import socket
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from tests.machine import booted, bundles
from tests.machine.booted import BOX, Box, leaving

pytestmark = [pytest.mark.machine, pytest.mark.optional, pytest.mark.slow]

NAME = "appliance.local"
PASSWORD = "long enough for a school"
LESSON = "# Leaves\n\nLeaves are green because chlorophyll reflects green light. Roots take in water from the soil.\n"


@dataclass
class School:
    """What the tests of this file share, in their order: one box, and what became of it."""

    box: Box
    stick: Path
    bundle: Path
    key: Path
    paper: str = ""  # the recovery key of its backups

    def install(self, bundle: Path | None = None, options: str = "--yes") -> tuple[int, str]:
        name = (bundle or self.bundle).name
        return self.box.code(f"/mnt/stick/{name}/install {options}")


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    booted.require()
    folder = tmp_path_factory.mktemp("machine")
    stick = folder / "stick"
    stick.mkdir()
    key = folder / "signing.pem"
    bundle = bundles.made(stick, key)
    box = Box(folder / "box", stick)
    box.boot()
    yield School(box, stick, bundle, key)
    box.cut_power()


class Browser:
    """A device of the LAN that trusts the box's authority and nothing else."""

    def __init__(self, box: Box) -> None:
        self._context = ssl.create_default_context(
            cadata=box.run("cat /var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
        )
        self._jar = CookieJar()

    def ask(self, path: str, form: dict[str, str] | None = None, host: str = BOX) -> tuple[int, str]:
        handlers = (
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context),
            urllib.request.HTTPCookieProcessor(self._jar),
        )  # fmt: skip
        data = None if form is None else urllib.parse.urlencode(form).encode()
        request = urllib.request.Request(f"https://{host}{path}", data)
        if form is not None:
            request.add_header("Origin", f"https://{host}")
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def ready(box: Box, seconds: float = 90) -> float:
    """Seconds until the pages can answer."""
    began = time.monotonic()
    browser = None
    while True:
        try:
            browser = browser or Browser(box)
            if browser.ask("/ready")[0] == 200:
                return time.monotonic() - began
        except (OSError, AssertionError):
            pass
        assert time.monotonic() - began < seconds, box.run("journalctl -n 60 --no-pager", check=False)
        time.sleep(0.3)


def token(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    return found[1] if found else ""


# --- what is no good bundle ------------------------------------------------------------------------------------------------
def test_a_bundle_with_one_changed_byte_is_refused_and_nothing_is_changed(school: School) -> None:
    bad = bundles.copied(school.bundle, school.stick / "changed")
    wheel = sorted((bad / "wheels").glob("*.whl"))[0]
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    bundles.replaced(wheel, bytes(data))
    code, said = school.install(bad)
    assert code == 1 and "damaged" in said and wheel.name in said and "Try:" in said
    assert school.box.run("ls /opt; ls /etc/appliance", check=False).strip().startswith("ls: cannot access")


def test_a_stick_that_was_pulled_out_while_it_was_filled_is_refused(school: School) -> None:
    bad = bundles.copied(school.bundle, school.stick / "half")
    sorted((bad / "wheels").glob("torch-*.whl"))[0].unlink()
    code, said = school.install(bad)
    assert code == 1 and "damaged" in said and "torch" in said
    (bad / "SHA256SUMS.sig").unlink()
    code, said = school.install(bad)
    assert code == 1 and "no whole bundle" in said


def test_a_file_that_nobody_signed_is_refused(school: School) -> None:
    bad = bundles.copied(school.bundle, school.stick / "more")
    (bad / "wheels" / "extra-1.0-py3-none-any.whl").write_bytes(b"PK")
    code, said = school.install(bad)
    assert code == 1 and "extra-1.0" in said


def test_a_list_that_was_signed_by_nobody_is_refused(school: School) -> None:
    bad = bundles.copied(school.bundle, school.stick / "signature")
    bundles.replaced(bad / "SHA256SUMS", (bad / "SHA256SUMS").read_bytes() + b"\n")
    code, said = school.install(bad)
    assert code == 3 and "signature" in said


def test_a_dry_run_changes_nothing_even_where_python_is_missing(school: School) -> None:
    code, said = school.install(options="--dry-run")
    assert code == 1 and "Python" in said
    assert school.box.code("command -v python3")[0] != 0


# --- a new box -------------------------------------------------------------------------------------------------------------
def test_power_cut_in_the_middle_of_the_installation_and_the_same_command_again(school: School) -> None:
    work = school.box.start(f"/mnt/stick/{school.bundle.name}/install --yes")
    ends = time.monotonic() + 300
    while school.box.code("ls -d /opt/appliance/releases/*/.venv/lib/python3*/site-packages/torch")[0] != 0:
        assert time.monotonic() < ends and work.poll() is None, "it ended before the power was cut"
        time.sleep(0.2)
    school.box.cut_power()
    work.wait(30)
    school.box.boot()
    assert school.box.run("ls /opt/appliance/current", check=False).strip().endswith("No such file or directory")
    code, said = school.install(options="--dry-run")
    assert code == 0, said
    for word in ("/opt/appliance/releases", "appliance-web.service", "systemctl enable", "Caddyfile"):
        assert word in said
    assert school.box.run("ls /opt/appliance/current /etc/appliance/appliance.toml", check=False).count("No such file") == 2
    code, said = school.install()
    assert code == 0, said
    assert f"https://{NAME}" in said and re.search(r"SHA-256", said) and "One-time code" in said
    assert f"Signed by {bundles.fingerprint(school.bundle)}." in said, "or nobody could compare it"
    assert re.search(r"[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}", said)
    code_said = re.search(r"[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}", said)
    assert code_said and code_said[0] not in school.box.run("cat /var/log/appliance-install.log; journalctl --no-pager")


def test_only_the_encrypted_door_is_open_to_the_lan(school: School) -> None:
    found = []
    for port in (22, 80, 443, 8000, 8079, 8080, 11434, 5353):
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((BOX, port)) == 0:
                found.append(port)
    assert found == [80, 443]
    said = school.box.run("systemctl is-active appliance-web appliance-engine appliance-worker caddy")
    assert said.split() == ["active"] * 4
    assert school.box.run("stat -c %a /var/lib/appliance").strip() == "700"


def test_a_device_that_trusts_the_authority_signs_the_first_administrator_in(school: School) -> None:
    ready(school.box)
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"https://{BOX}/", timeout=20)
    browser = Browser(school.box)
    code, page = browser.ask("/")
    assert code == 200 and "One-time code" in page
    setup = re.search(r"[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}", school.box.run("appliance users setup-code"))
    assert setup
    code, page = browser.ask("/setup", {"code": setup[0], "name": "head", "password": PASSWORD, "csrf": token(page)})
    assert code == 200 and "head" in page, page[:2000]
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{BOX}/trust", timeout=20) as answer:
        text = answer.read().decode()
    assert re.search(r"[0-9A-F]{2}(:[0-9A-F]{2}){31}", text) and "trust.crt" in text


def test_it_learns_a_lesson_and_answers_from_it_and_again_after_a_reboot(school: School) -> None:
    (school.box.root / "root" / "leaves.md").write_text(LESSON)
    school.box.run("install -o appliance -m 600 /root/leaves.md /var/lib/appliance/leaves.md")
    school.box.run("appliance docs add /var/lib/appliance/leaves.md")
    assert "chlorophyll" in school.box.run("appliance ask 'Why are leaves green?'")
    school.box.reboot()
    ready(school.box)
    assert "chlorophyll" in school.box.run("appliance ask 'Why are leaves green?'")


def test_nothing_leaves_the_lan_while_it_works(school: School) -> None:
    with leaving(school.box.cable) as seen:
        school.box.run(
            "python3 -c \"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.7', 9))\""
        )
    assert "192.0.2.7" in seen, "the counter has to see a packet that does leave"
    with leaving(school.box.cable) as seen:
        school.box.run(
            "appliance ask 'What do roots take in?'; systemctl restart appliance-engine appliance-web appliance-worker"
        )
        ready(school.box)
    assert seen == []


def test_the_night_s_backup_is_proven_and_restored_and_whoever_was_signed_in_signs_in_anew(school: School) -> None:
    box = school.box
    box.run("mkdir -p /mnt/usb && mount -t tmpfs tmpfs /mnt/usb && chown appliance: /mnt/usb")
    box.run("echo 'backup_to = \"/mnt/usb\"' >> /etc/appliance/appliance.toml")
    box.run("systemctl start appliance-backup.service")
    assert "proven" in box.run("appliance backup list")
    school.paper = box.run("appliance backup key").strip()
    assert school.paper not in box.run("journalctl --no-pager")
    browser = Browser(box)
    browser.ask("/sign-in", {"name": "head", "password": PASSWORD, "csrf": token(browser.ask("/")[1])})
    assert "head" in browser.ask("/chat")[1]
    box.run('appliance docs remove $(appliance docs list --json | grep -o \'"id": "[^"]*\' | head -1 | cut -d\'"\' -f4)')
    assert "chlorophyll" not in box.run("appliance ask 'Why are leaves green?'")
    code, said = box.code("appliance backup restore latest --with-removed-documents")
    assert code == 0 and "answers with what was restored" in said, said
    ready(box)
    assert "chlorophyll" in box.run("appliance ask 'Why are leaves green?'")
    assert "not_signed_in" in browser.ask("/chat")[1], "a cookie from before is worth nothing"
    assert "head" in browser.ask("/sign-in", {"name": "head", "password": PASSWORD, "csrf": token(browser.ask("/")[1])})[1]
    assert "as they were written" in box.run("appliance audit verify") and "restore" in box.run("appliance audit show")


def test_the_same_command_again_changes_nothing(school: School) -> None:
    code, said = school.install(options="--dry-run")
    assert code == 0 and "would" not in said.replace("would run: systemctl enable", ""), said


# --- the next releases -----------------------------------------------------------------------------------------------------
def test_an_upgrade_changes_over_and_keeps_everything(school: School) -> None:
    newer = bundles.renumbered(school.bundle, school.stick / "newer", "0.9.1", school.key)
    code, said = school.install(newer)
    assert code == 0, said
    assert "proving that it can be restored" in said and re.search(r"The pages waited \d+ s", said)
    assert school.box.run("readlink /opt/appliance/current").strip() == "releases/0.9.1"
    ready(school.box)
    browser = Browser(school.box)
    _code, page = browser.ask("/")
    _code, page = browser.ask("/sign-in", {"name": "head", "password": PASSWORD, "csrf": token(page)})
    assert "head" in page
    assert "chlorophyll" in school.box.run("appliance ask 'Why are leaves green?'")


def test_an_older_bundle_and_a_stranger_s_key_are_refused(school: School, tmp_path: Path) -> None:
    code, said = school.install()
    assert code == 3 and "0.9.1 is installed" in said
    stranger = bundles.renumbered(school.bundle, school.stick / "stranger", "0.9.2", tmp_path / "other.pem")
    code, said = school.install(stranger)
    assert code == 3 and "signature" in said
    assert school.box.run("readlink /opt/appliance/current").strip() == "releases/0.9.1"


def test_a_release_that_does_not_answer_is_undone_by_itself(school: School) -> None:
    bad = bundles.renumbered(school.bundle, school.stick / "bad", "0.9.3", school.key, broken=True)
    code, said = school.install(bad)
    assert code == 1 and "going back to 0.9.1" in said and "was undone" in said and "It answers." in said, said
    assert school.box.run("readlink /opt/appliance/current").strip() == "releases/0.9.1"
    ready(school.box)
    assert "chlorophyll" in school.box.run("appliance ask 'Why are leaves green?'")


def test_taking_it_off_leaves_what_it_kept_and_putting_it_on_again_takes_that_up(school: School) -> None:
    code, said = school.box.code("appliance-uninstall --with-data")
    assert code == 2 and "nothing brings them back" in said
    said = school.box.run("appliance-uninstall")
    assert "What it kept is in /var/lib/appliance" in said
    assert school.box.code("ls /opt/appliance || ls /etc/systemd/system/appliance-web.service")[0] != 0
    code, said = school.install(school.stick / "newer")
    assert code == 0 and "One-time code" not in said, said
    ready(school.box)
    assert "chlorophyll" in school.box.run("appliance ask 'Why are leaves green?'")
    school.box.run("appliance-uninstall --with-data --yes")
    assert school.box.code("ls /var/lib/appliance || ls /etc/appliance || id appliance")[0] != 0


def test_a_new_box_takes_over_from_a_backup_with_the_key_on_paper(school: School) -> None:
    school.box.run("appliance-uninstall --with-data --yes", check=False)
    code, said = school.install()
    assert code == 0, said
    ready(school.box)
    school.box.run("chown -R appliance: /mnt/usb")
    code, said = school.box.code("appliance backup restore latest --from /mnt/usb")
    assert code == 1 and "no key" in said and "--key-file" in said, said
    (school.box.root / "root" / "paper").write_text(school.paper)
    code, said = school.box.code("appliance backup restore latest --from /mnt/usb --key-file /root/paper")
    assert code == 0 and "answers with what was restored" in said, said
    ready(school.box)
    assert "chlorophyll" in school.box.run("appliance ask 'Why are leaves green?'")
