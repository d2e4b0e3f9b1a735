"""Takes a model that somebody brought on a stick into the registry, and copies one out.

Hides the order that makes this safe: the stranger's files are copied first and only the copy is judged, because a stick can
change between two looks; headers are read without a native parser (`engine.inspect`); what can loop, crash or fill the memory
(the chat template, llama.cpp reading the file) happens in a child process with limits; only then is the model registered, in
one rename. It does not judge how well a model answers, and a model imported as GGUF alone can be served but not tuned.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from appliance import guard, network
from appliance.engine.handler import Message
from appliance.engine.inspect import GGUFFacts, check_hf_folder, check_template, read_gguf
from appliance.errors import (
    ApplianceError,
    BadInput,
    Conflict,
    ModelUnavailable,
    NotFound,
    StorageFull,
    UnderWay,
    Unsupported,
    from_os_error,
)
from appliance.files import sha256_of, sync
from appliance.registry import Manifest, Registry
from appliance.settings import PACKAGE
from appliance.tuning.gguf import KEPT, export_base, export_merged, folder_digest, install_base
from appliance.tuning.parity import SAMPLES, Reference, chat_template, parity, served_reference
from appliance.tuning.quantise import Kind, quantise

Format = Literal["gguf", "merged", "adapter"]

PIECE = 4 * 2**20
SPARE = 64 * 2**20  # bytes of disk that stay free beside the model
TOLD = 3  # exit code of a child that said what is wrong
PROBE_CONTEXT = 512  # tokens: enough to load; a long context would only take memory
PROBE_MEMORY = 3 * 2**30  # for the chat template, which needs a few megabytes, and the tables of a tokenizer
CHECK_SECONDS = 30  # for headers, JSON and the chat template
LOAD_SECONDS = 120
PROBE_BYTES_PER_SECOND = 50 * 2**20  # a slow disk
# Each byte that UTF-8 text can hold, in letters that no small vocabulary has.
EVERY_BYTE = "".join(
    chr(code) for code in (*range(1, 0x100), *range(0x100, 0x800, 7), *range(0x800, 0x10FFFF, 0xFED)) if code >> 11 != 0x1B
)  # fmt: skip


# --- in ---------------------------------------------------------------------------------------------------------------------


def import_model(
    registry: Registry, path: Path, *, licence: str | None = None, id: str | None = None, starter: Path | None = None
) -> Manifest:
    """Validate a GGUF file or a Hugging Face folder, copy it, load it once in a child process, and register it.

    licence: of the model, where its files name none. id: its name here, derived from its own where None. starter: the
    folder of the model that comes with the box, so that a copy of it keeps its mark. The same model again is a no-op.
    Raises BadInput, Unsupported naming the architecture, StorageFull, Conflict, UnderWay; then nothing is registered.
    """
    if id is not None and id != _slug(id):
        raise BadInput(f"{id!r} cannot be the name of a model.", "Use small letters, digits, dots and dashes, 48 at most.")
    try:
        with _staging(registry) as staging:
            if path.is_dir():
                return _import_folder(registry, path, staging, licence, id, starter)
            return _import_file(registry, path, staging, licence, id)
    except OSError as error:
        raise from_os_error(error, f"importing {path.name}") from None


@contextmanager
def _staging(registry: Registry) -> Iterator[Path]:
    """A folder for unfinished copies; what a killed import left there goes first. One import at a time."""
    registry.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = registry.root / ".import"
    with open(registry.root / ".import.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnderWay("Another model is being imported or made.", "Wait until it is done, then try again.") from None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _import_file(registry: Registry, path: Path, staging: Path, licence: str | None, id: str | None) -> Manifest:
    _plain_file(path)
    facts = read_gguf(path)
    _usable(path, facts)
    terms = _plain(licence or facts.licence)
    if not terms:
        raise BadInput(f"{path.name} does not say under which licence it stands.", "Name it with --licence.")
    _room(registry, path.stat().st_size)
    draft = staging / "new"
    draft.mkdir()
    digest = _copy(path, draft / "model.gguf")
    if read_gguf(draft / "model.gguf") != facts or sha256_of(draft / "model.gguf") != digest:
        raise BadInput(f"{path.name} changed while it was copied.", "Check the stick, then import it again.")
    known = _known(registry, {"model.gguf": digest}, id)
    if known is not None:
        return known
    probe(draft / "model.gguf", path.name)
    return registry.add(
        draft, id=id or f"{_slug(facts.name or path.stem)}-{digest[:8]}", kind="base", title=_plain(facts.name or path.stem),
        licence=terms, context=facts.context, starter=facts.starter or _is_starter(registry, digest),
    )  # fmt: skip


def _usable(path: Path, facts: GGUFFacts) -> None:
    """Raise BadInput where a sound file is not a model that can talk."""
    if facts.kind == "adapter":
        raise BadInput(f"{path.name} is an adapter, which is nothing without its base model.", "Import a whole model.")
    if not facts.architecture or not facts.tensors:
        raise BadInput(f"{path.name} holds no weights.", "Import a model, not only its vocabulary.")
    if not facts.context:
        raise BadInput(f"{path.name} does not say how many tokens it can hold.", "Use another copy of the model.")
    if not facts.template:
        raise BadInput(f"{path.name} has no chat template.", "Use a model made for conversation ('instruct' or 'chat').")


def _import_folder(
    registry: Registry, path: Path, staging: Path, licence: str | None, id: str | None, starter: Path | None
) -> Manifest:
    sources = sorted({found for pattern in KEPT for found in path.glob(pattern)})
    for source in sorted(path.iterdir()):
        _plain_file(source)
    # The copy, and the GGUF made of it: in 16 bits, so never larger than weights of 16 or 32.
    _room(registry, 2 * sum(source.stat().st_size for source in sources))
    probe(path, path.name)  # names what lies in the folder beside what is copied
    copies = staging / "copies"
    (copies / "hf").mkdir(parents=True)
    digests = {f"hf/{source.name}": _copy(source, copies / "hf" / source.name) for source in sources}
    probe(copies / "hf", path.name)
    terms = _plain(licence or _licence_of(copies / "hf"))
    if not terms:
        raise BadInput(f"The model in {path.name} does not say under which licence it stands.", "Name it with --licence.")
    known = _known(registry, digests, id)
    if known is not None:
        return known
    digest = folder_digest(copies / "hf")
    if starter is not None and digest == folder_digest(starter):
        return install_base(registry, copies / "hf", id=id, starter=True, licence=terms)
    if not chat_template(copies / "hf"):
        raise BadInput(f"The model in {path.name} has no chat template.", "Use a model made for conversation.")
    name = id or f"{_slug(path.resolve().name)}-{digest[:8]}"
    draft = copies.rename(staging / name)
    _export(draft, name, terms)
    facts = read_gguf(draft / "model.gguf")
    probe(draft / "model.gguf", path.name)
    return registry.add(
        draft, id=name, kind="base", title=_plain(path.resolve().name), licence=terms, context=facts.context
    )  # fmt: skip


def _export(draft: Path, name: str, terms: str) -> None:
    try:
        export_base(draft / "hf", draft / "model.gguf", name, licence=terms)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError, struct.error) as error:
        raise BadInput(
            f"The model's config.json, tokenizer and weights do not fit together ({type(error).__name__}: {error}).",
            "Copy or download the model again, or use another one.",
        ) from None


def _known(registry: Registry, digests: dict[str, str], id: str | None) -> Manifest | None:
    """The registered model with these files, under the asked name where one is asked. Raises Conflict where that is taken."""
    for manifest in registry.list():
        have = {name: fact.sha256 for name, fact in manifest.files.items()}
        same = manifest.kind == "base" and all(have.get(name) == digest for name, digest in digests.items())
        if same and id in (None, manifest.id):
            try:
                return registry.verify(manifest.id)
            except ModelUnavailable:
                raise Conflict(
                    f"The model {manifest.id!r} is here already, and its files were damaged since.",
                    f"Import it under another name with --name, or first run `appliance models remove {manifest.id}`.",
                ) from None
        if manifest.id == id:
            raise Conflict(f"There is another model called {id!r} already.", "Choose another name with --name.")
    return None


def _is_starter(registry: Registry, digest: str) -> bool:
    """Whether this file is the starter's under another name: its mark goes with it."""
    return any(known.starter and known.files["model.gguf"].sha256 == digest for known in registry.list() if not known.base)


def _plain_file(path: Path) -> None:
    """Raise where this is no ordinary file: a pipe would never end, a folder is no model's file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", "Check the path; is the stick plugged in?") from None
    if not stat.S_ISREG(mode):
        what = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no plain file"
        raise BadInput(f"{path.name} is {what}; a model is made of plain files.", "Give the real file or folder.")


def _room(registry: Registry, needed: int) -> None:
    free = shutil.disk_usage(registry.root).free
    if free < needed + SPARE:
        raise StorageFull(
            f"The model needs {(needed + SPARE) / 1e6:.0f} MB of disk and {free / 1e6:.0f} MB are free.",
            "Remove a model (`appliance models remove ID`) or other files.",
        )


def _copy(source: Path, target: Path) -> str:
    """Copy a file into a new one and flush it; its sha256, computed from the bytes as they were written. Raises OSError."""
    digest = hashlib.sha256()
    # A link that took the file's place since we looked is not followed, and a pipe does not hold us up.
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb", buffering=0) as reading, target.open("xb") as writing:
        while data := reading.read(PIECE):
            digest.update(data)
            writing.write(data)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest()


def _licence_of(folder: Path) -> str:
    """What the model card's front matter names; empty where it names nothing."""
    card = folder / "README.md"
    text = card.read_bytes()[:65536].decode("utf-8", "replace") if card.is_file() else ""
    found = re.search(r"^licen[cs]e:[ \t]*(\S.*)$", text, re.M | re.I)
    return found.group(1) if found else ""


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:48].strip("-._") or "model"


def _plain(text: str) -> str:
    """A stranger's words as one short line that can be shown on a terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text[:1000]).split())[:120]


# --- the child that may die -------------------------------------------------------------------------------------------------


def probe(path: Path, shown: str) -> None:
    """Check a Hugging Face folder, or load a GGUF and close it again, in a process of its own.

    shown: what the person calls it. Raises BadInput: what the child found, that it crashed, or that it did not end in time.
    """
    load = LOAD_SECONDS + (path.stat().st_size // PROBE_BYTES_PER_SECOND if path.is_file() else 0)
    environment = os.environ | {
        "GGML_NO_BACKTRACE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "appliance.tuning.importing", str(CHECK_SECONDS), str(load), str(path)]
    slow = BadInput(f"{shown} could not be checked and loaded in time.", "Use another copy, or a smaller model.")
    try:
        limit = CHECK_SECONDS + load + 60  # the child ends itself first; this is for one that no longer can
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=limit)
    except subprocess.TimeoutExpired:
        raise slow from None
    if done.returncode == 0:
        return
    if done.returncode == TOLD or (done.returncode == -signal.SIGABRT and done.stdout):
        fault = json.loads(done.stdout)
        raise BadInput(re.sub(rf"\b{re.escape(path.name)}\b", lambda _found: shown, fault["message"]), fault["hint"])
    if done.returncode == -signal.SIGALRM:
        raise slow
    why = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise BadInput(
        f"Loading {shown} ended the process that tried it ({why}): it is damaged, or this machine has too little memory.",
        "Use another copy, or a smaller model.",
    )


def _child(check: int, load: int, path: Path) -> int:
    network.stay_offline()
    guard.install()
    # The kernel's own clock: it also ends a child that hangs in native code, or whose parent was killed.
    signal.alarm(check)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = PROBE_MEMORY if before[1] == resource.RLIM_INFINITY else min(PROBE_MEMORY, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        if path.is_dir():
            check_hf_folder(path)
            return 0
        facts = read_gguf(path)
        check_template(facts.template, path.name)
        resource.setrlimit(resource.RLIMIT_AS, before)  # the weights may need more
        signal.alarm(load)
        asyncio.run(_load(path, facts))
    except ApplianceError as error:
        return _tell(error.message, error.hint)
    except MemoryError:
        return _tell(f"{path.name} needs more memory to be checked than any model.", "Use another copy of the model.")
    return 0


async def _load(path: Path, facts: GGUFFacts) -> None:
    from appliance.engine.scheduler import LlamaHandler

    handler = LlamaHandler(path, threads=1, context=min(facts.context, PROBE_CONTEXT))
    try:
        await handler.start()
    except ModelUnavailable as error:
        raise BadInput(error.message, "Use another copy, or a smaller model.") from None
    # Said beforehand: llama.cpp ends the process at a letter that a vocabulary has neither a token nor bytes for.
    _tell(f"{path.name} has no tokens for every letter that a pupil may type.", "Use a model with a larger vocabulary.")
    sys.stdout.flush()
    await handler.count([Message("user", EVERY_BYTE)])
    await handler.close()


def _tell(message: str, hint: str) -> int:
    sys.stdout.write(json.dumps({"message": message, "hint": hint}))
    return TOLD


# --- out --------------------------------------------------------------------------------------------------------------------


def export_model(
    registry: Registry, name: str, path: Path, kind: Format | None = None, rounded: Kind | None = None
) -> tuple[Path, str]:
    """Copy a model's file out, each byte compared with what was registered; where it went, and its sha256.

    kind: the base model's file, the adapter's, or both merged into one that needs no other; None takes what the model is.
    rounded: make it smaller first. path: a new file, or a folder to put it in. What is made here is compared with what is
    served before it goes out. Raises Conflict where the file is there already, BadInput where the model has no such part,
    ModelUnavailable, Unsupported, StorageFull.
    """
    manifest = registry.get(name)
    if manifest.kind == "hosted":
        raise Unsupported(f"{manifest.id} is on another machine: there is no file to copy.", "Ask who runs that machine.")
    kind = kind or ("adapter" if manifest.kind == "adapter" else "gguf")
    file = "adapter.gguf" if kind == "adapter" else "model.gguf"
    if kind == "merged" and manifest.base is None:
        raise BadInput(f"The model {manifest.id!r} is whole already.", "Export it with --format gguf.")
    if kind == "adapter" and rounded:
        raise BadInput("An adapter cannot be made smaller by itself.", "Export it with --format merged.")
    if kind != "merged" and file not in manifest.files:
        other = "adapter" if file == "model.gguf" else "gguf"
        also = f", and its base with `appliance models export {manifest.base} PATH`" if manifest.base else ""
        raise BadInput(f"The model {manifest.id!r} has no {file}.", f"Export it with --format {other}{also}.")
    registry.verify(manifest.id)
    target = path / f"{manifest.id}{f'-{rounded}' if rounded else ''}.gguf" if path.is_dir() else path
    try:
        if target.exists() or target.is_symlink():
            raise Conflict(f"{target} is there already.", "Choose another name, or remove it first.")
        if kind != "merged" and not rounded:
            return target, _put(registry.folder(manifest.id) / file, target, manifest.files[file].sha256)
        # Made on the registry's disk: a stick is slow, and its file system may know no links.
        with _staging(registry) as staging:
            made = _made(registry, manifest, staging, merged=kind == "merged", rounded=rounded)
            return target, _put(made, target, sha256_of(made))
    except FileExistsError:
        raise Conflict(f"{target} appeared meanwhile.", "Choose another name, or remove it first.") from None
    except OSError as error:
        raise from_os_error(error, f"writing {target.name}") from None


def _put(source: Path, target: Path, digest: str) -> str:
    size = source.stat().st_size
    if shutil.disk_usage(target.parent).free < size:
        raise StorageFull(f"{target.parent} has no room for {size / 1e6:.0f} MB.", "Free some space there.")
    _copy_out(source, target.with_name(f".{target.name}.{os.getpid()}.part"), target, digest)
    return digest


def _made(registry: Registry, manifest: Manifest, staging: Path, *, merged: bool, rounded: Kind | None) -> Path:
    """A file that is not in the registry, made of a model that is: merged with its base, made smaller, or both.

    It must say what the files say that are served, which were compared with the trained model before they were registered.
    """
    folder = registry.folder(manifest.id)
    base = folder if manifest.base is None else registry.folder(registry.verify(manifest.base).id)
    made, served, worn = base / "model.gguf", base / "model.gguf", None
    if merged:
        if not (base / "hf" / "config.json").is_file() or not (folder / "hf" / "adapter_config.json").is_file():
            raise BadInput(
                f"The model {manifest.id!r} or its base is here as GGUF only, which cannot be merged.",
                "Export it with --format adapter, and its base by its own name.",
            )
        # In 32 bits, then in 16: six bytes for each two of the base.
        _room(registry, 3 * sum(path.stat().st_size for path in (base / "hf").glob("*.safetensors")))
        made = staging / "merged.gguf"
        worn = folder / "adapter.gguf" if "adapter.gguf" in manifest.files else None
        served = served if worn else made
        export_merged(
            base / "hf", folder / "hf", made, manifest.id, licence=manifest.licence, starter=manifest.starter
        )  # fmt: skip
    if rounded:
        quantise(made, staging / "rounded.gguf", rounded)
        made = staging / "rounded.gguf"
    if made != served:
        asyncio.run(_compare(served, worn, made, rounded or "F16"))
    return made


async def _compare(base: Path, adapter: Path | None, made: Path, kind: Kind) -> None:
    """Raise ApplianceError where the new file says something else than what is served."""
    from appliance.engine.scheduler import LlamaHandler

    references: list[Reference] = []
    for handler in (LlamaHandler(base, adapter, context=PROBE_CONTEXT), LlamaHandler(made, context=PROBE_CONTEXT)):
        await handler.start()
        try:
            if references:
                await parity(references, SAMPLES, handler, kind)
            else:
                references = await served_reference(handler, SAMPLES)
        finally:
            await handler.close()


def _copy_out(source: Path, aside: Path, target: Path, expected: str) -> None:
    try:
        if _copy(source, aside) != expected:
            raise BadInput(f"{source.name} changed while it was copied.", "Run `appliance models verify`.")
        # Takes the name only where it is free; a hard link would do it in one step, but sticks know none.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        os.replace(aside, target)
        sync(target.parent)
    finally:
        aside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(_child(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
