"""Bundles for the booted machine: one that the product's own command makes, and later ones that are made from it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def made(stick: Path, key: Path) -> Path:
    """What `installer/bundle` makes of what is committed."""
    words = [sys.executable, ROOT / "installer" / "bundling" / "main.py", "--from", stick, "--key", key, stick]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if "not committed" in done.stderr:
        pytest.skip("there are changes here that are not committed, and a bundle is made of commits")
    assert done.returncode == 0, done.stderr
    (bundle,) = stick.glob("appliance-*")
    return bundle


def copied(bundle: Path, to: Path) -> Path:
    """The same bundle once more, its large files shared with the first: nothing may be written into one of them."""
    shutil.copytree(bundle, to, copy_function=os.link)
    return to


def replaced(path: Path, text: str | bytes) -> None:
    path.unlink()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def renumbered(bundle: Path, to: Path, version: str, key: Path, *, broken: bool = False) -> Path:
    """The same bundle as another release; `broken`: whose pages cannot start."""
    copied(bundle, to)
    facts = json.loads((to / "VERSION").read_text("utf-8"))
    replaced(to / "VERSION", json.dumps(facts | {"version": version}))
    if broken:
        (wheel,) = (to / "wheels").glob("school_appliance-*.whl")
        replaced(wheel, _broken(wheel))
        name = "school-appliance=="
        lines = (to / "requirements.lock").read_text("utf-8").splitlines()
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines = [f"{line.rpartition(':')[0]}:{digest}" if line.startswith(name) else line for line in lines]
        replaced(to / "requirements.lock", "\n".join(lines) + "\n")
    sealed(to, key)
    return to


def _broken(wheel: Path) -> bytes:
    """The program with a fault in it that shows only when its pages are started."""
    out = io.BytesIO()
    record: list[list[str]] = []
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("RECORD"):
                listed = name
                continue
            if name == "appliance/web/server.py":
                data += b"\nraise RuntimeError('a release that cannot serve')\n"
            new.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append([name, f"sha256={digest}", str(len(data))])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*record, [listed, "", ""]])
        new.writestr(listed, text.getvalue())
    return out.getvalue()


def sealed(bundle: Path, key: Path) -> None:
    """List and sign a bundle that was changed, as its maker would."""
    for name in ("SHA256SUMS", "SHA256SUMS.sig", "signing.pub"):
        (bundle / name).unlink()
    script = "import sys, signing; from pathlib import Path; signing.seal(Path(sys.argv[1]), Path(sys.argv[2]))"
    subprocess.run([sys.executable, "-c", script, bundle, key], cwd=ROOT / "installer" / "bundling", check=True)


def fingerprint(bundle: Path) -> str:
    """Of its key, as whoever made the bundle was shown it."""
    script = "import sys, signing; from pathlib import Path; print(signing.fingerprint(Path(sys.argv[1])))"
    words = [sys.executable, "-c", script, bundle / "signing.pub"]
    return subprocess.run(words, cwd=ROOT / "installer" / "bundling", check=True, capture_output=True, text=True).stdout.strip()
