"""Model files that lie: each is refused in one sentence, at once, and without taking memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.engine.inspect import check_hf_folder, check_template, read_gguf, read_safetensors
from appliance.errors import BadInput

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def write_model(path: Path) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(256)
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_chat_template(TEMPLATE)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_tensor("token_embd.weight", np.zeros((3, 32), np.float16))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.add_tensor("output.weight", np.zeros((3, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def text(words: str | bytes) -> bytes:
    raw = words.encode() if isinstance(words, str) else words
    return struct.pack("<Q", len(raw)) + raw


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def crafted(
    entries: bytes = b"", keys: int = 0, tensors: bytes = b"", count: int = 0, data: int = 256, version: int = 3
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, count, keys) + entries + tensors
    return head + bytes(-len(head) % 32 + data)


def refused(path: Path, data: bytes) -> BadInput:
    """The refusal of these bytes, which must name the file, say what to do, and take little memory."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(BadInput) as caught:
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    assert path.name in caught.value.message and caught.value.hint
    return caught.value


def test_a_sound_file_says_what_it_is(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(sound)
    facts = read_gguf(path)
    assert (facts.version, facts.architecture, facts.name, facts.context) == (3, "llama", "Tiny", 256)
    assert (facts.tensors, facts.parameters, facts.kind) == (3, 96 + 32 + 96, "model")
    assert facts.template == TEMPLATE and facts.licence == "apache-2.0" and facts.quantisation in ("F16", "Q8_0")


def test_every_cut_is_refused(sound: bytes, tmp_path: Path) -> None:
    last = 3 * 34  # the writer pads what follows the last tensor
    end = len(sound) - (-last % 32)
    for length in (*range(0, end, 64), end - 1):
        refused(tmp_path / "cut.gguf", sound[:length])


@settings(max_examples=200, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_never_do_more_than_be_refused(sound: bytes, tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped.gguf"
    path.write_bytes(changed)
    try:
        read_gguf(path)
    except BadInput as error:
        assert "flipped.gguf" in error.message


@settings(max_examples=100, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_lengths_that_lie_anywhere(sound: bytes, tmp_path: Path, data: st.DataObject) -> None:
    at = data.draw(st.integers(4, len(sound) - 8))
    lie = data.draw(st.sampled_from([2**63, 2**64 - 1, 2**63 - 1, 2**32, 2**61, len(sound), 2**20]))
    path = tmp_path / "lies.gguf"
    path.write_bytes(sound[:at] + struct.pack("<Q", lie) + sound[at + 8 :])
    tracemalloc.start()
    try:
        read_gguf(path)
    except BadInput:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50 * 2**20


KEY = text("k")
TOKENS, SCORES = text("tokenizer.ggml.tokens"), text("tokenizer.ggml.scores")
NESTED = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20 + struct.pack("<IQ", 0, 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begin"),
        (b"PK\x03\x04" + bytes(60), "begin"),
        (crafted(version=1), "version 1"),
        (crafted(version=4), "version 4"),
        (crafted(version=3 << 24), "big-endian"),
        (crafted(keys=2**63), "claims"),
        (crafted(count=2**63), "claims"),
        (crafted(keys=9_999), "a key in its header|twice|cut short"),
        (crafted(struct.pack("<Q", 2**63), keys=1), "claims more"),
        (crafted(KEY + struct.pack("<IQ", 8, 2**63), keys=1), "claims more"),
        (crafted(KEY + struct.pack("<IIQ", 9, 4, 2**63), keys=1), "claims more"),
        (crafted(KEY + struct.pack("<IIQ", 9, 8, 2**61), keys=1), "claims more"),
        (crafted(KEY + struct.pack("<IIQ", 9, 77, 1), keys=1), "unknown type 77"),
        (crafted(KEY + NESTED, keys=1), "too deep"),
        (crafted(KEY + struct.pack("<I", 13), keys=1), "unknown type 13"),
        (crafted(KEY + struct.pack("<IB", 7, 2), keys=1), "yes-or-no"),
        (crafted((KEY + struct.pack("<IB", 0, 2)) * 2, keys=2), "twice"),
        (crafted(text("a/../b") + struct.pack("<IB", 0, 2), keys=1), "signs"),
        (crafted(text(b"\xff\xfe") + struct.pack("<IB", 0, 2), keys=1), "not text"),
        (crafted(text("general.name") + struct.pack("<II", 4, 1), keys=1), "general.name"),
        (crafted(text("general.type") + struct.pack("<I", 8) + text("mmproj"), keys=1), "mmproj"),
        (crafted(TOKENS + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("a"), keys=1), "same token twice"),
        (crafted(TOKENS + struct.pack("<IIQ", 9, 8, 2) + text("a\0b") + text("a"), keys=1), "same token twice"),
        (crafted(TOKENS + struct.pack("<IIQ", 9, 8, 1) + text("a" * 70_000), keys=1), "a token is longer"),
        (crafted(TOKENS + struct.pack("<IIQI", 9, 4, 1, 7), keys=1), "not the list"),
        (crafted(TOKENS + struct.pack("<II", 4, 7), keys=1), "not the list"),
        (crafted(text("tokenizer.ggml.merges") + struct.pack("<IIQI", 9, 4, 1, 7), keys=1), "not the list"),
        (crafted(SCORES + struct.pack("<IIQ", 9, 8, 0), keys=1), "not the list"),
        (
            crafted(
                TOKENS + struct.pack("<IIQ", 9, 8, 2) + text("a") * 1 + text("") + SCORES + struct.pack("<IIQf", 9, 6, 1, 0),
                keys=2,
            ),
            "not as long",
        ),
        (crafted(text(".block_count") + struct.pack("<II", 4, 0), keys=1), "0 layers"),
        (crafted(text(".block_count") + struct.pack("<II", 4, 513), keys=1), "513 layers"),
        (crafted(text(".expert_count") + struct.pack("<II", 4, 8), keys=1), "0 of 8 experts"),
        (crafted(text(".attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, -1.0), keys=1), "epsilon"),
        (crafted(text(".attention.layer_norm_epsilon") + struct.pack("<If", 6, float("nan")), keys=1), "epsilon"),
        (crafted(text(".rope.scaling.type") + struct.pack("<I", 8) + text("odd"), keys=1), "rope scaling"),
        (crafted(text("general.alignment") + struct.pack("<II", 4, 0), keys=1), "alignment"),
        (crafted(text("general.alignment") + struct.pack("<II", 4, 33), keys=1), "alignment"),
        (crafted(text("split.count") + struct.pack("<IH", 2, 3), keys=1), "one part"),
        (crafted(text(".context_length") + struct.pack("<Iq", 11, -1), keys=1), "context length"),
        (crafted(tensors=tensor("w", (8,)) * 2, count=2), "twice"),
        (crafted(tensors=tensor("", (8,)), count=1), "no name"),
        (crafted(tensors=tensor("w" * 65, (8,)), count=1), "longer than 64"),
        (crafted(tensors=tensor("w", (0,)), count=1), "impossible shape"),
        (crafted(tensors=tensor("w", (2**32, 2**32)), count=1), "impossible shape"),
        (crafted(tensors=tensor("w", (2**63,)), count=1), "impossible shape"),
        (crafted(tensors=tensor("w", (2**62,)), count=1), "outside the file"),
        (crafted(tensors=tensor("w", (1,) * 5), count=1), "5 dimensions"),
        (crafted(tensors=tensor("w", ()), count=1), "0 dimensions"),
        (crafted(tensors=tensor("w", (8,), kind=43), count=1), "unknown type 43"),
        (crafted(tensors=tensor("w", (31,), kind=2), count=1), "blocks of Q4_0"),
        (crafted(tensors=tensor("w", (8,), offset=4), count=1), "begin where"),
        (crafted(tensors=tensor("w", (8,), offset=2**63), count=1), "outside the file"),
        (crafted(tensors=tensor("w", (16,)) + tensor("v", (8,), offset=32), count=2), "another one's bytes"),
        (crafted(tensors=tensor("w", (65,)), count=1), "outside the file"),
    ],
)
def test_each_lie_has_its_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    import re

    error = refused(tmp_path / "lie.gguf", data)
    assert re.search(words, error.message), error.message
    assert error.message.isprintable()


def test_a_vocabulary_that_never_ends_is_not_walked(tmp_path: Path) -> None:
    path = tmp_path / "many.gguf"
    path.write_bytes(crafted(KEY + struct.pack("<IIQ", 9, 8, 6_000_000), keys=1, data=0))
    os.truncate(path, 100 * 2**20)  # six million empty texts, in a hole of the disk
    with pytest.raises(BadInput, match="more texts"):
        read_gguf(path)


def test_a_vocabulary_larger_than_any_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "many.gguf"
    path.write_bytes(crafted(TOKENS + struct.pack("<IIQ", 9, 8, 3_000_000), keys=1, data=0))
    os.truncate(path, 100 * 2**20)
    with pytest.raises(BadInput, match="more texts"):
        read_gguf(path)


def test_a_large_vocabulary_is_looked_through_in_little_memory(tmp_path: Path) -> None:
    """As many tokens as the largest known has, the last of them like the first."""
    words = [*(b"token %d" % number for number in range(262_143)), b"token 0"]
    refused(
        tmp_path / "large.gguf", crafted(TOKENS + struct.pack("<IIQ", 9, 8, len(words)) + b"".join(map(text, words)), keys=1)
    )


def test_tokens_without_a_name_are_not_the_same(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.write_bytes(crafted(TOKENS + struct.pack("<IIQ", 9, 8, 3) + text("") * 2 + text("a"), keys=1))
    assert read_gguf(path).version == 3


def test_an_adapter_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(crafted(text("general.type") + struct.pack("<I", 8) + text("adapter"), keys=1))
    assert read_gguf(path).kind == "adapter"


# --- files of others --------------------------------------------------------------------------------------------------


def test_files_of_other_programs(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "gguf-fixtures"
    for path in sorted((folder / "damaged").glob("*.gguf")):
        refused(tmp_path / path.name, path.read_bytes())
    for name, sound in (("gguf-v2-f32", True), ("gguf-v3-q4-0", True), ("gguf-unknown-type", False),
                        ("gguf-unsupported-version", False), ("raw-empty", False), ("raw-small", False)):  # fmt: skip
        data = bytes.fromhex((folder / "planner" / f"{name}.hex").read_text().strip())
        if sound:
            (tmp_path / name).write_bytes(data)
            assert read_gguf(tmp_path / name).tensors == 1
        else:
            refused(tmp_path / name, data)
    assert read_gguf(folder / "las7" / "empty.gguf").tensors == 0
    refused(tmp_path / "tiny.gguf", (folder / "las7" / "tiny.gguf").read_bytes())  # names bytes that it does not hold
    story = read_gguf(shared_data / "models" / "stories260k-gguf" / "stories260K.gguf")
    assert (story.architecture, story.context, story.parameters, story.template) == ("llama", 2048, 292_800, "")


def test_safetensors_of_other_programs(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "gguf-fixtures"
    for name, tensors in (("header-only", 0), ("two-tensors", 2), ("gap", None), ("unknown-dtype", None),
                          ("fp8-flux2-worker-output", None)):  # fmt: skip
        path = tmp_path / name
        path.write_bytes(bytes.fromhex((folder / "planner" / f"safetensors-{name}.hex").read_text().strip()))
        if tensors is None:
            with pytest.raises(BadInput, match=name):
                read_safetensors(path)
        else:
            assert len(read_safetensors(path)) == tensors
    with pytest.raises(BadInput, match="size is not"):  # five bytes more than its header says; the library refuses it as well
        read_safetensors(folder / "las7" / "tiny.safetensors")


# --- safetensors ------------------------------------------------------------------------------------------------------


def packed(header: str | bytes, data: int = 8) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def entry(shape: str = "[2]", offsets: str = "[0,8]", kind: str = "F32") -> str:
    return f'{{"dtype":"{kind}","shape":{shape},"data_offsets":{offsets}}}'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "claims more"),
        (struct.pack("<Q", 2**63) + b"{}", "claims more"),
        (packed("[]"), "not a JSON object"),
        (packed("{"), "not valid JSON"),
        (packed("[" * 100_000), "not valid JSON"),
        (packed('{"a":' * 100_000), "not valid JSON"),
        (packed(b'{"\xff":1}'), "not valid JSON"),
        (packed(f'{{"a":{entry()},"a":{entry()}}}'), "twice"),
        (packed('{"a":1}'), "is not one"),
        (packed(f'{{"a":{entry(kind="F128")}}}'), "not known"),
        (packed(f'{{"a":{entry(shape="[-2]")}}}'), "impossible"),
        (packed(f'{{"a":{entry(shape="[true]")}}}'), "impossible"),
        (packed(f'{{"a":{entry(shape="[4294967296,4294967296]")}}}'), "impossible"),
        (packed(f'{{"a":{entry(offsets="[8,0]")}}}'), "not its size"),
        (packed(f'{{"a":{entry(offsets="[8,16]")}}}', 16), "gap"),
        (packed(f'{{"a":{entry()},"b":{entry()}}}'), "overlaps"),
        (packed(f'{{"a":{entry()}}}', 7), "cut short"),
        (packed(f'{{"a":{entry()}}}', 9), "cut short"),
        (packed(f'{{"__metadata__":[],"a":{entry()}}}'), "notes"),
    ],
)
def test_safetensors_that_lie(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=words):
        read_safetensors(path)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "brought"
    found.mkdir()
    (found / "model.safetensors").write_bytes(packed(f'{{"a":{entry()}}}'))
    (found / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "vocab_size": 32}')
    (found / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (found / "LICENSE").write_text("MIT")
    return found


def change(name: str, **values: Any) -> Callable[[Path], object]:
    def work(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))

    return work


def index(file: str, tensor: str = "a") -> Callable[[Path], object]:
    return change("model.safetensors.index.json", weight_map={tensor: file})


def test_a_plain_folder_is_taken(folder: Path) -> None:
    check_hf_folder(folder)
    index("model.safetensors")(folder)
    change("config.json", attn_implementation="sdpa", rope_theta=1e4)(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    check_hf_folder(folder)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"\x80\x04"), "pytorch_model.bin.*run code"),
        (lambda f: (f / "rng_state.pth").write_bytes(b"\x80\x04"), "run code"),
        (lambda f: (f / "X.CKPT").write_bytes(b"\x80\x04"), "run code"),
        (lambda f: (f / "modeling_x.py").write_text("print(1)"), "no part of a model"),
        (lambda f: (f / "modules.json").write_text("[]"), "no part of a model"),
        (lambda f: (f / "more.safetensors").symlink_to("/etc/passwd"), "a link"),
        (lambda f: (f / "onnx").mkdir(), "a folder"),
        (lambda f: os.mkfifo(f / "README.md"), "no plain file"),
        (lambda f: (f / "config.json").unlink(), "no model"),
        (lambda f: (f / "model.safetensors").unlink(), "no model"),
        (lambda f: shutil.copy(f / "model.safetensors", f / "again.safetensors"), "both hold"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda f: (f / "config.json").write_text('{"a":1,"a":2}'), "twice"),
        (lambda f: (f / "tokenizer.json").write_text('{"a":' * 100_000), "not valid JSON"),
        (lambda f: os.truncate(f / "config.json", 5 * 2**20), "larger than"),
        (change("config.json", auto_map={"AutoModel": "x.Y"}), "auto_map"),
        (change("config.json", trust_remote_code=True), "trust_remote_code"),
        (change("config.json", text_config={"deep": [{"auto_map": {}}]}), "auto_map"),
        (change("tokenizer_config.json", auto_map={}), "auto_map"),
        (change("config.json", _attn_implementation_internal="x/y"), "code of its own"),
        (change("config.json", _attn_implementation="someone/kernel"), "from elsewhere"),
        (change("config.json", attn_implementation={"text": "someone/kernel"}), "from elsewhere"),
        (change("config.json", vocab_size=10**12), "vocab_size"),
        (change("config.json", hidden_size="64"), "hidden_size"),
        (index("../../etc/passwd"), "passwd"),
        (index("/etc/passwd"), "passwd"),
        (index("model.safetensors", "other"), "does not hold it"),
        (change("model.safetensors.index.json", weight_map=[]), "weight_map"),
        (change("tokenizer_config.json", chat_template=[{"name": "../x", "template": "a"}]), "not a name"),
        (change("tokenizer_config.json", chat_template=7), "neither a text"),
        (change("tokenizer_config.json", chat_template="{% for %}"), "template"),
        (change("tokenizer_config.json", chat_template="x" * 300_000), "larger"),
        (change("tokenizer_config.json", chat_template="Say yes."), "leaves out"),
        (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"), "not text"),
        (lambda f: (f / "chat_template.jinja").write_text("(" * 9), "leaves out"),
    ],
)
def test_a_folder_with_anything_else_is_refused(folder: Path, harm: Callable[[Path], object], words: str) -> None:
    harm(folder)
    with pytest.raises(BadInput, match=words):
        check_hf_folder(folder)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch MARK').read() }}",
        "{{ lipsum.__globals__['os'].system('touch MARK') }}",
        "{% include '/etc/passwd' %}",
        "{% for x in range(99999999) %}x{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if 1 %}" * 30 + "{% for m in messages %}" * 30 + "{% endfor %}" * 30 + "{% endif %}" * 30,
    ],
)
def test_templates_that_want_more_than_to_write(source: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(BadInput, match="template"):
        check_template(source.replace("MARK", str(mark)), "model.gguf")
    assert not mark.exists()
