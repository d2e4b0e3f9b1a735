"""Which wheels go to a school: one file a target, with the name, version, sha256 and size of every one of them.

The locks are committed and looked through like code. What the package index serves today cannot change a bundle: pip takes only
a file whose sha256 stands here, and no source package. `installer/bundle --relock` writes a lock anew after a pin has changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from said import Fault, run, say
from targets import Target

LOCKS = Path(__file__).resolve().parent / "locks"
PROGRAM = "school-appliance"
COMPILED = "llama-cpp-python"
LINE = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})  # (?P<file>\S+\.whl) (?P<size>\d+)"
)


@dataclass(frozen=True)
class Wheel:
    name: str
    version: str
    sha256: str
    file: str
    size: int

    @property
    def line(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}  # {self.file} {self.size}"

    @property
    def asked(self) -> str:
        """As pip is asked for it: with three signs, since two would let a CPU build pass for one with CUDA."""
        return f"{self.name}==={self.version} --hash=sha256:{self.sha256}"

    def whole(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_size == self.size and sha256(path) == self.sha256


def sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read(target: Target, locks: Path = LOCKS) -> list[Wheel]:
    """Raises Fault for a lock that is not there, or a line that is not whole."""
    path = locks / f"{target.label}.txt"
    if not path.is_file():
        raise Fault(
            f"Nobody has locked the Python packages for {target.said} yet.",
            f"Where pip finds all of them for Python {target.python}, run installer/bundle --relock with the same options.",
        )
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        parts = LINE.fullmatch(line)
        if not parts:
            raise Fault(
                f"Line {number} of {path.name} names no wheel with its sha256: {line[:60]!r}.", "Write it anew with --relock."
            )
        found.append(Wheel(parts["name"], parts["version"], parts["sha256"], parts["file"], int(parts["size"])))
    if len({wheel.name for wheel in found}) != len(found):
        raise Fault(f"{path.name} names a package twice.", "Write it anew with --relock.")
    return found


def known(target: Target) -> list[Wheel]:
    """As `read`; none where there is no lock."""
    return read(target) if (LOCKS / f"{target.label}.txt").is_file() else []


def needed(python: str = "3.11") -> dict[str, str]:
    """Name to version of everything that the program needs with that Python, without itself and its extras."""
    from packaging.requirements import Requirement

    facts = {"python_version": python, "python_full_version": f"{python}.2", "platform_machine": "x86_64"}
    found: dict[str, str] = {}
    waiting: list[tuple[str, frozenset[str]]] = [(PROGRAM, frozenset())]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise Fault(f"The package {name} is not installed in .venv.", "Run ./scripts/install, then this again.") from None
        if name != PROGRAM:
            found[name] = distribution.version
        for text in distribution.requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or any(wanted.marker.evaluate(facts | {"extra": extra}) for extra in extras or {""}):
                one = (plain(wanted.name), frozenset(wanted.extras))
                if one not in seen:
                    seen.add(one)
                    waiting.append(one)
    return dict(sorted(found.items()))


def pip(target: Target) -> list[str | Path]:
    """pip, asked for what runs on the target, whatever this machine is. No source package: it would run here to be built."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(target.glibc, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    words: list[str | Path] = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "-q", "--no-cache-dir",
        "--only-binary", ":all:", "--implementation", "cp", "--python-version", target.python,
    ]  # fmt: skip
    for platform in platforms:
        words += ["--platform", platform]
    return words


def relock(target: Target, constraints: Path, kept: Path) -> Path:
    """Write the target's lock from what pip's index serves now, at the pinned versions. For a developer: read the change."""
    wanted = {name: version for name, version in needed(target.python).items() if name != COMPILED}
    if target.cuda:
        wanted["torch"] = wanted["torch"].partition("+")[0]
    elif "+" not in wanted["torch"]:
        wanted["torch"] += "+cpu"
    say(f"Locking {len(wanted)} Python packages for {target.said}.")
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept, prefix=".part-") as folder:
        pins = [f"{name}==={version}" for name, version in wanted.items()]
        hint = "Check the line to the package index, and that each package has a wheel for this target."
        run([*pip(target), "--no-deps", "-d", folder, *pins], "Fetching the packages", hint)
        if target.cuda:  # NVIDIA's libraries, which torch names at one version each
            words = [*pip(target), "-c", constraints, "-d", folder, f"torch==={wanted['torch']}"]
            run(words, "Fetching CUDA's libraries", hint)
        found = list(_seen(Path(folder).glob("*.whl"), wanted))
        lost = sorted(set(wanted) - {wheel.name for wheel in found})
        if lost:
            raise Fault(f"The package index gave no {lost[0]} {wanted[lost[0]]}.", hint)
        for wheel in found:
            (Path(folder) / wheel.file).replace(kept / wheel.file)
    path = LOCKS / f"{target.label}.txt"
    head = f"# {target.said}, Python {target.python}, x86-64. Written by installer/bundle --relock; see locking.py.\n"
    lines = [f"{wheel.line}\n" for wheel in sorted(found, key=lambda wheel: wheel.name)]
    path.write_text(head + "".join(lines), "utf-8")
    return path


def _seen(paths: Iterable[Path], wanted: dict[str, str]) -> Iterable[Wheel]:
    for path in sorted(paths):
        name, version = path.name.split("-")[:2]
        if wanted.get(plain(name), version) == version:
            yield Wheel(plain(name), version, sha256(path), path.name, path.stat().st_size)
