"""The bill of materials of a bundle, as CycloneDX 1.5: every package and model in it with version, licence and sha256."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any


def write(folder: Path, version: str) -> None:
    parts = [_wheel(path) for path in sorted((folder / "wheels").glob("*.whl"))]
    parts += [_deb(path) for path in sorted((folder / "debs").glob("*.deb"))]
    parts += [_model(path) for path in sorted((folder / "models").glob("*/model.safetensors"))]
    made: dict[str, Any] = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "application", "name": "school-appliance", "version": version}},
        "components": parts,
    }  # fmt: skip
    (folder / "sbom.json").write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", "utf-8")


def _wheel(path: Path) -> dict[str, Any]:
    name, version = path.name.split("-")[:2]
    name = name.replace("_", "-").lower()
    said = importlib.metadata.metadata(name)
    licence = said.get("License-Expression") or (said.get("License") or "").strip().split("\n")[0][:80]
    classified = [line.rpartition(":: ")[2] for line in said.get_all("Classifier") or () if line.startswith("License ::")]
    words = licence or ", ".join(classified)
    found = _component("library", name, version, f"pkg:pypi/{name}@{version}", path)
    return found | ({"licenses": [{"license": {"name": words}}]} if words else {})


def _deb(path: Path) -> dict[str, Any]:
    name, version, arch = path.stem.replace("%3a", ":").split("_")
    return _component("library", name, version, f"pkg:deb/debian/{name}@{version}?arch={arch}&distro=bookworm", path)


def _model(path: Path) -> dict[str, Any]:
    return _component("machine-learning-model", path.parent.name, "", "", path)


def _component(kind: str, name: str, version: str, purl: str, path: Path) -> dict[str, Any]:
    made: dict[str, Any] = {"type": kind, "name": name, "hashes": [{"alg": "SHA-256", "content": _sha256(path)}]}
    return made | ({"version": version} if version else {}) | ({"purl": purl} if purl else {})


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
