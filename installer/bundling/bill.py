"""What is in a bundle: a bill of materials as CycloneDX 1.5, and the licences of all of it as texts for people.

Every wheel, Debian package, model and the converter stands in it with version, licence and sha256. It depends on the files
alone: the same files give the same bytes.
"""

from __future__ import annotations

import json
import re
import time
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

import licences
from locking import sha256
from targets import Target

NAMESPACE = uuid.UUID("5f0c5a3e-6a0b-5a53-9f0c-1b7a4d5b9c11")
SOURCES = """Licences of what is in this bundle

LIST.txt names each part with its version and licence; python/, debian/ and models/ hold the texts that the parts bring. The
source code of Debian's packages, by these versions, is kept at https://snapshot.debian.org; that of the Python packages at
https://pypi.org.
"""


def write(folder: Path, target: Target, version: str, when: int) -> None:
    """sbom.json and licences/ for the files in `folder`. Raises Fault for a part whose licence is not known."""
    parts: list[dict[str, Any]] = []
    lines: list[str] = []

    def add(part: dict[str, Any], named: list[str], text: str) -> None:
        parts.append(part | {"licenses": _licences(named)})
        lines.append(f"{part['name']} {part.get('version', '')}: {', '.join(named)} ({text})\n")

    texts = folder / "licences"
    for path in sorted((folder / "wheels").glob("*.whl")):
        name, number = path.name.split("-")[:2]
        plain = re.sub(r"[-_.]+", "-", name).lower()
        stated = licences.of_wheel(path)
        brought = licences.texts_of_wheel(path, texts / "python" / plain)
        where = f"python/{plain}" if brought else "its wheel brings no text"
        add(_component("library", plain, number, f"pkg:pypi/{plain}@{_quoted(number)}", path), [stated], where)
    debs = sorted((folder / "debs").glob("*.deb"))
    for name, text in (found := licences.copyrights(debs)).items():
        (texts / "debian").mkdir(parents=True, exist_ok=True)
        (texts / "debian" / f"{name}.txt").write_bytes(text)
    for path in debs:
        name = path.name.split("_")[0]
        part, named = _deb(path, target), licences.of_copyright(name, found[name])
        add(part, named, f"debian/{part['name']}.txt")
    for kind in ("models", "chosen"):
        for one in sorted(path for path in (folder / kind).glob("*") if path.is_dir()):
            named = [licences.of_model(one)]
            (texts / "models" / one.name).mkdir(parents=True, exist_ok=True)
            for text in sorted(path for path in one.iterdir() if licences.TEXTS.search(path.name) or path.name == "README.md"):
                (texts / "models" / one.name / text.name).write_bytes(text.read_bytes())
            weights = [path for path in sorted(one.iterdir()) if path.suffix in (".safetensors", ".gguf")]
            parts += [
                _component("machine-learning-model", one.name, "", "", path) | {"licenses": _licences(named)}
                for path in weights
            ]
            lines.append(f"{one.name} (model): {named[0]} (models/{one.name})\n")
    for one in sorted((folder / "converter").glob("converter-*")):
        number = one.name.partition("-")[2]
        (texts / "llama.cpp.txt").write_bytes((one / "LICENSE").read_bytes())
        part = _component("application", "llama.cpp-converter", number, "", one / "convert_hf_to_gguf.py")
        add(part, ["MIT"], "llama.cpp.txt")
    texts.mkdir(exist_ok=True)
    (texts / "README.txt").write_text(SOURCES, "utf-8")
    (texts / "LIST.txt").write_text("".join(sorted(lines)), "utf-8")
    _seal(folder / "sbom.json", parts, version, when)


def _seal(out: Path, parts: list[dict[str, Any]], version: str, when: int) -> None:
    digests = "".join(part["hashes"][0]["content"] for part in parts)
    for number, part in enumerate(parts, 1):
        part["bom-ref"] = f"part-{number}"
    made: dict[str, Any] = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, digests)}",
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)),
            "component": {"type": "application", "name": "school-appliance", "version": version, "bom-ref": "bundle"},
        },
        "components": parts,
    }  # fmt: skip
    out.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", "utf-8")


def _deb(path: Path, target: Target) -> dict[str, Any]:
    name, version, arch = path.stem.replace("%3a", ":").split("_")
    purl = f"pkg:deb/{target.system[0]}/{_quoted(name)}@{_quoted(version)}?arch={arch}&distro={target.codename}"
    return _component("library", name, version, purl, path)


def _licences(named: list[str]) -> list[dict[str, Any]]:
    """One SPDX identifier or expression where it is one; else the names as they were given."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if len(named) == 1:
        try:
            found = canonicalize_license_expression(named[0])
        except InvalidLicenseExpression:
            return [{"license": {"name": named[0]}}]
        return [{"expression": found}] if " " in found or "LicenseRef" in found else [{"license": {"id": found}}]
    return [{"license": {"name": name}} for name in named]


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="-._~")


def _component(kind: str, name: str, version: str, purl: str, path: Path) -> dict[str, Any]:
    made: dict[str, Any] = {"type": kind, "name": name, "hashes": [{"alg": "SHA-256", "content": sha256(path)}]}
    return made | ({"version": version} if version else {}) | ({"purl": purl} if purl else {})
