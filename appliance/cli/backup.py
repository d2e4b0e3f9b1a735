"""`appliance backup`: make backups, prove them, list them, restore one - and go back to what was there before."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from appliance.backup import Backups, Restored, kept_until, last_known, switch, undo, waiting
from appliance.cli.output import Output, command, seconds, size
from appliance.erasures import Erasures
from appliance.errors import ApplianceError, BadInput, from_os_error
from appliance.settings import Settings

FOLDER = click.Path(path_type=Path, file_okay=False)
DAY = 86400.0
WORDS_ON_THE_KEY = (
    "Write this recovery key down and keep it away from the box: without it nobody can read the backups, and after a fire it",
    "is all that opens them. `appliance backup key` prints it again.",
)


def _from(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the backups are and what opens them."""
    command = click.option("--key-file", default=None, help="File with another box's recovery key; - asks for it.")(command)
    return click.option("--from", "source", type=FOLDER, default=None, help="Folder that the backups are in.")(command)


@click.group()
def backup() -> None:
    """Make backups, prove them, list them, restore one. They are encrypted, and made while the box is used."""


@backup.command()
@click.option(
    "--to", "target", type=FOLDER, default=None, help="Folder on another disk or a share; else the setting backup_to."
)
@click.option("--same-disk", is_flag=True, help="Agree to a folder on the box's own disk.")
@click.option(
    "--prove-after", type=click.FloatRange(min=0), default=None, metavar="DAYS", help="Prove it if none was for so long."
)
@click.option("--clock-is-right", is_flag=True, help="Backups of a later date than today were made while the clock was wrong.")
@command
async def create(out: Output, target: Path | None, same_disk: bool, prove_after: float | None, clock_is_right: bool) -> int:
    """Make a backup, and let go of those that are too old (the setting backup_keep)."""
    backups = Backups(out.settings, target, same_disk=same_disk)
    began = time.monotonic()
    try:
        made = await asyncio.to_thread(partial(backups.create, _telling(out), clock_is_right=clock_is_right))
    finally:
        if backups.made_key:
            _say_key(out, backups.key())
    taken, held = time.monotonic() - began, int(last_known(out.settings)["last"]["bytes"])
    out.say(f"Backup {made.id}: {size(held)} in {seconds(taken)}, in {backups.folder}.")
    await asyncio.to_thread(_audit, out.settings, "create", made.id, {"bytes": held})
    proof = None
    proven = float((last_known(out.settings).get("proven") or {}).get("at", 0))
    if prove_after is not None and time.time() - proven >= prove_after * DAY:
        proof = await asyncio.to_thread(backups.verify, made.id, _telling(out))
        out.say(f"Proven in {seconds(proof.seconds)}: {proof.files} files and {proof.rows} rows are as they were written.")
    out.result({"id": made.id, "at": made.at, "bytes": held, "seconds": taken, "folder": backups.folder, "proof": proof})
    return 0


@backup.command("list")
@_from
@command
async def list_backups(out: Output, source: Path | None, key_file: str | None) -> int:
    """List the backups, oldest first."""
    backups = Backups(out.settings, source, key=_key(key_file))
    found = await asyncio.to_thread(backups.list)
    proven = last_known(out.settings).get("proven") or {}
    rows = [
        (one.id, _when(one.at), size(one.bytes), one.version, "proven" if one.id == proven.get("id") else "") for one in found
    ]
    if rows:
        out.table(("id", "made", "size", "by release", ""), rows)
    else:
        out.say(f"There are no backups in {backups.folder}.")
    out.result({"folder": backups.folder, "backups": found})
    return 0


@backup.command()
@click.argument("id")
@_from
@command
async def verify(out: Output, id: str, source: Path | None, key_file: str | None) -> int:
    """Prove a backup (its ID, or latest): restore it into a place of its own and compare every file and every row."""
    backups = Backups(out.settings, source, key=_key(key_file))
    proof = await asyncio.to_thread(backups.verify, id, _telling(out))
    out.say(
        f"The backup {proof.id} is whole: {proof.files} files ({size(proof.bytes)}), {proof.rows} rows, "
        f"{proof.audit_rows} of the audit record, in {seconds(proof.seconds)}."
    )
    out.result(proof)
    return 0


@backup.command()
@click.argument("id")
@_from
@click.option("--to", "target", type=FOLDER, default=None, help="Home folder to restore into, else this box's own.")
@click.option("--with-removed-documents", is_flag=True, help="Documents that were removed since it was made come back too.")
@click.option("--prepare-only", is_flag=True, help="Prove it and have it wait; `appliance backup switch` lets it take over.")
@command
async def restore(
    out: Output, id: str, source: Path | None, key_file: str | None, target: Path | None, with_removed_documents: bool,
    prepare_only: bool,
) -> int:  # fmt: skip
    """Restore a backup (its ID, or latest). It is proven first; what is there now is kept until the other one answers.

    Whoever was erased since it was made is erased from it again, and so are examples that were taken back.
    """
    settings, key = out.settings, _key(key_file)
    if target is not None:
        source = source or settings.backup_to or settings.backups
        key = key or Backups(settings, source).key()
        settings = settings.model_copy(update={"home": target.expanduser().absolute()})
        Erasures(settings).take_over(Erasures(out.settings).path)
    backups = Backups(settings, source, key=key)
    spare = ("document",) if with_removed_documents else ()
    ready = await asyncio.to_thread(partial(backups.prepare, id, _telling(out), spare=spare))
    out.say(f"The backup {ready.id} of {_when(ready.at)} is whole: {size(ready.bytes)}.")
    if prepare_only:
        out.say("It waits. Stop the box, then: appliance backup switch")
        out.result({"id": ready.id, "home": settings.home, "switched": False})
        return 0
    before = await _change_over(settings)
    _say_restored(out, settings, ready, before)
    out.result({"id": ready.id, "home": settings.home, "switched": True, "before": before})
    return 0


async def _change_over(settings: Settings) -> Path | None:
    before = await asyncio.to_thread(switch, settings)
    try:
        await _answers(settings)
    except Exception as error:
        if before is not None:
            await asyncio.to_thread(undo, settings)
        if isinstance(error, ApplianceError):
            error.hint = f"What was there before is back. {error.hint}"
        raise
    return before


async def _answers(settings: Settings) -> None:
    """Open the restored state as every command does, and read what people would look for."""
    from appliance.app import Appliance
    from appliance.knowledge.shelves import EVERYTHING

    appliance = Appliance.open(settings)
    try:
        await asyncio.to_thread(appliance.audit.verify)
        await appliance.library.documents(EVERYTHING)
        appliance.champion()
        await appliance.pool.serving()
    finally:
        await appliance.close()


def _say_restored(out: Output, settings: Settings, ready: Restored, before: Path | None) -> None:
    out.say(f"The backup {ready.id} is restored into {settings.home}.")
    out.say("Everybody signs in anew.")
    if ready.erased:
        told = ", ".join(f"{what}: {count}" for what, count in ready.erased.items())
        out.say(f"Erased since it was made, and so erased from it again: {told}.")
        if "documents" in ready.erased:
            out.say("To have the documents back, restore it --with-removed-documents.")
    if before is not None:
        until = time.strftime("%d %B %Y", time.localtime(kept_until(before)))
        out.say(f"The state before is in {before}: `appliance backup undo` has it back. It goes on {until}, or by `rm -r`.")
    if ready.settings:
        kept = settings.backups / f"settings-of-{ready.id}"
        out.say(f"The settings of that box are in {kept}; copy what you want to {', '.join(ready.settings.values())}.")


@backup.command("switch")
@command
async def switch_over(out: Output) -> int:
    """Let the backup that waits take over; the box has to be stopped. On a school's box `restore` does all of it."""
    ready = waiting(out.settings)
    before = await asyncio.to_thread(switch, out.settings)
    if ready is not None:
        _say_restored(out, out.settings, ready, before)
    out.result({"before": before})
    return 0


@backup.command("undo")
@command
async def undo_restore(out: Output) -> int:
    """Have the state before the last restore back; the box has to be stopped. What was done since the restore is lost."""
    await asyncio.to_thread(undo, out.settings)
    out.say("The state before the restore is back.")
    out.result({"undone": True})
    return 0


@backup.command()
@click.option("--set", "given", default=None, metavar="FILE", help="Take the key from this file instead; - asks for it.")
@command
async def key(out: Output, given: str | None) -> int:
    """Print the recovery key, which opens the backups; or put it back from paper."""
    backups = Backups(out.settings)
    if given is not None:
        backups.keep_key(_key(given) or "")
        out.say("The key is kept.")
        out.result({"kept": True})
        return 0
    found = backups.key()
    out.say(found)
    out.result({"key": found})
    await asyncio.to_thread(_audit, out.settings, "show", "backup key", {})
    return 0


def _say_key(out: Output, key: str) -> None:
    """Where a person looks; never where a service's words go to a log."""
    if sys.stderr.isatty() or sys.stdout.isatty():
        out.note(key)
        for line in WORDS_ON_THE_KEY:
            out.note(line)
    else:
        out.note(
            "A key for the backups was made. Print it with `appliance backup key`, write it down, keep it away from the box."
        )


def _key(file: str | None) -> str | None:
    if file is None:
        return None
    if file == "-":
        return str(click.prompt("Recovery key", hide_input=True, err=True)) if sys.stdin.isatty() else sys.stdin.read(4096)
    try:
        return Path(file).read_text("ascii")
    except UnicodeDecodeError:
        raise BadInput(f"{file} holds no recovery key.", "Give the file with the key, or - to type it.") from None
    except OSError as error:
        raise from_os_error(error, "reading the recovery key") from None


def _audit(settings: Settings, verb: str, thing: str, facts: dict[str, Any]) -> None:
    from appliance.audit import Audit
    from appliance.db import Database

    database = Database(settings.database)
    try:
        database.migrate()
        Audit(database).note(verb, thing if thing == "backup key" else f"backup {thing}", facts)
    finally:
        database.close()


def _telling(out: Output) -> Callable[[dict[str, Any]], None]:
    def tell(told: dict[str, Any]) -> None:
        text = str(told["stage"]).capitalize()
        if told.get("total"):
            text += f": {100 * told['done'] // told['total']} %"
        out.progress(text)

    return tell


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
