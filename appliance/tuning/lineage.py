"""From a model to the rows that it learned from, and to the run that made it.

Ids and digests only: who may read a row's text is not decided here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.db import Database
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tables import turns
from appliance.tuning.run_folder import read_json
from appliance.tuning.store import ExampleStore


def lineage(settings: Settings, registry: Registry, store: ExampleStore, name: str) -> dict[str, Any]:
    """What stands behind a model, down to the base that nothing on this box was tuned into.

    {"id", "kind", "base", "dataset", "recipe", "run" (folder, None where it is gone), "rows": [{"id", "part", "withdrawn"}],
    "parents": [the same for each]}. Raises NotFound, BadInput.
    """
    manifest = registry.get(name)
    parts = store.rows_of(manifest.dataset) if manifest.dataset else {}
    gone = store.withdrawn() if parts else set()
    results = [*settings.runs.glob("*/result.json"), *settings.runs.glob("*/named/*/result.json")]
    return {
        "id": manifest.id,
        "kind": manifest.kind,
        "base": manifest.base,
        "dataset": manifest.dataset,
        "recipe": manifest.recipe,
        "run": next((str(path.parent) for path in results if _is_of(path, manifest.id)), None),
        "rows": [{"id": id, "part": part, "withdrawn": id in gone} for id, part in parts.items()],
        "parents": [lineage(settings, registry, store, parent) for parent in manifest.parents],
    }


def answered_by(database: Database, turn: str) -> str:
    """The id of the model that wrote an answer; "" where no model did."""
    with database.read() as connection:
        return str(connection.execute(sa.select(turns.c.model).where(turns.c.id == turn)).scalar() or "")


def _is_of(result: Path, id: str) -> bool:
    return (read_json(result) or {}).get("id") == id
