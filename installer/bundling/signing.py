"""The seal of a bundle: the sha256 of every file in it, and an Ed25519 signature of that list, by openssl."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from said import run, say

LIST, SIGNATURE, PUBLIC = "SHA256SUMS", "SHA256SUMS.sig", "signing.pub"


def seal(folder: Path, key: Path) -> str:
    """List and sign every file; the fingerprint of the key, as the installer prints it."""
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
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in (LIST, SIGNATURE):
            with open(path, "rb") as handle:
                lines.append(f"{hashlib.file_digest(handle, 'sha256').hexdigest()}  {name}\n")
    (folder / LIST).write_text("".join(lines), "utf-8")
    sign = ["openssl", "pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", folder / LIST, "-out", folder / SIGNATURE]
    run(sign, "Signing", hint)
    return fingerprint(folder / PUBLIC)


def fingerprint(public: Path) -> str:
    """Of a public key in PEM form: the first half of the SHA-256 of its DER form, in groups of four."""
    der = base64.b64decode("".join(line for line in public.read_text("ascii").splitlines() if "-----" not in line))
    digest = hashlib.sha256(der).hexdigest()[:32]
    return "-".join(digest[at : at + 4] for at in range(0, 32, 4))
