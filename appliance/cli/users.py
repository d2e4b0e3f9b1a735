"""`appliance users`: the school's pupils and staff, one by one or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command

if TYPE_CHECKING:
    from appliance.accounts import Person
    from appliance.app import Appliance
    from appliance.enrolment import Plan, Roll

SHOWN = 20


@click.group()
def users() -> None:
    """Add, import, export, list and erase people, and make passwords for them."""


@users.command("list")
@click.option("--search", default="", help="Part of a name.")
@click.option("--role", default="", help="Only these: pupil, teacher, safeguarding, administrator.")
@click.option("--class", "class_name", default="", help="Only those of this class.")
@command
async def list_users(out: Output, search: str, role: str, class_name: str) -> int:
    """List people by name."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        found = appliance.people.list(search=search, role=role, class_name=class_name)
    finally:
        await appliance.close()
    if found:
        rows = [(one.name, one.full_name or "-", one.role, ", ".join(one.classes) or "-", _state(one)) for one in found]
        out.table(("name", "full name", "role", "classes", "state"), rows)
    else:
        out.say("Nobody is found.")
    out.result({"users": found})
    return 0


def _state(one: Person) -> str:
    states = {"disabled": one.disabled, "no password yet": one.waiting, "first sign-in to come": one.temporary}
    return next((name for name, on in states.items() if on), "-")


@users.command()
@click.argument("name")
@click.option("--role", default="pupil", show_default=True, help="pupil, teacher, safeguarding or administrator.")
@click.option("--full-name", default="", help="As it stands on lists.")
@command
async def add(out: Output, name: str, role: str, full_name: str) -> int:
    """Add a person called NAME; prints the password made for them, which they change at the first sign-in."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        person, password = appliance.people.add(name, role, full_name=full_name)
        appliance.audit.note("add person", person.id, {"role": role})
    finally:
        await appliance.close()
    out.say(f"{person.name} signs in with {password} and then chooses an own password. It is not shown again.")
    out.result({"id": person.id, "name": person.name, "role": person.role, "password": password})
    return 0


@users.command("setup-code")
@command
async def setup_code(out: Output) -> int:
    """Print a fresh one-time code that makes the first administrator; nothing where there is one already."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        code = appliance.accounts.ensure_setup_code()
    finally:
        await appliance.close()
    if code:
        out.say(f"One-time code to make the first administrator: {code}")
    else:
        out.note("There is an administrator already.")
    out.result({"code": code})
    return 0


@users.command("reset-password")
@click.argument("name")
@click.option("--second-step", is_flag=True, help="Also take the second step off: the phone is lost.")
@command
async def reset_password(out: Output, name: str, second_step: bool) -> int:
    """Make a new password for NAME and print it once. Their sessions and keys end."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        person = _named(appliance, name)
        password = appliance.people.reset_password(person.id)
        appliance.audit.note("password of person", person.id, {})
        if second_step:
            appliance.accounts.second_step.turn_off(person.id)
            appliance.audit.note("second-step of person", person.id, {})
    finally:
        await appliance.close()
    out.say(f"{person.name} signs in with {password} and then chooses an own password. It is not shown again.")
    out.result({"id": person.id, "name": person.name, "password": password})
    return 0


@users.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--class", "class_name", default="", help="Only those of this class.")
@command
async def sheet(out: Output, file: Path, class_name: str) -> int:
    """Make passwords for all who have none yet, and write them to FILE (CSV), for this user's eyes alone."""
    from appliance.app import Appliance
    from appliance.enrolment import password_rows
    from appliance.errors import BadInput
    from appliance.files import write_atomically

    appliance = Appliance.open(out.settings)
    try:
        wanted = [one.id for one in appliance.people.list(class_name=class_name) if one.waiting and not one.disabled]
        if not wanted:
            raise BadInput("Everybody here has a password already.", "`appliance users reset-password NAME` makes a new one.")
        write_atomically(file, "")  # before any password is changed: a folder that cannot be written is found out now
        made = appliance.people.sheet(wanted, lambda done, all_of: out.progress(f"{done} of {all_of} passwords"))
        write_atomically(file, password_rows(made))
        appliance.audit.note("make passwords", "people", {"people": len(made)})
    finally:
        await appliance.close()
    out.say(f"{len(made)} passwords are in {file}. Print it, then delete it: they are nowhere else.")
    out.result({"made": len(made), "file": file})
    return 0


# --- files -----------------------------------------------------------------------------------------------------------
@users.command("import")
@click.argument("source", metavar="FILE.csv", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@command
async def import_users(out: Output, source: Path, dry_run: bool) -> int:
    """Add and change people and classes from a CSV file, or OneRoster CSV (a zip file or a folder). Nobody is removed.

    Columns, in any order: name, full_name, role, classes (separated by semicolons), language, external. Newcomers have no
    password until `appliance users sheet` makes one.
    """
    from appliance.app import Appliance
    from appliance.audit import unix_name
    from appliance.enrolment import apply, compare

    roll = _read(source)
    appliance = Appliance.open(out.settings)
    try:
        plan = compare(appliance.database, roll)
        _show(out, plan, dry_run)
        if not (dry_run or plan.faults):
            apply(appliance.database, roll, plan.digest, actor=unix_name())
    finally:
        await appliance.close()
    out.result({**_facts(plan), "dry_run": dry_run, "done": not (dry_run or plan.faults)})
    return 1 if plan.faults else 0


def _read(source: Path) -> Roll:
    from appliance.enrolment import read, read_oneroster
    from appliance.enrolment.cells import LARGEST
    from appliance.errors import TooLarge, from_os_error

    if source.is_dir():
        return read_oneroster(source)
    try:
        with source.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise from_os_error(error, "reading the people's file") from None
    if len(data) > LARGEST:
        raise TooLarge(f"{source.name} is larger than {LARGEST // 1_000_000} MB.", "Cut it in parts.")
    return read(data, source.name)


def _show(out: Output, plan: Plan, dry_run: bool) -> None:
    for note in plan.notes:
        out.note(note)
    if plan.faults:
        for fault in plan.faults[:SHOWN]:
            column = f", {fault.column}" if fault.column else ""
            click.echo(f"  line {fault.line}{column}: {fault.message}", err=True)
        more = f", the first {SHOWN} of them above" if len(plan.faults) > SHOWN else ""
        click.echo(f"Error: {len(plan.faults)} lines cannot be taken{more}. Nothing was changed.", err=True)
        click.echo("Try: correct these lines, then run the same command again.", err=True)
        return
    for new in plan.added[:SHOWN] if dry_run else ():
        out.say(f"  new: {new.name}, {new.role}{', ' + ', '.join(new.classes) if new.classes else ''}")
    for one in plan.changed[:SHOWN] if dry_run else ():
        told = [f"{column} {before or '-'} -> {after or '-'}" for column, (before, after) in one.columns.items()]
        told += [f"joins {name}" for name in one.joins] + [f"leaves {name}" for name in one.leaves]
        out.say(f"  {one.name}: {'; '.join(told)}")
    verb = "would be" if dry_run else "are"
    out.say(
        f"{plan.count} changes: {len(plan.added)} people {verb} added, {len(plan.changed)} changed, {plan.unchanged} stay as "
        f"they are; {len(plan.new_classes)} classes {verb} made."
    )
    if plan.added and not dry_run:
        out.say("`appliance users sheet FILE.csv` makes passwords for those who have none.")


def _facts(plan: Plan) -> dict[str, Any]:
    return {
        "changes": plan.count, "added": len(plan.added), "changed": len(plan.changed), "unchanged": plan.unchanged,
        "classes": plan.new_classes, "faults": plan.faults, "notes": plan.notes,
    }  # fmt: skip


@users.command("export")
@click.argument("file", metavar="FILE.csv", type=click.Path(path_type=Path, dir_okay=False))
@command
async def export_users(out: Output, file: Path) -> int:
    """Write everybody and their classes, without passwords; importing it again changes nothing."""
    from appliance.app import Appliance
    from appliance.enrolment import export
    from appliance.files import write_atomically

    appliance = Appliance.open(out.settings)
    try:
        text, count = export(appliance.people), len(appliance.people.list())
        write_atomically(file, text)
        appliance.audit.note("export people", "people", {"people": count})
    finally:
        await appliance.close()
    out.say(f"{count} people are in {file}.")
    out.result({"people": count, "file": file})
    return 0


# --- erasing ---------------------------------------------------------------------------------------------------------
@users.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
async def erase(out: Output, name: str, yes: bool) -> int:
    """Erase NAME: account, chats, keys, memberships, feedback, and the examples that they gave. There is no way back.

    Flagged messages stay with the safeguarding lead, and documents that they added stay in the library. Earlier names are not
    written down anywhere: the box knows those under which they gave examples here, or that a kept state has.
    """
    from appliance.app import Appliance
    from appliance.cli.erasing import erase_person

    appliance = Appliance.open(out.settings)
    try:
        person = _named(appliance, name)
        if not yes:
            click.confirm(f"Erase {person.name} ({person.full_name or person.role}) for good?", abort=True, err=True)
        done = erase_person(out, appliance, person)
    finally:
        await appliance.close()
    out.result(done)
    return 75 if done["waiting"] else 0


def _named(appliance: Appliance, name: str) -> Person:
    """Raises NotFound, also for the box's own command line."""
    return appliance.people.get(appliance.accounts.named(name).id)
