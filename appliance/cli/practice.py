"""`appliance practice`: the scenes that teachers rehearse, as files in and out, and their approval.

The box's own command line sees drafts as an administrator does; what it did stands in the record by its Unix name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command
from appliance.errors import TooLarge, from_os_error
from appliance.practice.scenario import CATEGORIES, PHASES

if TYPE_CHECKING:
    from appliance.accounts import User
    from appliance.practice.scenes import Scene, Scenes

_FIELDS = ("id", "version", "title", "category", "phase", "subject", "grade", "minutes", "approved_by")


@contextmanager
def _open(out: Output) -> Iterator[tuple[Scenes, User]]:
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        yield appliance.scenes, appliance.accounts.local_administrator()
    finally:
        appliance.library.close()
        appliance.database.close()


@click.group()
def practice() -> None:
    """What teachers rehearse before they stand in front of a class."""


@practice.group()
def scenarios() -> None:
    """The scenes: those that come with the appliance, and the school's own."""


@scenarios.command("list")
@click.option("--category", type=click.Choice(CATEGORIES))
@click.option("--phase", type=click.Choice(PHASES))
@click.option("--subject", default="", help="Of this subject, or of none.")
@click.option("--grade", default="", help="Of this grade, or of none.")
@click.option("--archived", is_flag=True, help="Those in the archive instead.")
@command
async def list_scenarios(out: Output, category: str | None, phase: str | None, **chosen: Any) -> int:
    """List the scenes; drafts are marked."""
    with _open(out) as (scenes, user):
        listed = [_told(one) for one in scenes.list(user, category=category or "", phase=phase or "", **chosen)]
    if listed:
        head = ("id", "version", "state", "category", "phase", "subject", "grade", "title")
        out.table(head, [[one[name] or "-" for name in head] for one in listed])
    else:
        out.say("There is no such scene. `appliance practice scenarios list` shows them all.")
    out.result({"scenarios": listed})
    return 0


@scenarios.command()
@click.argument("id")
@click.option("--version", type=int, help="An earlier version.")
@command
async def show(out: Output, id: str, version: int | None) -> int:
    """Show the scene ID: what happens, who is there, and the rubric."""
    with _open(out) as (scenes, user):
        found = scenes.find(user, id, version)
    one = found.scenario
    out.say(f"{one.title} ({found.state}, version {one.version})")
    out.say(" / ".join(part for part in (one.category, one.phase, one.subject, one.grade and f"grade {one.grade}") if part))
    out.say(f"\n{one.setting}\n{one.opening}\n")
    for pupil in one.pupils:
        out.say(f"- {pupil.name} ({pupil.who}): {pupil.about}")
    out.say("\nRubric: " + "; ".join(line.name for line in one.rubric))
    out.result({"scenario": one, "state": found.state, "generated": found.generated})
    return 0


@scenarios.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@command
async def import_scenario(out: Output, file: Path) -> int:
    """Take in FILE, a scene in TOML, as a draft."""
    data = _bytes(file)
    with _open(out) as (scenes, user):
        made = scenes.find(user, scenes.take_in(user, data, str(file)).id)
    id = made.scenario.id
    out.say(f"{made.scenario.title} is a draft. Let staff rehearse it with `appliance practice scenarios approve {id}`.")
    out.result(_told(made))
    return 0


@scenarios.command()
@click.argument("id")
@click.option("--version", type=int, help="An earlier version.")
@click.option("--output", "path", type=click.Path(path_type=Path), help="File to write; stdout where none is given.")
@command
async def export(out: Output, id: str, version: int | None, path: Path | None) -> int:
    """Write the scene ID as a TOML file that `import` reads back."""
    from appliance.files import write_atomically

    with _open(out) as (scenes, user):
        text = scenes.export(user, id, version)
    if path is None:
        out.say(text.rstrip("\n"))
    else:
        write_atomically(path, text, private=False)
        out.say(f"{path} is written.")
    out.result({"id": id, "file": path, "text": text})
    return 0


@scenarios.command()
@click.argument("id")
@click.option("--version", type=int, help="The version that was read; refused where there is a newer one.")
@command
async def approve(out: Output, id: str, version: int | None) -> int:
    """Let all staff rehearse the scene ID."""
    with _open(out) as (scenes, user):
        found = scenes.find(user, id, scenes.approve(user, id, version).version)
    out.say(f"All staff may rehearse {found.scenario.title!r} now.")
    out.result(_told(found))
    return 0


def _bytes(file: Path) -> bytes:
    """No more of a file than a scene can have. Raises ApplianceError."""
    from appliance.practice.scene_file import LARGEST

    try:
        with open(file, "rb") as handle:
            data = handle.read(LARGEST + 1)
    except OSError as error:
        raise from_os_error(error, f"reading {file.name}") from None
    if len(data) > LARGEST:
        raise TooLarge(f"{file} has more than {LARGEST} bytes, and is no scene.", "Take another file.")
    return data


def _told(one: Scene) -> dict[str, Any]:
    """A scene as it is printed, without its words."""
    told = {name: getattr(one.scenario, name) for name in _FIELDS}
    return told | {"state": one.state, "generated": one.generated}
