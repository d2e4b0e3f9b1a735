"""The certificate that a box shows: what a school brings is made by a real openssl and shown by a real Caddy, or refused."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.checkup import border
from appliance.settings import Settings
from tests.test_installer import ROOT, loaded

(certificate,) = loaded("target", "certificate")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "appliance" / "caddy"
NAMES = ["appliance.local", "10.0.0.5"]
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(folder: Path, *words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], cwd=folder, check=True, capture_output=True)


class Authority:
    """A school's own: a root, what it lets sign, and certificates of hosts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        openssl(
            folder, "req", "-x509", *KEY, "-keyout", "root.key", "-out", "root.pem", "-subj", "/CN=School Root", "-days", 900
        )
        self.sign("between", "basicConstraints=critical,CA:true", by="root", name="School Intermediate")

    def sign(self, file: str, extension: str, *, by: str = "between", name: str = "box", days: int = 300) -> tuple[Path, Path]:
        """FILE.pem and FILE.key, for so many days from now; a negative number ended so long ago."""
        folder = self.folder
        (folder / "ext").write_text(extension + "\n")
        openssl(folder, "req", *KEY, "-keyout", f"{file}.key", "-out", f"{file}.csr", "-subj", f"/CN={name}")
        words = ("x509", "-req", "-in", f"{file}.csr", "-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-CAcreateserial")
        openssl(folder, *words, "-days", days, "-extfile", "ext", "-out", f"{file}.pem")
        (folder / f"{file}.key").chmod(0o600)
        return folder / f"{file}.pem", folder / f"{file}.key"

    def host(self, names: str = "DNS:appliance.local,DNS:*.school.example", **about: Any) -> tuple[Path, Path]:
        """A chain of two, and its key."""
        found, key = self.sign("box", f"subjectAltName={names}", **about)
        found.write_text(found.read_text() + (self.folder / "between.pem").read_text())
        return found, key


@pytest.fixture
def school(tmp_path: Path) -> Authority:
    folder = tmp_path / "school"
    folder.mkdir()
    return Authority(folder)


def refused(found: Path, key: Path, now: float | None = None, names: list[str] = NAMES) -> str:
    with pytest.raises(certificate.Refused) as why:
        certificate.checked(found, key, names, now)
    assert why.value.hint and why.value.message.endswith("."), "one sentence, one next step"
    return f"{why.value.message}\n{why.value.hint}"


# --- what is refused -------------------------------------------------------------------------------------------------------
def test_what_is_whole_is_taken_with_what_people_want_to_know(school: Authority) -> None:
    facts, chain, _key = certificate.checked(*school.host(), NAMES)
    assert facts.names == ("appliance.local", "*.school.example") and facts.issuer == "School Intermediate" and len(chain) == 2
    assert 299 < (facts.ends - time.time()) / 86400 < 301 and len(facts.print) == 95
    both = school.folder / "both.pem"
    both.touch(0o600)
    both.write_text(school.host()[0].read_text() + (school.folder / "box.key").read_text())
    assert certificate.checked(both, both, NAMES)[0].subject == "box", "one file with both"


def test_a_key_of_another_certificate_or_a_chain_in_disorder(school: Authority) -> None:
    found, key = school.host()
    assert "is not the key of" in refused(found, school.folder / "root.key")
    box, between = found.read_text().split("-----END CERTIFICATE-----\n")[:2]
    ends = "-----END CERTIFICATE-----\n"
    found.write_text(between + ends + box + ends)
    assert "does not stand first" in refused(found, key)
    found.write_text(box + ends + (school.folder / "root.pem").read_text())
    assert "number 2 did not sign" in refused(found, key)
    found.write_text(box[: len(box) // 2] + "\n" + ends)
    assert "is not the key of" in refused(found, key), "half a certificate has no key at all"


def test_a_certificate_that_is_not_good_today_names_the_clock(school: Authority) -> None:
    found, key = school.host()
    late = refused(found, key, time.time() + 301 * 86400)
    assert "ended on" in late and "timedatectl" in late and "new one" in late
    assert "good only from" in refused(found, key, 0.0) and "01 January 1970" in refused(found, key, 0.0)


def test_a_certificate_for_somebody_else(school: Authority) -> None:
    said = refused(*school.host("DNS:moodle.other.example"))
    assert "moodle.other.example" in said and "allowed_hosts" in said and "appliance.local" in said
    assert "names no host" in refused(*school.sign("box", "keyUsage=digitalSignature"))
    found, key = school.host()
    assert certificate.checked(found, key, ["ki.school.example"]), "one label for the star"
    assert refused(found, key, names=["a.b.school.example"])
    assert certificate.checked(*school.host("IP:10.0.0.5"), NAMES)[0].names == ("10.0.0.5",)


def test_the_health_page_counts_the_days_of_the_school_s_own(school: Authority, tmp_path: Path) -> None:
    settings, choice = Settings(allowed_hosts=("localhost", "appliance.local")), tmp_path / "certificate.caddy"
    choice.write_text(certificate.HEAD + certificate.INTERNAL)
    assert border.put_in(settings, choice=choice) is None, "the box's own renews itself"
    found, key = school.host()
    choice.write_text(f"{certificate.HEAD}tls {found} {key}\n")
    for days, words in ((0, ""), (275, "days left"), (301, "ended on"), (-2, "good only from")):
        check = border.put_in(settings, choice=choice, now=time.time() + days * 86400)
        assert check is not None and check.ok is (not words) and words in check.detail, check
        assert check.ok or check.command.startswith("appliance certificate use"), check
        assert not check.ok or "It and its key are in no backup: keep both files apart" in check.detail
    other = Settings(allowed_hosts=("localhost", "box.example"))
    strange = border.put_in(other, choice=choice)
    assert strange and not strange.ok and "not for box.example" in strange.detail


def test_a_key_that_others_may_read_or_that_is_locked(school: Authority) -> None:
    found, key = school.host()
    key.chmod(0o644)
    assert "Everybody on this machine may read" in refused(found, key) and "install -m 600" in refused(found, key)
    locked = school.folder / "locked.key"
    openssl(school.folder, "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked)
    locked.chmod(0o600)
    assert "locked with a password" in refused(found, locked) and "openssl pkey -in" in refused(found, locked)


def test_files_of_another_kind_are_told_how_to_be_turned(school: Authority) -> None:
    found, key = school.host()
    for kind, words in (("box.der", "-inform der"), ("box.p12", "openssl pkcs12")):
        other = school.folder / kind
        if kind == "box.der":
            openssl(school.folder, "x509", "-in", found, "-outform", "der", "-out", other)
        else:
            openssl(school.folder, "pkcs12", "-export", "-in", found, "-inkey", key, "-passout", "pass:x", "-out", other)
        assert "no PEM file" in refused(other, key) and words in refused(other, key)
    assert "No such file" in refused(school.folder / "nothing.pem", key)
    assert "no certificate in" in refused(key, key) and "no private key in" in refused(found, _private(found))


def _private(path: Path) -> Path:
    path.chmod(0o600)
    return path


def test_the_command_is_root_s_and_says_how_it_is_used(tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "installer" / "target" / "certificate.py", tmp_path / "appliance-certificate")

    def said(*words: str, user: int | None = None) -> tuple[int, str]:
        line = ["/usr/bin/env", "python3", "-c", Path(script).read_text(), *words]
        done = subprocess.run(line, user=user, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    if os.geteuid() == 0:
        assert said("--help")[0] == 0 and "use CERT.pem KEY.pem" in said("--help")[1]
        assert said("use", "one.pem")[0] == 2 and "appliance certificate" in said("use", "one.pem")[1]
        code, told = said("use", str(tmp_path / "none.pem"), str(tmp_path / "none.key"))
        assert code == 1 and "none.pem cannot be read" in told and "Try:" in told
    code, told = said("use", "a.pem", "b.pem", user=65534 if os.geteuid() == 0 else None)
    assert code == 1 and "Only root" in told and "sudo appliance certificate use a.pem b.pem" in told


# --- a real proxy ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def caddy() -> str:
    """Debian's, installed or only unpacked: its service is not wanted here."""
    found = shutil.which("caddy") or str(CACHE / "usr" / "bin" / "caddy")
    if not Path(found).is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        fetched = subprocess.run(["apt-get", "download", "caddy"], cwd=CACHE, capture_output=True, check=False)
        packed = next(CACHE.glob("caddy_*.deb"), None)
        if fetched.returncode or packed is None:
            pytest.skip("Debian's caddy cannot be had here")
        subprocess.run(["dpkg", "-x", packed, CACHE], check=True)
    return found


@pytest.fixture
def box(tmp_path: Path, caddy: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A proxy with the installer's configuration, at ports of its own, that shows a certificate of the box's authority."""
    ports = []
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for probe in (one, two, three):
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    home, etc, trust = (tmp_path / name for name in ("home", "etc", "trust"))
    for folder in (home, etc, trust):
        folder.mkdir()
    store = home / ".local" / "share" / "caddy"
    text = (ROOT / "installer" / "target" / "Caddyfile").read_text("utf-8")
    for old, new in (("/etc/appliance", str(etc)), ("/var/lib/caddy", str(home)), ("NAME[.]local", "appliance[.]local"),
                     ("\tadmin off\n", f"\tadmin off\n\thttps_port {ports[0]}\n\thttp_port {ports[1]}\n"),
                     ("https:// {", f"https://:{ports[0]} {{"), ("http:// {", f"http://:{ports[1]} {{"),
                     ("8079", str(ports[2]))):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "Caddyfile").write_text(text)
    (etc / "appliance.toml").write_text('allowed_hosts = ["localhost", "appliance.local"]\n')
    (etc / "certificate.caddy").write_text(certificate.HEAD + certificate.INTERNAL)
    shutil.copy(ROOT / "installer" / "target" / "trust.html", trust / "template.html")
    restart = tmp_path / "restart"
    restart.write_text(
        "#!/bin/sh\n"
        f'[ ! -f {tmp_path}/pid ] || kill "$(cat {tmp_path}/pid)"\n'
        f'while [ -f {tmp_path}/pid ] && kill -0 "$(cat {tmp_path}/pid)"; do sleep .05; done\n'
        f"HOME={home} XDG_DATA_HOME={store.parent} setsid {caddy} run --adapter caddyfile --config {tmp_path}/Caddyfile "
        f">>{tmp_path}/log 2>&1 </dev/null &\necho $! >{tmp_path}/pid\n"
    )
    restart.chmod(0o755)
    monkeypatch.setattr(certificate, "PATIENCE", 8.0)
    place = certificate.Place(etc, tmp_path / "Caddyfile", caddy, store, trust, ("127.0.0.1", ports[0]), "", (str(restart),))
    assert certificate._restart(place) and certificate._soon(lambda: _up(place)), (tmp_path / "log").read_text()[-2000:]
    yield place
    subprocess.run(["kill", (tmp_path / "pid").read_text().strip()], check=False)


def _up(place: Any) -> bool:
    try:
        return bool(certificate.served(place.door, "appliance.local"))
    except certificate.Refused:
        return False


def shown(place: Any, name: str = "appliance.local") -> Any:
    return certificate.facts(certificate.ssl.DER_cert_to_PEM_cert(certificate.served(place.door, name)))


def looked(place: Any, now: float | None = None) -> Any:
    """What the doctor says of it."""
    settings = Settings(allowed_hosts=("localhost", "appliance.local"))
    place.caddyfile.write_text("# Written by the school appliance's installer.\n" + place.caddyfile.read_text())
    return border.certificates(
        settings,
        proxy=place.caddyfile,
        choice=place.choice,
        authority=place.authority / "root.crt",
        port=place.door[1],
        now=now,
    )


@pytest.mark.optional
def test_the_school_s_own_is_shown_and_the_box_s_own_again(box: Any, school: Authority) -> None:
    ours = looked(box)
    assert ours.ok and "appliance.local" in ours.detail and "authority until" in ours.detail, ours
    found, key = school.host()
    told = certificate.use(box, found, key)
    assert (
        "for appliance.local, *.school.example" in told and "School Root" in told and "*.school.example once it stands" in told
    )
    assert shown(box).issuer == "School Intermediate" and shown(box, "10.0.0.5").issuer == "School Intermediate"
    assert "in no backup: keep both files apart" in told
    assert certificate.use(box, found, key) == told, "once more is no harm"
    kept = next(box.kept.iterdir())
    assert (kept / "key.pem").stat().st_mode & 0o777 == 0o640 and (kept / "certificate.pem").stat().st_mode & 0o777 == 0o644
    text = (box.trust / "index.html").read_text()
    assert "School Intermediate vouches" in text and "trust.crt" not in text and shown(box).print in text

    check = looked(box)
    assert check.ok and "School Intermediate" in check.detail and "300 days" in check.detail.replace("299", "300"), check
    soon = looked(box, time.time() + 280 * 86400)
    assert not soon.ok and "days left" in soon.detail and "appliance certificate use" in soon.command
    over = looked(box, time.time() + 400 * 86400)
    assert not over.ok and "ended on" in over.detail and "clock" in over.remedy

    later, key = school.host("DNS:appliance.local", days=20)
    assert "That is soon" in certificate.use(box, later, key)
    assert len(list(box.kept.iterdir())) == 1, "the key of the one before is gone"
    again = certificate.internal(box)
    root = certificate.facts((box.authority / "root.crt").read_text())
    assert root.print in again and root.print in (box.trust / "index.html").read_text()
    assert shown(box).issuer != "School Intermediate" and not list(box.kept.iterdir())


@pytest.mark.optional
def test_what_the_proxy_does_not_take_or_does_not_show_is_taken_back(
    box: Any, school: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, key = school.host()
    before, text = shown(box).issuer, box.choice.read_text()
    rsa = replace(box, caddyfile=box.etc / "other")
    (box.etc / "other").write_text("http://:1 {\n}\n")
    with pytest.raises(certificate.Refused, match="not the one that the installer wrote"):
        certificate.use(rsa, found, key)
    (box.etc / "other").write_text(f"https:// {{\n\timport {box.choice}\n\tnonsense\n}}\n")
    with pytest.raises(certificate.Refused, match=r"does not take it.*nonsense"):
        certificate.use(rsa, found, key)
    monkeypatch.setattr(certificate, "PATIENCE", 1.0)
    with pytest.raises(certificate.Refused, match="what was shown before is shown again"):
        certificate.use(replace(box, restart=("true",)), found, key)  # it goes on showing what it showed
    assert box.choice.read_text() == text and not list(box.kept.iterdir()) and shown(box).issuer == before
    assert not [path for path in box.etc.iterdir() if path.name.startswith(".")], "no draft is left"


@pytest.mark.optional
def test_an_authority_is_made_anew_where_the_clock_or_its_end_asks_for_it(box: Any) -> None:
    root = (box.authority / "root.crt").read_text()
    between = (box.authority / "intermediate.crt").read_text()
    certificate.internal(box)
    assert certificate._soon(lambda: _up(box))
    assert (box.authority / "root.crt").read_text() == root, "what devices trust stays"
    assert (box.authority / "intermediate.crt").read_text() != between
    certificate.internal(box, new_authority=True)
    assert (box.authority / "root.crt").read_text() != root
    assert (box.authority.with_name("local.before") / "root.crt").read_text() == root
