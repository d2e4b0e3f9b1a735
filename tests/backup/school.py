"""A school's home for the tests of backups, and what is compared before and after."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from appliance.backup import Backups
from appliance.db import Database
from appliance.files import sha256_of
from appliance.settings import Settings
from appliance.tables import collections

needs_restic = pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed: apt-get install restic")
ROOT = Path(__file__).resolve().parents[2]
NAME, PASSWORD = "Ms Green", "correct horse battery"
LEAVES = "Leaves are green because chlorophyll takes in red and blue light. A leaf makes sugar from light, water and air."
QUIET: Callable[[dict[str, Any]], None] = lambda _told: None  # noqa: E731


def note(database: Database, number: int) -> None:
    """Two rows that belong together, in one transaction."""
    with database.begin() as connection:
        for side in "ab":
            id = f"pair-{number:08}{side}"
            connection.execute(sa.insert(collections).values(id=id, name=id, created=0))


def numbers(home: Path) -> list[str]:
    database = Database(home / "appliance.sqlite3")
    with database.read() as connection:
        found = list(
            connection.execute(sa.select(collections.c.id).where(collections.c.id.startswith("pair-")).order_by("id")).scalars()
        )
    database.close()
    return found


def files(home: Path) -> dict[str, str]:
    """The digest of every file that a backup has to hold."""
    kept = ("documents", "models", "index", "fence.secret", "network.json", "jobs")
    paths = (path for path in home.rglob("*") if path.is_file() and not path.name.startswith("."))
    names = {path.relative_to(home): path for path in paths}
    return {str(name): sha256_of(path) for name, path in names.items() if name.parts[0] in kept}


def packs(folder: Path) -> set[str]:
    """The files that hold what was backed up."""
    root = folder / "appliance-backups"
    return {str(path.relative_to(root)) for path in (root / "data").rglob("*") if path.is_file()}


@dataclass
class Kept:
    """A home with two backups, and what was known of it when each was made."""

    home: Path
    folder: Path
    key: str
    ids: list[str]
    first_packs: set[str]
    files: dict[str, str]
    cookie: str
    api_key: str

    def backups(self, home: Path, folder: Path | None = None, key: str | None = None) -> Backups:
        return Backups(Settings(home=home), folder or self.folder, same_disk=True, key=key or self.key)
