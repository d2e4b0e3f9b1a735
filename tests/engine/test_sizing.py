"""Sized to the machine: what fits is chosen from the header, what does not is refused in figures before it is loaded."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from appliance.engine import sizing
from appliance.engine.inspect import read_gguf
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.sizing import Machine, cell_bytes, plan
from appliance.errors import ModelUnavailable

GB = 10**9


def write_model(path: Path, *, parameters: int, layers: int = 16, kv_heads: int = 8, context: int = 8192) -> Path:
    """A header of a model of that size, over a file of zeros that takes no room on the disk."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    numbers = {
        "context_length": context, "block_count": layers, "embedding_length": 2048, "attention.head_count": 32,
        "attention.head_count_kv": kv_heads,
    }  # fmt: skip
    entries = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    entries += [text(f"llama.{name}") + struct.pack("<II", 4, number) for name, number in numbers.items()]
    tensor = text("blk.0.w") + struct.pack("<I2Q", 2, 256, parameters // 256) + struct.pack("<IQ", 12, 0)  # Q4_K
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries) + tensor
    with open(path, "wb") as handle:
        handle.write(head)
        handle.truncate(-(-len(head) // 32) * 32 + parameters // 256 * 144)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf", parameters=3_000_000_128)


def test_a_conversations_place_in_the_cache_is_what_the_header_says(model: Path) -> None:
    facts = read_gguf(model)
    assert facts.numbers["block_count"] == 16 and facts.numbers["attention.head_count_kv"] == 8
    assert cell_bytes(facts) == 16 * 8 * (64 + 64) * 2


@pytest.mark.llama
def test_the_estimate_is_what_llama_cpp_takes(starter_gguf: Path) -> None:
    from appliance.engine.llama import Llama

    llama = Llama(starter_gguf, threads=1, context=256)
    assert llama.cell_bytes == cell_bytes(read_gguf(starter_gguf))
    llama.close()


def test_more_machine_is_more_at_once_and_never_more_than_fits(model: Path) -> None:
    plans = [plan(model, Machine(gb * GB, cores)) for gb, cores in ((5, 2), (8, 4), (16, 16), (64, 64))]
    assert [one.threads for one in plans] == [2, 4, 16, 64]
    assert [one.slots for one in plans] == sorted(one.slots for one in plans)
    assert plans[0].slots < plans[-1].slots <= sizing.MOST_SLOTS
    for one, gb in zip(plans, (5, 8, 16, 64), strict=True):
        assert one.context == 8192
        assert one.cell * one.context <= one.cache <= one.cell * one.context * (one.slots + one.spare)
        assert one.parking <= sizing.MOST_PARKED * one.cell * one.context
        assert one.weights + one.cache < gb * GB
    small = plan(write_model(model.with_name("small.gguf"), parameters=100_000_000), Machine(16 * GB, 4))
    assert small.slots == sizing.MOST_SLOTS, "a small model serves a whole class at once"


def test_a_larger_model_and_fewer_cores_are_expected_to_read_more_slowly(model: Path) -> None:
    small = write_model(model.with_name("small.gguf"), parameters=300_000_256)
    slow, fast = plan(model, Machine(16 * GB, 2)), plan(small, Machine(16 * GB, 2))
    assert 50 < slow.reading < 200 < 800 < fast.reading  # of 3 and of 0.3 billion weights: the second was measured at 1,000
    assert plan(model, Machine(16 * GB, 8)).reading == pytest.approx(4 * slow.reading)
    assert plan(model, Machine(16 * GB, 8), threads=2).reading == pytest.approx(slow.reading)


def test_what_is_set_is_kept(model: Path) -> None:
    given = plan(model, Machine(16 * GB, 4), threads=3, slots=7, context=1024, cache=GB)
    assert (given.threads, given.slots, given.context) == (3, 7, 1024)
    assert given.cache == given.cell * 1024 * (7 + given.spare) and 0 < given.parking <= GB - given.cache


def test_where_memory_is_short_all_share_one_pool(model: Path) -> None:
    roomy, tight = plan(model, Machine(64 * GB, 8), slots=16), plan(model, Machine(6 * GB, 8), slots=16)
    assert roomy.apart and roomy.cache >= roomy.cell * roomy.context * 16
    assert not tight.apart and tight.cell * tight.context <= tight.cache < tight.cell * tight.context * 16


def test_a_model_that_cannot_fit_is_refused_with_figures_and_one_that_would(model: Path) -> None:
    asked: list[int] = []

    def fitting(memory: int) -> str:
        asked.append(memory)
        return "Qwen2.5-0.5B-Instruct"

    with pytest.raises(ModelUnavailable) as caught:
        plan(model, Machine(2 * GB, 4), fitting=fitting)
    assert (
        "model.gguf" in caught.value.message and "1.7 GB" in caught.value.message and "2.0 GB are free" in caught.value.message
    )
    assert "Qwen2.5-0.5B-Instruct would fit" in caught.value.hint and asked == [2 * GB]
    with pytest.raises(ModelUnavailable) as caught:
        plan(model, Machine(2 * GB, 4))
    assert "2.8 GB of free memory" in caught.value.hint


def test_where_only_the_conversation_is_too_long_the_hint_says_how_long_it_may_be(tmp_path: Path) -> None:
    path = write_model(tmp_path / "long.gguf", parameters=100_000_000, context=131_072)
    machine = Machine(int(2.5 * GB), 4)
    with pytest.raises(ModelUnavailable, match="131072 tokens") as caught:
        plan(path, machine)
    tokens = int(caught.value.hint.split("`context` to ")[1].split(",")[0])
    assert plan(path, machine, context=tokens).context == tokens
    with pytest.raises(ModelUnavailable):
        plan(path, machine, context=tokens + 512)


def test_adapters_count(model: Path) -> None:
    machine = Machine(int(4.0 * GB), 4)
    plan(model, machine)
    with pytest.raises(ModelUnavailable, match="does not fit"):
        plan(model, machine, adapters=2 * GB)


def test_a_units_limits_count_as_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "engine.service"
    group.mkdir()
    (group / "memory.max").write_text(f"{GB}\n")
    (group / "memory.current").write_text("300000000\n")
    (group / "memory.stat").write_text("anon 200000000\ninactive_file 100000000\n")
    (group / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(sizing, "_groups", lambda: [group, tmp_path])
    monkeypatch.setattr(sizing, "available_memory", lambda: 8 * GB)
    assert Machine.here() == Machine(800_000_000, 1)
    (group / "memory.max").write_text("max\n")
    (group / "cpu.max").write_text("max 100000\n")
    assert Machine.here().memory == 8 * GB


async def test_the_engine_refuses_before_it_loads(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.engine import scheduler

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a native parser saw the file")

    monkeypatch.setattr(scheduler, "Llama", never)
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: cls(GB, 2)))
    with pytest.raises(ModelUnavailable, match="does not fit"):
        await LlamaHandler(model).start()


async def test_files_that_lie_never_reach_the_native_parser(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine import scheduler

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a native parser saw the file")

    monkeypatch.setattr(scheduler, "Llama", never)
    folder = shared_data / "gguf-fixtures"
    tried = 0
    for path in sorted([*folder.rglob("*.gguf"), *folder.rglob("*.hex")]):
        file = path
        if path.suffix == ".hex":
            file = tmp_path / f"{path.stem}.gguf"
            file.write_bytes(bytes.fromhex("".join(path.read_text().split())))
        handler = LlamaHandler(file)
        with pytest.raises(ModelUnavailable) as caught:
            await handler.start()
        assert caught.value.hint and file.name in caught.value.message, path.name
        with pytest.raises(ModelUnavailable):
            sizing.inspected(file, "adapter")
        tried += 1
    assert tried > 10
