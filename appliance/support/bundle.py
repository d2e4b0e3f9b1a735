"""The parts of a support bundle, and the file that they are packed into.

Of settings only figures, switches and choices are told, of the record its verbs, of jobs their kinds and errors' codes, of
tables how many rows they have. Logs and the doctor's sentences go through `OwnWords`. No id of anybody, no name, no text.
"""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_origin

import sqlalchemy as sa

from appliance import __version__, selftest
from appliance.audit import Audit
from appliance.checkup import Check
from appliance.db import Database
from appliance.errors import ApplianceError
from appliance.figures import NAMES, Figures
from appliance.files import write_atomically
from appliance.jobs import Jobs
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.support.own_words import OwnWords
from appliance.tables import classes, collections, roster, users
from appliance.tables import metadata as schema

PACKAGES = ("llama-cpp-python", "torch", "transformers", "peft", "trl", "faiss-cpu", "sentence-transformers", "fastapi",
            "starlette", "uvicorn", "sqlalchemy", "alembic", "pydantic", "pysqlite3", "numpy")  # fmt: skip
LINES = 5000  # of each log, the newest
ROWS = 500
DAYS = 28
JOURNAL_SECONDS = 30


def contents(settings: Settings, database: Database, checks: Sequence[Check]) -> dict[str, str]:
    """Name -> text of every part. Blocking: seconds. A part that cannot be read says so by its error's code."""
    try:
        names = _names(settings, database)
    except ApplianceError:
        names = []  # the database cannot be read, so nothing of it can come into the bundle
    own = OwnWords(Path(__file__).resolve().parents[1], names)
    made: dict[str, Callable[[], Any]] = {
        "versions": _versions,
        "settings": lambda: _settings(settings),
        "doctor": lambda: [_check(one, own) for one in checks],
        "record": lambda: _record(Audit(database), own),
        "jobs": lambda: _jobs(Jobs(database, settings), own),
        "models": lambda: _models(Registry(settings.models), own),
        "rows": lambda: _rows(database),
        "figures": lambda: {name: [_day(one) for one in Figures(database).days(name, DAYS)] for name in NAMES},
        "selftest": lambda: _selftest(settings),
    }
    found = {}
    for name, make in made.items():
        try:
            part = make()
        except ApplianceError as error:
            part = {"error": error.code}
        found[f"{name}.json"] = json.dumps(part, indent=1) + "\n"
    return found | {f"logs/{name}": "\n".join(map(own.log_line, lines)) + "\n" for name, lines in _logs(settings)}


def pack(parts: dict[str, str], path: Path) -> int:
    """Into one .tar.gz, for its owner alone; its size in bytes. Raises StorageFull and the like."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, text in parts.items():
            data = text.encode("utf-8", "replace")
            about = tarfile.TarInfo(f"support/{name}")
            about.size, about.mtime, about.mode = len(data), int(time.time()), 0o600
            archive.addfile(about, io.BytesIO(data))
    write_atomically(path, raw.getvalue())
    return raw.tell()


def _names(settings: Settings, database: Database) -> Sequence[str]:
    columns = (users.c.name, users.c.full_name, classes.c.name, roster.c.first_name, roster.c.last_name, collections.c.name)
    with database.read() as connection:
        found = [str(name) for column in columns for name in connection.execute(sa.select(column)).scalars()]
    return [*found, settings.safeguarding_contact]


def _versions() -> dict[str, Any]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {"appliance": __version__, "python": sys.version.split()[0], "system": platform.system(),
            "kernel": platform.release(), "processor": platform.machine(), "packages": found}  # fmt: skip


def _settings(settings: Settings) -> dict[str, Any]:
    """Figures, switches and choices as they are; of a text or a path, whether it is set."""
    told: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        usual = not field.is_required() and field.get_default(call_default_factory=True) == value
        if isinstance(value, bool | int | float) or get_origin(field.annotation) is Literal:
            told[name] = value
        else:
            told[name] = "as usual" if usual else "set, not shown"
    return told


def _check(one: Check, own: OwnWords) -> dict[str, Any]:
    told = {name: own.line(str(value)) for name, value in asdict(one).items() if name in ("detail", "remedy", "command")}
    return {"name": own.knows(one.name), "ok": one.ok, **told}


def _record(audit: Audit, own: OwnWords) -> dict[str, Any]:
    entries = audit.entries(newest=ROWS)
    verbs = [own.knows(one.verb) for one in entries]
    try:
        whole: int | str = audit.verify()
    except ApplianceError as error:
        whole = error.code
    newest = [{"at": round(one.at), "verb": verb} for one, verb in zip(entries, verbs, strict=True)]
    return {"rows that fit the chain": whole, "verbs": dict(Counter(verbs)), "newest": newest}


def _jobs(jobs: Jobs, own: OwnWords) -> list[dict[str, Any]]:
    return [
        {"kind": own.knows(one.kind), "lane": own.knows(one.lane), "state": own.knows(one.state), "attempts": one.attempts,
         "created": one.created, "started": one.started, "finished": one.finished,
         "error": own.knows((one.error or {}).get("code", ""))}
        for one in jobs.list(newest=ROWS)
    ]  # fmt: skip


def _models(registry: Registry, own: OwnWords) -> list[dict[str, Any]]:
    return [
        {"kind": own.knows(one.kind), "bytes": one.bytes, "context": one.context, "starter": one.starter,
         "serves as": [own.knows(alias) for alias in one.aliases], "made": round(one.created),
         "passed": (one.report or {}).get("passed") is True}
        for one in registry.list()
    ]  # fmt: skip


def _rows(database: Database) -> dict[str, int]:
    with database.read() as connection:
        return {
            table.name: int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() or 0)
            for table in schema.sorted_tables
        }


def _day(one: Any) -> dict[str, Any]:
    return {"day": one.day.isoformat(), "count": one.count, "mean": one.mean, "most": one.most}


def _selftest(settings: Settings) -> dict[str, Any] | None:
    found = selftest.last(settings)
    if found is None:
        return None
    return {"at": found.at, "reading": found.reading, "writing": found.writing, "measured": asdict(found.measured)}


# --- logs -------------------------------------------------------------------------------------------------------------------
def _logs(settings: Settings) -> list[tuple[str, list[str]]]:
    """Name -> the newest lines of what services have said: of the journal, and of the files in the home."""
    found = []
    for process in ("web", "engine", "worker", "egress"):
        lines = _journal(f"appliance-{process}")
        if lines:
            found.append((f"journal-{process}.log", lines))
    files = sorted([*settings.run.glob("*.log"), *settings.jobs.glob("*.log")], key=lambda path: str(path))
    for number, path in enumerate(files, start=1):
        try:
            lines = path.read_text("utf-8", "replace").splitlines()[-LINES:]
        except OSError:
            continue
        kind = "run" if path.parent == settings.run else "job"
        found.append((f"{kind}-{number}.log", lines))
    return found


def _journal(unit: str) -> list[str]:
    tool = shutil.which("journalctl")
    if tool is None:
        return []
    command = [tool, "--unit", unit, "--lines", str(LINES), "--no-pager", "--quiet", "--output", "short-iso"]
    try:
        said = subprocess.run(command, capture_output=True, timeout=JOURNAL_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return said.decode("utf-8", "replace").splitlines()
