"""Everything that can be made to answer, in one list: local models, those of other machines, and optimised prompt programs.

However a thing was made - tuned here or elsewhere, optimised, brought in, connected - it says the same of itself: its method,
what it stands on, which data it was made of, how it was judged, what it cost. Reads the records; changes and judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from appliance.tables import dataset_rows

if TYPE_CHECKING:
    from appliance.db import Database
    from appliance.programs import Program, Programs
    from appliance.registry import Manifest, Registry

SERVES = {"active": ("champion",), "previous": ("previous",)}  # a program's states as the aliases of its module


@dataclass(frozen=True, slots=True)
class Tuned:
    """kind: of a model, or "program". base: the model, or the module, that it was made from; "" where there is none.

    data: the digest of its dataset, rows: how many it has; "" and 0 where nobody knows. passed: what the gate said, None where
    it was never judged. scores: before, after and difference as its report has them. cost: in money or time, "" for not known.
    aliases: what it serves as; a program, for its module.
    """

    id: str
    title: str
    kind: str
    method: str
    base: str
    data: str
    rows: int
    passed: bool | None
    scores: Mapping[str, Any]
    cost: str
    bytes: int
    created: float
    aliases: Sequence[str]

    @property
    def score(self) -> str:
        """Before and after in a few signs."""
        figures = [self.scores.get(name) for name in ("before", "after")]
        values = [one["value"] for one in figures if isinstance(one, Mapping) and isinstance(one.get("value"), (int, float))]
        told = f"{values[0]:.3f} to {values[1]:.3f}" if len(values) == 2 else ""
        verdict = {True: "passed", False: "refused", None: ""}[self.passed]
        return ", ".join(filter(None, (told, verdict))) or "-"


def listed(registry: Registry, programs: Programs, database: Database) -> list[Tuned]:
    """Oldest first."""
    counts = _rows(database)
    found = [_of_model(one, counts) for one in registry.list()] + [_of_program(one) for one in programs.list()]
    return sorted(found, key=lambda one: (one.created, one.id))


def _rows(database: Database) -> dict[str, int]:
    """Dataset's digest to how many rows stood in it."""
    counted = sa.select(dataset_rows.c.dataset, sa.func.count()).group_by(dataset_rows.c.dataset)
    with database.read() as connection:
        return {str(dataset): int(count) for dataset, count in connection.execute(counted)}


def _of_model(manifest: Manifest, counts: Mapping[str, int]) -> Tuned:
    report, hosted = manifest.report or {}, manifest.hosted or {}
    base = str(hosted.get("base") or manifest.base or (manifest.parents[0] if manifest.parents else ""))
    return Tuned(
        manifest.id, manifest.title, manifest.kind, _method(manifest), base,
        manifest.dataset or "", counts.get(manifest.dataset or "", 0), _passed(report), _scores(report),
        _cost(report, hosted), manifest.bytes, manifest.created, manifest.aliases,
    )  # fmt: skip


def _cost(report: Mapping[str, Any], hosted: Mapping[str, Any]) -> str:
    """What it took to make a model, money elsewhere and time here; of one that was only connected, what its answers take."""
    took = _training(report).get("train_seconds")
    if isinstance(took, (int, float)):
        return f"{took:.0f} s here"
    if hosted.get("cost") is not None:
        return f"{hosted['cost']} {hosted.get('currency') or ''}".strip()
    price = hosted.get("price")
    return f"{price['input']:g} in, {price['output']:g} out {price['currency']}/million tokens" if price else ""


def _method(manifest: Manifest) -> str:
    if manifest.hosted is not None:
        plugin = str(manifest.hosted.get("plugin"))
        return "connected" if plugin == "remote" else f"{plugin} {manifest.hosted.get('method') or ''}".strip()
    if manifest.kind == "base":
        return "starter" if manifest.starter else "imported"
    how = _training(manifest.report or {}).get("method")
    return f"huggingface {how or ''}".strip() + (", merged" if manifest.kind == "merged" else "")


def _training(report: Mapping[str, Any]) -> Mapping[str, Any]:
    found = report.get("training")
    return found if isinstance(found, Mapping) else {}


def _of_program(program: Program) -> Tuned:
    report = program.report
    place = "/".join(filter(None, (program.module, program.subject, program.grade)))
    parts = report.get("parts")
    rows = sum(one for one in parts.values() if isinstance(one, int)) if isinstance(parts, Mapping) else 0
    tokens = [report[name] for name in ("prompt", "completion") if isinstance(report.get(name), int)]
    money = f"{report['cost']} {report.get('currency') or ''}".strip() if report.get("cost") is not None else ""
    brought = program.maker in ("", "import")
    method = "imported" if brought else f"{program.maker} {report.get('method') or ''}".strip()
    return Tuned(
        program.id, place, "program", method, place, str(report.get("dataset") or ""), rows,
        _passed(report), _scores(report), money or (f"{sum(tokens)} tokens" if tokens else ""), 0, program.created,
        SERVES.get(program.state, ()),
    )  # fmt: skip


def _passed(report: Mapping[str, Any]) -> bool | None:
    return report["passed"] if isinstance(report.get("passed"), bool) else None


def _scores(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("before", "after", "difference") if name in report}
