"""`appliance standards`: the school's curriculum standards, and what is tagged with them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.output import Output, command
from appliance.errors import BadInput, NotFound, from_os_error
from appliance.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.accounts import User
    from appliance.app import Appliance
    from appliance.standards import Standards

KIND = click.Choice(["class", "example", "scenario"])


@contextmanager
def _open(out: Output) -> Iterator[tuple[Appliance, Standards, User]]:
    from appliance.app import Appliance
    from appliance.standards import Standards

    box = Appliance.open(out.settings)
    try:
        yield box, Standards(box.database, box.accounts, box.audit), box.accounts.local_administrator()
    finally:
        box.library.close()
        box.database.close()


@click.group()
def standards() -> None:
    """The school's curriculum standards: a CSV list, and which classes, examples and scenes are about them."""


@standards.command("import")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--replace", is_flag=True, help="Remove what is not in the file, with its tags.")
@command
async def import_standards(out: Output, path: Path, dry_run: bool, replace: bool) -> int:
    """Take in a CSV with the columns code, subject, grade and text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"reading {path.name}") from error
    with _open(out) as (_, kept, me):
        done = kept.take(me, data, path.name, dry_run=dry_run, replace=replace)
    for note in done.notes:
        out.note(note)
    for fault in done.faults[:50]:
        out.note(f"{path.name}, line {fault.line}: {fault.message}")
    out.result({
        "dry_run": dry_run, "done": not dry_run and not done.faults, "found": len(done.found), "new": done.new,
        "changed": done.changed, "gone": done.gone, "faults": [asdict(fault) for fault in done.faults], "notes": done.notes,
    })  # fmt: skip
    if done.faults:
        raise BadInput(f"{path.name} has {len(done.faults)} faults; nothing was changed.", "Correct them and import it again.")
    gone = f", {len(done.gone)} {'removed' if replace else 'kept that are not in it'}" if done.gone else ""
    out.say(f"{'It would be' if dry_run else 'Done:'} {len(done.new)} new, {len(done.changed)} changed{gone}.")
    return 0


@standards.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@command
async def export(out: Output, path: Path) -> int:
    """Write the list as a CSV that `import` reads back."""
    with _open(out) as (_, kept, me):
        text = kept.export(me)
    write_atomically(path, text, private=False)
    out.say(f"{path} holds the list.")
    out.result({"path": path})
    return 0


@standards.command("list")
@click.option("--subject", default="")
@click.option("--grade", default="")
@command
async def list_standards(out: Output, subject: str, grade: str) -> int:
    """List the standards, and how many classes, examples, scenes and rehearsals there are for each."""
    with _open(out) as (_, kept, me):
        wanted = {one.code for one in kept.list(me, subject=subject, grade=grade)}
        found = [one for one in kept.counts(me) if one.standard.code in wanted]
    if found:
        head = ("code", "subject", "grade", "classes", "examples", "scenes", "rehearsals", "text")
        table = [
            (one.standard.code, one.standard.subject, one.standard.grade, one.classes, one.examples, one.scenarios,
             one.rehearsals, one.standard.text[:60])
            for one in found
        ]  # fmt: skip
        out.table(head, table)
    else:
        out.say("There are no standards. Take a list in with `appliance standards import FILE.csv`.")
    figures = ("classes", "examples", "scenarios", "rehearsals")
    listed = [asdict(one.standard) | {name: getattr(one, name) for name in figures} for one in found]
    out.result({"standards": listed})
    return 0


@standards.command()
@click.argument("code")
@click.argument("kind", type=KIND)
@click.argument("thing", metavar="CLASS|ID")
@command
async def tag(out: Output, code: str, kind: str, thing: str) -> int:
    """Say that a class (by its name), an example or a scenario (by its id) is about the standard CODE."""
    with _open(out) as (box, kept, me):
        id = _id(box, kind, thing)
        kept.tag(me, code, kind, id)
        codes = kept.tags(me, kind, id)
    out.say(f"{thing} is about {', '.join(codes)}.")
    out.result({"kind": kind, "id": id, "standards": codes})
    return 0


@standards.command()
@click.argument("code")
@click.argument("kind", type=KIND)
@click.argument("thing", metavar="CLASS|ID")
@command
async def untag(out: Output, code: str, kind: str, thing: str) -> int:
    """Take a tag back."""
    with _open(out) as (box, kept, me):
        id = _id(box, kind, thing)
        kept.untag(me, code, kind, id)
        codes = kept.tags(me, kind, id)
    out.say(f"{thing} is about {', '.join(codes) or 'no standard'}.")
    out.result({"kind": kind, "id": id, "standards": codes})
    return 0


def _id(box: Appliance, kind: str, thing: str) -> str:
    if kind != "class":
        return thing
    found = box.classes.named(thing)
    if found is None:
        raise NotFound(f"There is no class {thing[:80]!r}.", "`appliance classes list` shows them all.")
    return found.id
