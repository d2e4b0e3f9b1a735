"""What a bundle can be made for, and what of that was ever tried.

A bundle says in its VERSION what it is for and whether that was tested; the installer reads it there and says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """system: ID and VERSION_ID of its /etc/os-release. glibc, glibcxx: the newest symbols that its C and C++ libraries have,
    N of GLIBC_2.N and GLIBCXX_3.4.N. tested: whether `tests/machine` installs it on such a machine."""

    name: str
    said: str
    system: tuple[str, str]
    codename: str
    python: str
    glibc: int
    glibcxx: int
    cuda: bool = False
    tested: bool = False

    @property
    def label(self) -> str:
        """As it stands in a bundle's name, and in its lock's."""
        return f"{self.name}{'-cuda' if self.cuda else ''}"


DEBIAN = Target("debian12", "Debian 12", ("debian", "12"), "bookworm", "3.11", 36, 30, tested=True)
UBUNTU = Target("ubuntu2404", "Ubuntu 24.04", ("ubuntu", "24.04"), "noble", "3.12", 39, 33)
DEBIAN_CUDA = Target("debian12", "Debian 12 with CUDA", ("debian", "12"), "bookworm", "3.11", 36, 30, cuda=True)
UBUNTU_CUDA = Target("ubuntu2404", "Ubuntu 24.04 with CUDA", ("ubuntu", "24.04"), "noble", "3.12", 39, 33, cuda=True)
ALL = (DEBIAN, UBUNTU, DEBIAN_CUDA, UBUNTU_CUDA)
NAMES = tuple(dict.fromkeys(target.name for target in ALL))


def find(name: str, *, cuda: bool) -> Target:
    (found,) = (target for target in ALL if target.name == name and target.cuda == cuda)
    return found


def here(os_release: Path = Path("/etc/os-release")) -> tuple[str, str]:
    """ID and VERSION_ID of the machine that this runs on."""
    try:
        facts = dict(line.split("=", 1) for line in os_release.read_text("utf-8").splitlines() if "=" in line)
    except OSError:
        facts = {}
    return facts.get("ID", "").strip('"'), facts.get("VERSION_ID", "").strip('"')
