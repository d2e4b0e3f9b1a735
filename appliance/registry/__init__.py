"""The models this box has: a folder each, a manifest with the sha256 of every file, and which one serves.

Hides the layout below `HOME/models`, the atomic replacement of `active.json`, the names that tasks and subjects give to models,
verification, and the step back to the previous model where the one that serves was damaged: a file that is not in its manifest,
or differs from it by one byte, is never handed to a parser. It neither loads models nor judges them.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, BadInput, Conflict, ModelUnavailable, NotFound, from_os_error
from appliance.files import sha256_of, sync, write_atomically
from appliance.registry.manifest import FileFact, Kind, Manifest

__all__ = ["ALIASES", "FileFact", "Kind", "Manifest", "Registry", "check_id"]

# fallback: the local model that answers where the champion, on another machine, may not or cannot.
ALIASES = ("champion", "previous", "fallback")
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# A task, or a task for one subject: "teacher_responder", "teacher_responder/mathematics".
_TASK = re.compile(r"[a-z][a-z0-9_]{0,39}(/[^\W_][\w .-]{0,39})?")


class Registry:
    """All models below one folder. Safe to use from several processes at once; every change is one rename."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[tuple[str, str, int, int]] = set()

    # --- reading -----------------------------------------------------------------------------------------------------
    def list(self) -> list[Manifest]:
        """Every model, oldest first. A folder without a readable manifest is an unfinished copy and is not listed."""
        found = []
        for path in sorted(self.root.glob("[!.]*/manifest.json")):
            try:
                found.append(self.get(path.parent.name))
            except ApplianceError:
                continue
        return sorted(found, key=lambda manifest: (manifest.created, manifest.id))

    def ids(self) -> Sequence[str]:
        """The id of every model's folder, and of all that something is to be served by, whether it can be read or not."""
        found = {path.name for path in self.root.glob("[!.]*") if path.is_dir() and _ID.fullmatch(path.name)}
        return sorted(found | set(self._names().values()))

    def id_of(self, name: str) -> str:
        """What an alias, a task or an id stands for; an unknown name stands for itself. No manifest is read."""
        if name in (*ALIASES, "default"):
            return self.aliases().get("champion" if name == "default" else name, name)
        return self._names().get(name, name)

    def _names(self) -> dict[str, str]:
        """Alias and task to id; an id is found whatever happened to the list of what serves."""
        try:
            return self.aliases() | self.tasks()
        except ModelUnavailable:
            return self.tasks()

    def get(self, name: str) -> Manifest:
        """The manifest for an id or an alias (`champion`, `previous`, `default`). Raises NotFound or BadInput."""
        wanted = self.id_of(name)
        path = self.root / wanted / "manifest.json"
        if not _ID.fullmatch(wanted) or not path.is_file():
            raise NotFound(f"There is no model called {name!r}, or it lost its manifest.", "See `appliance models list`.")
        try:
            raw = json.loads(path.read_text("utf-8"))
            raw["files"] = {name: FileFact(**fact) for name, fact in raw["files"].items()}
            raw["parents"] = tuple(raw["parents"])
            manifest = Manifest(**raw, aliases=self._served_as(wanted))
            if manifest.id != wanted:
                raise ValueError(f"it is that of {manifest.id!r}")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(
                f"The manifest of the model {wanted!r} is damaged: {error}.",
                "Serve another model (`appliance models rollback` or `promote ID`), remove this one, import or tune it again.",
            ) from None
        return manifest

    def _served_as(self, id: str) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, target in self._names().items() if target == id))

    def folder(self, name: str) -> Path:
        return self.root / self.get(name).id

    def aliases(self) -> dict[str, str]:
        """Alias to id. Empty where nothing was promoted yet."""
        raw = self._active()
        return {alias: str(raw[alias]) for alias in ALIASES if raw.get(alias)}

    def champion(self) -> Manifest | None:
        """The model that serves, or None where none was promoted. Raises BadInput or NotFound where its manifest is lost."""
        return self.get("champion") if "champion" in self.aliases() else None

    def damaged(self) -> str | None:
        """The alarm: the id of the model that was found damaged and no longer serves; None once somebody chose what does."""
        raw = self._active()
        return str(raw["damaged"]) if raw.get("damaged") else None

    def _active(self) -> dict[str, Any]:
        try:
            raw = json.loads((self.root / "active.json").read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            raw = None
        if not isinstance(raw, dict):
            raise ModelUnavailable(
                f"{self.root / 'active.json'} is damaged, so it is not known which model serves.",
                "Promote a model again: `appliance models promote ID`.",
            )
        return raw

    def tasks(self) -> dict[str, str]:
        """Task, or task/subject, to the id of the model that was chosen for it."""
        try:
            raw = json.loads((self.root / "tasks.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}  # the champion answers where a choice is lost
        return {str(task): str(id) for task, id in raw.items()} if isinstance(raw, dict) else {}

    def for_task(self, task: str, subject: str = "") -> Sequence[str]:
        """The ids of what answers: the model chosen for a task and subject, else for the task; then what stands in for it.

        That is the champion, then the model before it, then the last local one. Empty where nothing was promoted.
        """
        chosen, aliases = self.tasks(), self.aliases()
        first = chosen.get(f"{task}/{subject.casefold()}") or chosen.get(task)
        ids = (first, *(aliases.get(alias) for alias in ALIASES))
        return [*dict.fromkeys(id for id in ids if id)]

    def verify(self, name: str) -> Manifest:
        """Compare every file with its recorded sha256. Raises ModelUnavailable naming the first that differs.

        A file that was compared before and has not been touched since (size and time) is not read again by this process.
        """
        manifest = self.get(name)
        folder = self.root / manifest.id
        for file, fact in manifest.files.items():
            path = folder / file
            try:
                state = path.stat()
                seen = (str(path), fact.sha256, state.st_size, state.st_mtime_ns)
                if seen in self._verified:
                    continue
                if state.st_size == fact.bytes and sha256_of(path) == fact.sha256:
                    self._verified.add(seen)
                    continue
            except OSError:
                pass
            raise ModelUnavailable(
                f"The file {file} of the model {manifest.id!r} is not what was registered: it is damaged or was changed.",
                "Serve another model with `appliance models rollback`, and tune or import this one again.",
            )
        return manifest

    # --- changing ----------------------------------------------------------------------------------------------------
    def add(
        self,
        folder: Path,
        *,
        id: str,
        kind: Kind,
        title: str,
        licence: str,
        context: int,
        base: str | None = None,
        parents: Sequence[str] = (),
        dataset: str | None = None,
        recipe: str | None = None,
        report: dict[str, Any] | None = None,
        starter: bool = False,
    ) -> Manifest:
        """Take over a finished folder: hash its files, write the manifest last, move it into place in one rename.

        The same id with the same files again is a no-op, or mends what is damaged. Raises Conflict where the id stands for
        something else.
        """
        check_id(id)
        try:
            files = {name: FileFact(sha256_of(folder / name), (folder / name).stat().st_size) for name in _files(folder)}
            manifest = Manifest(
                id=id, kind=kind, title=title, licence=licence, context=context, files=files, base=base,
                parents=tuple(parents), dataset=dataset, recipe=recipe, report=report, starter=starter, created=time.time(),
            )  # fmt: skip
            with self._lock():
                return self._move_in(folder, manifest)
        except OSError as error:
            raise from_os_error(error, f"adding the model {id}") from error

    def add_hosted(self, manifest: Manifest) -> Manifest:
        """Take in a model of another machine (kind "hosted"): a manifest without a file; `created` is now where it is 0.

        What it was made from stands in `hosted["base"]`, being no model of this box. The same plugin and model again brings its
        other facts up to date; its report stays where none is given. Raises BadInput, Conflict where the id is another's.
        """
        check_id(manifest.id)
        if manifest.kind != "hosted" or not all(_there_called(manifest)) or manifest.files or manifest.base or manifest.parents:
            raise BadInput(f"{manifest.id!r} is no model of another machine.", "Name its plugin and its model there, no files.")
        path = self.root / manifest.id / "manifest.json"
        try:
            with self._lock():
                known = self.get(manifest.id) if path.is_file() else None
                if known is not None and _there_called(known) != _there_called(manifest):
                    raise _taken(manifest.id)
                report, created = (known.report, known.created) if known else (None, manifest.created)
                manifest = replace(manifest, report=manifest.report or report, created=created or time.time())
                path.parent.mkdir(mode=0o700, exist_ok=True)
                write_atomically(path, _record(manifest))
        except OSError as error:
            raise from_os_error(error, f"adding the model {manifest.id}") from error
        return self.get(manifest.id)

    def _there(self, manifest: Manifest) -> Manifest | None:
        """The same model where it is here and whole. Raises Conflict where its id stands for something else."""
        target = self.root / manifest.id
        try:
            known = self.get(manifest.id) if (target / "manifest.json").is_file() else None
        except BadInput:
            if self._served_as(manifest.id):
                raise  # nobody knows what it was, and whatever takes its place would serve unjudged
            return None
        if known is None:
            return None  # nothing is there, or it lost its manifest
        if known.files != manifest.files:
            raise _taken(manifest.id)
        try:
            return self.verify(manifest.id)
        except ModelUnavailable:
            return None  # damaged since; the same files are at hand

    def _move_in(self, folder: Path, manifest: Manifest) -> Manifest:
        target = self.root / manifest.id
        known = self._there(manifest)
        if known is not None:
            shutil.rmtree(folder)
            return known
        for name in manifest.files:
            sync(folder / name)
        write_atomically(folder / "manifest.json", _record(manifest))
        try:
            self._put(folder, target)
        except OSError:  # another file system: copy beside the target, then the same rename
            aside = self.root / f".{manifest.id}.incoming"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(folder, aside)
            for name in (*manifest.files, "manifest.json"):
                sync(aside / name)
            self._put(aside, target)
            shutil.rmtree(folder)
        return manifest

    def _put(self, folder: Path, target: Path) -> None:
        """Into its place in one rename, in place of what is damaged there."""
        doomed = self._take_out(target.name) if target.exists() else None
        try:
            os.rename(folder, target)
        except OSError:
            if doomed is not None:
                os.rename(doomed, target)
            raise
        sync(self.root)
        if doomed is not None:
            shutil.rmtree(doomed)

    def _take_out(self, id: str) -> Path:
        doomed = self.root / f".{id}.removed"
        shutil.rmtree(doomed, ignore_errors=True)  # left by a kill in the middle of an earlier removal
        os.rename(self.root / id, doomed)
        return doomed

    def _verify_all(self, name: str) -> Manifest:
        """A model and the base that it needs, both compared with what was registered."""
        manifest = self.verify(name)
        if manifest.base is not None:
            self.verify(manifest.base)
        return manifest

    def promote(self, name: str) -> Manifest:
        """Make a model the champion, the old champion `previous`; atomic. Raises where its files do not verify."""
        self._verify_all(name)  # the long reading, while nobody waits for the lock
        with self._lock():
            manifest = self._verify_all(name)  # quick, and nobody can remove it between this look and the writing
            try:
                aliases = self.aliases()
            except ModelUnavailable:
                aliases = {}
            before = aliases.get("previous" if aliases.get("champion") == manifest.id else "champion")
            # An alarm about a damaged model ends here: somebody has chosen what serves.
            active = {"champion": manifest.id, "previous": before if before and self._known(before) else None}
            active["fallback"] = self._fallback(manifest, [aliases.get(alias) for alias in ALIASES])
            write_atomically(self.root / "active.json", json.dumps(active))
        return self.get(manifest.id)

    def _known(self, id: str) -> Manifest | None:
        try:
            return self.get(id)
        except ApplianceError:
            return None

    def _fallback(self, champion: Manifest, ids: Sequence[str | None]) -> str | None:
        """The local model that stands in for a hosted champion: the one that it names, else the first of `ids` that is one."""
        if champion.kind != "hosted":
            return None
        found = (self._known(id) for id in ((champion.hosted or {}).get("fallback"), *ids) if id)
        return next((one.id for one in found if one is not None and one.kind != "hosted"), None)

    def step_back(self) -> Manifest | None:
        """Where the champion's files are damaged and the previous model's are not, have that one serve and remember the alarm.

        The new champion, or None where nothing was changed: the champion is whole, or nothing whole is there to go back to.
        """
        with self._lock():
            aliases = self.aliases()
            champion, previous = aliases.get("champion"), aliases.get("previous")
            if champion is None or previous is None or self._whole(champion) or not self._whole(previous):
                return None
            kept = self._fallback(self.get(previous), [aliases.get("fallback")])
            active = {"champion": previous, "previous": None, "fallback": kept, "damaged": champion}
            write_atomically(self.root / "active.json", json.dumps(active))
        return self.get(previous)

    def give_up(self, id: str) -> Sequence[str]:
        """Where a model that tasks were given to is damaged, have the champion answer for them and remember the alarm.

        The tasks that it had; none where nothing was changed: the model is whole, or has no task.
        """
        with self._lock():
            tasks, active = self.tasks(), self._active()
            lost = sorted(task for task, chosen in tasks.items() if chosen == id)
            if not lost or active.get("champion") in (None, id) or self._whole(id):
                return []
            if not active.get("damaged"):  # the first alarm stays: it is about what serves everybody
                active |= {"damaged": id, "lost": lost}
                write_atomically(self.root / "active.json", json.dumps(active, ensure_ascii=False))
            kept = {task: chosen for task, chosen in tasks.items() if chosen != id}
            write_atomically(self.root / "tasks.json", json.dumps(kept, ensure_ascii=False, indent=1))
        return lost

    def _whole(self, name: str) -> bool:
        try:
            self._verify_all(name)
        except ApplianceError:
            return False
        return True

    def choose(self, task: str, name: str | None) -> Manifest | None:
        """Have a model answer for `task` ("teacher_responder", or "teacher_responder/history"); None takes the choice back.

        Raises BadInput for a task's name that cannot be, NotFound, ModelUnavailable where the model's files are damaged.
        """
        task = task.casefold()
        if not _TASK.fullmatch(task):
            raise BadInput(f"{task!r} is not the name of a task.", "Write it like teacher_responder/history.")
        if name is not None:
            self._verify_all(name)  # as in `promote`: the long reading first
        with self._lock():
            manifest = None if name is None else self._verify_all(name)
            tasks = self.tasks()
            tasks.pop(task, None)
            if manifest is not None:
                tasks[task] = manifest.id
            write_atomically(self.root / "tasks.json", json.dumps(tasks, ensure_ascii=False, indent=1))
            self._chosen_again(task)
        return manifest

    def _chosen_again(self, task: str) -> None:
        """End the alarm about a task's damaged model once somebody chose for every task that it had."""
        active = self._active()
        if task not in active.get("lost", ()):
            return
        lost = [other for other in active["lost"] if other != task]
        kept = {key: value for key, value in active.items() if key not in ("damaged", "lost")}
        active = active | {"lost": lost} if lost else kept
        write_atomically(self.root / "active.json", json.dumps(active, ensure_ascii=False))

    def rollback(self) -> Manifest:
        """Promote `previous`. Raises NotFound where there is none."""
        previous = self.aliases().get("previous")
        if previous is None:
            raise NotFound("There is no earlier model to go back to.", "See `appliance models list`.")
        return self.promote(previous)

    def judged(self, name: str, report: dict[str, Any]) -> Manifest:
        """Replace what is recorded of a model's judging: it was judged anew, against another model than before."""
        with self._lock():
            manifest = self.get(name)
            path = self.root / manifest.id / "manifest.json"
            record = json.loads(path.read_text("utf-8")) | {"report": report}
            write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False))
        return self.get(manifest.id)

    def remove(self, name: str) -> None:
        """Delete a model, also one whose manifest is damaged.

        Raises Conflict while it serves, could be rolled back to, or another model is built on it.
        """
        with self._lock():
            id = self.id_of(name)
            if not _ID.fullmatch(id) or not (self.root / id).is_dir():
                raise NotFound(f"There is no model called {name!r}.", "See `appliance models list`.")
            aliases = self._served_as(id)
            if aliases:
                raise Conflict(
                    f"The model {id!r} serves as {' and as '.join(aliases)}.", "Promote or choose another model for that first."
                )
            users = [other.id for other in self.list() if id in (other.base, *other.parents)]
            if users:
                raise Conflict(f"The model {id!r} is needed by {', '.join(users)}.", "Remove those first.")
            shutil.rmtree(self._take_out(id))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.root / ".lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _there_called(manifest: Manifest) -> tuple[str, str]:
    """Whose a hosted model is, and what it is called there; "" for what is not said."""
    known = manifest.hosted or {}
    return str(known.get("plugin") or ""), str(known.get("model") or "")


def _taken(id: str) -> Conflict:
    return Conflict(
        f"There is another model called {id!r} already.",
        f"Choose another name, or remove it first: `appliance models remove {id}`.",
    )


def _record(manifest: Manifest) -> str:
    kept = asdict(manifest)
    kept.pop("aliases")
    return json.dumps(kept, indent=1, ensure_ascii=False)


def check_id(id: str) -> None:
    """Raise BadInput where a model cannot be called so."""
    if not _ID.fullmatch(id):
        raise BadInput(
            f"{id!r} cannot be the name of a model.",
            "Use small letters, digits, dots and dashes, 64 at most, starting with a letter or a digit.",
        )
    if id in (*ALIASES, "default", "quotes"):
        raise BadInput(f"{id!r} is a reserved name.", "Choose another name.")


def _files(folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise BadInput(f"{path} is a link or a device: a model is made of plain files.", "Copy the real file there.")
        if path.is_file() and path != folder / "manifest.json":
            names.append(path.relative_to(folder).as_posix())
    return names
