"""What a bundle will hold, how large it gets and what is lacking for it: worked out before anything is fetched or written."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import chosen
import debs
import locking
import place
import signing
import wheels
from said import Fault, megabytes, run
from targets import Target

REST = 12_000_000  # the program, the converter, licences and lists


@dataclass(frozen=True)
class Plan:
    """clone: what is packed, at `commit`, of `when`. cache: what scripts/install and earlier runs kept. where: the stick."""

    clone: Path
    cache: Path
    where: Path
    key: Path
    target: Target
    version: str
    commit: str
    when: int
    wheels: list[locking.Wheel]
    debs: list[debs.Deb] | None
    models: list[chosen.Model] = field(default_factory=list)
    lacking: tuple[Fault, ...] = ()

    @property
    def name(self) -> str:
        return f"appliance-{self.version}-{self.target.label}-x86_64"

    @property
    def downloads(self) -> Path:
        return self.cache / "downloads"

    @property
    def debs_kept(self) -> Path:
        return self.downloads / self.target.name

    @property
    def converter(self) -> Path:
        (name,) = (wheel for wheel in _pins(self.clone) if wheel.startswith("LLAMA="))
        return self.cache / f"converter-{name.removeprefix('LLAMA=')}"

    def to_fetch(self) -> int:
        return sum(wheel.size for wheel in wheels.missing(self.wheels, self.downloads / "wheels")) + sum(
            deb.size for deb in debs.missing(self.debs or [], self.debs_kept)
        )

    def size(self) -> int:
        parts = [wheel.size for wheel in self.wheels] + [deb.size for deb in self.debs or []]
        starter = sum(path.stat().st_size for path in (self.clone / "models").rglob("*") if path.is_file())
        return sum(parts) + sum(model.size for model in self.models) + starter + self._compiled() + REST

    def _compiled(self) -> int:
        try:
            return wheels.compiled(self.clone, self.cache).stat().st_size
        except Fault:
            return 24_000_000

    def room(self) -> None:
        """Raise Fault where the disk here, or the stick, is too small."""
        self.downloads.mkdir(parents=True, exist_ok=True)
        place.room(self.downloads, self.to_fetch() + 3 * REST, 0, "Fetching")
        part = self.where / f".{self.name}.part"
        there = sum(path.stat().st_size for path in part.rglob("*") if path.is_file()) if part.is_dir() else 0
        place.room(self.where, self.size(), there, "The bundle")

    def told(self) -> Iterator[str]:
        """For --dry-run, line by line."""
        target = self.target
        yield f"Would make {self.name} in {self.where}, for {target.said} with Python {target.python}."
        yield "  tested             " + (
            "yes, on such a machine" if target.tested else "NO: nobody has installed such a bundle yet"
        )
        lacking = wheels.missing(self.wheels, self.downloads / "wheels")
        yield _line("Python packages", [one.size for one in self.wheels], [one.size for one in lacking])
        if self.debs is None:
            yield "  Debian packages    none"
        else:
            gone = debs.missing(self.debs, self.debs_kept)
            yield _line("Debian packages", [one.size for one in self.debs], [one.size for one in gone])
        yield f"  llama.cpp          {megabytes(self._compiled())}, and its converter of models"
        for model in self.models:
            yield f"  model              {model.name}, {megabytes(model.size)}, {model.licence}"
        free = f"; {megabytes(place.free(self.where))} are free in {self.where}" if self.where.is_dir() else ""
        yield f"  in all             {megabytes(self.size())}{free}"
        yield f"  to fetch           {megabytes(self.to_fetch())}"
        yield f"  signed by          {self.key}" + ("" if self.key.is_file() else ", which would be made")


def _line(what: str, sizes: list[int], lacking: list[int]) -> str:
    rest = f"; {len(lacking)} to fetch, {megabytes(sum(lacking))}" if lacking else "; all here"
    return f"  {what:<18} {len(sizes)}, {megabytes(sum(sizes))}{rest}"


def _pins(clone: Path) -> list[str]:
    return (clone / "scripts" / "install").read_text("utf-8").splitlines()


def make(
    clone: Path, cache: Path, where: Path, key: Path, target: Target, *, with_debs: bool, models: list[chosen.Model], dry: bool
) -> Plan:
    """Raises Fault for what would stop the bundle; a dry run says all of it in `lacking` instead."""
    faults: list[Fault] = []

    def tried(what: object, *given: object) -> object:
        try:
            return what(*given)  # type: ignore[operator]
        except Fault as fault:
            if not dry:
                raise
            faults.append(fault)
            return None

    tried(_machine)
    tried(_committed, clone)
    tried(_folder, where)
    tried(signing.look_at, key)
    listed = tried(locking.read, target)
    packages = tried(debs.planned, target) if with_debs else None
    compiled = tried(wheels.compiled, clone, cache)
    if isinstance(compiled, Path):
        tried(wheels.runs_on, compiled, target)
    version = (clone / "appliance" / "__init__.py").read_text("utf-8").split('__version__ = "', 1)[1].split('"', 1)[0]
    commit, when = run(
        ["git", "log", "-1", "--format=%H %ct"], "Reading the history", "Run this in a clone.", cwd=clone
    ).split()
    plan = Plan(
        clone, cache, where, key, target, version, commit, int(when), listed if isinstance(listed, list) else [],
        packages if isinstance(packages, list) else None, models, tuple(faults),
    )  # fmt: skip
    if compiled and not plan.converter.is_dir():
        tried(_no_converter, plan.converter)
    return plan


def _machine() -> None:
    if platform.machine() != "x86_64":
        raise Fault(f"Boxes have x86-64 processors, and this machine has {platform.machine()}.", "Make the bundle on a PC.")


def _committed(clone: Path) -> None:
    words = ["git", "status", "--porcelain", "--untracked-files=no"]
    if run(words, "Looking at the clone", "Run this in a clone made by git.", cwd=clone):
        raise Fault(
            "There are changes here that are not committed, and they would be left out.", "Commit them, or take them back."
        )


def _folder(where: Path) -> None:
    if not where.is_dir():
        raise Fault(f"There is no folder {where}.", "Plug the stick in and mount it, or make the folder.")


def _no_converter(folder: Path) -> None:
    raise Fault(f"The converter of models is not kept any more ({folder}).", "Remove .venv and run ./scripts/install.")
