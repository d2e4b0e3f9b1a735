"""The seal of a bundle: the sha256 of every file in it, and an Ed25519 signature of that list, by openssl.

Ed25519 signs the same bytes with the same key alike each time.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from pathlib import Path

from locking import sha256
from said import Fault, run, say

LIST, SIGNATURE, PUBLIC = "SHA256SUMS", "SHA256SUMS.sig", "signing.pub"


def look_at(key: Path) -> None:
    """Raise Fault for a key that others can read: who has it makes upgrades that the boxes take."""
    if key.is_file() and stat.S_IMODE(key.stat().st_mode) & 0o077:
        raise Fault(
            f"The signing key {key} can be read by others on this machine.",
            f"chmod 600 {key}; where somebody may have copied it, use another: a box takes its signing.pub with install --key.",
        )


def seal(folder: Path, key: Path) -> str:
    """List and sign every file; the fingerprint of the key, as the installer prints it."""
    look_at(key)
    if not key.is_file():
        say(f"Making a signing key: {key}. Keep it, and keep it secret: boxes take upgrades that it signed.")
        key.parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o077)
        try:
            run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], "Making a key", "apt-get install openssl")
        finally:
            os.umask(before)
    hint = "Give an Ed25519 key in PEM form: --key FILE."
    run(["openssl", "pkey", "-in", key, "-pubout", "-out", folder / PUBLIC], "Reading the signing key", hint)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listed = [f"{sha256(folder / name)}  {name}\n" for name in names if name not in (LIST, SIGNATURE)]
    (folder / LIST).write_text("".join(listed), "utf-8")
    sign = ["openssl", "pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", folder / LIST, "-out", folder / SIGNATURE]
    run(sign, "Signing", hint)
    return fingerprint(folder / PUBLIC)


def fingerprint(public: Path) -> str:
    """Of a public key in PEM form: the first half of the SHA-256 of its DER form, in groups of four."""
    der = base64.b64decode("".join(line for line in public.read_text("ascii").splitlines() if "-----" not in line))
    digest = hashlib.sha256(der).hexdigest()[:32]
    return "-".join(digest[at : at + 4] for at in range(0, 32, 4))
