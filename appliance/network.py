"""The only door out of the building, and it is shut, except for the hosts that the administrator allowed by name.

Hides where that policy is kept, which environment variable silences which library, and makes the few HTTP clients that exist.
No process opens a connection of its own to another machine: what must go out asks `dial` or `http_client`, which hand it to
`appliance egress` over a Unix socket, and only where the policy allows the host. It does not forward anything itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from appliance import tunnel
from appliance.errors import ApplianceError, BadInput, Forbidden, NotFound, from_os_error
from appliance.files import write_atomically

if TYPE_CHECKING:
    import httpx

    from appliance.settings import Settings

# Read by the libraries at import time, so they are set before anything heavy is imported. PYTHON* are untouched.
OFFLINE: dict[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "TRANSFORMERS_OFFLINE": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    # litellm fetches prices and header tables as it is imported, and takes settings from any .env file above where it runs.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_MODE": "PRODUCTION",
    # At "debug" these two write whole requests, with what people typed, into the log.
    "LITELLM_LOG": "ERROR",
    "OPENAI_LOG": "",
    # DSPy keeps every answer in a cache of pickles on the disk; where its folder cannot be made, it keeps them in memory.
    "DSPY_CACHEDIR": "/dev/null/dspy",
    "TOKENIZERS_PARALLELISM": "false",
    # Two OpenMP pools that spin on two cores take each other's time: llama.cpp beside a trainer fell to a two-hundredth. One
    # that never spins sleeps at each of a step's hundreds of barriers, and a lone answer comes at a third of its speed. Tens
    # of microseconds cost neither; "active" is what lets them count where a process has two pools, as the engine has.
    "OMP_WAIT_POLICY": "active",
    "GOMP_SPINCOUNT": "3000",
}


def stay_offline() -> None:
    """Set every library's offline switch in this process and its children. Called first thing by every door."""
    os.environ.update(OFFLINE)


def socket_client(socket: Path, timeout: float = 120.0) -> httpx.AsyncClient:
    """An HTTP client that can reach one Unix socket of this box and nothing else."""
    import httpx

    # Everybody who is answered or waits holds a connection; how many that may be is the engine's to say.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits)
    # trust_env off: a proxy variable on the machine must not carry a pupil's words anywhere.
    return httpx.AsyncClient(
        transport=transport,
        base_url="http://engine",
        timeout=httpx.Timeout(timeout, connect=2.0),
        trust_env=False,
        event_hooks={"request": [_for_which_request]},
    )


async def _for_which_request(request: httpx.Request) -> None:
    """The line of the log at the other end names what was asked of this process."""
    from appliance import logs  # not before: it brings the database's library, and every child imports this file

    if ours := logs.current():
        request.headers[logs.HEADER.decode()] = ours


# --- who may be dialled ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, order=True)
class Host:
    """A host and a port, as the administrator wrote them: a name is never taken for the address that it stands for today."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"

    @property
    def explicit(self) -> bool:
        """It says itself which machine it is, and cannot come to mean another one: an address, or this machine's own name."""
        return self.name == "localhost" or address_of(self.name) is not None


def host(text: str, port: int = 443) -> Host:
    """HOST, HOST:PORT or [ADDRESS]:PORT as a Host. Raises BadInput for all else: schemes, paths, wildcards, odd addresses."""
    text = text.strip()
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/@\[\]]+))(?::([0-9]{1,5}))?", text)
    name = (match[1] or match[2]) if match else text if address_of(text) else ""  # an IPv6 address may stand without brackets
    number = int(match[3]) if match and match[3] else port
    name = _plain_name(name)
    if not name or not 0 < number < 65536:
        raise BadInput(f"{text[:80]!r} is not a host.", "Write it as ldap.school.example:636, without https:// and without *.")
    return Host(name, number)


def _plain_name(name: str) -> str:
    """Small letters, IDNA, no dot at the end; "" for what is no name: such as 127.1, which a resolver takes for an address."""
    address = address_of(name)
    if address is not None:
        return address.compressed
    try:
        name = name.rstrip(".").encode("idna").decode().lower()
    except UnicodeError:
        return ""
    labels = name.split(".")
    good = all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", label) for label in labels)
    return name if good and len(name) < 254 and not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]) else ""


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


class Policy:
    """Which hosts may be dialled, in a file that only the box's own command line writes; none is air-gapped, the default.

    Every question reads the file: what was denied is denied from that moment on, in every process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def allowed(self) -> frozenset[Host]:
        """Raises ApplianceError where the file is damaged or others may write it: then nothing may be dialled."""
        try:
            with open(self._path, "rb") as handle:
                if stat.S_IMODE(os.fstat(handle.fileno()).st_mode) & 0o022:
                    raise _damaged(self._path, "others than the appliance may write it")
                kept = json.loads(handle.read(1_000_000))
            return frozenset(Host(str(one["host"]), int(one["port"])) for one in kept["allowed"])
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise from_os_error(error, "reading the network policy") from None
        except (ValueError, KeyError, TypeError):
            raise _damaged(self._path, "it is damaged") from None

    def permits(self, wanted: Host) -> bool:
        return wanted in self.allowed()

    def open(self) -> bool:
        """Whether any host is allowed; a damaged file allows none."""
        try:
            return bool(self.allowed())
        except ApplianceError:
            return False

    def allow(self, wanted: Host) -> bool:
        """Whether that changed anything."""
        with self._changing():
            before = self.allowed()
            if wanted not in before:
                self._write(before | {wanted})
            return wanted not in before

    def deny(self, name: str, port: int | None = None) -> list[Host]:
        """Take back a host with one port or, where none is given, with all of them; what was taken back. Raises NotFound."""
        with self._changing():
            before = self.allowed()
            gone = sorted(one for one in before if one.name == name and port in (None, one.port))
            if not gone:
                shown = name if port is None else str(Host(name, port))
                raise NotFound(f"{shown} was not allowed.", "See `appliance network status`.")
            self._write(before - set(gone))
            return gone

    def _write(self, hosts: frozenset[Host]) -> None:
        kept = [{"host": one.name, "port": one.port} for one in sorted(hosts)]
        write_atomically(self._path, json.dumps({"allowed": kept}, indent=1) + "\n")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Two administrators at once change it one after the other."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def lan_addresses() -> list[str]:
    """This machine's own IPv4 address on the interface that leads elsewhere, where there is one. Nobody is asked for it."""
    try:
        routes = [line.split() for line in Path("/proc/net/route").read_text("ascii").splitlines()[1:]]
    except OSError:
        return []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any, contextlib.suppress(OSError, ValueError):
        name = next((route[0] for route in routes if route[1] == "00000000"), routes[0][0] if routes else "")
        found = fcntl.ioctl(any, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
        return [socket.inet_ntoa(found[20:24])]
    return []


def _damaged(path: Path, why: str) -> ApplianceError:
    return ApplianceError(
        f"The network policy {path} cannot be trusted, so nothing is allowed: {why}.",
        "Remove that file, then allow each host again with `appliance network allow HOST:PORT`.",
    )


def needed(settings: Settings) -> list[Host]:
    """The hosts that settings name, whether they are allowed or not."""
    found = []
    for url, ports in ((settings.ldap_url, {"ldap": 389, "ldaps": 636}), (settings.oidc_issuer, {"http": 80, "https": 443})):
        parts = urlsplit(url)
        if parts.hostname:
            name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            found.append(host(name, parts.port or ports[parts.scheme]))
    return found


# --- the way out --------------------------------------------------------------------------------------------------------
def require(settings: Settings, name: str, port: int) -> Host:
    """The host, if it may be dialled. Raises Forbidden where it may not, before anything was sent anywhere; BadInput."""
    wanted = host(f"[{name}]" if ":" in name else name, port)
    allowed = Policy(settings.network).allowed()
    if wanted not in allowed:
        closed = "The box is air-gapped" if not allowed else "The network policy does not name it"
        raise Forbidden(f"{closed}: {wanted} may not be dialled.", f"On the box itself: `appliance network allow {wanted}`.")
    return wanted


def dial(settings: Settings, name: str, port: int, timeout: float = 10.0) -> socket.socket:
    """A socket that is connected to a host, through the egress process; it blocks, and each wait on it has this limit.

    Raises Forbidden where the policy does not allow the host, Unreachable where it or the egress process does not answer, Busy.
    """
    return tunnel.connect(settings.egress_socket, str(require(settings, name, port)), timeout)


def http_client(settings: Settings, *, ca_file: Path | None = None, timeout: float = 10.0) -> httpx.AsyncClient:
    """A client that reaches allowed hosts, through the egress process, and nothing else; it follows no redirects.

    ca_file: whose certificates are trusted; None is the system's. Requests raise what `dial` does, and httpx's own errors.
    """
    import httpx

    from appliance.tunnel_http import Transport

    transport = Transport(settings.egress_socket, partial(require, settings), ca_file)
    return httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False)
