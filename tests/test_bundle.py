"""The maker of bundles: the same bytes each time, nothing that its lock does not name, and a run that was cut off goes on.

It is run as it is, on a small clone with small packages; pip, git, openssl and dpkg-deb are the real ones. What the box refuses
stands here too, without a box; `tests/machine` installs a whole bundle.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.test_installer import loaded

ROOT = Path(__file__).resolve().parents[1]
LLAMA = "0.0.1"
SCRIPT = f'LLAMA={LLAMA}\nFLAGS="-DGGML_CPU_ALL_VARIANTS=ON"\n'
BACK_ENDS = ("x64", "sse42", "sandybridge", "haswell", "skylakex", "zen4")
PROJECT = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "school-appliance"
license = "Apache-2.0"
license-files = ["LICENSE"]
dynamic = ["version"]
[tool.setuptools.dynamic]
version = { attr = "appliance.__version__" }
[tool.setuptools.packages.find]
include = ["appliance*"]
[tool.setuptools.package-data]
appliance = ["content/**/*"]
"""


def wheel(
    folder: Path, name: str, version: str = "1.0", licence: str = "MIT", tag: str = "py3-none-any", **files: bytes
) -> Path:
    """A whole wheel that pip takes. files: more of them, `__` for a slash and `_DOT_` for a dot."""
    info = f"{name}-{version}.dist-info"
    inside = {f"{name}.py": b"", f"{info}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n".encode()}
    if licence:
        inside[f"{info}/METADATA"] += f"License-Expression: {licence}\n".encode()
    inside[f"{info}/licenses/LICENSE"] = f"The licence of {name}.\n".encode()
    inside[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    inside |= {key.replace("__", "/").replace("_DOT_", "."): data for key, data in files.items()}
    lines = []
    for key, data in inside.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{key},sha256={digest},{len(data)}\n")
    inside[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for key, data in inside.items():
            packed.writestr(key, data)
    return path


def locked(*paths: Path) -> str:
    lines = ["# Made by a test.\n"]
    for path in paths:
        name, version = path.name.split("-")[:2]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}  # {path.name} {path.stat().st_size}\n")
    return "".join(lines)


def compiled(folder: Path, **more: bytes) -> Path:
    """What scripts/install would have compiled."""
    files = {f"bin__libggml-cpu-{one}_DOT_so": b"GLIBC_2.34 GLIBCXX_3.4.30" for one in BACK_ENDS}
    return wheel(folder, "llama_cpp_python", LLAMA, tag="py3-none-linux_x86_64", **files | more)


@dataclass
class School:
    """A small clone, with what was compiled for it and an index of packages."""

    clone: Path
    cache: Path
    index: Path
    key: Path

    def bundle(
        self, where: Path, *options: str, clone: Path | None = None, umask: int = -1, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        script = (clone or self.clone) / "installer" / "bundling" / "main.py"
        words = [sys.executable, script, "--key", self.key, "--without-debian-packages", *options, where]
        return subprocess.run(
            [str(word) for word in words], env=self.environment() | environment, umask=umask, cwd=where.parent,
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "PYENV_VERSION") if name in os.environ}
        return kept | {
            "HOME": str(self.cache.parent), "XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": str(ROOT),
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index), "PIP_CONFIG_FILE": os.devnull,
        }  # fmt: skip


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    folder = tmp_path_factory.mktemp("school")
    clone, index = folder / "clone", folder / "index"
    shutil.copytree(ROOT / "installer", clone / "installer", ignore=shutil.ignore_patterns("__pycache__", "locks"))
    texts = {
        "pyproject.toml": PROJECT, "appliance/__init__.py": '__version__ = "9.9.9"\n', "appliance/content/one.md": "# One\n",
        "README.md": "Read me.\n", "LICENSE": "A licence.\n", "scripts/install": SCRIPT, "scripts/kernels/hooks.patch": "",
        "systemd/web.service": "[Unit]\n",
        "models/starter/card.json": '{"licence": "Apache-2.0"}\n', "models/starter/model.safetensors": "weights\n",
        "installer/bundling/locks/debian12.txt": locked(wheel(index, "alpha"), wheel(index, "beta_two", "2.0", "BSD-3-Clause")),
    }  # fmt: skip
    for name, text in texts.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text(text)
    git = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
        subprocess.run([*git, *words], cwd=clone, check=True)
    cache = folder / "cache"
    kernels = hashlib.sha256(b"").hexdigest()[:16]
    flags = hashlib.sha256(f"{LLAMA} -DGGML_CPU_ALL_VARIANTS=ON x86_64 {kernels}\n".encode()).hexdigest()[:16]
    compiled(cache / "appliance" / "wheels" / flags)
    converter = cache / "appliance" / f"converter-{LLAMA}"
    converter.mkdir()
    (converter / "LICENSE").write_text("MIT\n")
    (converter / "convert_hf_to_gguf.py").write_text("print()\n")
    return School(clone, cache, index, folder / "key.pem")


@pytest.fixture(scope="module")
def bundle(school: School, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("stick")
    done = school.bundle(where)
    assert done.returncode == 0, done.stderr
    return where / "appliance-9.9.9-debian12-x86_64"


def everything(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Name to mode, time and content of all that is in a folder."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        facts = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (facts.st_mode, int(facts.st_mtime), digest)
    return found


# --- the same inputs, the same bytes -----------------------------------------------------------------------------------------
def test_another_machine_makes_the_same_bytes(school: School, bundle: Path, tmp_path: Path) -> None:
    """In another folder, with another clock's zone, umask, language and order of hashing; what was kept is fetched anew."""
    other = tmp_path / "another place" / "clone"
    subprocess.run(["git", "clone", "-q", school.clone, other], check=True, umask=0o077)
    cache = tmp_path / "cache"
    shutil.copytree(school.cache / "appliance", cache / "appliance", ignore=shutil.ignore_patterns("downloads", "bundle*"))
    (tmp_path / "stick").mkdir()
    done = school.bundle(
        tmp_path / "stick", clone=other, umask=0o077, XDG_CACHE_HOME=str(cache), TZ="Asia/Tokyo", LC_ALL="C.UTF-8",
        PYTHONHASHSEED="7", SOURCE_DATE_EPOCH="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = everything(bundle), everything(tmp_path / "stick" / bundle.name)
    assert len(first) > 30 and {name.partition("/")[0] for name in first} >= {
        "wheels",
        "licences",
        "sbom.json",
        "SHA256SUMS.sig",
    }
    assert [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)] == []


def test_a_bundle_says_what_it_is_and_names_every_file(bundle: Path) -> None:
    facts = json.loads((bundle / "VERSION").read_text())
    assert (facts["version"], facts["tested"], facts["system"], facts["python"]) == ("9.9.9", True, ["debian", "12"], "3.11")
    assert (
        facts["needs_mb"] >= 12
        and re.fullmatch(r"[0-9a-f]{40}", facts["commit"])
        and re.fullmatch(r"\d{4}-\d\d-\d\d", facts["made"])
    )
    words = ["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"]
    assert subprocess.run(words, cwd=bundle, check=False).returncode == 0
    listed = {line.split("  ", 1)[1] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert there - listed == {"SHA256SUMS", "SHA256SUMS.sig"} and listed <= there
    with zipfile.ZipFile(next((bundle / "wheels").glob("school_appliance-*.whl"))) as packed:
        assert "appliance/content/one.md" in packed.namelist()


def test_a_second_run_finds_it_there_and_a_changed_file_is_made_good(school: School, bundle: Path) -> None:
    (bundle / "README.md").write_text("Somebody else's.\n")
    done = school.bundle(bundle.parent)
    assert done.returncode == 0 and "looking at its files again" in done.stderr
    assert (bundle / "README.md").read_text() == "Read me.\n"
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name], "nothing half made is left on the stick"


# --- what is in it, and under which licence ----------------------------------------------------------------------------------
def test_the_bill_names_each_part_with_its_licence_and_hash(bundle: Path) -> None:
    """The rules of CycloneDX 1.5's schema that its own validators check first."""
    made = json.loads((bundle / "sbom.json").read_text())
    assert made["bomFormat"] == "CycloneDX" and made["specVersion"] == "1.5" and made["version"] == 1
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", made["serialNumber"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["metadata"]["timestamp"])
    parts = {part["name"]: part for part in made["components"]}
    kinds = {"application", "library", "machine-learning-model"}
    assert set(parts) == {"alpha", "beta-two", "llama-cpp-python", "school-appliance", "starter", "llama.cpp-converter"}
    assert len({part["bom-ref"] for part in made["components"]}) == len(made["components"])
    digests = {line[:64] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    for part in made["components"]:
        assert part["type"] in kinds and part["hashes"][0]["alg"] == "SHA-256" and part["hashes"][0]["content"] in digests
        (said,) = part["licenses"]
        assert set(said) == {"expression"} or set(said["license"]) in ({"id"}, {"name"}), part
    assert parts["beta-two"]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
    assert parts["alpha"]["purl"] == "pkg:pypi/alpha@1.0"
    assert (bundle / "licences" / "python" / "alpha" / "LICENSE").read_text() == "The licence of alpha.\n"
    listed = (bundle / "licences" / "LIST.txt").read_text()
    assert len(listed.splitlines()) == 6 and "beta-two 2.0: BSD-3-Clause (python/beta-two)" in listed


def test_a_part_whose_licence_nobody_knows_stops_the_bundle(tmp_path: Path) -> None:
    licences, said = loaded("bundling", "licences", "said")
    with pytest.raises(said.Fault, match="does not say under which licence"):
        licences.of_wheel(wheel(tmp_path, "gamma", licence=""))


def deb(folder: Path, name: str, copyright: str = "", link: str = "") -> Path:
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1:2.0~x\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: a test\n"
    )
    documents = tree / "usr" / "share" / "doc"
    documents.mkdir(parents=True)
    if link:
        (documents / name).symlink_to(link)
    else:
        (documents / name).mkdir()
        (documents / name / "copyright").write_text(copyright)
    path = folder / f"{name}_1%3a2.0~x_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, path], check=True, capture_output=True)
    shutil.rmtree(tree)
    return path


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="Debian's packages are read by dpkg-deb")
def test_debian_packages_are_listed_for_apt_and_bring_their_licences(tmp_path: Path) -> None:
    debs, bill, targets = loaded("bundling", "debs", "bill", "targets")
    folder = tmp_path / "debs"
    folder.mkdir()
    first = deb(folder, "one", "Format: https://x\n\nFiles: *\nLicense: GPL-2+\n text\n\nFiles: b\nLicense: Expat\n")
    deb(folder, "one-doc", link="one")
    listed = debs.index(folder)
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert f"Filename: ./{first.name}\nSize: {first.stat().st_size}\nSHA256: {digest}\n" in listed
    assert listed.count("Package: ") == 2 and "\n\nPackage: one\n" in listed
    (tmp_path / "wheels").mkdir()
    bill.write(tmp_path, targets.DEBIAN, "9", 0)
    parts = {part["name"]: part for part in json.loads((tmp_path / "sbom.json").read_text())["components"]}
    assert [one["license"]["name"] for one in parts["one-doc"]["licenses"]] == ["GPL-2+", "Expat"]
    assert parts["one"]["purl"] == "pkg:deb/debian/one@1%3A2.0~x?arch=all&distro=bookworm"
    assert (tmp_path / "licences" / "debian" / "one-doc.txt").read_text().startswith("Format:")


def test_what_the_box_installs_is_what_the_bundle_brings() -> None:
    (debs,), (machine,) = loaded("bundling", "debs"), loaded("target", "machine")
    assert debs.PACKAGES == machine.PACKAGES


# --- the lock, and what the index gives --------------------------------------------------------------------------------------
def test_each_lock_names_what_the_program_needs_at_the_pinned_versions() -> None:
    """After a pin has changed: installer/bundle --relock, and look at the change."""
    locking, targets = loaded("bundling", "locking", "targets")
    pins = dict(re.findall(r"(?m)^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
    pins = {locking.plain(name): version for name, version in pins.items()}
    for target in (targets.DEBIAN, targets.DEBIAN_CUDA, targets.UBUNTU_CUDA):
        found = {one.name: one.version.partition("+")[0] for one in locking.read(target)}
        wanted = {name: pins[name] for name in locking.needed(target.python) if name != locking.COMPILED}
        assert {name: found.get(name) for name in wanted} == wanted, target.said
        extra = set(found) - set(wanted)
        assert not extra if not target.cuda else all(name.startswith(("nvidia-", "cuda-", "triton")) for name in extra), extra


@pytest.mark.parametrize(
    "line",
    ["alpha==1.0", "alpha==1.0 --hash=md5:1234  # alpha-1.0-py3-none-any.whl 7",
     f"alpha==1.0 --hash=sha256:{'0' * 64}  # alpha-1.0.tar.gz 7", f"alpha>=1.0 --hash=sha256:{'0' * 64}  # a-1.0-py3.whl 7"],
)  # fmt: skip
def test_a_lock_without_a_hash_or_with_a_source_package_is_refused(tmp_path: Path, line: str) -> None:
    locking, targets, said = loaded("bundling", "locking", "targets", "said")
    (tmp_path / "debian12.txt").write_text(f"# A lock.\n{line}\n")
    with pytest.raises(said.Fault, match=r"Line 2 of debian12\.txt"):
        locking.read(targets.DEBIAN, tmp_path)
    with pytest.raises(said.Fault, match=r"Nobody has locked.*Ubuntu"):
        locking.read(targets.UBUNTU, tmp_path)


@dataclass
class Index:
    """A package index that is a folder, and what the maker keeps of it."""

    folder: Path
    kept: Path
    modules: list[Any]

    def collect(self, lock: str) -> None:
        locking, targets, wheels = self.modules
        (self.kept.parent / "debian12.txt").write_text(lock)
        wheels.collect(targets.DEBIAN, locking.read(targets.DEBIAN, self.kept.parent), self.kept)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index"), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return Index(tmp_path / "index", tmp_path / "kept", loaded("bundling", "locking", "targets", "wheels"))


def test_a_wheel_that_was_swapped_in_the_index_is_refused(index: Index) -> None:
    (said,) = loaded("bundling", "said")
    lock = locked(wheel(index.folder, "alpha"))
    wheel(index.folder, "alpha", more=b"what somebody put there")
    with pytest.raises(said.Fault, match=r"for alpha is not the file that the lock names"):
        index.collect(lock)
    assert not list(index.kept.glob("*.whl"))


def test_a_source_package_is_refused_and_not_built(index: Index, tmp_path: Path) -> None:
    (said,) = loaded("bundling", "said")
    path = wheel(index.folder, "alpha")
    lock = locked(path)
    path.unlink()
    with tarfile.open(index.folder / "alpha-1.0.tar.gz", "w:gz") as tar:
        text = f"open({str(tmp_path / 'it-ran')!r}, 'w')\n".encode()
        member = tarfile.TarInfo("alpha-1.0/setup.py")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    with pytest.raises(said.Fault, match=r"no wheel of alpha==="):
        index.collect(lock)
    assert not (tmp_path / "it-ran").exists()


def test_no_line_to_the_index_is_said_and_what_was_fetched_is_kept(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stopped goes on, also after a kill in the middle; what was kept and is damaged is fetched again."""
    said, wheels = loaded("bundling", "said", "wheels")
    monkeypatch.setattr(wheels, "GROUP_FILES", 1)
    first, second = wheel(index.folder, "alpha"), wheel(index.folder, "beta")
    lock, aside = locked(first, second), index.folder.parent / "aside"
    second.rename(aside)
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_NO_INDEX": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(said.Fault, match="cannot be reached") as caught:
        index.collect(lock)
    assert "goes on" in caught.value.hint and [path.name for path in index.kept.glob("*.whl")] == [first.name]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    first.unlink()
    aside.rename(second)
    (index.kept / ".part-killed").mkdir()
    (index.kept / ".part-killed" / "half.whl").write_bytes(b"PK")
    index.collect(lock)
    assert sorted(path.name for path in index.kept.iterdir()) == ["alpha-1.0-py3-none-any.whl", "beta-1.0-py3-none-any.whl"]
    (index.kept / second.name).write_bytes(b"damaged")
    index.collect(lock)
    assert (index.kept / second.name).read_bytes() == second.read_bytes()


# --- llama.cpp ---------------------------------------------------------------------------------------------------------------
def test_the_clone_and_the_bundle_have_the_same_compiled_wheel() -> None:
    """Where scripts/install keeps it by its own words, and each library in it as it is installed here."""
    wheels, said = loaded("bundling", "wheels", "said")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance"
    lines = [line.strip() for line in (ROOT / "scripts" / "install").read_text().splitlines()]
    named = [line for line in lines if line.startswith(("LLAMA=", "FLAGS=", "KERNELS=", "CACHE=", "kept="))]
    script = "\n".join([*named, 'echo "$kept"'])
    asked = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    try:
        path = wheels.compiled(ROOT, cache)
    except said.Fault:
        pytest.skip("the compiled wheel of llama-cpp-python is not kept on this machine")
    assert str(path.parent) == asked.stdout.strip()
    libraries = 0
    with zipfile.ZipFile(path) as packed:
        for name in packed.namelist():
            if name.endswith(".so"):
                place = next(Path(one) / name for one in sys.path if (Path(one) / name).is_file())
                assert hashlib.sha256(place.read_bytes()).digest() == hashlib.sha256(packed.read(name)).digest(), name
                libraries += 1
    assert libraries >= 15


def test_what_was_compiled_for_one_processor_or_a_newer_system_goes_to_no_school(tmp_path: Path) -> None:
    wheels, targets, said = loaded("bundling", "wheels", "targets", "said")
    wheels.runs_on(compiled(tmp_path / "good"), targets.DEBIAN)
    native = wheel(tmp_path / "native", "llama_cpp_python", lib__libggml_DOT_so=b"")
    with pytest.raises(said.Fault, match="this machine's processor only"):
        wheels.runs_on(native, targets.DEBIAN)
    newer = compiled(tmp_path / "newer", lib__libllama_DOT_so=b"GLIBC_2.4 GLIBC_2.38")
    wheels.runs_on(newer, targets.UBUNTU)
    with pytest.raises(said.Fault, match="newer system than Debian 12"):
        wheels.runs_on(newer, targets.DEBIAN)


# --- before anything is made -------------------------------------------------------------------------------------------------
def test_a_dry_run_says_sizes_and_what_is_lacking_and_makes_nothing(school: School, tmp_path: Path) -> None:
    (tmp_path / "stick").mkdir()
    fresh = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    done = school.bundle(tmp_path / "stick", "--dry-run", "--key", str(tmp_path / "no.pem"), **fresh)
    assert done.returncode == 1, done.stderr
    assert "Python packages    2, " in done.stdout and "2 to fetch" in done.stdout and "which would be made" in done.stdout
    assert "LACKING: llama-cpp-python 0.0.1 is not compiled yet" in done.stdout
    done = school.bundle(tmp_path / "nowhere", "--dry-run", "--target", "ubuntu2404", "--cuda")
    assert done.returncode == 1 and "NO: nobody has installed such a bundle yet" in done.stdout
    assert "LACKING: There is no folder" in done.stdout and "LACKING: Nobody has locked" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["stick"] and not list((tmp_path / "stick").iterdir())


def test_a_key_that_others_can_read_signs_nothing(school: School, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch(mode=0o644)
    done = school.bundle(tmp_path, "--key", str(key))
    assert done.returncode == 1 and "can be read by others" in done.stderr and "Try: chmod 600" in done.stderr


def test_a_change_that_is_not_committed_is_said(school: School, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", school.clone, clone], check=True)
    (clone / "README.md").write_text("Changed.\n")
    done = school.bundle(tmp_path, clone=clone)
    assert done.returncode == 1 and "not committed" in done.stderr


def test_a_full_disk_is_seen_before_and_a_refusal_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, said = loaded("bundling", "place", "said")
    monkeypatch.setattr(place, "free", lambda _folder: 100_000_000)
    place.room(tmp_path, 200_000_000, 150_000_000, "The bundle")
    with pytest.raises(said.Fault, match=r"needs 200 MB below .* and 100 MB are free") as caught:
        place.room(tmp_path, 200_000_000, 0, "The bundle")
    assert "Free 107 MB" in caught.value.hint
    for number, words in {errno.ENOSPC: "disk is full", errno.EROFS: "cannot be written", errno.EIO: "medium fails"}.items():
        fault = said.of_the_system(OSError(number, os.strerror(number), "/media/usb/x"))
        assert words in fault.message and "/media/usb/x" in fault.message and fault.hint


def test_models_that_the_school_chose_are_looked_at_first(tmp_path: Path) -> None:
    chosen, said = loaded("bundling", "chosen", "said")
    model = chosen.look(ROOT / "models" / "starter", "")
    assert model.licence.startswith("Apache-2.0") and model.size > 10_000_000
    brought = tmp_path / "brought"
    shutil.copytree(ROOT / "models" / "starter", brought, ignore=shutil.ignore_patterns("README.md", "card.json"))
    with pytest.raises(said.Fault, match="under which licence"):
        chosen.look(brought, "")
    chosen.put(chosen.look(brought, "MIT"), tmp_path / "chosen", shutil.copyfile)
    assert json.loads((tmp_path / "chosen" / "brought" / "card.json").read_text())["licence"] == "MIT"
    (brought / "weights.bin").write_bytes(b"")
    with pytest.raises(said.Fault, match="can run code"):
        chosen.look(brought, "MIT")


# --- onto the stick ----------------------------------------------------------------------------------------------------------
def test_a_copy_that_was_cut_off_goes_on(tmp_path: Path, bundle: Path) -> None:
    (place,) = loaded("bundling", "place")
    done = tmp_path / bundle.name
    part = tmp_path / f".{bundle.name}.part"
    shutil.copytree(bundle, part, ignore=shutil.ignore_patterns("systemd"))
    whole = part / "LICENSE"
    os.utime(whole, (1, 1))
    (part / "README.md").write_text("Re")
    (part / "of-an-earlier-one").write_text("")
    (part / "VERSION").unlink()
    (part / "VERSION").symlink_to("/etc/hostname")
    place.put(bundle, done)
    assert (done / "LICENSE").stat().st_mtime == 1, "what was there whole was not written again"
    whole = done / "LICENSE"
    os.utime(whole, ns=((bundle / "LICENSE").stat().st_mtime_ns,) * 2)
    assert everything(done) == everything(bundle) and not part.exists()


def test_a_stick_that_does_not_give_back_what_was_written(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, said = loaded("bundling", "place", "said")
    monkeypatch.setattr(place, "like", lambda _source, target: target.name == "LICENSE" and target.write_bytes(b"\0"))
    with pytest.raises(said.Fault, match=r"LICENSE is not on .* the medium fails"):
        place.put(bundle, tmp_path / bundle.name)
    assert not (tmp_path / bundle.name).exists()


# --- what the box refuses ----------------------------------------------------------------------------------------------------
@dataclass
class Box:
    """The box's look at a bundle, before it changes anything."""

    bundle: Path
    os_release: Path

    def look(self, *, old: bool = False, **facts: Any) -> str:
        (bundled,) = loaded("target", "bundled")
        said: list[str] = []
        given = json.loads((self.bundle / "VERSION").read_text()) | facts
        bundled.refuse_unfit(self.bundle, given, self.os_release, self.bundle / "release", said.append, old=old)
        return " ".join(said)

    def refused(self, match: str, **facts: Any) -> None:
        (changes,) = loaded("target", "changes")
        with pytest.raises(changes.Fault, match=match) as caught:
            self.look(**facts)
        assert caught.value.hint


@pytest.fixture
def box(tmp_path: Path, bundle: Path) -> Box:
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "os-release").write_text('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n')
    return Box(tmp_path / "bundle", tmp_path / "os-release")


def test_the_box_takes_a_sound_bundle_and_says_what_nobody_tested(box: Box) -> None:
    assert box.look() == ""
    said = box.look(tested=False, system_name="Debian 12 with CUDA")
    assert "Debian 12 with CUDA, which nobody has tested" in said and said.count(".") == 1


def test_the_box_refuses_another_systems_bundle_and_an_expired_one(box: Box) -> None:
    box.refused("for Ubuntu 24\\.04, and this machine is Debian", system=["ubuntu", "24.04"], system_name="Ubuntu 24.04")
    box.refused("format 2", format=2)
    box.refused(r"MB are free below .* and this bundle needs 999999999", needs_mb=999_999_999)
    years_ago = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 4 * 365 * 86400))
    box.refused("has expired", made=years_ago)
    assert box.look(old=True, made=years_ago) == ""
    soon = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 9 * 86400))
    box.refused("This machine believes it is", made=soon)


def test_the_box_refuses_a_wheelhouse_that_is_not_as_its_lock(box: Box) -> None:
    lock, wheels = box.bundle / "requirements.lock", box.bundle / "wheels"
    good = lock.read_text()
    lock.write_text(re.sub(r"(alpha==1\.0) --hash=\S+", r"\1", good))
    box.refused("names no package with its sha256: 'alpha==1.0'")
    lock.write_text(good + f"gamma==1.0 --hash=sha256:{'0' * 64}\n")
    box.refused("lacks the wheel of gamma")
    lock.write_text(good)
    (wheels / "gamma-1.0.tar.gz").write_bytes(b"")
    box.refused(r"gamma-1\.0\.tar\.gz is no wheel")
    (wheels / "gamma-1.0.tar.gz").unlink()
    wheel(wheels, "gamma")
    box.refused("gamma-1.0.* is not the wheel that the bundle's lock names")
    (wheels / "gamma-1.0-py3-none-any.whl").unlink()
    for name in ("evil_DOT_pth", "sitecustomize_DOT_py", "alpha-1_DOT_0_DOT_data__purelib__usercustomize_DOT_py"):
        digest = hashlib.sha256(wheel(wheels, "alpha", **{name: b"import os"}).read_bytes()).hexdigest()
        lock.write_text(re.sub(r"(alpha==1\.0 --hash=sha256:)\S+", rf"\g<1>{digest}", good))
        box.refused("at every start of Python")
    wheel(wheels, "alpha", more=b"swapped")
    box.refused("alpha-1.0.* is not the wheel")


@pytest.mark.skipif(os.geteuid() != 0, reason="the installer looks at nothing unless it is root")
def test_links_and_ways_out_of_the_folder_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    (signing,) = loaded("bundling", "signing")
    bundle = tmp_path / "bundle"
    (bundle / "target").mkdir(parents=True)
    shutil.copy(ROOT / "installer" / "install", bundle / "install")
    (bundle / "target" / "main.py").write_text("raise SystemExit('it went on')\n")
    (bundle / "VERSION").write_text("{}")
    signing.seal(bundle, tmp_path / "key.pem")

    def tried() -> tuple[int, str]:
        words = [bundle / "install", "--key", tmp_path / "signing.pub"]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    shutil.copy(bundle / "signing.pub", tmp_path)
    assert "it went on" in tried()[1]
    (bundle / "target" / "SHA256SUMS").write_text("")
    code, said = tried()
    assert code == 1 and "does not name: target/SHA256SUMS" in said and "it went on" not in said
    (bundle / "target" / "SHA256SUMS").unlink()
    for make in (lambda path: path.symlink_to(tmp_path / "VERSION"), os.mkfifo):
        (bundle / "VERSION").rename(tmp_path / "VERSION")
        make(bundle / "VERSION")
        code, said = tried()
        assert code in (1, 3) and "Error: " in said and "it went on" not in said
        (bundle / "VERSION").unlink()
        (tmp_path / "VERSION").rename(bundle / "VERSION")
    listed = (bundle / "SHA256SUMS").read_text()
    (bundle / "SHA256SUMS").write_text(listed + f"{hashlib.sha256(b'{}').hexdigest()}  ../outside\n")
    (tmp_path / "outside").write_text("{}")
    words = ["openssl", "pkeyutl", "-sign", "-inkey", tmp_path / "key.pem", "-rawin", "-in", bundle / "SHA256SUMS"]
    subprocess.run([*words, "-out", bundle / "SHA256SUMS.sig"], check=True)
    code, said = tried()
    assert code == 3 and "names a file outside of it: ../outside" in said and "it went on" not in said
