#!/usr/bin/python3
"""Which certificate the box shows to devices: one of its own authority, or one that the school has. `appliance certificate`.

What the school brings is checked before anything is changed, tried by the proxy beside what runs, and taken back where the
proxy does not show it. Hides openssl, where certificates lie, and the proxy's store. Stands alone: the installer copies it to
the box, and uses it itself.
"""

import contextlib
import hashlib
import html
import ipaddress
import itertools
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

INTERNAL = "tls internal {\n\ton_demand\n}\n"
HEAD = "# Which certificate the box shows. Written by `appliance certificate`.\n"
PATIENCE = 20.0  # seconds until the proxy has to show it
SOON = 30 * 86400.0
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
MOST_BYTES = 1 << 20
BLOCK = re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----\n?", re.S)
USAGE = """appliance certificate show                    what devices see, and until when
appliance certificate use CERT.pem KEY.pem    show the school's own; CERT.pem: the box's first, then who signed it
appliance certificate internal                show one of the box's own authority again, made anew
appliance certificate internal --new-authority    ... of a new authority: every device has to trust that (see /trust)"""


class Refused(Exception):
    """A sentence, and one next step. Nothing was changed, or it was taken back."""

    def __init__(self, message, hint):
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class Place:
    """Where things lie on a box. user: whom the proxy runs as, "" for whoever calls."""

    etc: Path = Path("/etc/appliance")
    caddyfile: Path = Path("/etc/caddy/Caddyfile")
    caddy: str = "/usr/bin/caddy"
    store: Path = Path("/var/lib/caddy/.local/share/caddy")
    trust: Path = Path("/opt/appliance/trust")
    door: tuple = ("127.0.0.1", 443)
    user: str = "caddy"
    restart: tuple = ("systemctl", "restart", "caddy")

    @property
    def choice(self):
        """What the proxy's configuration imports."""
        return self.etc / "certificate.caddy"

    @property
    def kept(self):
        return self.etc / "certificate"

    @property
    def authority(self):
        return self.store / "pki" / "authorities" / "local"


@dataclass(frozen=True)
class Facts:
    """Of one certificate. begins, ends: UTC seconds; names: in lower case; print: SHA-256 as people compare it."""

    subject: str
    issuer: str
    begins: float
    ends: float
    names: tuple = field(default=())
    print: str = ""

    @property
    def until(self):
        return day(self.ends)


# --- what is asked --------------------------------------------------------------------------------------------------------
def main(words):
    try:
        if os.geteuid() != 0:
            raise Refused("Only root may change what the box shows.", "sudo appliance certificate " + " ".join(words))
        match words:
            case [] | ["show"]:
                return show(Place())
            case ["use", certificate, key]:
                print(use(Place(), Path(certificate), Path(key)))
            case ["internal"] | ["internal", "--new-authority"]:
                print(internal(Place(), new_authority=len(words) > 1))
            case ["--help" | "-h"]:
                print(USAGE)
            case _:
                print(f"Error: That is no way to ask.\nTry: {USAGE}", file=sys.stderr)
                return 2
    except Refused as refused:
        print(f"Error: {refused.message}\nTry: {refused.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"Error: The system refused: {error.strerror} ({error.filename}).\nTry: df -h /etc", file=sys.stderr)
        return 1
    return 0


def show(place):
    """What devices see now. Exit code 1 where they are warned."""
    own = chosen(place)
    name = next(iter(own.names if own else [name for name in called(place) if not _address(name)]), "")
    shown = facts(ssl.DER_cert_to_PEM_cert(served(place.door, name)))
    left = f"{int((shown.ends - time.time()) // 86400)} days" if own else "it is renewed by itself"
    whose = "The school's own certificate" if own else "A certificate of the box's own authority"
    print(f"{whose}, for {', '.join(shown.names) or shown.subject}, by {shown.issuer}.")
    print(f"Good from {day(shown.begins)} until {shown.until}: {left}. SHA-256 {shown.print}")
    if not shown.begins <= time.time() < shown.ends:
        hint = "See `timedatectl`; then `appliance certificate --help`."
        raise Refused(f"Today is {day(time.time())}: devices are warned.", hint)
    return 0


def use(place, certificate, key, names=None):
    """Show the school's own from now on; a sentence about it. Raises Refused, with what was shown before still shown."""
    brought, chain, private = checked(certificate, key, names or called(place))
    before = place.choice.read_text("utf-8") if place.choice.is_file() else HEAD + INTERNAL
    folder = place.kept / hashlib.sha256("".join([*chain, private]).encode()).hexdigest()[:16]
    fresh = not folder.is_dir()
    try:
        _put(place, folder, chain, private)
        text = f"{HEAD}tls {folder / 'certificate.pem'} {folder / 'key.pem'}\n"
        _tried(place, text)
        _change(place, text, before, lambda: _shows(place, brought))
    except BaseException:
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    _forget(place, but=folder)
    page(place)
    told = f"The box shows the school's own certificate, for {', '.join(brought.names)}, until {brought.until}."
    if brought.ends - time.time() < SOON:
        told += " That is soon: ask for the next one now."
    unknown = [name for name in brought.names if not any(covers(name, one) for one in called(place))]
    if unknown:
        told += f"\nThe pages answer under {unknown[0]} once it stands in allowed_hosts in {place.etc / 'appliance.toml'}."
    told += "\nIt and its key are in no backup: keep both files apart from the box."
    return f"{told}\nIt is vouched for by {facts(chain[-1]).issuer}: devices that trust that are not warned."


def internal(place, *, new_authority=False):
    """Show certificates of the box's own authority, made anew; a sentence about it. Raises Refused."""
    before = place.choice.read_text("utf-8") if place.choice.is_file() else HEAD + INTERNAL
    _tried(place, HEAD + INTERNAL)
    aside = place.authority.with_name("local.before")
    if new_authority and place.authority.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
        place.authority.rename(aside)
    # What stands between the authority and the devices may be of a time to come, where the clock was wrong.
    for path in (place.authority / "intermediate.crt", place.authority / "intermediate.key"):
        path.unlink(missing_ok=True)
    shutil.rmtree(place.store / "certificates" / "local", ignore_errors=True)
    try:
        _change(place, HEAD + INTERNAL, before, lambda: (place.authority / "root.crt").is_file() and _door(place))
    except Refused:
        if new_authority and aside.is_dir():
            shutil.rmtree(place.authority, ignore_errors=True)
            aside.rename(place.authority)
            _restart(place)
        raise
    _forget(place)
    page(place)
    root = facts((place.authority / "root.crt").read_text("ascii"))
    told = f"The box shows certificates of its own authority, which is good until {root.until}."
    return f"{told}\nDevices that do not trust it yet: http://{called(place)[0]}/trust. Its SHA-256 is\n  {root.print}"


# --- what is checked ------------------------------------------------------------------------------------------------------
def checked(certificate, key, names, now=None):
    """Facts of what the school brings, its certificates and its key as text. Raises Refused; changes nothing."""
    now = time.time() if now is None else now
    chain = [block[0] for block in BLOCK.finditer(_pem(certificate, "x509")) if block[1] == "CERTIFICATE"]
    if not chain:
        raise Refused(f"There is no certificate in {certificate}.", "Give the certificate first, then the key, both as PEM.")
    private = _private(key)
    mine = _openssl("pkey", "-pubout", "-passin", "pass:", given=private)
    if not mine:
        raise Refused(f"The key in {key} cannot be read.", f"openssl pkey -in {key} -noout")
    owners = [_openssl("x509", "-noout", "-pubkey", given=one) == mine for one in chain]
    if not any(owners):
        hint = "Look for the key that the request for the certificate was made with."
        raise Refused(f"{key} is not the key of {certificate}.", hint)
    if not owners[0]:
        hint = "Put it first, then the one that signed it."
        raise Refused(f"In {certificate} the box's own certificate does not stand first.", hint)
    for number, (one, signer) in enumerate(itertools.pairwise(chain), start=2):
        if not _signed(one, signer):
            hint = "Put each certificate before the one that signed it, and take out what does not belong."
            raise Refused(f"In {certificate} the certificate number {number} did not sign the one before it.", hint)
    return _good(certificate, [facts(one) for one in chain], names, now), chain, private


def _good(certificate, found, names, now):
    brought = found[0]
    for one in found:
        if now >= one.ends:
            hint = f"Ask who made it for a new one; or set the clock, which says {day(now)}: timedatectl set-time."
            raise Refused(f"The certificate of {one.subject} ended on {one.until}.", hint)
        if now < one.begins:
            hint = f"Wait until then; or set the clock, which says {day(now)}: timedatectl set-time."
            raise Refused(f"The certificate of {one.subject} is good only from {day(one.begins)} on.", hint)
    if not any(covers(name, one) for name in brought.names for one in names):
        said = f"is for {', '.join(brought.names)}" if brought.names else "names no host (subjectAltName)"
        hint = f"Have it made for {names[0]}; or, where a name server leads its name here, add that to allowed_hosts in "
        hint += "/etc/appliance/appliance.toml (a new box has it once it is installed; then `appliance certificate use`)."
        raise Refused(f"{certificate} {said}, and this box is {', '.join(names)}.", hint)
    return brought


def _private(key):
    text = _pem(key, "pkey")
    if key.stat().st_mode & 0o007:
        raise Refused(f"Everybody on this machine may read {key}.", f"install -m 600 {key} /root/key.pem, and give that.")
    if "ENCRYPTED" in text:
        hint = f"openssl pkey -in {key} -out /root/key.pem, and give that."
        raise Refused(f"{key} is locked with a password, and the box starts alone.", hint)
    found = next((block[0] for block in BLOCK.finditer(text) if block[1].endswith("PRIVATE KEY")), "")
    if not found:
        raise Refused(f"There is no private key in {key}.", "Give the certificate first, then the key, both as PEM.")
    return found


def _pem(path, kind):
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.", "Check the name; a relative one counts from here.") from None
    if b"-----BEGIN" in raw:
        return raw.decode("ascii", "replace")
    hint = f"openssl {kind} -inform der -in {path} -out /root/{kind}.pem, and give that."
    if path.suffix.lower() in (".pfx", ".p12"):
        hint = f"openssl pkcs12 -in {path} -nodes -out /root/both.pem; then give that file twice."
    raise Refused(f"{path} is no PEM file.", hint)


def _signed(one, signer):
    with _file(one) as first, _file(signer) as second:
        words = ["openssl", "verify", "-partial_chain", "-no_check_time", "-trusted", second.name, first.name]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _file(text):
    file = tempfile.NamedTemporaryFile("w", suffix=".pem")  # noqa: SIM115 - whoever asked closes it
    file.write(text)
    file.flush()
    return file


def facts(pem):
    """Of the first certificate in a text. Raises Refused."""
    wanted = ("-subject", "-issuer", "-dates", "-fingerprint", "-sha256", "-ext", "subjectAltName")
    said = _openssl("x509", "-noout", *wanted, "-nameopt", "RFC2253,utf8,-esc_msb", given=pem)
    found = dict(re.findall(r"(?m)^(subject|issuer|notBefore|notAfter|[sS][hH][aA]256 Fingerprint)=(.*)$", said))
    if "notAfter" not in found:
        raise Refused("A certificate cannot be read.", "openssl x509 -noout -text -in CERT.pem says why.")
    names = [name.lower() for name in re.findall(r"(?:DNS|IP Address):([^,\s]+)", said)]
    begins, ends = (float(ssl.cert_time_to_seconds(found[name])) for name in ("notBefore", "notAfter"))
    mark = next(value for name, value in found.items() if name.endswith("Fingerprint"))
    return Facts(_common(found["subject"]), _common(found["issuer"]), begins, ends, tuple(dict.fromkeys(names)), mark.strip())


def _common(name):
    """What people call it: the common name where there is one."""
    found = re.search(r"(?:^|[,\s])CN=((?:\\.|[^,\\])*)", name)
    return (found[1] if found else name).strip() or "nobody"


def covers(pattern, name):
    """Whether a name of a certificate is for this host."""
    pattern, name = pattern.lower(), name.lower()
    return pattern == name or (pattern.startswith("*.") and not _address(name) and name.partition(".")[2] == pattern[2:])


def called(place):
    """Under which names and addresses browsers reach the box, its name first."""
    hosts = []
    with contextlib.suppress(OSError, ValueError):  # the appliance itself says what is wrong with it
        hosts = list(tomllib.loads((place.etc / "appliance.toml").read_text("utf-8")).get("allowed_hosts", []))
    said = ""
    if shutil.which("ip"):
        words = ["ip", "-o", "addr", "show", "scope", "global"]
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = [str(host) for host in hosts if host not in LOOPBACK] + re.findall(r"inet6? ([0-9a-f.:]+)/", said)
    return list(dict.fromkeys(found)) or ["appliance.local"]


def _address(name):
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def day(at):
    return time.strftime("%d %B %Y", time.gmtime(at))


def _openssl(*words, given):
    done = subprocess.run(["openssl", *words], input=given, capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout


# --- what is changed ------------------------------------------------------------------------------------------------------
def chosen(place):
    """Facts of the school's own certificate where that is shown; None where the box's authority makes them."""
    try:
        found = re.search(r"(?m)^tls (/\S+\.pem) (/\S+\.pem)$", place.choice.read_text("utf-8"))
        return facts(Path(found[1]).read_text("ascii")) if found and Path(found[2]).is_file() else None
    except (OSError, Refused):
        return None


def _put(place, folder, chain, private):
    if folder.is_dir():
        return  # it was whole before it had this name, and may be shown just now
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    os.chmod(place.kept, 0o755)
    os.chmod(part, 0o755)
    for name, text, mode in (("certificate.pem", "".join(chain), 0o644), ("key.pem", private, 0o640)):
        _write(part / name, text, mode)
    if place.user:
        shutil.chown(part / "key.pem", "root", place.user)
    part.rename(folder)


def _write(path, text, mode):
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _tried(place, text):
    """Whether the proxy would take it, as its own user, beside the one that runs. Raises Refused."""
    now = place.caddyfile.read_text("utf-8") if place.caddyfile.is_file() else ""
    if f"import {place.choice}" not in now:
        hint = "Run the installer once more, then this again."
        raise Refused(f"{place.caddyfile} is not the one that the installer wrote.", hint)
    choice, whole = place.etc / ".certificate.draft", place.etc / ".Caddyfile.draft"
    try:
        _write(choice, text, 0o644)
        _write(whole, now.replace(f"import {place.choice}", f"import {choice}"), 0o644)
        words = [place.caddy, "validate", "--adapter", "caddyfile", "--config", str(whole)]
        words = ["runuser", "-u", place.user, "--", *words] if place.user else words
        home = {"HOME": str(place.store.parents[2]), "XDG_DATA_HOME": str(place.store.parent)}
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/", env=os.environ | home)
    finally:
        choice.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        hint = "Nothing was changed; send that sentence to who made it."
        raise Refused(f"The proxy does not take it: {' '.join(last)[:300]}", hint)


def _change(place, text, before, shown):
    """Make the choice and start the proxy again; back where it does not show it. Raises Refused."""
    _write(place.choice, text, 0o644)
    if _restart(place) and _soon(shown):
        return
    _write(place.choice, before, 0o644)
    again = _restart(place) and _soon(lambda: _door(place))
    told = "what was shown before is shown again" if again else "and it does not start as it was before either"
    raise Refused(f"The proxy does not show it; {told}.", "journalctl -u caddy -n 30")


def _restart(place):
    return subprocess.run(place.restart, capture_output=True, check=False).returncode == 0


def _soon(true):
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        if true():
            return True
        time.sleep(0.1)
    return False


def _shows(place, brought):
    try:
        name = next((name for name in brought.names if not _address(name)), "")
        return hashlib.sha256(served(place.door, name)).hexdigest().upper() == brought.print.replace(":", "")
    except Refused:
        return False


def _door(place):
    """Whether anything answers there; which certificates it shows is another question."""
    try:
        socket.create_connection(place.door, 3).close()
    except OSError:
        return False
    return True


def served(door, name):
    """The certificate that the proxy shows for a name, as bytes. Raises Refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is looked at, not trusted
    asked = name.replace("*", "any") or None
    try:
        with socket.create_connection(door, 5) as line, context.wrap_socket(line, server_hostname=asked) as safe:
            return safe.getpeercert(binary_form=True) or b""
    except OSError:
        raise Refused(f"The encrypted door does not answer at port {door[1]}.", "systemctl restart caddy") from None


def _forget(place, but=None):
    """Certificates that were shown once, with their keys."""
    for path in place.kept.iterdir() if place.kept.is_dir() else ():
        if path != but:
            shutil.rmtree(path, ignore_errors=True)


def page(place, template=None):
    """The page that says how devices come to trust the box. Where no place to write it is there, nothing."""
    source = template or place.trust / "template.html"
    if source.is_file() and place.trust.is_dir():
        _write(place.trust / "index.html", page_text(place, source.read_text("utf-8")), 0o644)


def page_text(place, template):
    head, rest = template.split("<!-- internal -->\n")
    ours, rest = rest.split("<!-- own -->\n")
    theirs, tail = rest.split("<!-- end -->\n")
    own, root = chosen(place), place.authority / "root.crt"
    if own is None:
        return head + ours.replace("FINGERPRINT", facts(root.read_text("ascii")).print if root.is_file() else "") + tail
    told = {"NAMES": ", ".join(own.names), "ISSUER": own.issuer, "UNTIL": own.until, "FINGERPRINT": own.print}
    for word, value in told.items():
        theirs = theirs.replace(word, html.escape(value))
    return head + theirs + tail


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
