"""The minute that says what a machine can serve: the arithmetic against what was measured, and what becomes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from appliance import selftest
from appliance.checkup import machine
from appliance.errors import ModelUnavailable
from appliance.selftest import card, yardstick
from appliance.selftest.advise import BITS, CLASS, Speed, advise, best, summary
from appliance.selftest.measure import SEVERAL, Measured
from appliance.settings import Settings
from appliance.tuning import catalog

GB = 10**9
# Two idle cores with a model of 294 million weights, as the engine's own plan states them (see `engine.sizing`).
DESK = Measured(180_000_000, 294_000_000, 16, 2, 8 * GB, 0, 12e9, 1000.0, 30.0, 7.4)


def quick(times: float, memory: int = 8 * GB) -> Measured:
    """A machine so many times as quick as that desk."""
    return replace(DESK, memory=memory, memory_speed=DESK.memory_speed * times, reading=DESK.reading * times,
                   writing=DESK.writing * times, together=DESK.together * times)  # fmt: skip


def known(name: str) -> catalog.Known:
    return next(one for one in catalog.load(Settings().catalog) if one.name == name)


def test_the_measured_model_comes_out_as_it_was_measured() -> None:
    speed = Speed.of(DESK)
    for pupils, measured in ((1, DESK.writing), (SEVERAL, DESK.together)):
        assert 1 / speed.step(DESK.bytes, DESK.layers, DESK.parameters, pupils) == pytest.approx(measured, rel=1e-6)
    assert speed.read(DESK.parameters, 1000) == pytest.approx(1.0)


def test_a_larger_model_is_slower_by_its_weights_and_a_quicker_machine_serves_more() -> None:
    speed = Speed.of(DESK)
    steps = [speed.step(size * 4.9 / 8, 16, size, 1) for size in (3e8, 6e8, 12e8)]
    assert steps[1] < 2 * steps[0] < 2 * steps[1] and steps[2] > 1.7 * steps[1], "the overhead of layers stays"
    pupils = [advise(known("Qwen3-0.6B"), quick(times, 16 * GB)).pupils for times in (0.05, 1, 4, 16)]
    assert pupils == sorted(pupils) and pupils[0] == 0 and pupils[-1] == 32


def test_what_does_not_fit_or_is_too_slow_says_which() -> None:
    large = known("Qwen3-8B")
    assert advise(large, quick(40, 4 * GB)).why == "Too little memory."
    assert advise(large, DESK).why == "Too slow on this processor."
    able = advise(large, quick(40, 64 * GB))
    assert able.pupils and able.pace >= 2.0 and able.context in (2048, 4096, 8192) and not able.why
    tight = advise(known("SmolLM2-1.7B-Instruct"), quick(16, 7 * GB))  # much memory for each conversation
    assert 0 < tight.pupils < 32 and tight.quantisation in BITS


def test_the_best_is_the_largest_that_serves_a_class() -> None:
    found = [advise(one, quick(4, 16 * GB)) for one in catalog.load(Settings().catalog)]
    chosen = best(found)
    assert chosen and chosen.pupils >= CLASS
    assert not [one for one in found if one.parameters > chosen.parameters and one.pupils >= CLASS]
    assert chosen.name in summary(chosen, DESK) and str(chosen.pupils) in summary(chosen, DESK)
    assert best([advise(known("Qwen3-8B"), DESK)]) is None and "quotes serve" in summary(None, DESK)
    assert "24 GB" in summary(chosen, replace(DESK, gpu=24 * GB))


@pytest.mark.llama
def test_a_small_model_is_measured_and_what_fits_is_told_from_the_yardstick(starter_gguf: Path, settings: Settings) -> None:
    settings.run.mkdir(parents=True)
    result = selftest.run(settings, "starter", starter_gguf, 1.5, lambda _text: None)
    assert result.by == "yardstick" and result.measured.parameters > selftest.SMALL
    measured = result.measured
    assert min(result.reading, result.writing, result.foretold, measured.reading, measured.writing, measured.together) > 0
    assert selftest.last(settings) == result and len(result.models) > 10
    assert not list(settings.run.iterdir()), "the yardstick is gone"


@pytest.mark.llama
def test_the_yardstick_is_a_model_to_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from appliance.engine.llama import Llama

    weights, layers = yardstick.write(tmp_path / "y.gguf")
    size = (tmp_path / "y.gguf").stat().st_size
    assert 0.99 < weights * 4.5 / 8 / size < 1.01 and layers == yardstick.LAYERS
    llama = Llama(tmp_path / "y.gguf", threads=2, context=256)
    try:
        assert llama.vocabulary == yardstick.VOCABULARY and llama.decode([(7, 0, 0, True)])
        assert np.isfinite(llama.logits(0)).all(), "noise, but numbers"
    finally:
        llama.close()


def test_a_card_is_named_with_its_driver_and_its_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '4096, NVIDIA T400, 550.90'\necho '15360, NVIDIA T4, 550.90'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    here = catalog.Machine.here()
    assert (here.gpu, here.card) == (15360 * 2**20, "NVIDIA T4, driver 550.90")
    with_card = replace(DESK, gpu=here.gpu, card=here.card)
    assert "NVIDIA T4, driver 550.90" in summary(None, with_card) and "cannot compute on it" in summary(None, with_card)
    told = summary(None, replace(with_card, card_memory=3e11, card_computing=4e13))
    assert "reads 300 GB and computes 40.0 million million operations" in told
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert catalog.Machine.here().gpu == 0, "a driver that does not answer"


def test_the_speed_of_a_card_is_measured_by_work_that_any_device_does() -> None:
    pytest.importorskip("torch")
    reading, computing = card.speed(0.2, "cpu", size=2**24, side=256)
    assert reading > 1e8 and computing > 1e8
    assert card.speed(0.2, "cuda") == (0.0, 0.0) or catalog.Machine.here().gpu


def test_a_machine_that_changed_is_noticed_and_one_that_did_not_is_not(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    assert "Nobody has measured" in machine.measured(settings).detail
    result = selftest.judge(settings, "starter", replace(DESK, gpu=GB, card="NVIDIA T4, driver 525"))
    as_it_was = catalog.Machine(DESK.memory, DESK.cores, GB, "NVIDIA T4, driver 525")
    assert machine.measured(settings, as_it_was).ok and result.summary in machine.measured(settings, as_it_was).detail
    assert machine.measured(settings, replace(as_it_was, memory=DESK.memory - GB // 10)).ok, "a kernel takes a little more"
    for other, words in (
        (replace(as_it_was, cores=8), "8 cores instead of 2"),
        (replace(as_it_was, memory=16 * GB), "16 GB of memory instead of 8"),
        (replace(as_it_was, card="NVIDIA T4, driver 550"), "driver 550 instead of NVIDIA T4, driver 525"),
        (replace(as_it_was, gpu=0, card=""), "no graphics card any more"),
    ):
        check = machine.measured(settings, other)
        assert not check.ok and words in check.detail and check.command == "appliance selftest", check


def test_a_result_of_an_earlier_release_is_still_read(settings: Settings) -> None:
    settings.home.mkdir(parents=True)
    selftest.judge(settings, "starter", DESK)
    kept = json.loads(settings.selftest.read_text())
    for name in ("card", "card_memory", "card_computing"):
        del kept["measured"][name]
    settings.selftest.write_text(json.dumps(kept))
    found = selftest.last(settings)
    assert found is not None and found.measured == DESK


def test_what_is_no_model_is_refused_and_a_damaged_result_is_none(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(ModelUnavailable):
        selftest.run(settings, "x", tmp_path / "x.gguf", 1.0, lambda _text: None)
    assert selftest.last(settings) is None
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.selftest.write_text('{"at": 1}')
    assert selftest.last(settings) is None
