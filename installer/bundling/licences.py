"""Under which licence each part of a bundle stands, and its text: read from the part itself, in SPDX's words where it can.

A part that says nothing stops the bundle: a school gets nothing whose licence nobody knows.
"""

from __future__ import annotations

import email
import io
import json
import re
import subprocess
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

from said import Fault

# Words that packages use, and what they mean in SPDX. Each was looked up in the package's own licence text.
MEANT = {
    "apache": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache 2.0 license": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0", "mit license": "MIT", "isc license": "ISC", "isc license (iscl)": "ISC",
    "lgpl v3": "LGPL-3.0-or-later", "psfl": "PSF-2.0", "bsd-like": "BSD-3-Clause",
}  # fmt: skip
# Packages whose own words leave it open, by their licence texts.
LOOKED_UP = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary", "jinja2": "BSD-3-Clause", "mpmath": "BSD-3-Clause",
    "pyphen": "GPL-2.0-or-later OR LGPL-2.1-or-later OR MPL-1.1",
    "pysqlite3": "Zlib", "scipy": "BSD-3-Clause", "segno": "BSD-3-Clause", "sympy": "BSD-3-Clause",
    "pypdfium2": "BSD-3-Clause AND Apache-2.0",
}  # fmt: skip
# Debian packages whose copyright file is prose, by that prose.
PROSE = (
    (r"(lib)?python3(\.\d+)?(-(minimal|stdlib|venv|distutils|lib2to3))?", "PSF-2.0"),
    ("python3-setuptools-whl", "MIT AND Apache-2.0 AND BSD-3-Clause"),
    ("gcc-.*-base|libgcc-s1", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    ("libc6|libgcrypt20", "LGPL-2.1-or-later AND GPL-2.0-or-later"),
    ("(lib)?avahi-.*|libcrypt1|libdaemon0|libsemanage.*", "LGPL-2.1-or-later"),
    ("libgssapi-krb5-2|libk5crypto3|libkrb5.*", "MIT"),
    ("libselinux1", "public domain"),
)  # fmt: skip
TEXTS = re.compile(r"(?i)licen[cs]e|copying|notice|authors")
NAMED = re.compile(r"(?im)^licen[cs]e:[ \t]*(\S.*)$")


# --- wheels ------------------------------------------------------------------------------------------------------------------
def of_wheel(path: Path) -> str:
    """Raises Fault for a wheel that names none."""
    said = metadata(path)
    name = re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower()
    classified = [line.rpartition(":: ")[2] for line in said.get_all("Classifier") or () if line.startswith("License ::")]
    stated = (said.get("License") or "").strip()
    short = stated if "\n" not in stated and len(stated) <= 80 else ""
    found = LOOKED_UP.get(name) or said.get("License-Expression") or short or ", ".join(classified)
    found = MEANT.get(found.lower(), found)
    if not found or found.upper() == "UNKNOWN":
        raise Fault(f"{path.name} does not say under which licence it stands.", "Look it up, and write it into licences.py.")
    return found


def metadata(path: Path) -> Message:
    with zipfile.ZipFile(path) as packed:
        (name,) = (name for name in packed.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return email.message_from_bytes(packed.read(name))


def texts_of_wheel(path: Path, folder: Path) -> bool:
    """Write the texts that it brings; whether there were any."""
    found = False
    with zipfile.ZipFile(path) as packed:
        for name in sorted(packed.namelist()):
            inside = name.partition(".dist-info/")[2]
            if inside and not name.endswith("/") and TEXTS.search(inside):
                folder.mkdir(parents=True, exist_ok=True)
                target = folder / inside.replace("licenses/", "", 1).replace("/", "_")
                target.write_bytes(packed.read(name))
                found = True
    return found


# --- Debian packages ---------------------------------------------------------------------------------------------------------
def copyrights(debs: list[Path]) -> dict[str, bytes]:
    """Package name to the text of its copyright file; a package whose documents are another's has that one's."""
    texts: dict[str, bytes] = {}
    links: dict[str, str] = {}
    for path in debs:
        name = path.name.split("_")[0]
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], capture_output=True, check=False)
        if done.returncode:
            raise Fault(f"{path.name} is no whole Debian package.", "Run the same command again.")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            for member in tar:
                inside = member.name.removeprefix("./")
                if inside == f"usr/share/doc/{name}" and member.issym():
                    links[name] = Path(member.linkname).name
                elif inside == f"usr/share/doc/{name}/copyright":
                    if member.issym():
                        links[name] = Path(member.linkname).parent.name
                    elif found := tar.extractfile(member):
                        texts[name] = found.read()
    for name in links:
        other, steps = name, 0
        while other in links and steps < 5:
            other, steps = links[other], steps + 1
        if other in texts:
            texts[name] = texts[other]
    for path in debs:
        if path.name.split("_")[0] not in texts:
            raise Fault(f"{path.name} brings no copyright file.", "Leave the package out, or look its licence up.")
    return texts


def of_copyright(package: str, text: bytes) -> list[str]:
    """The short names that a package's copyright file gives, in its order; where it is prose, what was read in it."""
    words = text.decode("utf-8", "replace")
    if re.match(r"\s*Format(-Specification)?:", words):
        found = re.findall(r"(?m)^License:[ \t]*(\S[^\n]*)$", words)
    else:
        found = [named for pattern, named in PROSE if re.fullmatch(pattern, package)][:1]
        found = found or sorted(set(re.findall(r"common-licenses/([A-Za-z0-9.+-]*[A-Za-z0-9])", words)))
    return list(dict.fromkeys(" ".join(one.split())[:120] for one in found)) or ["as in its copyright file"]


# --- models ------------------------------------------------------------------------------------------------------------------
def of_model(folder: Path) -> str:
    """What its card or its model card's front matter names; "" where neither does."""
    card = folder / "card.json"
    if card.is_file():
        stated = json.loads(card.read_text("utf-8")).get("licence") or ""
        if stated:
            return str(stated)
    readme = folder / "README.md"
    found = NAMED.search(readme.read_bytes()[:65536].decode("utf-8", "replace")) if readme.is_file() else None
    return found[1].strip() if found else ""
