"""A model's card: what it is, what it was made of, how it was judged, and what it is not for, in words a teacher can read.

Made from the manifest and the card of its dataset; Markdown, no claims beyond what was recorded.
"""

from __future__ import annotations

import time
from typing import Any

from appliance.registry import Manifest

WARNING = "This is the small starter, or was tuned from it: it is for trying the box, not for pupils."


def card(manifest: Manifest, dataset: dict[str, Any] | None = None) -> str:
    """The card as Markdown. `dataset`: the card of the data it was tuned on, where the model has one."""
    parts = [f"# {manifest.title}", _what(manifest)]
    if manifest.starter:
        parts.append(f"**{WARNING}**")
    if dataset:
        parts += ["## What it was taught with", _taught(dataset)]
    if manifest.report:
        parts += ["## How it was judged", _judged(manifest.report)]
    parts += ["## Facts", _facts(manifest)]
    return "\n\n".join(parts) + "\n"


def _what(manifest: Manifest) -> str:
    made = time.strftime("%-d %B %Y", time.localtime(manifest.created))
    if manifest.kind == "base":
        return f"A language model that others made, brought to this box on {made}. It was not tuned here."
    if manifest.hosted is not None:
        where = f"reached through the plugin {manifest.hosted.get('plugin')}, there called {manifest.hosted.get('model')}"
        return f"A model on another machine, {where}; made known here on {made}. What it is asked leaves the building."
    serves = " It answers in this school now." if "champion" in manifest.aliases else ""
    return f"Tuned in this school from {manifest.origin} on {made}; nothing left the building for it.{serves}"


def _taught(dataset: dict[str, Any]) -> str:
    lines = [
        f"{dataset.get('train', '?')} conversations were used for tuning; {dataset.get('held_out', '?')} more were kept back "
        "to judge the result and never trained on."
    ]
    for key, title in (("subject", "Subjects"), ("source", "Where they come from"), ("licence", "Licences")):
        counts = dataset.get(key)
        if isinstance(counts, dict) and counts:
            lines.append(f"- {title}: " + ", ".join(f"{name} ({count})" for name, count in counts.items()))
    redactions = dataset.get("redactions")
    if isinstance(redactions, dict) and redactions:
        taken = ", ".join(f"{count} x {kind.replace('_', ' ')}" for kind, count in redactions.items())
        lines.append(f"- Personal data taken out before tuning: {taken}")
    return "\n".join(lines)


def _judged(report: dict[str, Any]) -> str:
    passed = "It passed the gate." if report.get("passed") else "It did **not** pass the gate."
    reasons = "\n".join(f"- {reason}" for reason in report.get("reasons", []))
    return f"{passed} It was compared with {report.get('baseline', 'another model')}.\n\n{reasons}"


def _facts(manifest: Manifest) -> str:
    rows = {
        "Id": manifest.id,
        "Kind": manifest.kind,
        "Base": str((manifest.hosted or {}).get("base") or manifest.origin),
        "Licence": manifest.licence,
        "Context": f"{manifest.context} tokens",
        "Size": f"{manifest.bytes / 1e6:.1f} MB" if manifest.hosted is None else "nothing of it is here",
        "Made from": ", ".join(manifest.parents) or "-",
        "Dataset (sha256)": manifest.dataset or "-",
        "Recipe (sha256)": manifest.recipe or "-",
        "Serves as": ", ".join(manifest.aliases) or "-",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
