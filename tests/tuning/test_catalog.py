"""The catalogue of well-known models: complete, plausible, and honest about what a machine can bear."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import BadInput
from appliance.settings import Settings
from appliance.tuning.catalog import Known, Machine, fit, load

CATALOGUE = load(Settings().catalog)
GIGABYTE = 10**9


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_figures_are_plausible(model: Known) -> None:
    assert model.licence and model.publisher and model.suits
    assert 100 < model.parameters < 10_000 and model.layers >= 12 and model.head_size in (64, 96, 128, 256)
    # A 4-bit file is between half and three quarters of a byte for each weight, and a class's cache comes on top.
    assert 0.5e6 * model.parameters < model.file_bytes < 0.75e6 * model.parameters
    assert model.file_bytes < model.serving_bytes
    assert model.tuning_bytes < model.cpu_tuning_bytes or model.parameters < 1000


def test_the_catalogue_goes_from_a_laptop_to_a_large_gpu_and_names_each_model_once() -> None:
    assert len({model.name for model in CATALOGUE}) == len(CATALOGUE) >= 12
    assert CATALOGUE[0].parameters < 200 and CATALOGUE[-1].parameters > 7000


@pytest.mark.parametrize(
    ("machine", "serves", "not_served"),
    [
        (Machine(4 * GIGABYTE, 2, 0), "Qwen2.5-0.5B-Instruct", "Qwen3-4B"),
        (Machine(16 * GIGABYTE, 16, 0), "Qwen3-4B", "Qwen3-8B"),
        (Machine(16 * GIGABYTE, 4, 24 * GIGABYTE), "Qwen3-8B", ""),
    ],
)
def test_what_fits_depends_on_the_machine(machine: Machine, serves: str, not_served: str) -> None:
    found = {model.name: fit(model, machine).serve for model in CATALOGUE}
    assert found[serves] == "yes"
    assert not not_served or found[not_served] != "yes"


def test_tuning_says_where() -> None:
    by_name = {model.name: model for model in CATALOGUE}
    assert fit(by_name["Qwen3-8B"], Machine(32 * GIGABYTE, 8, 12 * GIGABYTE)).tune == "GPU"
    assert fit(by_name["SmolLM2-135M-Instruct"], Machine(8 * GIGABYTE, 4, 0)).tune == "CPU"
    assert fit(by_name["Qwen3-8B"], Machine(32 * GIGABYTE, 8, 0)).tune == "no"


def test_a_wrong_entry_is_named(tmp_path: Path) -> None:
    file = tmp_path / "catalog.toml"
    file.write_text('[[model]]\nname = "x"\nlicense = "MIT"\n')
    with pytest.raises(BadInput, match=r"number 1 .*license"):
        load(file)
