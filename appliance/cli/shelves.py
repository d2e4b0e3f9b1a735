"""`appliance docs collections` and its neighbours: who may read what, and where documents stand.

Part of `appliance docs`, which takes these commands in. A reader is written as everyone, role:teacher, class:7B or user:NAME.
A class lets its pupils and teachers in: whoever names one that is not there yet is told.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command
from appliance.errors import BadInput
from appliance.knowledge.shelves import EVERYTHING, KINDS, Collection, Reader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from appliance.app import Appliance

WRITTEN = "everyone, role:NAME, class:NAME or user:NAME"


@asynccontextmanager
async def _open(out: Output) -> AsyncIterator[Appliance]:
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        yield appliance
    finally:
        await appliance.close()


@click.command()
@command
async def collections(out: Output) -> int:
    """List the collections, and who may read them."""
    async with _open(out) as box:
        found = _told(box, box.library.shelves.list(EVERYTHING))
    if not found:
        out.say("There are no collections yet. Make one with `appliance docs create NAME`, or add documents.")
    else:
        head = ("collection", "documents", "subject", "grade", "owner", "readers")
        rows = [[one[name] for name in head[1:-1]] for one in found]
        listed = zip(found, rows, strict=True)
        out.table(head, [(one["name"], *(cell or "-" for cell in row), _shown(one["readers"])) for one, row in listed])
    out.result({"collections": found})
    return 0


@click.command()
@click.argument("name")
@click.option("--owner", help="The person it belongs to; else it is the school's.")
@click.option("--subject", default="", help="Subject of what is put into it.")
@click.option("--grade", default="", help="Grade of what is put into it.")
@click.option("--reader", "readers", multiple=True, help=f"Who may read it: {WRITTEN}. May be given again.")
@command
async def create(out: Output, name: str, owner: str | None, subject: str, grade: str, readers: tuple[str, ...]) -> int:
    """Make a collection called NAME. Without a reader, only its owner sees it."""
    async with _open(out) as box:
        who = box.accounts.named(owner).id if owner else ""
        allowed = [_reader(box, text) for text in readers]
        made = box.library.shelves.create(name, owner=who, subject=subject, grade=grade, readers=allowed)
        box.audit.note("create collection", made.id, {"owner": who, "readers": [[one.kind, one.name] for one in made.readers]})
        (told,) = _told(box, [made])
        missing = _missing_classes(box, told)
    out.say(f"{made.name} is made. Readers: {_shown(told['readers'])}.")
    if missing:
        out.note(f"There is no class {', '.join(missing)} yet; whoever joins it later may read this.")
    out.result(told)
    return 0


@click.command()
@click.argument("name")
@click.option("--add", multiple=True, help=f"Let in: {WRITTEN}. May be given again.")
@click.option("--remove", multiple=True, help="Let in no longer: written in the same way.")
@command
async def readers(out: Output, name: str, add: tuple[str, ...], remove: tuple[str, ...]) -> int:
    """Show or change who may read the collection NAME. Its owner always may."""
    async with _open(out) as box:
        shelves = box.library.shelves
        collection = shelves.one(name, EVERYTHING)
        coming, going = ([_reader(box, text) for text in texts] for texts in (add, remove))
        for reader in going:
            shelves.close_to(collection.name, reader, EVERYTHING)
            box.audit.note("close collection", collection.id, {"kind": reader.kind, "name": reader.name})
        for reader in coming:
            shelves.open_to(collection.name, reader, EVERYTHING)
            box.audit.note("open collection", collection.id, {"kind": reader.kind, "name": reader.name})
        (told,) = _told(box, [shelves.one(collection.name, EVERYTHING)])
        missing = _missing_classes(box, told)
    out.say(f"{told['name']} is read by: {_shown(told['readers'])}." + (f" Owner: {told['owner']}." if told["owner"] else ""))
    if missing:
        out.note(f"There is no class {', '.join(missing)} yet; whoever joins it later may read this.")
    out.result(told)
    return 0


@click.command()
@click.argument("name")
@click.argument("new")
@command
async def rename(out: Output, name: str, new: str) -> int:
    """Call the collection NAME by a new name. Links to its documents stay as they are."""
    async with _open(out) as box:
        collection = box.library.shelves.one(name, EVERYTHING)
        box.library.shelves.rename(collection.name, new, EVERYTHING)
        (told,) = [one for one in _told(box, box.library.shelves.list(EVERYTHING)) if one["id"] == collection.id]
    out.say(f"{name} is now called {told['name']}.")
    out.result(told)
    return 0


@click.command()
@click.argument("name")
@click.option("--subject", help="Subject of what stands in it; an empty one takes it away.")
@click.option("--grade", help="Grade of what stands in it; an empty one takes it away.")
@command
async def describe(out: Output, name: str, subject: str | None, grade: str | None) -> int:
    """Say which subject and grade the collection NAME is for; its documents that have no other take them over."""
    async with _open(out) as box:
        await box.library.describe(name, EVERYTHING, subject=subject, grade=grade)
        (told,) = _told(box, [box.library.shelves.one(name, EVERYTHING)])
    out.say(f"{told['name']}: subject {told['subject'] or '-'}, grade {told['grade'] or '-'}.")
    out.result(told)
    return 0


@click.command()
@click.argument("name")
@command
async def discard(out: Output, name: str) -> int:
    """Take the empty collection NAME away."""
    async with _open(out) as box:
        collection = box.library.shelves.one(name, EVERYTHING)
        box.library.shelves.discard(name, EVERYTHING)
        box.audit.note("discard collection", collection.id)
    out.say(f"{name} is gone.")
    out.result({"discarded": name})
    return 0


@click.command()
@click.argument("document")
@click.argument("collection")
@command
async def move(out: Output, document: str, collection: str) -> int:
    """Put a document (its id) into another COLLECTION. Links to it go on working."""
    async with _open(out) as box:
        await box.library.move(document, collection, EVERYTHING)
        box.audit.note("move document", document, {"to": box.library.shelves.one(collection, EVERYTHING).id})
    out.say(f"It stands in {collection} now.")
    out.result({"document": document, "collection": collection})
    return 0


@click.command()
@command
async def reindex(out: Output) -> int:
    """Embed every passage again that another search model embedded. Needed once after an update that brought a new one."""
    async with _open(out) as box, box.running_engine(out.note):
        left = await box.library.reindex(lambda done, total: out.progress(f"{done} of {total} passages"))
    if left:
        out.note(f"{left} passages are left: the engine went away. Run `appliance docs reindex` again; it goes on from there.")
    else:
        out.say("Every passage can be found by its meaning.")
    out.result({"left": left})
    return 1 if left else 0


def _missing_classes(box: Appliance, told: dict[str, Any]) -> list[str]:
    named = [one["name"] for one in told["readers"] if one["kind"] == "class"]
    return [name for name in named if box.classes.named(name) is None]


def _reader(box: Appliance, text: str) -> Reader:
    """A reader as it is written on the command line; a person by their name."""
    kind, _, name = text.partition(":")
    kind, name = kind.strip(), name.strip()
    if kind not in KINDS or (kind == "everyone") != (not name):
        raise BadInput(f"{text[:80]!r} is no reader.", f"Write {WRITTEN}.")
    return Reader(kind, box.accounts.named(name).id if kind == "user" else name)


def _told(box: Appliance, found: Sequence[Collection]) -> list[dict[str, Any]]:
    """Collections as they are printed: people by their names."""
    ids = {one.owner for one in found} | {reader.name for one in found for reader in one.readers if reader.kind == "user"}
    names = box.accounts.names(ids)
    return [
        {
            "id": one.id,
            "name": one.name,
            "documents": one.documents,
            "subject": one.subject,
            "grade": one.grade,
            "owner": names.get(one.owner, one.owner),
            "readers": [
                {"kind": reader.kind, "name": names.get(reader.name, reader.name) if reader.kind == "user" else reader.name}
                for reader in one.readers
            ],
        }
        for one in found
    ]


def _shown(readers: Sequence[dict[str, str]]) -> str:
    return ", ".join(f"{one['kind']}:{one['name']}" if one["name"] else one["kind"] for one in readers) or "nobody else"


COMMANDS = (collections, create, readers, rename, describe, discard, move, reindex)
