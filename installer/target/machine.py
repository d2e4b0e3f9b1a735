"""What an installed box has beside its releases: packages, user and folders, settings, units, the proxy and its name."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from changes import Changes, Fault
from release import DATA, RELEASES, ROOT

USER = "appliance"
WAY_OUT = "appliance-egress"  # the group by which the kernel's firewall tells the egress process from the others
SETTINGS = Path("/etc/appliance/appliance.toml")
KEY = Path("/etc/appliance/signing.pub")
UNITS = Path("/etc/systemd/system")
CADDYFILE = Path("/etc/caddy/Caddyfile")
MARK = "# Written by the school appliance's installer."
CERTIFICATE = Path("/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt")
STARTED = ("appliance-web.socket", "appliance-engine.service", "appliance-web.service", "appliance-worker.service")
PACKAGES = ("python3", "python3-venv", "caddy", "avahi-daemon", "iproute2", "openssl", "ca-certificates", "restic", "libgomp1")
COMMAND = """#!/bin/sh
# The appliance's command, as its own user. {mark}
if [ "$(id -u)" != 0 ]; then
  printf 'Error: Only root may use the box'"'"'s command line.\\nTry: sudo appliance %s\\n' "$*" >&2
  exit 3
fi
# A restore stops the services, and starts them again.
[ "${1-} ${2-}" = "backup restore" ] && shift 2 && exec /usr/local/sbin/appliance-restore "$@"
exec runuser -u appliance -- /opt/appliance/current/.venv/bin/appliance "$@"
"""


def debian_packages(bundle: Path, changes: Changes) -> None:
    missing = [name for name in PACKAGES if not _has(name)]
    if not missing:
        return
    if not (bundle / "debs" / "Packages").is_file():
        raise Fault(
            f"Debian's packages {', '.join(missing)} are missing, and this bundle has none.",
            f"apt-get install {' '.join(missing)}",
        )
    changes.say(f"Installing {', '.join(missing)} from the bundle.")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "bundle.list"
        source.write_text(f"deb [trusted=yes] file:{str(bundle / 'debs').replace(' ', '%20')} ./\n")
        os.chmod(folder, 0o755)
        (Path(folder) / "lists" / "partial").mkdir(parents=True)
        apt = [
            "apt-get", "-q", "-o", f"Dir::Etc::sourcelist={source}", "-o", "Dir::Etc::sourceparts=-",
            "-o", f"Dir::State::lists={folder}/lists", "-o", "APT::Sandbox::User=root", "-o", "Dpkg::Options::=--force-confold",
        ]  # fmt: skip
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        if not changes.dry:
            subprocess.run(["dpkg", "--configure", "-a"], capture_output=True, check=False)  # what a power cut left half done
        changes.run([*apt, "update"], "Reading the bundle's Debian packages", env=quiet)
        words = [*apt, "install", "--yes", "--no-install-recommends", *missing]
        changes.run(words, "Installing Debian's packages", "Read the log; `dpkg --configure -a` may help.", env=quiet)


def _has(package: str) -> bool:
    done = subprocess.run(["dpkg-query", "-W", "-f=${Status}", package], capture_output=True, text=True, check=False)
    return done.stdout == "install ok installed"


def user_and_folders(changes: Changes) -> None:
    if subprocess.run(["id", USER], capture_output=True, check=False).returncode:
        words = [
            "useradd",
            "--system",
            "--user-group",
            "--home-dir",
            DATA,
            "--no-create-home",
            "--shell",
            "/usr/sbin/nologin",
            USER,
        ]
        changes.run(words, "Making the user")
    if subprocess.run(["getent", "group", WAY_OUT], capture_output=True, check=False).returncode:
        changes.run(["groupadd", "--system", WAY_OUT], "Making the group of the way out")
    changes.folder(ROOT)
    changes.folder(RELEASES)
    changes.folder(SETTINGS.parent)
    changes.folder(DATA, 0o700, USER if not changes.dry else "")
    changes.write(Path("/usr/local/sbin/appliance-uninstall"), Path(__file__).with_name("uninstall").read_text("utf-8"), 0o755)
    changes.write(Path("/usr/local/sbin/appliance-restore"), Path(__file__).with_name("restore").read_text("utf-8"), 0o755)
    changes.write(Path("/usr/local/bin/appliance"), COMMAND.replace("{mark}", MARK[2:]), 0o755)


def settings(name: str, changes: Changes) -> None:
    """Written once; afterwards the file is the school's own."""
    if SETTINGS.is_file():
        return
    hosts = ", ".join(f'"{host}"' for host in ("localhost", f"{name}.local"))
    text = (
        "# The appliance's settings. `appliance settings --all` shows each with what it does.\n"
        f'allowed_hosts = [{hosts}]\nlog_format = "json"\n'
    )
    changes.write(SETTINGS, text)


def names(name: str) -> list[str]:
    """Under which a browser reaches this box: its name, and its addresses of today."""
    said = subprocess.run(
        ["ip", "-o", "-4", "addr", "show", "scope", "global"], capture_output=True, text=True, check=False
    ).stdout
    return [f"{name}.local", *dict.fromkeys(re.findall(r"inet ([0-9.]+)/", said))]


def keep_key(signed_by: Path, changes: Changes) -> None:
    """Upgrades have to be signed by the same key from now on."""
    changes.write(KEY, signed_by.read_text("ascii"))


def units(bundle: Path, changes: Changes) -> None:
    changed = False
    for path in sorted((bundle / "systemd").iterdir()):
        if path.suffix in (".service", ".socket", ".timer"):
            changed = changes.write(UNITS / path.name, path.read_text("utf-8")) or changed
    if changed:
        changes.run(["systemctl", "daemon-reload"], "Reading the units")


def proxy(name: str, changes: Changes) -> None:
    """Caddy in front, with certificates of its own authority; the box's name by avahi."""
    old = CADDYFILE.read_text("utf-8", "replace") if CADDYFILE.is_file() else ""
    if old and MARK not in old:
        changes.write(CADDYFILE.with_name("Caddyfile.before-appliance"), old)
    text = (Path(__file__).with_name("Caddyfile")).read_text("utf-8").replace("NAME[.]local", f"{name}[.]local")
    new = changes.write(CADDYFILE, text)
    changes.run(["systemctl", "enable", "caddy"], "Enabling the proxy")
    if new:
        changes.run(["systemctl", "restart", "caddy"], "Starting the proxy", "journalctl -u caddy -n 30")
    avahi = Path("/etc/avahi/avahi-daemon.conf")
    if avahi.is_file():
        before = avahi.read_text("utf-8")
        after = re.sub(r"(?m)^#?host-name=.*$", f"host-name={name}", before)
        if changes.write(avahi, after):
            changes.run(["systemctl", "try-restart", "avahi-daemon"], "Telling the LAN the box's name")


def port_is_ours(_port: int) -> bool:
    """Whether what listens on 443 and 80 is the proxy that an earlier run set up."""
    mine = CADDYFILE.is_file() and MARK in CADDYFILE.read_text("utf-8", "replace")
    return mine and subprocess.run(["systemctl", "is-active", "--quiet", "caddy"], check=False).returncode == 0


def start(changes: Changes) -> None:
    changes.run(["systemctl", "enable", "--now", *STARTED], "Starting the services", "journalctl -u appliance-web -n 50")
    timers = ("appliance-retrain.timer", "appliance-backup.timer")
    changes.run(["systemctl", "enable", "--now", *timers], "Setting the nightly retraining and backup")


def trust_page(changes: Changes) -> None:
    """How devices come to trust the box, with the fingerprint of its authority, once the proxy has made that."""
    ends = time.monotonic() + 20
    while not changes.dry and not CERTIFICATE.is_file() and time.monotonic() < ends:
        time.sleep(0.2)
    text = Path(__file__).with_name("trust.html").read_text("utf-8")
    changes.write(ROOT / "trust" / "index.html", text.replace("FINGERPRINT", _fingerprint()))


def _fingerprint() -> str:
    """SHA-256 of the proxy's own authority's certificate; "" while there is none."""
    if not CERTIFICATE.is_file():
        return ""
    words = ["openssl", "x509", "-in", CERTIFICATE, "-noout", "-fingerprint", "-sha256"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip().rpartition("=")[2]


def tell(name: str, changes: Changes) -> None:
    """What the person at the keyboard needs now. The one-time code is printed, and goes to no log."""
    if changes.dry:
        return
    where = names(name)
    changes.say("")
    changes.say(f"Open https://{where[0]}" + (f" or https://{where[1]}" if where[1:] else "") + " in a browser.")
    said = _fingerprint()
    if said:
        changes.say(f"Devices have to trust the box's certificate once: http://{where[0]}/trust. Its SHA-256 is")
        changes.say(f"  {said}")
    words = ["/usr/local/bin/appliance", "users", "setup-code"]
    code = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    if code:
        print(code)
