"""Installs or upgrades a box from a bundle whose signature and files were checked: the steps, in their order.

Every step looks first at what is there, so that the command may be run again at any point. An upgrade puts the new release
beside the old, and goes back to the old one where the new does not answer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bundled
import checks
import machine
import probe
import release
from changes import FULL, Changes, Fault

AGAIN = "Check the disk and the stick, then run the same command again: it goes on where it stopped."


def main() -> int:
    parser = argparse.ArgumentParser(prog="install", description=__doc__)
    parser.add_argument("bundle", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("signed_by", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="say every change, make none")
    parser.add_argument("--key", type=Path, help="the maker's public key, where it is not the one this box knows")
    parser.add_argument("--name", default="", help="the box's name on the LAN: NAME.local; appliance where none is given")
    parser.add_argument("--without-backup", action="store_true", help="upgrade although no backup can be made")
    parser.add_argument("--old", action="store_true", help="take a bundle although it has expired")
    parser.add_argument("--yes", action="store_true", help="go on where a check only notes something")
    parser.add_argument("--certificate", nargs=2, type=Path, metavar=("CERT", "KEY"), help="the school's own, both as PEM")
    parser.add_argument("--selftest", type=float, default=60.0, metavar="SECONDS", help="measure a new box so long; 0: not")
    given = parser.parse_args()
    changes = Changes(dry=given.dry_run)
    try:
        install(given, changes)
    except Fault as fault:
        changes.say(f"Error: {fault.message}")
        changes.say(f"Try: {fault.hint}")
        return fault.code
    except OSError as error:
        changes.say(f"Error: The system refused: {refused(error)}.")
        changes.say(f"Try: {FULL}" if "No space left" in str(error) else f"Try: {AGAIN}")
        return 1
    return 0


def refused(error: OSError) -> str:
    """What it was, also where many files were copied at once and each may have failed in its own way."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        return str(error.args[0][0][-1])
    return f"{error.strerror} ({error.filename})"


def install(given: argparse.Namespace, changes: Changes) -> None:
    bundle, name = given.bundle, given.name or machine.known_name()
    facts = json.loads((bundle / "VERSION").read_text("utf-8"))
    release.settle(changes)
    version, before = str(facts["version"]), release.current()
    changes.say(f"School appliance {version}" + (f"; {before} is installed." if before else "; a new box."))
    release.refuse_older(version, before)
    bundled.refuse_unfit(bundle, facts, checks.OS_RELEASE, release.RELEASES / version, changes.say, old=given.old)
    machine.refuse_another(name)
    release.clear_undone(version, changes)
    _look(changes, given.yes or given.dry_run, cuda=bool(facts.get("cuda")))
    if given.certificate:
        machine.own_certificate(*given.certificate, name, changes, only_look=True)
    machine.debian_packages(bundle, changes)
    machine.user_and_folders(changes)
    release.put(bundle, version, changes)
    machine.settings(name, changes)
    machine.keep_key(given.signed_by, changes)
    if not before or before == version:
        machine.units(bundle, changes)
        probe.walls(changes)
    else:  # in an upgrade they change with the release, and back with it
        probe.walls(changes, bundle / "systemd")
    machine.proxy(name, changes)
    machine.trust_page(changes)
    if before and before != version:
        release.upgrade(before, version, changes, backed_up=not given.without_backup)
        machine.start(changes)  # timers that the old release did not have
    else:
        release.switch(version, changes)
        machine.start(changes)
        if not changes.dry and not release.answers():
            raise Fault("The box was installed and does not answer.", "journalctl -u appliance-web -u appliance-engine -n 50")
    if given.certificate:
        machine.own_certificate(*given.certificate, name, changes, only_look=False)
    if not before:
        machine.measure(given.selftest, changes)
    machine.doctor(changes)
    machine.tell(name, changes)


def _look(changes: Changes, agreed: bool, *, cuda: bool) -> None:
    found = checks.all_of_them(release.RELEASES, machine.port_is_ours, cuda=cuda)
    for one in found:
        mark = {"fine": "ok", "note": "note", "stop": "NO"}[one.state]
        changes.say(f"  {mark:<5}{one.name}: {one.detail}")
        if one.remedy:
            changes.say(f"       {one.remedy}")
    stops = [one for one in found if one.state == "stop"]
    if stops:
        raise Fault(f"This machine cannot be installed: {stops[0].detail}", stops[0].remedy)
    notes = [one for one in found if one.state == "note"]
    if notes and not agreed and sys.stdin.isatty() and input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise Fault("Stopped; nothing was changed.", "Run it again when the machine is ready.")


if __name__ == "__main__":
    sys.exit(main())
