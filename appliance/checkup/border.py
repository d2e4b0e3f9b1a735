"""The border of the box: may anything go out, do the pages answer, and do devices trust what they see.

It talks to this machine alone, over its own loopback or a socket.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance import guard
from appliance.checkup.check import Check
from appliance.jobs import held
from appliance.network import Policy, needed
from appliance.settings import Settings

PROXY = Path("/etc/caddy/Caddyfile")
AUTHORITY = Path("/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
CHOICE = Path("/etc/appliance/certificate.caddy")  # which certificate it shows
OURS = "school appliance"
CERTIFICATES = "Certificates"
USE, INTERNAL = "appliance certificate use CERT.pem KEY.pem", "appliance certificate internal"
RESTART = "systemctl restart caddy"
# Only root and the proxy may read its key. Whatever the backup holds, every service of the box can read.
APART = "It and its key are in no backup: keep both files apart from the box."
WEB_SOCKET = Path("/run/appliance/web.sock")
SOON = 30 * 86400.0  # seconds before its end in which the school's own certificate has to be exchanged
AUTHORITY_SOON = 180 * 86400.0  # and the box's authority, on every device
SECONDS = 3.0
LOOPBACKS = ("localhost", "127.0.0.1", "::1", "[::1]")


def air_gap(settings: Settings) -> Check:
    """What may be dialled, and whether the process that dials runs."""
    hosts = sorted(Policy(settings.network).allowed())
    runs = held(settings.run / "egress.lock")
    missing = [host for host in needed(settings) if host not in hosts]
    if not hosts and runs:
        return Check("Air gap", False, "No host outside is allowed, yet the way out is running.",
                     "Stop it.", "systemctl stop appliance-egress")  # fmt: skip
    told = "Air-gapped: no host outside may be reached."
    if hosts:
        told = f"Open to {', '.join(str(host) for host in hosts)}; nothing else may be reached."
    if missing:
        return Check("Air gap", False, f"{told} A setting names {missing[0]}, which is not allowed.",
                     "Allow it, or empty that setting.", f"appliance network allow {missing[0]}")  # fmt: skip
    if hosts and not runs:
        return Check("Air gap", False, f"{told} The way out is not running.",
                     "Start it; installed: `systemctl enable --now appliance-egress`.", "appliance egress")  # fmt: skip
    return Check("Air gap", True, told)


def pages(settings: Settings, web_socket: Path = WEB_SOCKET) -> Check:
    """Whether the web process says that it is alive."""
    start = ("Start the services.", "systemctl start appliance-web" if web_socket.exists() else "appliance serve")
    try:
        if web_socket.exists():
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.settimeout(SECONDS)
            link.connect(str(web_socket))
        elif settings.host in ("0.0.0.0", *LOOPBACKS):
            link = _door(settings.port)
        else:
            return Check("Pages", True, f"They are served at {settings.host} alone, where they are not looked at from here.")
        with link:
            asked = http.client.HTTPConnection("localhost", timeout=SECONDS)
            asked.sock = link
            asked.request("GET", "/health")
            status = asked.getresponse().status
    except (OSError, http.client.HTTPException):
        return Check("Pages", False, "The pages do not answer.", *start)
    if status != 200:
        return Check("Pages", False, f"Something else answers there, with status {status}.",
                     "See which program listens on that port; give the box another one with the setting port.")  # fmt: skip
    return Check("Pages", True, "They answer.")


def _door(port: int) -> socket.socket:
    """A line to a door of this machine, which no process of the box may open otherwise. Raises OSError."""
    with guard.own_door(port):
        return socket.create_connection((guard.LOOPBACK, port), SECONDS)


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate as devices see it. begins, ends: UTC seconds."""

    raw: bytes
    issuer: str
    names: tuple[str, ...]
    begins: float
    ends: float

    def covers(self, host: str) -> bool:
        rest = host.partition(".")[2]
        return host in self.names or (bool(rest) and f"*.{rest}" in self.names)


def certificates(
    settings: Settings, *, proxy: Path = PROXY, choice: Path = CHOICE, authority: Path = AUTHORITY,
    port: int = 443, plain: int = 80, now: float | None = None,
) -> Check | None:  # fmt: skip
    """The certificate that the proxy really shows to devices, and who stands behind it: the school, or the box's own
    authority. None where the installer set no proxy up.

    plain: the port at which the proxy hands its authority out, where its file cannot be read by this user.
    """
    try:
        if OURS not in proxy.read_text("utf-8"):
            return None
    except (OSError, UnicodeDecodeError):
        return None
    now = time.time() if now is None else now
    called, own = _called(settings), _own(choice)
    try:
        shown = _shown(port, next((name for name in called if own and own.covers(name)), called[0]))
    except OSError:
        told = f"The encrypted door does not answer at port {port}."
        return Check(CERTIFICATES, False, told, "Look at the proxy's log, and start it again.", RESTART)
    amiss = _amiss(shown, called, now, INTERNAL if own is None else USE)
    if amiss is None and own is None:
        return _of_the_box(shown, _authority(authority, plain), port, called[0], now)
    return amiss or _of_the_school(shown, own, now)


def put_in(settings: Settings, *, choice: Path = CHOICE, now: float | None = None) -> Check | None:
    """The school's own certificate as it lies there, for who cannot ask the proxy; None where there is none."""
    now = time.time() if now is None else now
    own = _own(choice)
    if own is None:
        return None
    return _amiss(own, _called(settings), now, USE) or _of_the_school(own, own, now)


def _called(settings: Settings) -> list[str]:
    """The names under which browsers reach the box."""
    return [host.lower() for host in settings.allowed_hosts if host not in LOOPBACKS] or ["appliance.local"]


def _amiss(shown: Shown, called: Sequence[str], now: float, command: str) -> Check | None:
    """What devices warn of, whoever made it."""
    clock = f"the box's clock says {_day(now)}"
    if now >= shown.ends:
        told = f"The certificate that the box shows ended on {_day(shown.ends)}: every device is warned."
        return Check(
            CERTIFICATES, False, told, f"Set the clock where it is wrong ({clock}); else have a new one made.", command
        )
    if now < shown.begins:
        told = f"The certificate that the box shows is good only from {_day(shown.begins)} on: every device is warned."
        return Check(
            CERTIFICATES, False, told, f"Set the clock where it is wrong ({clock}); else have a new one made.", command
        )
    if not any(shown.covers(name) for name in called):
        told = f"The certificate that the box shows is for {', '.join(shown.names) or 'nobody'}, not for {called[0]}."
        return Check(CERTIFICATES, False, told, "Have one made for that name, or add its name to allowed_hosts.", command)
    return None


def _of_the_school(shown: Shown, own: Shown | None, now: float) -> Check:
    if own is None or shown.raw != own.raw:
        told = "The box shows another certificate than the school's, which was put in."
        return Check(CERTIFICATES, False, told, "Start the proxy again.", RESTART)
    left = int((shown.ends - now) // 86400)
    told = f"The school's own certificate for {', '.join(shown.names)}, by {shown.issuer}: good until {_day(shown.ends)}."
    if shown.ends - now < SOON:
        return Check(CERTIFICATES, False, f"{told} {left} days left.", "Ask who made it for the next one, and put it in.", USE)
    return Check(CERTIFICATES, True, f"{told} {left} days left. {APART}")


def _of_the_box(shown: Shown, found: str, port: int, name: str, now: float) -> Check:
    if not found:
        told = "The authority of the box's certificates cannot be read."
        return Check(CERTIFICATES, False, told, "Look at the proxy's log, and start it again.", RESTART)
    context = ssl.create_default_context(cadata=found)
    ends = min((_ends(one) for one in context.get_ca_certs()), default=0.0)
    if ends < now + AUTHORITY_SOON:
        told = f"The authority that devices trust ends on {_day(ends)}; it is not renewed by itself, as certificates are."
        remedy = f"Make a new one in the holidays, and have every device trust it (see /trust); the clock says {_day(now)}."
        return Check(CERTIFICATES, False, told, remedy, f"{INTERNAL} --new-authority")
    try:
        with _door(port) as link, context.wrap_socket(link, server_hostname=name):
            pass
    except ssl.SSLCertVerificationError as error:
        told = f"What the proxy shows is not trusted: {error.verify_message.rstrip('.')}."
        return Check(CERTIFICATES, False, told, "Have it made anew.", INTERNAL)
    except OSError:
        told = f"The encrypted door does not answer at port {port}."
        return Check(CERTIFICATES, False, told, "Look at the proxy's log, and start it again.", RESTART)
    told = (
        f"The certificate of {name} is good until {_day(shown.ends)} and renewed by itself, its authority until {_day(ends)}."
    )
    return Check(CERTIFICATES, True, told)


def _shown(port: int, name: str) -> Shown:
    """What the proxy shows for this name, whether it may be trusted or not. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is looked at, and nothing is said to it
    with _door(port) as link, context.wrap_socket(link, server_hostname=name) as safe:
        return _read(safe.getpeercert(binary_form=True) or b"")


def _own(choice: Path) -> Shown | None:
    """The school's own certificate, where it was put in (`installer/target/certificate.py`)."""
    with suppress(OSError, ValueError):
        found = re.search(r"(?m)^tls (/\S+\.pem) ", choice.read_text("utf-8"))
        if found:
            first, mark, _rest = Path(found[1]).read_text("ascii").partition("-----END CERTIFICATE-----\n")
            return _read(ssl.PEM_cert_to_DER_cert(first + mark))
    return None


def _read(raw: bytes) -> Shown:
    from cryptography import x509

    found = x509.load_der_x509_certificate(raw)
    names: list[str] = []
    with suppress(x509.ExtensionNotFound):
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [str(one.value).lower() for one in alternatives if isinstance(one, (x509.DNSName, x509.IPAddress))]
    common = found.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    issuer = str(common[0].value) if common else found.issuer.rfc4514_string()
    dates = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    return Shown(raw, issuer, tuple(names), *dates)


def _authority(file: Path, port: int) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return file.read_text("ascii")
    with suppress(OSError, http.client.HTTPException, UnicodeDecodeError, ValueError):
        asked = http.client.HTTPConnection(guard.LOOPBACK, port, timeout=SECONDS)
        asked.sock = _door(port)
        try:
            asked.request("GET", "/trust.crt")
            said = asked.getresponse()
            raw = said.read(64 * 1024)
        finally:
            asked.close()
        return raw.decode("ascii") if raw.startswith(b"-----BEGIN") else ssl.DER_cert_to_PEM_cert(raw)
    return ""


def _ends(certificate: object) -> float:
    told = certificate.get("notAfter", "") if isinstance(certificate, dict) else ""
    return float(ssl.cert_time_to_seconds(told)) if told else 0.0


def _day(at: float) -> str:
    return time.strftime("%d %B %Y", time.localtime(at))
