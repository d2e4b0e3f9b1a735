"""What is kept on the disk: the database and its schema, the models' files, the record of who did what."""

from __future__ import annotations

from appliance.audit import Audit
from appliance.checkup.check import Check
from appliance.db import MIGRATIONS, Database, may_open
from appliance.errors import ApplianceError
from appliance.registry import Registry


def database(kept: Database) -> Check:
    try:
        kept.check()
    except ApplianceError as error:
        return Check("Database", False, error.message, error.hint)
    return Check("Database", True, f"Whole, {kept.path.stat().st_size / 1e6:.1f} MB.")


def migrations(kept: Database) -> Check:
    """Whether the database has this release's form. It migrates nothing: a service does, as it starts."""
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    with kept.read() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        head = str(scripts.get_current_head())
        opens = current is not None and may_open(connection, current, head)
    if current == head:
        return Check("Migrations", True, f"The database has this release's form, number {head}.")
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        if opens:
            return Check("Migrations", True, f"The database is of a newer release, number {current}, and this one may open it.")
        return Check("Migrations", False, f"The database is of a newer release, number {current}; this one knows {head}.",
                     "Install that release again, or restore a backup made with this one.")  # fmt: skip
    return Check("Migrations", False, f"The database has the form number {current or 'none'}; this release needs {head}.",
                 "Start the services: they bring it up to date.", "appliance serve")  # fmt: skip


def models(registry: Registry, *, thorough: bool) -> Check:
    """thorough: each file is read and compared with its recorded sha256; else only what was found before is told."""
    damaged = registry.damaged()
    if damaged:
        return Check("Model files", False, f"The files of {damaged} were damaged, so another model answers in its place.",
                     "Check the disk, import it again, and promote what shall serve.", "appliance models verify")  # fmt: skip
    found = registry.list()
    if not thorough:
        return Check("Model files", True, f"{len(found)} models are registered; none is known to be damaged.")
    for one in found:
        if one.kind == "hosted":
            continue
        try:
            registry.verify(one.id)
        except ApplianceError as error:
            return Check("Model files", False, error.message, error.hint, "appliance models verify")
    return Check("Model files", True, f"{len(found)} models are registered, and their files are as they were registered.")


def record(audit: Audit) -> Check:
    try:
        count = audit.verify()
    except ApplianceError as error:
        return Check("Audit record", False, error.message, error.hint, "appliance audit verify")
    return Check("Audit record", True, f"Whole: {count} rows.")
