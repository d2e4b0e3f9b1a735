"""Checkpoints that are either complete or not there.

The trainer's own save writes in place; killed in the middle it leaves a folder that resumes silently to other weights, or not
at all. Here a checkpoint is written beside, flushed to disk, listed with SHA-256 in a manifest that comes last, and only then
renamed; what is resumed from is the newest whose manifest verifies. Knows files, not training.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from appliance.files import sha256_of, sync, sync_tree
from appliance.tuning.run_folder import read_json, write_json

MANIFEST = "manifest.json"
KEPT = 2  # the newest and the one before
DRAFT = ".draft"


def fresh_draft(folder: Path) -> Path:
    """An empty folder to write into; what a killed run left there is gone."""
    draft = folder / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    return draft


def publish(draft: Path, target: Path) -> None:
    """Seal `draft` with a manifest and rename it to `target`, replacing a damaged one. Raises OSError."""
    sync_tree(draft)
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    write_json(draft / MANIFEST, {path.relative_to(draft).as_posix(): sha256_of(path) for path in files})
    if target.exists():
        shutil.rmtree(target)
    draft.rename(target)
    sync(target.parent)


def complete(folder: Path) -> bool:
    """Whether every file that the manifest lists is there with its digest."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not manifest:
        return False
    try:
        return all(sha256_of(folder / name) == digest for name, digest in manifest.items())
    except OSError:
        return False


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder`; damaged ones are passed over."""
    return next((path for _, path in reversed(_numbered(folder)) if complete(path)), None)


def prune(folder: Path, keep: int = 0) -> None:
    """Keep the newest KEPT, and the one of step `keep` (the best so far)."""
    for number, path in _numbered(folder)[:-KEPT]:
        if number != keep:
            shutil.rmtree(path, ignore_errors=True)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.iterdir()]
    return sorted((int(match.group(1)), path) for match, path in found if match)
