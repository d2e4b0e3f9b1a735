"""A model from a stick: taken whole and checked, or refused with nothing left behind; and copied out as it was registered."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.inspect import read_gguf
from appliance.errors import ApplianceError, BadInput, Conflict, ModelUnavailable, NotFound, StorageFull, UnderWay, Unsupported
from appliance.files import sha256_of
from appliance.registry import Registry
from appliance.settings import Settings
from appliance.tuning import importing
from appliance.tuning.gguf import export_adapter, export_base, install_base
from appliance.tuning.importing import export_model, import_model
from appliance.tuning.pipeline import tune

pytestmark = pytest.mark.llama


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    return Registry(tmp_path / "models")


@pytest.fixture(scope="module")
def tiny_gguf(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("brought") / "Tiny Tutor.gguf"
    export_base(tiny, out)
    return out


@pytest.fixture
def stick(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "stick" / "Tiny Model"))


def with_template(source: Path, target: Path, template: str) -> Path:
    """The same model file with another chat template of the same length, padded with spaces."""
    old = read_gguf(source).template.encode()
    new = template.encode()
    assert len(new) <= len(old)
    target.write_bytes(source.read_bytes().replace(old, new + b" " * (len(old) - len(new))))
    return target


def nothing_is_left(registry: Registry) -> bool:
    return not registry.list() and not [path for path in registry.root.iterdir() if path.is_dir()]


def change(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


# --- GGUF -------------------------------------------------------------------------------------------------------------


def test_a_file_is_taken_once_with_its_digest(registry: Registry, tiny_gguf: Path) -> None:
    first = import_model(registry, tiny_gguf, licence="Apache-2.0")
    assert first.kind == "base" and first.context == 256 and first.licence == "Apache-2.0" and not first.starter
    assert first.files["model.gguf"].sha256 == sha256_of(tiny_gguf) and first.id.endswith(sha256_of(tiny_gguf)[:8])
    assert import_model(registry, tiny_gguf, licence="Apache-2.0") == first
    assert import_model(registry, tiny_gguf, licence="Apache-2.0", id=first.id) == first
    assert [manifest.id for manifest in registry.list()] == [first.id]
    assert registry.verify(first.id) == first and not (registry.root / ".import").exists()


def test_a_licence_is_asked_for(registry: Registry, tiny_gguf: Path) -> None:
    with pytest.raises(BadInput, match="licence") as caught:
        import_model(registry, tiny_gguf)
    assert "--licence" in caught.value.hint and nothing_is_left(registry)


@pytest.mark.parametrize("id", ["../up", "Big", "a/b", "champion", "", "x" * 60])
def test_names_that_are_none(registry: Registry, tiny_gguf: Path, id: str) -> None:
    with pytest.raises(BadInput, match="name"):
        import_model(registry, tiny_gguf, licence="MIT", id=id)
    assert not registry.root.exists() or nothing_is_left(registry)


def test_a_taken_name_and_a_damaged_copy_are_named(registry: Registry, tiny_gguf: Path, tmp_path: Path) -> None:
    import_model(registry, tiny_gguf, licence="MIT", id="tutor")
    other = with_template(tiny_gguf, tmp_path / "other.gguf", "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(Conflict, match="tutor"):
        import_model(registry, other, licence="MIT", id="tutor")
    with (registry.root / "tutor" / "model.gguf").open("r+b") as handle:
        handle.write(b"XXXX")
    with pytest.raises(Conflict, match="damaged"):
        import_model(Registry(registry.root), tiny_gguf, licence="MIT")


def test_what_is_no_model_is_refused_before_it_is_copied(registry: Registry, tiny_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-5000])
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny_gguf)
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    for path, kind, words in (
        (cut, BadInput, "cut short"), (link, BadInput, "a link"), (empty, BadInput, "no weights"),
        (tmp_path / "none.gguf", NotFound, "no file"), (Path("/dev/zero"), BadInput, "no plain file"),
    ):  # fmt: skip
        with pytest.raises(kind, match=words):
            import_model(registry, path, licence="MIT")
        assert nothing_is_left(registry)


def test_models_that_cannot_talk(registry: Registry, shared_data: Path) -> None:
    with pytest.raises(BadInput, match="chat template"):
        import_model(registry, shared_data / "models" / "stories260k-gguf" / "stories260K.gguf", licence="MIT")
    with pytest.raises(BadInput, match="no chat template"):
        import_model(registry, shared_data / "models" / "tinystories-656k", licence="MIT")
    assert nothing_is_left(registry)


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.popen('touch /tmp/appliance-owned').read() }}",
        "{% set a = range(99999) %}{% for x in a %}{% for y in a %}{% endfor %}{% endfor %}",
        "{{ 'x' * 9999999999 }}",
    ],
    ids=["runs code", "never ends", "fills the memory"],
)
def test_a_template_that_does_harm_dies_in_the_child(
    registry: Registry, tiny_gguf: Path, tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "CHECK_SECONDS", 4)
    bad = with_template(tiny_gguf, tmp_path / "bad.gguf", template)
    with pytest.raises(BadInput) as caught:
        import_model(registry, bad, licence="MIT")
    assert caught.value.hint and nothing_is_left(registry)
    assert not Path("/tmp/appliance-owned").exists()


def test_a_file_that_llama_cpp_cannot_load_is_not_registered(registry: Registry, tiny_gguf: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny_gguf.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    assert read_gguf(bad).tensors
    with pytest.raises(BadInput, match=r"cannot load bad\.gguf|ended the process"):
        import_model(registry, bad, licence="MIT")
    assert nothing_is_left(registry)


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGSEGV)", "os._exit(1)", "time.sleep(60)"])
def test_a_child_that_dies_or_hangs_takes_nothing_with_it(
    registry: Registry, tiny_gguf: Path, tmp_path: Path, death: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\nsignal.alarm(int(sys.argv[3]))\n{death}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(importing.sys, "executable", str(fake))
    monkeypatch.setattr(importing, "CHECK_SECONDS", 1)
    with pytest.raises(BadInput, match=r"ended the process|in time"):
        import_model(registry, tiny_gguf, licence="MIT")
    assert nothing_is_left(registry)


def test_a_stick_that_changes_while_it_is_read(registry: Registry, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = importing._copy

    def changing(source: Path, target: Path) -> str:
        digest = right(source, target)
        data = bytearray(target.read_bytes())
        data[-100] ^= 1
        target.write_bytes(data)
        return digest

    monkeypatch.setattr(importing, "_copy", changing)
    with pytest.raises(BadInput, match="changed while"):
        import_model(registry, tiny_gguf, licence="MIT")
    assert nothing_is_left(registry)


def test_no_room_and_two_at_once(registry: Registry, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.root.mkdir()
    (registry.root / ".import" / "left").mkdir(parents=True)  # by a killed import
    with monkeypatch.context() as patch:
        patch.setattr(importing, "SPARE", 2**60)
        with pytest.raises(StorageFull, match="MB"):
            import_model(registry, tiny_gguf, licence="MIT")
    assert nothing_is_left(registry)
    with open(registry.root / ".import.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UnderWay):
            import_model(registry, tiny_gguf, licence="MIT")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_taken_once_and_can_be_tuned(registry: Registry, stick: Path) -> None:
    with pytest.raises(BadInput, match="licence"):
        import_model(registry, stick)
    assert nothing_is_left(registry)
    (stick / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    first = import_model(registry, stick)
    assert first.licence == "apache-2.0" and first.id.startswith("tiny-model-") and first.context == 256
    assert {"model.gguf", "hf/model.safetensors", "hf/tokenizer.json"} <= set(first.files)
    assert import_model(registry, stick) == first and len(registry.list()) == 1


@pytest.mark.parametrize(
    ("file", "values", "kind", "words"),
    [
        ("config.json", {"architectures": ["NobodyForCausalLM"]}, Unsupported, "NobodyForCausalLM"),
        ("config.json", {"auto_map": {"AutoModel": "x.Y"}}, BadInput, "auto_map"),
        ("config.json", {"vocab_size": 3}, BadInput, "do not fit together"),
        ("config.json", {"num_attention_heads": 0}, BadInput, "cannot load"),
        ("tokenizer.json", {"model": {"type": "BPE"}}, BadInput, "do not fit together"),
        ("tokenizer.json", {"added_tokens": 7}, BadInput, "do not fit together"),
    ],
)
def test_folders_that_do_not_fit(
    registry: Registry, stick: Path, file: str, values: dict[str, Any], kind: type[Exception], words: str
) -> None:
    change(stick, file, **values)
    with pytest.raises(kind, match=words):
        import_model(registry, stick, licence="MIT")
    assert nothing_is_left(registry)


def test_a_pickle_on_the_stick_is_named_and_not_run(registry: Registry, stick: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (stick / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin"):
        import_model(registry, stick, licence="MIT")
    assert not mark.exists() and nothing_is_left(registry)


def test_the_starter_keeps_its_mark(registry: Registry, starter_gguf: Path, tmp_path: Path) -> None:
    from appliance.settings import Settings

    folder = Settings().starter
    copy = Path(shutil.copytree(folder, tmp_path / "brought"))
    taken = import_model(registry, copy, starter=folder)
    assert taken.starter and taken == install_base(registry, folder, starter=True)
    again, _ = export_model(registry, taken.id, tmp_path / "out.gguf")
    assert import_model(registry, again, licence="Apache-2.0", id="another").starter
    assert import_model(registry, starter_gguf, licence="Apache-2.0").context == 1024


# --- out --------------------------------------------------------------------------------------------------------------


def test_what_is_copied_out_is_what_was_registered(registry: Registry, tiny_gguf: Path, tmp_path: Path) -> None:
    model = import_model(registry, tiny_gguf, licence="MIT", id="tutor")
    target, digest = export_model(registry, "tutor", tmp_path / "out.gguf")
    assert sha256_of(target) == digest == model.files["model.gguf"].sha256
    folder = tmp_path / "stick"
    folder.mkdir()
    assert export_model(registry, "tutor", folder)[0] == folder / "tutor.gguf"
    assert [path.name for path in folder.iterdir()] == ["tutor.gguf"]
    with pytest.raises(Conflict, match="there already"):
        export_model(registry, "tutor", folder)
    with pytest.raises(BadInput, match=r"adapter\.gguf"):
        export_model(registry, "tutor", tmp_path / "b.gguf", "adapter")
    with pytest.raises(NotFound):
        export_model(registry, "tutor", tmp_path / "no" / "folder" / "x.gguf")
    with (registry.root / "tutor" / "model.gguf").open("r+b") as handle:
        handle.write(b"XXXX")
    with pytest.raises(ModelUnavailable, match="not what was registered"):
        export_model(Registry(registry.root), "tutor", tmp_path / "c.gguf")
    assert not (tmp_path / "b.gguf").exists() and not (tmp_path / "c.gguf").exists()


def test_an_adapter_goes_out_by_itself(registry: Registry, tmp_path: Path) -> None:
    for id, kind, file in (("b", "base", "model.gguf"), ("a", "adapter", "adapter.gguf")):
        folder = tmp_path / id
        folder.mkdir()
        (folder / file).write_bytes(id.encode())
        registry.root.mkdir(exist_ok=True)
        base = "b" if kind == "adapter" else None
        registry.add(folder, id=id, kind=kind, title=id, licence="MIT", context=8, base=base)  # type: ignore[arg-type]
    assert export_model(registry, "a", tmp_path / "a.gguf")[0].read_bytes() == b"a"
    with pytest.raises(BadInput) as caught:
        export_model(registry, "a", tmp_path / "x.gguf", "gguf")
    assert "--format adapter" in caught.value.hint and "export b" in caught.value.hint


@pytest.mark.slow
def test_a_tuned_model_goes_out_whole_and_small(registry: Registry, tiny: Path, tmp_path: Path) -> None:
    from tests.tuning.families import adapted

    registry.root.mkdir()
    base = install_base(registry, tiny, id="base", starter=True, licence="Apache-2.0")
    adapter = tmp_path / "adapter"
    adapted(tiny, adapter / "hf")
    export_adapter(adapter / "hf", tiny, adapter / "adapter.gguf")
    registry.add(
        adapter, id="tuned", kind="adapter", title="Tuned", licence="MIT", context=256, base="base", starter=True
    )  # fmt: skip
    out = tmp_path / "tuned.gguf"
    with pytest.raises(BadInput, match="whole already"):
        export_model(registry, "base", out, "merged")
    with pytest.raises(BadInput, match="smaller by itself"):
        export_model(registry, "tuned", out, "adapter", "Q8_0")
    target, digest = export_model(registry, "tuned", out, "merged", "Q8_0")
    facts = read_gguf(target)
    assert target == out and sha256_of(out) == digest and facts.quantisation == "Q8_0" and facts.name == "tuned"
    assert facts.starter and facts.licence == "MIT"
    # A box that has never seen the starter still knows the copy for what it is.
    elsewhere = Registry(tmp_path / "elsewhere")
    taken = import_model(elsewhere, out)
    assert taken.starter and taken.licence == "MIT" and taken.kind == "base"
    small, _ = export_model(registry, "base", tmp_path, "gguf", "Q8_0")
    assert small.name == "base-Q8_0.gguf" and small.stat().st_size < base.files["model.gguf"].bytes
    # What is made is compared with what is served: an adapter file that is not what was trained is not passed on.
    wrong = tmp_path / "wrong"
    shutil.copytree(registry.folder("tuned") / "hf", wrong / "hf")
    change(wrong / "hf", "adapter_config.json", lora_alpha=24)
    shutil.copy(registry.folder("tuned") / "adapter.gguf", wrong)
    registry.add(wrong, id="wrong", kind="adapter", title="Wrong", licence="MIT", context=256, base="base")
    with pytest.raises(ApplianceError, match="differ by"):
        export_model(registry, "wrong", tmp_path / "wrong.gguf", "merged")
    assert not (tmp_path / "wrong.gguf").exists() and not list(registry.root.glob(".import/*"))


def test_the_commands(tiny_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "appliance", "--home", str(tmp_path / "home"), "models", *arguments, "--json"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = run("import", str(tiny_gguf))
    assert refused.returncode == 1 and refused.stdout == "" and refused.stderr.count("Try: ") == 1
    done = json.loads(run("import", str(tiny_gguf), "--licence", "MIT", "--name", "tutor").stdout)
    assert done == {"id": "tutor", "kind": "base", "sha256": sha256_of(tiny_gguf)}
    out = json.loads(run("export", "tutor", str(tmp_path / "out.gguf"), "--format", "gguf").stdout)
    assert out["sha256"] == done["sha256"] and (tmp_path / "out.gguf").read_bytes() == tiny_gguf.read_bytes()


def test_a_base_that_came_as_gguf_alone_is_not_tuned_and_says_so(settings: Settings, tmp_path: Path) -> None:
    registry = Registry(settings.models)
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF")
    registry.add(folder, id="served", kind="base", title="Served", licence="MIT", context=512)
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
    settings.run.mkdir(parents=True)
    with pytest.raises(Unsupported, match="GGUF alone"):
        asyncio.run(tune(settings, registry, examples=examples, base="served"))
