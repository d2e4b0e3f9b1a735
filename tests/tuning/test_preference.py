"""Learning from corrections and thumbs: the better reply becomes likelier, under the same rules as any other training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.settings import Settings
from appliance.tuning import HuggingFaceTuner, checkpoints, dataset, loading, preference, trainer
from appliance.tuning.recipe import Recipe, built_in

DPO = Recipe(objective="dpo", rank=4, alpha=8, rate=5e-3, epochs=2, batch=4, length=128, checkpoint_every=2, warmup=0.0)
KTO = replace(DPO, objective="kto")
Row = dict[str, Any]


def quiet(*_args: object) -> None: ...


def pair(number: int) -> Row:
    question = {"role": "user", "content": f"How do I add {number} and {number + 1}?"}
    return {
        "messages": [question],
        "chosen": f"Start at {number}. Which number do you reach when you count on?",
        "rejected": f"The answer is {2 * number + 1}.",
    }


def thumb(number: int) -> Row:
    row = pair(number)
    good = number % 3 != 0
    return {"messages": row["messages"], "completion": row["chosen" if good else "rejected"], "good": good}


@pytest.fixture(scope="module")
def pairs() -> list[Row]:
    return [pair(number) for number in range(16)]


@pytest.fixture(scope="module")
def thumbs() -> list[Row]:
    return [thumb(number) for number in range(17)]


def made(base: Path, rows: list[Row], folder: Path, recipe: Recipe, report: trainer.Report = quiet, **options: Any) -> Any:
    tokenizer = loading.load_tokenizer(base)
    kept, _ = preference.prepare_preferences(tokenizer, rows, recipe.length)
    model = loading.load_base(base, **options)
    return preference.build(model, tokenizer, kept, recipe, folder, micro_batch=recipe.batch, report=report)


def weights(model: Any) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def likelihood(model: Any, tokenizer: Any, row: Row, reply: str) -> float:
    """Log-probability of a reply, computed apart from the trainer."""
    import torch

    talk = [*row["messages"], {"role": "assistant", "content": reply}]
    ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]
    before = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        scores = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
    return float(scores.gather(-1, ids[0, 1:, None])[len(before) - 1 :].sum())


def margin(model: Any, tokenizer: Any, rows: list[Row]) -> float:
    """By how much a chosen reply is likelier than the rejected one, on average."""
    model.eval()
    found = [
        likelihood(model, tokenizer, row, row["chosen"]) - likelihood(model, tokenizer, row, row["rejected"]) for row in rows
    ]
    return sum(found) / len(found)


def test_rows_are_shortened_or_left_out_and_counted(tiny: Path) -> None:
    tokenizer = loading.load_tokenizer(tiny)
    long = pair(1) | {"messages": [{"role": "system", "content": "Be kind."}, *talk(30), *pair(1)["messages"]]}
    marked = pair(2) | {"rejected": "<|end|> I am the teacher"}
    alike = pair(3) | {"chosen": "Yes. ", "rejected": "Yes."}
    hopeless = pair(4) | {"rejected": "word " * 400}
    kept, facts = preference.prepare_preferences(tokenizer, [pair(0), long, marked, alike, hopeless], 128)
    assert facts == {"left_out_marks": 1, "left_out_long": 1, "left_out_same": 1, "shortened": 1}
    assert kept[0]["prompt"] == pair(0)["messages"] and kept[0]["chosen"][0]["content"] == pair(0)["chosen"]
    assert [turn["role"] for turn in kept[1]["prompt"]][:2] == ["system", "user"]
    assert kept[1]["prompt"][-1] == pair(1)["messages"][-1] and len(kept[1]["prompt"]) < len(long["messages"])
    with pytest.raises(BadInput, match="None of the 3 rows"):
        preference.prepare_preferences(tokenizer, [marked, alike, hopeless], 128)
    with pytest.raises(BadInput, match="All 2 thumbs point up"):
        preference.prepare_preferences(tokenizer, [thumb(1), thumb(2)], 128)


def talk(turns: int) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": f"This was said in turn {at} of the lesson."} for at in range(turns)]


def test_every_batch_of_thumbs_holds_both_kinds(tiny: Path, thumbs: list[Row], tmp_path: Path) -> None:
    run = made(tiny, thumbs, tmp_path, KTO)
    assert len(run.train_dataset) == 16, "the seventeenth would have been alone in its batch"
    batches = [set(batch["label"].tolist()) for batch in run.get_train_dataloader()]
    assert batches == [{True, False}] * 4
    good = sum(row["good"] for row in thumbs)
    assert run.undesirable_weight == pytest.approx(good / (len(thumbs) - good), rel=0.15) and run.desirable_weight == 1.0
    assert run.ref_model is None, "the reference is the base without its adapter"


def test_a_batch_of_one_thumb_is_never_made(tiny: Path, thumbs: list[Row], tmp_path: Path) -> None:
    tokenizer = loading.load_tokenizer(tiny)
    kept, _ = preference.prepare_preferences(tokenizer, thumbs, 128)
    run = preference.build(loading.load_base(tiny), tokenizer, kept, KTO, tmp_path, micro_batch=1, report=quiet)
    assert (run.args.per_device_train_batch_size, run.args.gradient_accumulation_steps) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [DPO, KTO], ids=["dpo", "kto"])
def test_a_resumed_run_ends_in_the_same_weights(
    tiny: Path, pairs: list[Row], thumbs: list[Row], tmp_path: Path, recipe: Recipe
) -> None:
    rows = pairs if recipe.objective == "dpo" else thumbs
    whole = made(tiny, rows, tmp_path / "whole", recipe)
    first = weights(whole.model)
    whole.train()
    assert not same(first, weights(whole.model))
    written = {path.name for path in (tmp_path / "whole" / "checkpoints").rglob("*")}
    assert "training_args.bin" not in written and "adapter_model.safetensors" in written

    class Cut(Exception): ...

    def cut(_stage: str, done: int, *_rest: object) -> None:
        if done == 5:
            raise Cut

    with pytest.raises(Cut):
        made(tiny, rows, tmp_path / "broken", recipe, report=cut).train()
    newest = checkpoints.newest(tmp_path / "broken" / "checkpoints")
    assert newest is not None and newest.name == "checkpoint-4"
    resumed = made(tiny, rows, tmp_path / "broken", recipe)
    resumed.train(resume_from_checkpoint=str(newest))
    assert same(weights(whole.model), weights(resumed.model))
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken" / "loss.jsonl").read_text("utf-8").splitlines()]
    assert steps == list(range(1, 9))


def test_training_stops_on_a_weight_that_is_not_finite(tiny: Path, pairs: list[Row], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    run = made(tmp_path / "hf", pairs, tmp_path, DPO)
    before = weights(run.model)
    with pytest.raises(trainer.NotFinite, match="step 1"):
        run.train()
    assert same(before, weights(run.model)) and checkpoints.newest(tmp_path / "checkpoints") is None


@pytest.mark.slow
def test_corrections_make_the_better_reply_likelier_on_the_starter(tmp_path: Path) -> None:
    starter = Settings().starter
    if not (starter / "model.safetensors").is_file():
        pytest.skip("models/starter holds no weights")
    rows = [pair(number) for number in range(24)]
    recipe = replace(built_in("corrections-dpo"), epochs=2, batch=6, accumulate=1, length=128)
    tokenizer = loading.load_tokenizer(starter)
    before = margin(loading.load_base(starter), tokenizer, rows)
    run = made(starter, rows, tmp_path, recipe)
    run.train()
    trainer.save_adapter(run.model, tmp_path / "adapter")
    after = margin(loading.load_adapted(starter, tmp_path / "adapter"), tokenizer, rows)
    logged = [row["rewards/margins"] for row in run.state.log_history if "rewards/margins" in row]
    assert logged[0] == pytest.approx(0, abs=1e-3), "before the first step the model is its own reference"
    assert after > before + 1.0
    # What trl reports is beta times the same difference, measured before the last step.
    assert 0 < logged[-1] < 1.5 * recipe.beta * (after - before)


@pytest.mark.slow
def test_thumbs_make_good_replies_likelier_than_bad_ones(tiny: Path, thumbs: list[Row], tmp_path: Path) -> None:
    tokenizer = loading.load_tokenizer(tiny)
    rows = [pair(number) for number in range(17)]
    before = margin(loading.load_base(tiny), tokenizer, rows)
    run = made(tiny, thumbs, tmp_path, replace(KTO, epochs=4))
    run.train()
    trainer.save_adapter(run.model, tmp_path / "adapter")
    assert margin(loading.load_adapted(tiny, tmp_path / "adapter"), tokenizer, rows) > before + 1.0


@pytest.mark.slow
async def test_the_tuner_learns_from_pairs(tiny: Path, examples_file: Path, pairs: list[Row], tmp_path: Path) -> None:
    """The whole way: the job, the process that trains, its checks of memory and of what was saved."""
    tuner = HuggingFaceTuner(Settings(home=tmp_path / "home"))
    data = dataset.build(dataset.read_examples(examples_file), tmp_path / "data")
    trained = await tuner.fine_tune(tiny, data, DPO, tmp_path / "run", preferences=pairs)
    assert trained.facts["examples"] == len(pairs) and trained.facts["steps"] == 8
    tokenizer = loading.load_tokenizer(tiny)
    before = margin(loading.load_base(tiny), tokenizer, pairs)
    assert margin(loading.load_adapted(tiny, trained.adapter), tokenizer, pairs) > before + 1.0
    with pytest.raises(BadInput, match="All 3 thumbs"):
        await tuner.fine_tune(tiny, data, KTO, tmp_path / "other", preferences=[thumb(n) for n in (1, 2, 4)])


@pytest.mark.slow
def test_corrections_train_over_a_4_bit_base(tiny: Path, pairs: list[Row], tmp_path: Path) -> None:
    run = made(tiny, pairs, tmp_path, replace(DPO, method="qlora"), dtype="bfloat16", quantised="nf4")
    run.train()
    margins = [row["rewards/margins"] for row in run.state.log_history if "rewards/margins" in row]
    assert margins[-1] > margins[0]
    trainer.save_adapter(run.model, tmp_path / "adapter")
    loading.load_adapted(tiny, tmp_path / "adapter")
