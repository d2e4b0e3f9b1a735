"""`appliance classes`: the school's classes, who belongs to them, how each is answered, and the year's end.

The box's own command line may change every class; what it did stands in the record by its Unix name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from appliance.classes import HELP_LEVELS, SchoolClass
from appliance.cli.output import Output, command
from appliance.errors import BadInput, NotFound

if TYPE_CHECKING:
    from appliance.app import Appliance

ON_OR_OFF = click.Choice(["on", "off"])
_FIELDS = ("subject", "grade", "year", "lesson", "method", "help_level")


@contextmanager
def _open(out: Output) -> Iterator[Appliance]:
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        yield appliance
    finally:
        appliance.library.close()
        appliance.database.close()


@click.group()
def classes() -> None:
    """The school's classes: who belongs to them, whether they are open, and how each is answered."""


@classes.command("list")
@click.option("--archived", is_flag=True, help="Those in the archive as well.")
@command
async def list_classes(out: Output, archived: bool) -> int:
    """List the classes."""
    with _open(out) as box:
        listed = [_told(box, one) for one in box.classes.list(archived=archived)]
    if listed:
        head = ("class", "state", "pupils", "teachers", "lesson", "help", "answered from")
        out.table(head, [_row(one) for one in listed])
    else:
        out.say("There are no classes yet. Make one with `appliance classes add NAME`.")
    out.result({"classes": listed})
    return 0


@classes.command()
@click.argument("name", metavar="CLASS")
@click.option("--teacher", "teachers", multiple=True, metavar="NAME", help="Who teaches it. May be given again.")
@click.option("--subject", default="")
@click.option("--grade", default="")
@click.option("--year", default="", help="School year, as 2027.")
@click.option("--lesson", default="", help="What the lesson is about.")
@click.option("--method", default="", help="How it is taught: a file of content/methods.")
@click.option("--help-level", type=click.Choice(HELP_LEVELS), default=HELP_LEVELS[0], show_default=True)
@command
async def add(out: Output, name: str, teachers: tuple[str, ...], **fields: Any) -> int:
    """Make a class called CLASS."""
    from appliance import teaching

    if fields["method"] and fields["method"] not in teaching.methods():
        raise BadInput(f"There is no method {fields['method'][:40]!r}.", f"Take one of: {', '.join(teaching.methods())}.")
    with _open(out) as box:
        people = [_staff(box, one) for one in teachers]
        made = box.classes.add(name, **fields)
        box.audit.note("create class", made.id, {"teachers": people})
        for id in people:
            box.people.join(id, made.id, teaches=True)
        told = _told(box, made)
    out.say(f"{made.name} is made. Put people into it with `appliance classes assign {made.name!r} NAME`.")
    out.result(told)
    return 0


@classes.command()
@click.argument("name", metavar="CLASS")
@click.argument("people", nargs=-1, required=True, metavar="NAME...")
@click.option("--teacher", is_flag=True, help="They teach it.")
@click.option("--remove", is_flag=True, help="Take them out of it.")
@command
async def assign(out: Output, name: str, people: tuple[str, ...], teacher: bool, remove: bool) -> int:
    """Put people into CLASS, as pupils or with --teacher as those who teach it."""
    with _open(out) as box:
        found = _named(box, name)
        ids = [_staff(box, one) if teacher and not remove else box.accounts.named(one).id for one in people]
        for id in ids:
            if remove:
                box.people.leave(id, found.id)
            else:
                box.people.join(id, found.id, teaches=teacher)
        verb = "remove from class" if remove else "assign to class"
        box.audit.note(verb, found.id, {"people": ids, "part": "teacher" if teacher else "pupil"})
        told = _told(box, found)
    out.say(f"{found.name} has {told['pupils']} pupils and is taught by {', '.join(told['teachers']) or 'nobody'}.")
    out.result(told)
    return 0


@classes.command("open")
@click.argument("name", metavar="CLASS")
@click.option("--minutes", type=click.IntRange(1, 24 * 60), help="It closes by itself after so many.")
@command
async def open_class(out: Output, name: str, minutes: int | None) -> int:
    """Open the assistant for the pupils of CLASS."""
    with _open(out) as box:
        found = box.classes.open(_named(box, name).id, time.time() + 60 * minutes if minutes else None)
        box.audit.note("open class", found.id, {"minutes": minutes})
        told = _told(box, found)
    out.say(f"The assistant is open for {found.name}" + (f" for {minutes} minutes." if minutes else "."))
    out.result(told)
    return 0


@classes.command()
@click.argument("name", metavar="CLASS")
@command
async def close(out: Output, name: str) -> int:
    """Close the assistant for the pupils of CLASS."""
    with _open(out) as box:
        found = box.classes.close(_named(box, name).id)
        box.accounts.class_codes.out(found.id)
        box.audit.note("close class", found.id)
        told = _told(box, found)
    out.say(f"The assistant is closed for {found.name}.")
    out.result(told)
    return 0


@classes.command()
@click.argument("name", metavar="CLASS")
@click.argument("setting", type=ON_OR_OFF)
@command
async def exam(out: Output, name: str, setting: str) -> int:
    """Lock the assistant for an exam (on): nobody of CLASS is answered anywhere until it is off."""
    with _open(out) as box:
        found = box.classes.exam(_named(box, name).id, setting == "on")
        box.audit.note("class exam", found.id, {"on": found.exam})
        told = _told(box, found)
    out.say(f"Nobody of {found.name} is answered until the exam is over." if found.exam else f"{found.name} has no exam now.")
    out.result(told)
    return 0


@classes.command()
@click.argument("name", metavar="CLASS")
@click.argument("setting", type=ON_OR_OFF)
@command
async def strict(out: Output, name: str, setting: str) -> int:
    """Answer CLASS from documents only (on), or say so and let the model answer what they do not cover (off)."""
    with _open(out) as box:
        rule = box.classes.set_strict(name, setting == "on")
        box.audit.note("class strict", rule.name, {"on": rule.strict})
    said = f"{rule.name} is to be answered from documents only." if rule.strict else f"{rule.name} is no longer strict."
    out.say(said)
    out.result({"name": rule.name, "strict": rule.strict})
    return 0


@classes.command()
@click.argument("name", metavar="CLASS")
@click.option("--undo", is_flag=True, help="Take it out of the archive again.")
@command
async def archive(out: Output, name: str, undo: bool) -> int:
    """Put CLASS into the archive: it lets nobody read, and holds nobody; nothing of it is lost."""
    with _open(out) as box:
        found = box.classes.archive(_named(box, name, archived=undo).id, not undo)
        box.audit.note("restore class" if undo else "archive class", found.id)
        told = _told(box, found)
    out.say(f"{found.name} is {'back' if undo else 'in the archive'}.")
    out.result(told)
    return 0


@classes.command()
@click.option("--year", required=True, help="The new school year, as 2027.")
@click.option("--move-up", is_flag=True, help='Pupils stay together: "7B" becomes "8B". Else new classes start empty.')
@click.option("--highest", type=int, default=13, show_default=True, help="With --move-up: classes of this number leave.")
@click.option("--dry-run", is_flag=True, help="Only say what would become of each class.")
@command
async def rollover(out: Output, year: str, move_up: bool, highest: int, dry_run: bool) -> int:
    """Make room for the next school year: archive this year's classes, or move them up."""
    from appliance import year_end

    with _open(out) as box:
        work = year_end.plan if dry_run else year_end.carry_out
        steps = work(box.database, year, move_up=move_up, highest=highest)
        if not dry_run:
            facts = {"move_up": move_up, "classes": [[step.id, step.act] for step in steps]}
            box.audit.note("class rollover", year, facts)
    if steps:
        out.table(("class", "what", "becomes", "pupils", "teachers"), [_step(step) for step in steps])
        out.say("Nothing was changed: run it without --dry-run." if dry_run else f"{len(steps)} classes are ready for {year}.")
    else:
        out.say(f"Every class is of {year} already.")
    out.result({"year": year, "dry_run": dry_run, "classes": steps})
    return 0


def _step(step: Any) -> tuple[object, ...]:
    what = {"renew": "archived, new one begun", "archive": "archived", "move up": "moves up", "keep": "stays"}[step.act]
    return step.name, what, step.becomes, step.pupils, step.teachers


def _named(box: Appliance, name: str, *, archived: bool = False) -> SchoolClass:
    """Raises NotFound."""
    from appliance.classes import same_name

    found = [one for one in box.classes.list(archived=archived) if same_name(one.name, name)]
    if not found:
        raise NotFound(f"There is no class {name[:80]!r}.", "`appliance classes list` shows them all.")
    return found[0]


def _staff(box: Appliance, name: str) -> str:
    """The id of somebody who may teach."""
    user = box.accounts.named(name)
    if not user.staff:
        raise BadInput(f"{user.name} is a pupil, and cannot teach a class.", "Name somebody of the staff.")
    return user.id


def _told(box: Appliance, one: SchoolClass) -> dict[str, Any]:
    """A class as it is printed; open: what a pupil finds now."""
    members = box.classes.members(one.id)
    return {
        "id": one.id, "name": one.name, "open": one.is_open() and not one.exam, "until": one.until, "exam": one.exam,
        "strict": one.strict, **{field: getattr(one, field) for field in _FIELDS},
        "collections": list(box.classes.collections(one.id).values()),
        "teachers": [who.name for who in members if who.part == "teacher"],
        "pupils": sum(who.part == "pupil" for who in members), "archived": one.archived,
    }  # fmt: skip


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    state = "archived" if one["archived"] else "exam" if one["exam"] else "open" if one["open"] else "closed"
    teachers, source = ", ".join(one["teachers"]) or "-", "documents only" if one["strict"] else "anything"
    return one["name"], state, one["pupils"], teachers, one["lesson"] or "-", one["help_level"], source
