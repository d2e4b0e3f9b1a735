"""Make a backup, prove it, list them, restore one: each step so that a kill leaves what was there as it was.

Hides where things lie meanwhile, the key, and what is remembered of the last one for the health page. It stops and starts
nothing: whoever restores has the services stopped before the change.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from appliance.backup import contents, copies, places
from appliance.backup.contents import SETTINGS, STATE, Contents
from appliance.backup.known import last_known, remember
from appliance.backup.repository import AHEAD, Damaged, Repository, Snapshot, Tell
from appliance.backup.retention import kept
from appliance.backup.switching import READY, RESTORED, working
from appliance.db import Database
from appliance.erasures import NAME, Erasures
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, StorageFull, from_os_error
from appliance.files import make_folder, sync_tree, write_atomically
from appliance.settings import Settings

FOLDER = "appliance-backups"  # in the folder that was chosen, so that a disk may hold other things as well
ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # read from paper: no 0 and O, no 1 and I
GROUPS, LETTERS = 8, 5  # of the key: 200 bits
ROOM = 50 * 2**20  # bytes that stay free beside what is restored


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found when a backup was restored to prove it. `seconds`: that it took."""

    id: str
    files: int
    bytes: int
    rows: int
    audit_rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Restored:
    """A state that was proven and waits to take over. settings: {file beside it: where it was}.

    erased: how much of what was erased since it was made, by kind, was erased from it; spared: kinds that were not.
    """

    id: str
    at: float
    version: str
    bytes: int
    settings: dict[str, str]
    erased: dict[str, int] = field(default_factory=dict)
    spared: Sequence[str] = ()


def waiting(settings: Settings) -> Restored | None:
    """The state that waits to take over, where one does."""
    try:
        return Restored(**json.loads((settings.backups / RESTORED / READY).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Backups:
    """The backups of one home. Blocking; one process works on them at a time.

    folder: where they are, else as the settings say. same_disk: agreed that it is the box's own disk.
    key: what opens them, else the one that this home has.
    """

    def __init__(
        self, settings: Settings, folder: Path | None = None, *, same_disk: bool = False, key: str | None = None
    ) -> None:
        self._settings = settings
        self._chosen = (folder or settings.backup_to or settings.backups).expanduser().absolute()
        self._agreed = same_disk or settings.backup_same_disk or self._chosen == settings.backups
        self._given = None if key is None else tidy(key)
        self.folder = self._chosen / FOLDER
        self.made_key = False  # whether `create` made one, which somebody has to write down now

    # --- the key --------------------------------------------------------------------------------------------------------
    def key(self) -> str:
        """The recovery key. Raises NotFound where there is none yet."""
        if self._given is not None:
            return self._given
        try:
            return tidy(self._settings.backup_key.read_text("ascii"))
        except FileNotFoundError:
            raise NotFound(
                "This box has no key for backups.",
                "The first `appliance backup create` makes one; for backups of another box give its recovery key: --key-file -",
            ) from None
        except (OSError, UnicodeDecodeError):
            raise ApplianceError(
                f"The key {self._settings.backup_key} cannot be read.",
                "Type it from paper: `appliance backup key --set -`.",
            ) from None

    def keep_key(self, key: str) -> None:
        """Make this the box's key; one that was there stays beside it."""
        path, key = self._settings.backup_key, tidy(key)
        with contextlib.suppress(OSError):
            before = path.read_text("ascii")
            if before.strip() == key:
                return
            write_atomically(path.with_name("backup.key.old"), before)
        write_atomically(path, key + "\n")

    def _open(self, *, new: bool = False) -> Repository:
        """new: begin one, with a new key, where there is neither."""
        if new and not Repository(self.folder, "").there and self._given is None and not self._settings.backup_key.exists():
            letters = [secrets.choice(ALPHABET) for _ in range(GROUPS * LETTERS)]
            self.keep_key("-".join("".join(letters[n : n + LETTERS]) for n in range(0, len(letters), LETTERS)))
            self.made_key = True
        repository = Repository(self.folder, self.key())
        if new and not repository.there:
            make_folder(self.folder)
            repository.make()
        return repository

    def _require_folder(self) -> None:
        """Raises where the disk or share is not there, hangs, or is the box's own."""
        if self._chosen == self._settings.backups:
            return
        places.require_answer(self._chosen, self.folder)
        last = last_known(self._settings).get("last") or {}
        mount = str(last.get("mount", "")) if last.get("where") == str(self.folder) else ""
        places.require_other_disk(self._chosen, self._settings.home, agreed=self._agreed, mount=mount)

    # --- making ---------------------------------------------------------------------------------------------------------
    def create(self, tell: Tell, *, clock_is_right: bool = False) -> Snapshot:
        """Make one, and let go of those that are too old. Raises ApplianceError; then earlier ones are as they were.

        clock_is_right: backups of a later date than now were made while the clock was wrong.
        """
        with working(self._settings):
            try:
                return self._create(tell, clock_is_right)
            except ApplianceError as error:
                self._remember_failure(error)
                raise
            finally:
                shutil.rmtree(self._settings.backups / "tree", ignore_errors=True)

    def _create(self, tell: Tell, clock_is_right: bool) -> Snapshot:
        try:
            self._require_folder()
            repository = self._open(new=True)
            places.require_writable(self.folder)
            device = self.folder.stat().st_dev
            earlier = repository.list()
            ahead = self._require_clock(earlier, clock_is_right)
            self._keep_erased(repository)
            tree = self._empty("tree")
        except OSError as error:
            raise from_os_error(error, "beginning a backup") from None
        held = contents.gather(self._settings, tree, _teller(tell))
        newest = max((_dated(one, ahead) for one in earlier), default=0.0)
        made = repository.save(tree, held.version, held.schema, held.bytes, tell, after=newest)
        self._require_still_there(device)
        last = {
            "id": made.id, "at": made.at, "where": str(self.folder), "mount": str(places.mounted_at(self.folder)),
            "own_disk": device == self._settings.home.stat().st_dev, "bytes": held.bytes,
        }  # fmt: skip
        remember(self._settings, last=last, ahead=ahead, kept=[made.at, *(_dated(one, ahead) for one in earlier)])
        tell({"stage": "letting go of old ones"})
        left = self._let_go(repository, [*earlier, made], ahead)
        remember(self._settings, failed=None, kept=left)
        return made

    def _let_go(self, repository: Repository, there: Sequence[Snapshot], ahead: dict[str, float]) -> list[float]:
        """When those were made that stay. Raises Damaged where some cannot be read: the new one is made all the same."""
        if repository.unreadable:
            raise Damaged(
                f"{repository.unreadable} of the backups in {self.folder} cannot be read; the new one can.",
                f"Take another disk; or keep these (mv {self.folder} {self.folder}.damaged), and make a new one.",
            )
        keep = {str(name): count for name, count in self._settings.backup_keep.items()}
        stay = kept([_dated(one, ahead) for one in there], keep)
        repository.forget([one.id for one in there if _dated(one, ahead) not in stay])
        copies.let_go_of_old_states(self._settings)
        return sorted(stay)

    def _keep_erased(self, repository: Repository) -> None:
        """The list of what was erased, brought up to date here and beside the backups, and no kept state with any of it."""
        copies.take_over_list(self._settings, repository.folder)
        Erasures(self._settings).copy_to(repository.folder / NAME)
        copies.sweep(self._settings)

    def publish_erased(self) -> None:
        """Bring the list of what was erased beside the backups up to date, where their disk is there at this moment."""
        with contextlib.suppress(ApplianceError, OSError):
            if self._chosen != self._settings.backups:
                places.require_answer(self._chosen, self.folder, 5)
            if self.folder.is_dir():
                Erasures(self._settings).copy_to(self.folder / NAME)

    def _require_clock(self, there: Sequence[Snapshot], clock_is_right: bool) -> dict[str, float]:
        """A clock that went back would have new backups count as the oldest, which are let go of first.

        Of those whose date has not come yet, though the clock is right: when that was noticed, for want of their own time.
        """
        now = time.time()
        noticed: dict[str, float] = last_known(self._settings).get("ahead") or {}
        noticed = {one.id: noticed[one.id] for one in there if one.id in noticed}
        if clock_is_right:
            noticed |= {one.id: now for one in there if one.at > now + AHEAD and one.id not in noticed}
        newest = max((_dated(one, noticed) for one in there), default=0.0)
        if now < newest - AHEAD:
            told, was = (time.strftime("%d %B %Y", time.localtime(at)) for at in (now, newest))
            raise Conflict(
                f"This machine believes it is {told}, and its last backup is of {was}.",
                "Set the clock: timedatectl. Where it is right now and was wrong then: "
                "`appliance backup create --clock-is-right`.",
            )
        return noticed

    def _require_still_there(self, device: int) -> None:
        """A disk that was pulled out meanwhile leaves its folder, which is on the box's own disk, to be written to."""
        if self.folder.is_dir() and self.folder.stat().st_dev == device and Repository(self.folder, "").there:
            return
        if self.folder.is_dir() and not Repository(self.folder, "").there:
            shutil.rmtree(self.folder, ignore_errors=True)
        raise NotFound(
            f"The disk or share at {self._chosen} went away while the backup was written.",
            "Plug it in, or mount it, then try again.",
        )

    # --- reading --------------------------------------------------------------------------------------------------------
    def list(self) -> list[Snapshot]:
        """The oldest first. Raises NotFound where there are none."""
        self._require_place()
        return self._open().list()

    def verify(self, id: str, tell: Tell) -> Proof:
        """Restore one into a place of its own and compare all of it with what was written down. Raises Damaged."""
        with working(self._settings):
            self._require_place()
            began, repository = time.monotonic(), self._open()
            chosen = repository.find(id)
            try:
                held, audit_rows = self._proven(repository, chosen, "proof", tell)
            finally:
                shutil.rmtree(self._settings.backups / "proof", ignore_errors=True)
            tell({"stage": "checking what else is kept"})
            repository.check()
            remember(self._settings, proven={"id": chosen.id, "at": time.time()})
            rows = sum(held.rows.values())
            return Proof(chosen.id, len(held.files), held.bytes, rows, audit_rows, time.monotonic() - began)

    def prepare(self, id: str, tell: Tell, *, spare: Collection[str] = ()) -> Restored:
        """Prove one and have it wait to take over (`switching.switch`); what is there is not touched.

        What was erased since it was made is erased from it; `spare`: kinds (`erasures.Kind`) that may come back.
        """
        with working(self._settings):
            self._require_place()
            repository = self._open()
            chosen = repository.find(id)
            shutil.rmtree(self._settings.backups / RESTORED, ignore_errors=True)
            held, _audit_rows = self._proven(repository, chosen, RESTORED, tell)
            copies.take_over_list(self._settings, self.folder)
            return self._made_ready(chosen, held, tell, tuple(spare))

    def _made_ready(self, chosen: Snapshot, held: Contents, tell: Tell, spare: Sequence[str]) -> Restored:
        tell({"stage": "making it ready"})
        waiting = self._settings.backups / RESTORED
        try:
            state = waiting / STATE
            database = Database(state / self._settings.database.name)
            database.migrate()
            database.fold_log()
            database.close()
            again = copies.erase_in(self._settings, state, but=spare)
            os.rename(state, waiting / "state")
            if held.named:
                kept = self._settings.backups / f"settings-of-{chosen.id}"
                shutil.rmtree(kept, ignore_errors=True)
                os.rename(waiting / SETTINGS, kept)
            sync_tree(waiting)
            self.keep_key(self.key())
            erased = {what: count for what, count in asdict(again).items() if count}
            found = Restored(chosen.id, held.created, held.version, held.bytes, held.named, erased, spare)
            write_atomically(waiting / READY, json.dumps(asdict(found)))
        except OSError as error:
            raise from_os_error(error, "making a restored state ready") from None
        return found

    def _proven(self, repository: Repository, chosen: Snapshot, name: str, tell: Tell) -> tuple[Contents, int]:
        """The backup restored below settings.backups, and what its audit record counts."""
        try:
            contents.require_known(chosen, self._settings)
            tree = self._empty(name)
            self._require_room(chosen.bytes)
            tell({"stage": "restoring"})
            repository.restore(chosen.id, tree)
            held = contents.understood(tree, chosen)
            audit_rows = contents.compare(tree, held, chosen.id, _teller(tell))
        except Damaged as error:
            error.hint = self._older(repository, chosen)
            raise
        except OSError as error:
            raise from_os_error(error, "restoring a backup") from None
        return held, audit_rows

    def _older(self, repository: Repository, chosen: Snapshot) -> str:
        with contextlib.suppress(ApplianceError, ValueError):
            older = repository.before(chosen.id)
            if older is not None:
                day = time.strftime("%d %B %Y, %H:%M", time.localtime(older.at))
                return f"Take the one before it, of {day}: `appliance backup restore {older.id}`."
            return "It is the oldest; take one from another disk, and make a new one: `appliance backup create`."
        return "Look at that disk; take a backup from another one."

    def _require_place(self) -> None:
        if self._chosen != self._settings.backups:
            places.require_answer(self._chosen, self.folder)
        if self._chosen == self._settings.backups and not self.folder.is_dir():
            raise NotFound(
                "No backup was made here yet.", "Make one: `appliance backup create`; or say where they are: --from FOLDER."
            )
        if not self.folder.is_dir():
            raise NotFound(
                f"There are no backups in {self._chosen}.",
                "Plug in the disk, mount the share, or say where: --from FOLDER.",
            )

    def _require_room(self, size: int) -> None:
        free = shutil.disk_usage(self._settings.backups).free
        if free < size + ROOM:
            raise StorageFull(
                f"The backup holds {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {self._settings.home}.",
                "Free some space there: what was there before stays until the backup has taken over.",
            )

    # --- besides --------------------------------------------------------------------------------------------------------
    def _empty(self, name: str) -> Path:
        folder = self._settings.backups / name
        if folder.exists():
            shutil.rmtree(folder)  # left by a process that was killed
        make_folder(folder)
        return folder

    def _remember_failure(self, error: ApplianceError) -> None:
        remember(self._settings, failed={"at": time.time(), "message": error.message, "hint": error.hint})


def _dated(one: Snapshot, ahead: dict[str, float]) -> float:
    """When one was made, as far as that is known."""
    return min(one.at, ahead.get(one.id, one.at))


def tidy(key: str) -> str:
    """A key as it is kept, from how somebody typed it. Raises BadInput."""
    letters = "".join(key.split()).replace("-", "").upper()
    if len(letters) != GROUPS * LETTERS or set(letters) - set(ALPHABET):
        raise BadInput(
            f"This is no recovery key: it has {GROUPS} groups of {LETTERS} letters and digits.",
            "Print the right one on the box that made the backups: `appliance backup key`.",
        )
    return "-".join(letters[n : n + LETTERS] for n in range(0, len(letters), LETTERS))


def _teller(tell: Tell) -> contents.Progress:
    def progress(stage: str, done: int, total: int) -> None:
        tell({"stage": stage} | ({"done": done // 1_000_000, "total": total // 1_000_000} if total >= 1_000_000 else {}))

    return progress
