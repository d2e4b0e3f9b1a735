"""`appliance modules`: prompt modules, and the optimised programs that serve in their place."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command
from appliance.errors import NotFound, from_os_error
from appliance.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.app import Appliance
    from appliance.programs import Program


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
def modules() -> None:
    """How the model is told to answer: each module's words, and optimised programs in their place."""


@modules.command("list")
@command
async def list_modules(out: Output) -> int:
    """List the modules and their programs."""
    from appliance import prompts

    names = prompts.names()
    with _open(out) as box:
        found = [_told(one) for one in box.chat.programs.list()]
    out.say(f"Modules: {', '.join(names)}.")
    if found:
        head = ("program", "module", "subject", "grade", "state", "maker")
        out.table(head, [[one["id"], one["module"], *(one[part] or "-" for part in head[2:])] for one in found])
    else:
        out.say("Each is served as its file says: no optimised program was added.")
    out.result({"modules": names, "programs": found})
    return 0


@modules.command()
@click.argument("name", metavar="MODULE|PROGRAM")
@click.option("--subject", default="", help="As it serves in this subject.")
@click.option("--grade", default="", help="As it serves in this grade.")
@command
async def show(out: Output, name: str, subject: str, grade: str) -> int:
    """Show the words of a MODULE as it serves now, or of a PROGRAM by its id."""
    from appliance import prompts

    with _open(out) as box:
        if name in prompts.names():
            program: Any = box.chat.programs.module(name, subject, grade).as_program()
            about: dict[str, Any] = {"module": name}
        else:
            program, about = box.chat.programs.export(name), _told(box.chat.programs.get(name))
    out.say(program["instructions"])
    for number, one in enumerate(program["demonstrations"], 1):
        out.say(f"\nDemonstration {number}: {json.dumps(one, ensure_ascii=False)}")
    out.result(about | {"program": program})
    return 0


@modules.command("import")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--subject", default="", help="It is for this subject only.")
@click.option("--grade", default="", help="It is for this grade only.")
@command
async def import_program(out: Output, path: Path, subject: str, grade: str) -> int:
    """Add a program's JSON as a candidate. It serves nobody before it is promoted."""
    try:
        text = path.read_bytes()[:1_000_000].decode("utf-8", "replace")
    except OSError as error:
        raise from_os_error(error, f"reading {path.name}") from error
    with _open(out) as box:
        me = box.accounts.local_administrator()
        made = _told(box.chat.programs.add(me, text, subject=subject, grade=grade, maker="import"))
    out.say(f"{made['id']} is a candidate for {made['module']}. `appliance modules promote {made['id']}` lets it serve.")
    out.result(made)
    return 0


@modules.command()
@click.argument("name", metavar="MODULE|PROGRAM")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@command
async def export(out: Output, name: str, path: Path) -> int:
    """Write a program's JSON, or a module's as its file says, to PATH."""
    from appliance import prompts

    with _open(out) as box:
        default = name in prompts.names()
        program = prompts.load(name).as_program() if default else dict(box.chat.programs.export(name))
    write_atomically(path, json.dumps(program, ensure_ascii=False, indent=1) + "\n", private=False)
    out.say(f"{path} holds it: edit it, then `appliance modules import {path}`.")
    out.result({"path": path, "module": program["module"]})
    return 0


@modules.command()
@click.argument("id", metavar="PROGRAM")
@click.option(
    "--accept", default="", metavar="REASON", help="Although its gate refused it or never judged it; kept in the record."
)
@command
async def promote(out: Output, id: str, accept: str) -> int:
    """Let a PROGRAM serve, from the next question on."""
    with _open(out) as box:
        done = _told(box.chat.programs.promote(box.accounts.local_administrator(), id, accept=accept))
    out.say(f"{done['id']} serves {done['module']} now. `appliance modules rollback {done['module']}` undoes it.")
    out.result(done)
    return 0


@modules.command()
@click.argument("name", metavar="MODULE")
@click.option("--subject", default="")
@click.option("--grade", default="")
@command
async def rollback(out: Output, name: str, subject: str, grade: str) -> int:
    """Let what served before serve again: the program before, or the module's file."""
    from appliance import prompts

    if name not in prompts.names():
        raise NotFound(f"There is no module called {name[:60]!r}.", f"Choose one of: {', '.join(prompts.names())}.")
    with _open(out) as box:
        now = box.chat.programs.roll_back(box.accounts.local_administrator(), name, subject, grade)
    out.say(f"{now.id} serves {name} again." if now else f"{name} is served as its file says.")
    out.result({"module": name, "serves": now.id if now else None})
    return 0


def _told(one: Program) -> dict[str, Any]:
    return {
        "id": one.id, "module": one.module, "subject": one.subject, "grade": one.grade, "state": one.state, "maker": one.maker,
        "created": one.created, "promoted": one.promoted, "report": dict(one.report),
    }  # fmt: skip
