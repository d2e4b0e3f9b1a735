"""Makes a bundle: a folder that installs and upgrades a box without any network.

The same commit, the same packages and the same key give the same bytes. Nothing is left half made: the folder gets its name
last; and a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bill
import chosen
import debs
import locking
import place
import signing
import targets
import wheels
from plan import Plan
from plan import make as planned
from said import Fault, megabytes, of_the_system, run, say

CLONE = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance"  # as scripts/install
KEY = Path.home() / ".config" / "appliance" / "signing.pem"


def main() -> int:
    given = _parser().parse_args()
    os.umask(0o022)
    try:
        target = targets.find(given.target, cuda=given.cuda)
        if given.relock:
            print(locking.relock(target, CLONE / "constraints.txt", CACHE / "downloads" / "wheels"))
            return 0
        models = [chosen.look(given.start / path, given.licence) for path in given.model]
        plan = planned(
            CLONE, CACHE, given.start / given.folder, given.start / given.key, target,
            with_debs=not given.without_debian_packages, models=models, dry=given.dry_run,
        )  # fmt: skip
        if given.dry_run:
            return _dry(plan)
        made = make(plan)
    except Fault as fault:
        return _stopped(fault)
    except OSError as error:
        return _stopped(of_the_system(error))
    except KeyboardInterrupt:
        return _stopped(Fault("Stopped.", "Run the same command again: it goes on where it stopped."), 130)
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    say(f"{made} is ready: {megabytes(size)}. On the box, as root: bash {made.name}/install")
    for model in plan.models:
        (files, named) = ([name for name, _path in model.files], f" --licence '{model.licence}'")
        what = f"{model.name}/{files[0]}" if len(files) == 1 else model.name
        say(f"Then: appliance models import {made.name}/chosen/{what}{named}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="installer/bundle", description=__doc__)
    add = parser.add_argument
    add("--from", dest="start", type=Path, default=Path.cwd(), help=argparse.SUPPRESS)
    add("folder", type=Path, nargs="?", default=Path(), help="where the bundle is put, such as a USB stick")
    add("--dry-run", action="store_true", help="say what would be made, how large, and what is lacking; make nothing")
    add("--target", choices=targets.NAMES, default="debian12", help="the box's system; debian12 is the one that is tested")
    add("--cuda", action="store_true", help="with CUDA's libraries, for a box with an NVIDIA GPU (about 3 GB; not tested)")
    add("--model", action="append", type=Path, default=[], help="a model to bring: a GGUF file, or a folder; may be repeated")
    add("--licence", default="", help="of those models whose files name none")
    add("--key", type=Path, default=KEY, help="Ed25519 key that signs it")
    add("--without-debian-packages", action="store_true", help="for a box that has them already")
    add("--relock", action="store_true", help="for developers: lock the Python packages anew, after a pin has changed")
    return parser


def _stopped(fault: Fault, code: int = 1) -> int:
    print(f"Error: {fault.message}\nTry: {fault.hint}", file=sys.stderr)
    return code


def _dry(plan: Plan) -> int:
    for line in plan.told():
        print(line)
    faults = list(plan.lacking)
    try:
        if plan.where.is_dir():
            place.room(plan.where, plan.size(), 0, "The bundle")
    except Fault as fault:
        faults.append(fault)
    for fault in faults:
        print(f"  LACKING: {fault.message}\n           {fault.hint}")
    return 1 if faults else 0


def make(plan: Plan) -> Path:
    """The bundle's folder below `plan.where`. Raises Fault."""
    with _alone(plan.cache):
        plan.room()
        wheels.collect(plan.target, plan.wheels, plan.downloads / "wheels")
        if plan.debs is not None:
            debs.collect(plan.debs, plan.debs_kept)
        made = plan.cache / "bundle" / plan.name
        shutil.rmtree(made.parent, ignore_errors=True)
        _assemble(plan, made)
        say(f"Signed by {signing.seal(made, plan.key)}: whoever installs it the first time compares that.")
        _even(made, plan.when)
        done = plan.where / plan.name
        place.put(made, done)
        shutil.rmtree(made.parent)
        _tidy(plan)
        return done


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "bundle.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fault("Another bundle is being made on this machine.", "Wait until it is ready.") from None
        yield


def _assemble(plan: Plan, made: Path) -> None:
    (made / "wheels").mkdir(parents=True)
    for wheel in plan.wheels:
        _link(plan.downloads / "wheels" / wheel.file, made / "wheels" / wheel.file)
    compiled = wheels.compiled(plan.clone, plan.cache)
    _link(compiled, made / "wheels" / compiled.name)
    wheels.program(plan.clone, made / "wheels", plan.when)
    wheels.check(made / "wheels")
    wheels.lock(made / "wheels", made / "requirements.lock")
    (made / "debs").mkdir()
    if plan.debs is not None:
        for deb in plan.debs:
            _link(plan.debs_kept / deb.file, made / "debs" / deb.file)
        (made / "debs" / "Packages").write_text(debs.index(made / "debs"), "utf-8")
    for name in ("systemd", "models", "README.md", "LICENSE"):
        _copy(plan.clone, name, made / name)
    _copy(plan.clone, "installer/target", made / "target")
    _copy(plan.clone, "installer/install", made / "install")
    shutil.copytree(plan.converter, made / "converter" / plan.converter.name, ignore=shutil.ignore_patterns("__pycache__"))
    for model in plan.models:
        chosen.put(model, made / "chosen", _link)
    unpacked = wheels.unpacked(made / "wheels") + plan.size()
    (made / "VERSION").write_text(json.dumps(facts(plan) | {"needs_mb": unpacked // 10**6}) + "\n", "utf-8")
    bill.write(made, plan.target, plan.version, plan.when)


def facts(plan: Plan) -> dict[str, object]:
    """What the installer reads before anything else."""
    target = plan.target
    return {
        "version": plan.version, "target": f"{target.label}-x86_64", "format": 1, "tested": target.tested, "cuda": target.cuda,
        "system": list(target.system), "system_name": target.said, "python": target.python, "commit": plan.commit,
        "made": time.strftime("%Y-%m-%d", time.gmtime(plan.when)),
    }  # fmt: skip


def _link(source: Path, target: Path) -> None:
    """The same file once more without its bytes; where that cannot be, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy(clone: Path, name: str, target: Path) -> None:
    """A file, or the files of a folder, as they are committed."""
    listed = run(["git", "ls-files", "-s", name], "Listing the files", "Run this in a clone.", cwd=clone).splitlines()
    for line in listed:
        mode, path = line.split(" ", 1)[0], line.split("\t", 1)[1]
        to = target / Path(path).relative_to(name) if path != name else target
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clone / path, to)
        to.chmod(0o755 if mode == "100755" else 0o644)


def _even(made: Path, when: int) -> None:
    """Modes and times that do not tell who made it, and when."""
    for path in [*sorted(made.rglob("*"), reverse=True), made]:
        runs = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if runs else 0o644)
        os.utime(path, (when, when))


def _tidy(plan: Plan) -> None:
    """Forget what no bundle of this clone needs any more."""
    wanted = {wheel.file for target in targets.ALL for wheel in locking.known(target)} | {wheel.file for wheel in plan.wheels}
    for path in (plan.downloads / "wheels").glob("*.whl"):
        if path.name not in wanted:
            path.unlink()
    kept = {deb.file for deb in plan.debs or ()}
    for path in plan.debs_kept.glob("*.deb") if kept else ():
        if path.name not in kept:
            path.unlink()


if __name__ == "__main__":
    sys.exit(main())
