"""What an installed box has beside its releases: packages, user and folders, settings, units, the proxy and its name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import certificate
from changes import Changes, Fault
from release import DATA, PROGRAM, RELEASES, ROOT

USER = "appliance"
WAY_OUT = "appliance-egress"  # the group by which the kernel's firewall tells the egress process from the others
SETTINGS = Path("/etc/appliance/appliance.toml")
KEY = Path("/etc/appliance/signing.pub")
UNITS = Path("/etc/systemd/system")
CADDYFILE = Path("/etc/caddy/Caddyfile")
RESTORING = "appliance-restoring.service"
MARK = "# Written by the school appliance's installer."
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
[ "${1-}" = certificate ] && shift && exec /usr/local/sbin/appliance-certificate "$@"
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
    for name, source in (("uninstall", "uninstall"), ("restore", "restore"), ("certificate", "certificate.py")):
        text = Path(__file__).with_name(source).read_text("utf-8")
        changes.write(Path(f"/usr/local/sbin/appliance-{name}"), text, 0o755)
    changes.write(PROGRAM, COMMAND.replace("{mark}", MARK[2:]), 0o755)
    changes.write(UNITS / RESTORING, Path(__file__).with_name("restoring.service").read_text("utf-8"))
    changes.run(["systemctl", "enable", RESTORING], "Having a restore go on after a power cut")


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


def known_name() -> str:
    """The box's name on the LAN: as the school's settings have it since the first installation."""
    return next((host[:-6] for host in certificate.called(certificate.Place()) if host.endswith(".local")), USER)


def refuse_another(name: str) -> None:
    """Once there are settings, the box's name is theirs: under another one its pages would answer nobody. Raises Fault."""
    if SETTINGS.is_file() and name != known_name():
        hint = f"Write {name}.local in its place (allowed_hosts in {SETTINGS}), then run the same command again."
        raise Fault(f"This box is called {known_name()}.local.", hint)


def names(name: str) -> list[str]:
    """Under which a browser reaches this box: its name, and its addresses of today."""
    if not shutil.which("ip"):
        return [f"{name}.local"]  # it comes with the bundle
    words = ["ip", "-o", "-4", "addr", "show", "scope", "global"]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
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
    new = _choice(changes)
    new = changes.write(CADDYFILE, text) or new
    changes.run(["systemctl", "enable", "caddy"], "Enabling the proxy")
    if new:
        changes.run(["systemctl", "restart", "caddy"], "Starting the proxy", "journalctl -u caddy -n 30")
    _named(name, changes)


def _choice(changes: Changes) -> bool:
    """What the proxy shows stays as the school has chosen it; whether it was written now."""
    place = certificate.Place()
    if place.choice.is_file() and (certificate.chosen(place) or certificate.INTERNAL in place.choice.read_text("utf-8")):
        return False
    if place.choice.is_file():
        changes.say("The school's own certificate cannot be read any more: the box shows one of its own authority.")
    return changes.write(place.choice, certificate.HEAD + certificate.INTERNAL)


def _named(name: str, changes: Changes) -> None:
    avahi = Path("/etc/avahi/avahi-daemon.conf")
    if avahi.is_file():
        before = avahi.read_text("utf-8")
        after = re.sub(r"(?m)^#?host-name=.*$", f"host-name={name}", before)
        if changes.write(avahi, after):
            changes.run(["systemctl", "try-restart", "avahi-daemon"], "Telling the LAN the box's name")


def port_is_ours(_port: int) -> bool:
    """Whether what listens on 443 and 80 is the proxy that an earlier run set up, or was about to: its package starts it."""
    there = CADDYFILE.read_bytes() if CADDYFILE.is_file() else b""
    words = ["dpkg-query", "--show", "--showformat=${Conffiles}", "caddy"]
    brought = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    untouched = f"{CADDYFILE} {hashlib.md5(there, usedforsecurity=False).hexdigest()}" in brought
    mine = MARK.encode() in there or untouched
    return mine and subprocess.run(["systemctl", "is-active", "--quiet", "caddy"], check=False).returncode == 0


def start(changes: Changes) -> None:
    changes.run(["systemctl", "enable", "--now", *STARTED], "Starting the services", "journalctl -u appliance-web -n 50")
    timers = ("appliance-retrain.timer", "appliance-backup.timer")
    changes.run(["systemctl", "enable", "--now", *timers], "Setting the nightly retraining and backup")


def measure(seconds: float, changes: Changes) -> None:
    """What this machine can serve, measured and kept for the health page. A new box is none the worse where that fails."""
    if seconds <= 0 or (DATA / "selftest.json").is_file():
        return
    changes.say(f"Measuring for {seconds:.0f} seconds what this machine can serve.")
    found = _asked(["selftest", "--seconds", f"{seconds:g}"], 10 * seconds + 300, changes)
    if found is not None:
        changes.say(str(found.get("summary") or "It could not be measured now. Later: sudo appliance selftest"))


def doctor(changes: Changes) -> None:
    """What still waits for somebody, as the doctor says it; an installation does not hang on that."""
    found = _asked(["doctor"], 300, changes)
    if found is None:
        return
    if "checks" not in found:
        changes.say("How the box is could not be asked. Later: sudo appliance doctor")
    for one in found.get("checks", ()):
        if not one["ok"]:
            changes.say(f"  to do  {one['name']}: {one['detail']} {one['remedy']}")


def _asked(words: list[str], seconds: float, changes: Changes) -> dict[str, Any] | None:
    """What a command of the box says as JSON; {} where it cannot, None in a dry run. No part of a box's installation."""
    if changes.dry:
        return None
    try:
        line = [str(PROGRAM), *words, "--json"]
        said = subprocess.run(line, capture_output=True, text=True, check=False, timeout=seconds).stdout
        return dict(json.loads(said))
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired):
        return {}


def trust_page(changes: Changes) -> None:
    """How devices come to trust the box, with the fingerprint of its authority, once the proxy has made that."""
    place = certificate.Place()
    ends = time.monotonic() + 20
    root = place.authority / "root.crt"
    while not changes.dry and not root.is_file() and certificate.chosen(place) is None and time.monotonic() < ends:
        time.sleep(0.2)
    template = Path(__file__).with_name("trust.html").read_text("utf-8")
    changes.write(place.trust / "template.html", template)
    changes.write(place.trust / "index.html", certificate.page_text(place, template))


def own_certificate(brought: Path, key: Path, name: str, changes: Changes, *, only_look: bool) -> None:
    """Show the school's own certificate. only_look: check it, before anything is changed. Raises Fault."""
    place = certificate.Place()
    try:
        if only_look or changes.dry:
            certificate.checked(brought, key, list(dict.fromkeys([*names(name), *certificate.called(place)])))
        else:
            changes.say(certificate.use(place, brought, key))
    except certificate.Refused as refused:
        raise Fault(refused.message, refused.hint) from None


def tell(name: str, changes: Changes) -> None:
    """What the person at the keyboard needs now. The one-time code is printed, and goes to no log."""
    if changes.dry:
        return
    where = names(name)
    changes.say("")
    changes.say(f"Open https://{where[0]}" + (f" or https://{where[1]}" if where[1:] else "") + " in a browser.")
    place = certificate.Place()
    own, root = certificate.chosen(place), place.authority / "root.crt"
    if own:
        changes.say(f"It shows the school's own certificate, by {own.issuer}, good until {own.until}.")
    elif root.is_file():
        changes.say(f"Devices have to trust the box's certificate once: http://{where[0]}/trust. Its SHA-256 is")
        changes.say(f"  {certificate.facts(root.read_text('ascii')).print}")
    words = [str(PROGRAM), "users", "setup-code"]
    code = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    if code:
        print(code)
