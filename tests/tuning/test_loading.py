"""A base model that somebody brought is only ever read: each case plants something that leaves a mark where it is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, BadInput, ModelUnavailable
from appliance.tuning import checkpoints, loading, trainer
from appliance.tuning.recipe import Recipe

Harm = Callable[[Path, Path], object]


class Planted:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def module(mark: Path) -> str:
    return f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass X: ...\n"


def pickled(name: str, *, instead: bool = False) -> Harm:
    def work(folder: Path, mark: Path) -> None:
        if instead:
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Planted(mark)))

    return work


def changed(name: str, code: str = "", **values: Any) -> Harm:
    """Other values in a JSON file; `code`: a module beside it that the values name."""

    def work(folder: Path, mark: Path) -> None:
        path = folder / name
        before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(before | values), "utf-8")
        if code:
            (folder / code).write_text(module(mark), "utf-8")

    return work


def template(source: str) -> Harm:
    def work(folder: Path, mark: Path) -> None:
        (folder / "chat_template.jinja").write_text(source.replace("MARK", str(mark)), "utf-8")

    return work


def template_named(name: str) -> Harm:
    def work(folder: Path, _mark: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        templates = [{"name": "default", "template": "{{ messages[0]['content'] }}"}, {"name": name, "template": "x"}]
        changed("tokenizer_config.json", chat_template=templates)(folder, _mark)

    return work


def foreign_modules(folder: Path, mark: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "planted.X"}]), "utf-8")
    (folder / "planted.py").write_text(module(mark), "utf-8")


def link(name: str) -> Harm:
    def work(folder: Path, _mark: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return work


def index_outside(folder: Path, _mark: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "stolen.safetensors")
    shutil.copy(folder.parent / "stolen.safetensors", folder / "part.safetensors")
    changed("model.safetensors.index.json", weight_map={"model.embed_tokens.weight": "../stolen.safetensors"})(folder, _mark)


REACHING = "{{ cycler.__init__.__globals__.os.system('touch MARK') }}{{ messages[0]['content'] }}"
HIDDEN = "{{ messages[0]['content'] }}{% if messages|length > 1 %}" + REACHING + "{% endif %}"

CASES: dict[str, tuple[Harm, str]] = {
    "code of the model": (changed("config.json", "planted.py", auto_map={"AutoModelForCausalLM": "planted.X"}), "planted.py"),
    "code by name only": (changed("config.json", auto_map={"AutoConfig": "someone/model--planted.X"}), "auto_map"),
    "code deep inside": (changed("config.json", text_config={"auto_map": {"AutoModel": "planted.X"}}), "auto_map"),
    "code of the tokenizer": (changed("tokenizer_config.json", auto_map={"AutoTokenizer": ["planted.X", None]}), "auto_map"),
    "attention from elsewhere": (changed("config.json", _attn_implementation_internal="someone/kernel"), "code of its own"),
    "attention, the open key": (changed("config.json", attn_implementation="someone/kernel"), "from elsewhere"),
    "modules of a stranger": (foreign_modules, "modules.json"),
    "template named outside": (template_named("../../outside"), "not a name"),
    "weights as a pickle": (pickled("pytorch_model.bin", instead=True), "run code"),
    "a pickle beside": (pickled("model.pt"), "run code"),
    "optimizer.pt": (pickled("optimizer.pt"), "run code"),
    "rng_state.pth": (pickled("rng_state.pth"), "run code"),
    "training_args.bin": (pickled("training_args.bin"), "run code"),
    "template that runs a program": (template(REACHING), "template"),
    "template that waits for a reply": (template(HIDDEN), "template"),
    "weights behind a link": (link("model.safetensors"), "a link"),
    "configuration behind a link": (link("config.json"), "a link"),
    "index that climbs out": (index_outside, "does not hold it"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_that_would_run_code_or_reach_outside_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    harm, words = CASES[name]
    folder, mark = tmp_path / "brought", tmp_path / "MARK"
    shutil.copytree(tiny, folder)
    loading.load_tokenizer(folder)  # sound so far
    harm(folder, mark)
    with pytest.raises(BadInput, match=words):
        loading.load_tokenizer(folder)
    if "template that waits" not in name:  # the model itself is sound; only its template is not
        with pytest.raises(BadInput, match=words):
            loading.load_base(folder)
    assert not mark.exists() and not (tmp_path / "outside.jinja").exists()


def test_what_is_planted_here_would_leave_its_mark(tmp_path: Path) -> None:
    """Or the tests above could not fail."""
    import jinja2

    pickle.loads(pickle.dumps(Planted(tmp_path / "by-pickle")))
    exec(compile(module(tmp_path / "by-module"), "planted", "exec"), {})
    for name, source in (("by-template", REACHING), ("by-hidden", HIDDEN)):
        talk = [{"role": "user", "content": "a"}] * 2
        jinja2.Environment().from_string(source.replace("MARK", str(tmp_path / name))).render(messages=talk)
    assert {path.name for path in tmp_path.iterdir()} == {"by-pickle", "by-module", "by-template", "by-hidden"}


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(loading.load_base(tiny), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    target = tmp_path_factory.mktemp("adapter") / "adapter"
    trainer.save_adapter(model, target)
    return target


ADAPTER_CASES: dict[str, tuple[Harm, str]] = {
    "a pickle beside": (pickled("adapter_model.bin"), "adapter_model.bin"),
    "a module of that name": (changed("adapter_config.json", "planted.py", megatron_core="planted"), "planted.py"),
    "a module by name only": (changed("adapter_config.json", megatron_core="planted"), "megatron_core"),
    "a library by name": (changed("adapter_config.json", auto_mapping={"parent_library": "planted"}), "auto_mapping"),
    "another kind": (changed("adapter_config.json", peft_type="PROMPT_TUNING"), "peft_type"),
    "work on the base while loading": (changed("adapter_config.json", init_lora_weights="pissa"), "init_lora_weights"),
    "an expression without an end": (changed("adapter_config.json", target_modules="(a+)+$"), "target_modules"),
    "weights behind a link": (link("adapter_model.safetensors"), "adapter_model.safetensors"),
}


@pytest.mark.parametrize("name", ADAPTER_CASES)
def test_an_adapter_that_asks_for_more_is_refused(adapter: Path, tiny: Path, tmp_path: Path, name: str) -> None:
    harm, words = ADAPTER_CASES[name]
    folder, mark = tmp_path / "adapter", tmp_path / "MARK"
    shutil.copytree(adapter, folder)
    loading.load_adapted(tiny, folder)  # sound so far
    harm(folder, mark)
    with pytest.raises(BadInput, match=words):
        loading.load_adapted(tiny, folder)
    assert not mark.exists()


def test_folders_without_a_model_say_so(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no model"):
        loading.check_folder(tmp_path)
    shutil.copy(tiny / "config.json", tmp_path)
    with pytest.raises(ModelUnavailable, match="no weights"):
        loading.check_folder(tmp_path)
    shutil.copytree(adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="no weights"):
        loading.check_folder(tmp_path / "adapter")


def test_weights_are_counted_from_headers_that_are_not_believed(tiny: Path, tmp_path: Path) -> None:
    assert loading.weights_in(tiny) == sum(weight.numel() for weight in loading.load_base(tiny).parameters())
    (tmp_path / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ApplianceError):
        loading.weights_in(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")
def test_an_8_bit_base_trains_on_the_cpu(tiny: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    import torch

    quantised = loading.QUANTISED[loading.choose_method("lora8", 1, None)]
    base = loading.load_base(tiny, dtype="bfloat16", quantised=quantised)
    assert base.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    recipe = Recipe(method="lora8", rank=4, alpha=8, rate=5e-3, epochs=3, batch=4, length=128)
    tokenizer = loading.load_tokenizer(tiny)
    talks = [row["messages"] for row in rows[:16]]
    run = trainer.build(base, tokenizer, talks, recipe, tmp_path, micro_batch=4, report=lambda *_: None)
    run.train()
    losses = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    trainer.save_adapter(run.model, tmp_path / "adapter")
    loading.load_adapted(tiny, tmp_path / "adapter")


@pytest.mark.slow
def test_a_pickle_among_the_checkpoints_is_not_read(tiny: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """`training_args.bin` belongs to what others write into a checkpoint; a resumed run neither needs nor opens it."""
    recipe = Recipe(rank=4, alpha=8, epochs=2, batch=4, length=128, checkpoint_every=2)
    tokenizer, talks = loading.load_tokenizer(tiny), [row["messages"] for row in rows[:16]]

    def made(rate: float) -> Any:
        chosen = replace(recipe, rate=rate)
        return trainer.build(loading.load_base(tiny), tokenizer, talks, chosen, tmp_path, micro_batch=4, report=lambda *_: None)

    made(1e-3).train()
    oldest = min((tmp_path / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    mark = tmp_path / "MARK"
    pickled("training_args.bin")(oldest, mark)
    checkpoints.publish(oldest, oldest.with_name("checkpoint-1"))  # sealed anew, by somebody who can write manifests
    made(1e-3).train(resume_from_checkpoint=str(oldest.with_name("checkpoint-1")))
    assert not mark.exists()
