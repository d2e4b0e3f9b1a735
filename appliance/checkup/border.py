"""The border of the box: may anything go out, do the pages answer, and do devices trust what they see.

It talks to this machine alone, over its own loopback or a socket.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path

from appliance import guard
from appliance.checkup.check import Check
from appliance.jobs import held
from appliance.network import Policy, needed
from appliance.settings import Settings

PROXY = Path("/etc/caddy/Caddyfile")
AUTHORITY = Path("/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
OURS = "school appliance"
WEB_SOCKET = Path("/run/appliance/web.sock")
SOON = 30 * 86400.0  # an authority that ends within so many seconds has to be exchanged on every device
SECONDS = 3.0


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
        else:
            link = _knock(_local(settings.host), settings.port)
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


def _local(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(host, host)


def _knock(host: str, port: int) -> socket.socket:
    """A connection to a door of this very machine, past the guard, which holds even the loopback shut. Raises OSError."""
    with guard.passing(host, port):
        address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    with guard.passing(address, port):
        return socket.create_connection((address, port), SECONDS)


def certificates(
    proxy: Path = PROXY, authority: Path = AUTHORITY, address: tuple[str, int] = ("127.0.0.1", 443), plain: int = 80,
    name: str = "appliance.local", now: float | None = None,
) -> Check | None:  # fmt: skip
    """The proxy's authority and the certificate that it shows to devices; None where the installer set no proxy up.

    plain: the port at which the proxy hands its authority out, where its file cannot be read by this user.
    """
    try:
        if OURS not in proxy.read_text("utf-8"):
            return None
    except (OSError, UnicodeDecodeError):
        return None
    now = time.time() if now is None else now
    again = ("Look at the proxy's log, and start it again.", "systemctl restart caddy")
    found = _authority(authority, address[0], plain)
    if not found:
        return Check("Certificates", False, "The authority of the box's certificates cannot be read.", *again)
    context = ssl.create_default_context(cadata=found)
    ends = min((_ends(one) for one in context.get_ca_certs()), default=0.0)
    if ends < now + SOON:
        told = f"The authority that devices trust ends on {_day(ends)}."
        return Check("Certificates", False, told, "Make a new one, and have every device trust it (see /trust).", again[1])
    try:
        with _knock(*address) as link, context.wrap_socket(link, server_hostname=name) as safe:
            shown = safe.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        return Check("Certificates", False, f"What the proxy shows is not trusted: {error.verify_message}.", *again)
    except OSError:
        return Check("Certificates", False, f"The encrypted door does not answer at port {address[1]}.", *again)
    told = f"The certificate of {name} is good until {_day(_ends(shown))}, its authority until {_day(ends)}."
    return Check("Certificates", True, told)


def _authority(file: Path, host: str, port: int) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return file.read_text("ascii")
    with suppress(OSError, http.client.HTTPException, UnicodeDecodeError, ValueError):
        asked = http.client.HTTPConnection(host, port, timeout=SECONDS)
        asked.sock = _knock(host, port)
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
