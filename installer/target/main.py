"""Installs or upgrades a box from a bundle whose signature and files were checked: the steps, in their order.

Every step looks first at what is there, so that the command may be run again at any point. An upgrade puts the new release
beside the old, and goes back to the old one where the new does not answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checks
import machine
import probe
import release
from changes import Changes, Fault


def main() -> int:
    parser = argparse.ArgumentParser(prog="install", description=__doc__)
    parser.add_argument("bundle", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("signed_by", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="say every change, make none")
    parser.add_argument("--key", type=Path, help="the maker's public key, where it is not the one this box knows")
    parser.add_argument("--name", default="appliance", help="the box's name on the LAN: NAME.local")
    parser.add_argument("--without-backup", action="store_true", help="upgrade although no backup can be made")
    parser.add_argument("--yes", action="store_true", help="go on where a check only notes something")
    given = parser.parse_args()
    changes = Changes(dry=given.dry_run)
    try:
        agreed, backed_up = given.yes or given.dry_run, not given.without_backup
        install(given.bundle, given.signed_by, changes, name=given.name, agreed=agreed, backed_up=backed_up)
    except Fault as fault:
        changes.say(f"Error: {fault.message}")
        changes.say(f"Try: {fault.hint}")
        return fault.code
    except OSError as error:
        changes.say(f"Error: The system refused: {error.strerror} ({error.filename}).")
        changes.say("Try: Check the disk, then run the same command again: it goes on where it stopped.")
        return 1
    return 0


def install(bundle: Path, signed_by: Path, changes: Changes, *, name: str, agreed: bool, backed_up: bool) -> None:
    facts = json.loads((bundle / "VERSION").read_text("utf-8"))
    version, before = str(facts["version"]), release.current()
    changes.say(f"School appliance {version}" + (f"; {before} is installed." if before else "; a new box."))
    release.refuse_older(version, before)
    _look(changes, agreed)
    machine.debian_packages(bundle, changes)
    machine.user_and_folders(changes)
    release.put(bundle, version, changes)
    machine.settings(name, changes)
    machine.keep_key(signed_by, changes)
    machine.units(bundle, changes)
    probe.walls(changes)
    machine.proxy(name, changes)
    machine.trust_page(changes)
    if before and before != version:
        release.upgrade(before, version, changes, backed_up=backed_up)
    else:
        release.switch(version, changes)
        machine.start(changes)
        if not changes.dry and not release.answers():
            raise Fault("The box was installed and does not answer.", "journalctl -u appliance-web -u appliance-engine -n 50")
    machine.tell(name, changes)


def _look(changes: Changes, agreed: bool) -> None:
    found = checks.all_of_them(release.RELEASES, machine.port_is_ours)
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
