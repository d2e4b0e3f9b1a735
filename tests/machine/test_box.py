"""A school's box, from a USB stick to an upgrade that is undone: on a real booted Debian 12 without any network but its LAN."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.machine import booted, bundles
from tests.machine.booted import BOX, HERE, Box, leaving
from tests.machine.school import Browser, School, ready, token
from tests.test_certificate import Authority
from tests.tuning.school import reviewed

pytestmark = [pytest.mark.machine, pytest.mark.optional, pytest.mark.slow]

NAME = "appliance.local"
PASSWORD = "long enough for a school"
# Of a control group of version 1, and of version 2.
LIMIT_AND_HELD = (("limit_in_bytes", "max"), ("usage_in_bytes", "current"))
# Takes two gigabytes, and is the first to go, as who trains says of itself.
TAKES = "open('/proc/self/oom_score_adj', 'w').write('900')\nb'x' * 2_000_000_000\n"
LESSON = "# Leaves\n\nLeaves are green because chlorophyll reflects green light. Roots take in water from the soil.\n"


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    booted.require()
    folder = tmp_path_factory.mktemp("machine")
    stick = folder / "stick"
    stick.mkdir()
    key = folder / "signing.pem"
    bundle = bundles.made(stick, key)
    with booted.disk(folder / "usb") as usb:
        box = Box(folder / "box", stick, usb)
        box.boot()
        yield School(box, stick, bundle, key)
        box.cut_power()


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
    releases = school.box.root / "opt" / "appliance" / "releases"
    school.box.cut_power_when(
        lambda: any(releases.glob("*/.venv/lib/python3*/site-packages/torch")),
        f"/mnt/stick/{school.bundle.name}/install --yes",
    )
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


def test_the_lan_finds_it_by_name_and_speaks_to_it_compressed_over_http_2(school: School) -> None:
    ready(school.box)
    question = b"\0\0\0\0\0\1\0\0\0\0\0\0\x09appliance\x05local\0\0\1\0\1"  # of type A, as phones and laptops ask by mDNS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HERE))
        line.settimeout(2)
        for _ in range(15):  # a name is claimed for a moment before it is answered to
            line.sendto(question, ("224.0.0.251", 5353))
            with contextlib.suppress(TimeoutError):
                answer, (who, _port) = line.recvfrom(2000)
                break
    assert who == BOX and socket.inet_aton(BOX) in answer
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((BOX, 443), 5) as plain, context.wrap_socket(plain, server_hostname=NAME) as safe:
        assert safe.selected_alpn_protocol() == "h2" and safe.version() in ("TLSv1.3", "TLSv1.2")
    request = urllib.request.Request(f"https://{BOX}/", headers={"Accept-Encoding": "gzip"})
    handler = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
    with urllib.request.build_opener(urllib.request.ProxyHandler({}), handler).open(request, timeout=20) as reply:
        assert reply.headers["Content-Encoding"] == "gzip" and "Server" not in reply.headers


def test_slow_devices_are_sent_away_and_everybody_else_is_answered(school: School) -> None:
    """A hundred each: no hello, no request after it, a head by drops; and as many that send a body by drops meanwhile."""
    browser, context = Browser(school.box), ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    head = f"POST /sign-in HTTP/1.1\r\nHost: {BOX}\r\nContent-Length: 5000\r\n".encode()
    body = head + b"Content-Type: application/x-www-form-urlencoded\r\n\r\nname="

    async def seconds(first: bytes, drop: bytes, secure: bool = True) -> float:
        """Until the other side ends it."""
        reader, writer = await asyncio.open_connection(BOX, 443, ssl=context if secure else None)
        began = time.monotonic()
        try:
            with contextlib.suppress(OSError):
                writer.write(first)
                while True:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            if not await reader.read(4096):
                                break
                    writer.write(drop)
            return time.monotonic() - began
        finally:
            writer.transport.abort()

    async def all_at_once() -> tuple[list[float], list[float]]:
        bodies = [asyncio.create_task(seconds(body, b"b")) for _ in range(100)]
        kinds = [(b"", b"", False), (b"", b""), (head, b"X")]
        slow = [asyncio.create_task(seconds(*kind)) for kind in kinds for _ in range(100)]
        took: list[float] = []
        while not all(one.done() for one in slow) and sum(took) < 60:
            began = time.monotonic()
            assert (await asyncio.to_thread(browser.ask, "/ready"))[0] == 200
            await asyncio.sleep(0.5)
            took.append(time.monotonic() - began)
        for one in bodies:
            one.cancel()
        await asyncio.gather(*bodies, return_exceptions=True)
        return await asyncio.wait_for(asyncio.gather(*slow), 1), took

    ends, took = asyncio.run(all_at_once())
    assert min(ends) > 8 and max(ends) < 40, "ten seconds for a head"
    assert len(took) > 10 and statistics.median(took) < 3, took


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
    box.run("chown appliance: /mnt/usb")
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


def test_power_cut_in_the_middle_of_a_backup_and_the_next_night_s_is_made_and_proven(school: School) -> None:
    box = school.box
    box.run("head -c 200M /dev/urandom >/var/lib/appliance/large && chown appliance: /var/lib/appliance/large")
    earlier = [one["id"] for one in json.loads(box.run("appliance backup list --json 2>/dev/null"))["backups"]]
    kept = box.usb / "appliance-backups"  # type: ignore[operator]
    packs = set(kept.glob("data/*/*"))
    box.cut_power_when(lambda: len(set(kept.glob("data/*/*")) - packs) > 2, "systemctl start appliance-backup.service")
    assert earlier and any((kept / "locks").iterdir()), "the power was not cut while restic wrote"
    box.boot()
    ready(box)
    box.run("systemctl start appliance-backup.service")
    ids = [one["id"] for one in json.loads(box.run("appliance backup list --json 2>/dev/null"))["backups"]]
    assert ids[: len(earlier)] == earlier and len(ids) == len(earlier) + 1
    assert "is whole" in box.run("appliance backup verify latest")
    assert not {"tree", "proof"} & set(box.run("ls /var/lib/appliance/backups").split()), "what was collected is left behind"
    box.run("rm /var/lib/appliance/large")


def test_power_cut_in_the_middle_of_a_retraining_and_it_goes_on_by_itself_to_its_verdict(school: School) -> None:
    box = school.box
    (box.root / "root" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviewed(36)))
    box.run("install -o appliance -m 600 /root/rows.jsonl /var/lib/appliance/rows.jsonl")
    box.run("appliance examples import /var/lib/appliance/rows.jsonl --licence 'CC BY 4.0' --author head --trust-review")
    box.run("echo 'gate_seconds = 1' >> /etc/appliance/appliance.toml && systemctl restart appliance-worker")
    (starter,) = json.loads(box.run("appliance models list --json 2>/dev/null"))["models"]
    box.run(f"appliance models promote {starter['id']} --accept 'the only one'")
    with leaving(box.cable) as seen:
        runs = box.root / "var" / "lib" / "appliance" / "runs"
        box.cut_power_when(lambda: any(runs.glob("*/loss.jsonl")), "systemctl start appliance-retrain.service")
    box.boot()
    with leaving(box.cable) as seen_later:
        ready(box)
        job = newest_job(box)
        assert job["state"] == "running" and job["attempts"] == 2, "the worker did not take it up again"
        assert f"answered by {starter['id']}" in box.run("appliance ask 'Why are leaves green?'")
        ends = time.monotonic() + 240
        while (job := newest_job(box))["state"] == "running":
            assert time.monotonic() < ends, job
            time.sleep(0.5)
    assert job["state"] == "done" and job["result"]["report"]["reasons"], job
    models = json.loads(box.run("appliance models list --json 2>/dev/null"))["models"]
    assert [one["id"] for one in models if "champion" in one["aliases"]] == [starter["id"]]
    assert seen == [] and seen_later == []


def test_long_work_that_takes_all_it_can_get_leaves_answers_their_time_and_their_memory(school: School) -> None:
    """Processes in the worker's own control group, as its training processes are, and by what the kernel gave to each."""
    box = school.box
    box.enforce_limits()
    key = json.loads(box.run("appliance keys create pressure --json 2>/dev/null"))["key"]
    browser = Browser(box)
    alone = min(browser.answer(key, "Why are leaves green?")[1] for _ in range(3))
    with busy(box, "worker"):
        answers = [browser.answer(key, "Why are leaves green?") for _ in range(5)]
        with busy(box, "engine"):
            before = spent(box, "worker"), spent(box, "engine")
            time.sleep(2)
            worker, engine = (spent(box, unit) - was for unit, was in zip(("worker", "engine"), before, strict=True))
    assert all("chlorophyll" in said for said, _ in answers)
    assert statistics.median(took for _, took in answers) < alone + 2
    assert before[0] > 0 and engine > 0 and engine > 5 * worker, "fifteen times the weight"

    group, half = box.group("appliance-worker", "memory"), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, held = (number(box, f"{group}/memory.{old}", f"{group}/memory.{new}") for old, new in LIMIT_AND_HELD)
    assert abs(limit - half) < 2**20, "what is left is serving's"
    units = "appliance-worker appliance-engine appliance-web"
    processes = box.run(f"systemctl show -p MainPID --value {units}").split()
    box.run(f"systemctl set-property --runtime appliance-worker.service MemoryMax={held + 10**9}")  # else it takes long
    killed = f"cat {group}/memory.oom_control {group}/memory.events 2>/dev/null | grep '^oom_kill '"
    before = box.run(killed)
    (box.root / "root" / "takes.py").write_text(TAKES)
    code, _said = box.code(f"sh -c 'echo $$ >{group}/cgroup.procs; exec python3 /root/takes.py'")
    assert code == 128 + signal.SIGKILL and box.run(killed) != before
    assert box.run(f"systemctl show -p MainPID --value {units}").split() == processes, "nothing else was ended"
    assert "chlorophyll" in browser.answer(key, "Why are leaves green?")[0]
    box.run("rm -r /run/systemd/system.control && systemctl daemon-reload")


@contextlib.contextmanager
def busy(box: Box, unit: str) -> Iterator[None]:
    """As many processes as there are processors do nothing but count, in the control group of a unit."""
    loops = f"for core in $(seq $(nproc)); do while :; do :; done & echo $! >>/run/busy-{unit}; done; wait"
    work = box.start(f"echo $$ >{box.group(f'appliance-{unit}', 'cpu')}/cgroup.procs; {loops}")
    try:
        yield
    finally:
        box.run(f"kill $(cat /run/busy-{unit}); rm /run/busy-{unit}")
        work.wait(30)


def spent(box: Box, unit: str) -> int:
    """Hundredths of a second that the processes of a unit have had of the processors."""
    group = box.group(f"appliance-{unit}", "cpu")
    lines = box.run(f"for process in $(cat {group}/cgroup.procs); do cat /proc/$process/stat; done").splitlines()
    return sum(int(field) for line in lines for field in line.rpartition(")")[2].split()[11:13])


def number(box: Box, *files: str) -> int:
    """What stands in the one of these files that there is."""
    return int(box.run(f"cat {' '.join(files)} 2>/dev/null", check=False))


def newest_job(box: Box) -> dict[str, Any]:
    (job, *_) = json.loads(box.run("appliance jobs list --json 2>/dev/null"))["jobs"]
    return dict(job)


# --- the next releases -----------------------------------------------------------------------------------------------------
def test_power_cut_while_a_copy_is_migrated_and_the_same_command_upgrades_and_keeps_everything(school: School) -> None:
    newer = bundles.renumbered(school.bundle, school.stick / "newer", "0.9.1", school.key)
    trial = school.box.root / "var" / "lib" / "appliance" / "run" / "trial" / "appliance.sqlite3"
    before = os.readlink(school.box.root / "opt" / "appliance" / "current")
    school.box.cut_power_when(trial.exists, "/mnt/stick/newer/install --yes")
    school.box.boot()
    ready(school.box)
    assert os.readlink(school.box.root / "opt" / "appliance" / "current") == before
    code, said = school.install(newer)
    assert code == 0, said
    assert not trial.parent.exists(), "a copy of the school's data is left behind"
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


def test_a_release_that_does_not_answer_is_undone_by_itself_even_after_power_cuts(school: School) -> None:
    bad = bundles.renumbered(school.bundle, school.stick / "bad", "0.9.3", school.key, broken=True)
    place = school.box.root / "opt" / "appliance"
    units = school.box.root / "etc" / "systemd" / "system"
    between = units / ".appliance-web.socket.part"  # the last of its units: written by nobody while this is a pipe
    os.mkfifo(between)
    written = (units / "appliance-web.service").stat().st_ino
    school.box.cut_power_when(
        lambda: (units / "appliance-web.service").stat().st_ino != written, "/mnt/stick/bad/install --yes"
    )
    between.unlink()
    assert os.readlink(place / "current") == "releases/0.9.1", "the power was cut after the stop and before the switch"
    school.box.boot(cut_power_when=lambda: os.readlink(place / "current") == "releases/0.9.3")  # it goes on by itself
    school.box.boot()
    ready(school.box)
    while (place / "changing.json").exists():  # it watches the pages as often as we do
        time.sleep(0.1)
    assert os.readlink(place / "current") == "releases/0.9.1"
    code, said = school.install(bad)
    assert code == 1 and "0.9.3 does not answer" in said and "was undone; 0.9.1 runs. It answers." in said, said
    assert os.readlink(place / "current") == "releases/0.9.1"
    ready(school.box)
    assert "chlorophyll" in school.box.run("appliance ask 'Why are leaves green?'")


def test_taking_it_off_leaves_what_it_kept_and_putting_it_on_again_takes_that_up(school: School) -> None:
    code, said = school.box.code("appliance-uninstall --with-data")
    assert code == 2 and "nothing brings them back" in said
    aside(school)
    said = school.box.run("appliance-uninstall")
    assert "What it kept is in /var/lib/appliance" in said
    assert school.box.code("ls /opt/appliance || ls /etc/systemd/system/appliance-web.service")[0] != 0
    aside(school, back=True)
    code, said = school.install(school.stick / "newer")
    assert code == 0 and "One-time code" not in said, said
    ready(school.box)
    assert "chlorophyll" in school.box.run("appliance ask 'Why are leaves green?'")
    aside(school)
    school.box.run("appliance-uninstall --with-data --yes")
    assert school.box.code("ls /var/lib/appliance || ls /etc/appliance || id appliance")[0] != 0


def aside(school: School, *, back: bool = False) -> None:
    """The releases, which take minutes to build and were built by the tests above: what is tested here is what is kept."""
    words = ("/root/releases", "/opt/appliance/releases") if back else ("/opt/appliance/releases", "/root/releases")
    school.box.run(f"mkdir -p /opt/appliance && [ ! -e {words[0]} ] || mv {words[0]} {words[1]}")


def test_a_second_machine_takes_over_from_a_backup_with_the_key_on_paper(school: School, tmp_path: Path) -> None:
    """One of another name and address, which shows the school's own certificate from the first."""
    school.box.power_off()
    box = Box(school.box.root.with_name("second"), school.stick, school.box.usb, name="secondbox", address="10.77.0.3")
    second = replace(school, box=box)
    (box.root / "opt" / "appliance").mkdir()
    (school.box.root / "root" / "releases").rename(box.root / "opt" / "appliance" / "releases")  # it takes minutes to build
    authority = Authority(tmp_path)
    root, name = (tmp_path / "root.pem").read_text(), "roof.local"
    for path in authority.host(f"DNS:{name},IP:{box.address}"):
        shutil.copy2(path, box.root / "root")
    box.boot()
    try:
        code, said = second.install(options="--yes --selftest 0 --name roof --certificate /root/box.pem /root/box.key")
        assert code == 0 and f"https://{name}" in said and "by School Intermediate" in said, said
        ready(box, root=root)
        with socket.create_connection((box.address, 443), 5) as plain:
            ssl.create_default_context(cadata=root).wrap_socket(plain, server_hostname=name).close()
        ids = {(one.root / "etc" / "machine-id").read_text() for one in (box, school.box)}
        assert len(ids) == 2 and box.run("hostname") == "secondbox\n", "or it would be the first one again"
        box.run("chown -R appliance: /mnt/usb")
        code, said = box.code("appliance backup restore latest --from /mnt/usb")
        assert code == 1 and "no key" in said and "--key-file" in said, said
        (box.root / "root" / "paper").write_text(school.paper)
        code, said = box.code("appliance backup restore latest --from /mnt/usb --key-file /root/paper")
        assert code == 0 and "answers with what was restored" in said, said
        ready(box, root=root)
        assert "chlorophyll" in box.run("appliance ask 'Why are leaves green?'")
        browser = Browser(box, root)
        form = {"name": "head", "password": PASSWORD, "csrf": token(browser.ask("/")[1])}
        assert "head" in browser.ask("/sign-in", form)[1]
    finally:
        box.cut_power()
