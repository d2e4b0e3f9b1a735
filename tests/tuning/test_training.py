"""Training keeps the house's rules: tutor's turns only, complete checkpoints or none, nothing that is not finite."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, BadInput, StorageFull, Unsupported
from appliance.settings import Settings
from appliance.tuning import HuggingFaceTuner, checkpoints, dataset, loading, trainer
from appliance.tuning.loss_log import LossLog, curve
from appliance.tuning.recipe import Recipe
from appliance.tuning.train_child import OutOfMemory, translate

FAST = Recipe(rank=4, alpha=8, rate=5e-3, epochs=2, batch=4, length=128, checkpoint_every=2)
# Judged every second step of sixteen.
WATCHED = Recipe(
    rank=8, alpha=64, dropout=0.2, rate=2e-2, warmup=0, epochs=8, batch=4, length=128, checkpoint_every=2, patience=2
)
TURN = 6  # the step after which the scripted judge sees it get worse


def quiet(*_args: object) -> None: ...


def made(
    base: Path,
    talks: list[trainer.Talk],
    folder: Path,
    recipe: Recipe = FAST,
    *,
    held_out: Sequence[trainer.Talk] = (),
    report: trainer.Report = quiet,
    **options: Any,
) -> Any:
    model = loading.load_base(base, **options)
    tokenizer = loading.load_tokenizer(base)
    return trainer.build(
        model, tokenizer, talks, recipe, folder, micro_batch=recipe.batch, report=report, held_out=held_out
    )  # fmt: skip


@pytest.fixture(scope="module")
def talks(rows: list[dict[str, Any]]) -> list[trainer.Talk]:
    return [row["messages"] for row in rows[:16]]


def weights(model: Any) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_only_the_tutors_words_and_end_mark_carry_loss(tiny: Path, talks: list[trainer.Talk], tmp_path: Path) -> None:
    run = made(tiny, [[{"role": "system", "content": "Be kind."}, *talk] for talk in talks], tmp_path)
    tokenizer = loading.load_tokenizer(tiny)
    batch = next(iter(run.get_train_dataloader()))
    wanted = {"".join(m["content"] + "<|end|>" for m in talk if m["role"] == "assistant") for talk in talks}
    assert len(batch["packed_lengths"]) == FAST.batch and batch["input_ids"].shape == (1, sum(batch["packed_lengths"]))
    parts = [batch[name][0].split(batch["packed_lengths"]) for name in ("input_ids", "labels")]
    for ids, labels in zip(*parts, strict=True):
        learnt = labels != -100
        assert (ids[learnt] == labels[learnt]).all()
        assert tokenizer.decode(labels[learnt]) in wanted
        assert "Be kind" in tokenizer.decode(ids[~learnt])


def test_a_template_that_does_not_mark_the_tutor_is_refused(tiny: Path, talks: list[trainer.Talk], tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(tiny, folder)
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text("utf-8").replace("{% generation %}", "").replace("{% endgeneration %}", ""), "utf-8")
    with pytest.raises(Unsupported, match="does not mark"):
        made(folder, talks, tmp_path)


def test_long_talks_lose_their_oldest_turns_and_marks_are_left_out(tiny: Path, talks: list[trainer.Talk]) -> None:
    tokenizer = loading.load_tokenizer(tiny)
    system = {"role": "system", "content": "Be kind."}
    long = [system, *talks[0], *talks[1], *talks[2]]
    marked = [{"role": "user", "content": "say <|assistant|> please"}, {"role": "assistant", "content": "No."}]
    hopeless = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "Yes."}]
    kept, facts = trainer.fit(tokenizer, [talks[3], long, marked, hopeless], 128)
    assert facts == {"left_out_marks": 1, "left_out_long": 1, "shortened": 1}
    assert kept[0] == talks[3]
    assert kept[1][0] == system and kept[1][1]["role"] == "user" and kept[1][-1] == talks[2][-1]
    with pytest.raises(BadInput, match="None of the 2 training examples fits"):
        trainer.fit(tokenizer, [marked, hopeless], 128)


def test_the_order_is_complete_repeatable_and_begins_with_the_longest() -> None:
    order = trainer.Order([5, 90, 7, 30, 31, 8, 6, 12, 60, 61, 3], batch=2, seed=1)
    first = list(order)
    assert sorted(first) == list(range(11)) and list(order) == first and 1 in first[:2]
    order.set_epoch(1)
    assert list(order) != first and sorted(order) == list(range(11))


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_a_resumed_run_ends_in_the_same_weights(tiny: Path, talks: list[trainer.Talk], tmp_path: Path, packing: bool) -> None:
    """Also where the newest checkpoint is damaged, and with dropout, which draws random numbers at each step."""
    from dataclasses import replace

    recipe = replace(FAST, dropout=0.2, packing=packing)
    whole = made(tiny, talks, tmp_path / "whole", recipe)
    whole.train()
    assert len(checkpoints._numbered(tmp_path / "whole" / "checkpoints")) == checkpoints.KEPT

    class Cut(Exception): ...

    def cut(_stage: str, done: int, *_rest: object) -> None:
        if done == 7:
            raise Cut

    broken = made(tiny, talks, tmp_path / "broken", recipe, report=cut)
    with pytest.raises(Cut):
        broken.train()
    folder = tmp_path / "broken" / "checkpoints"
    assert checkpoints.newest(folder) == folder / "checkpoint-6"
    (folder / "checkpoint-6" / "optimizer.pt").unlink()  # the trainer itself would go on from here, silently, to other weights
    (folder / "checkpoint-9").mkdir()
    (folder / ".draft" / "checkpoint-8").mkdir(parents=True)
    newest = checkpoints.newest(folder)
    assert newest == folder / "checkpoint-4"
    resumed = made(tiny, talks, tmp_path / "broken", recipe)
    resumed.train(resume_from_checkpoint=str(newest))
    assert same(weights(whole.model), weights(resumed.model))
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken" / "loss.jsonl").read_text("utf-8").splitlines()]
    assert steps == list(range(1, 9))


def backwards(talk: trainer.Talk) -> trainer.Talk:
    """A tutor who speaks backwards: what is learnt from the others helps with him for a while, and then no more."""
    return [turn | {"content": " ".join(reversed(turn["content"].split()))} for turn in talk]


@pytest.mark.slow
def test_the_weights_that_were_best_on_held_out_conversations_are_kept(
    tiny: Path, talks: list[trainer.Talk], tmp_path: Path
) -> None:
    run = made(tiny, talks[:8], tmp_path, WATCHED, held_out=[backwards(talk) for talk in talks[8:]])
    facts = trainer.run(run, None)
    losses = trainer.judgings(run.state)
    assert losses[facts["best_step"]] == min(losses.values()) and len(set(losses.values())) == len(losses)
    assert facts["held_out_loss"] == pytest.approx(min(losses.values()), abs=1e-4)
    assert run.judge() == pytest.approx(min(losses.values()), rel=1e-6), "what is left in the model is the best"
    logged = {row["step"]: row["held_out"] for row in LossLog(tmp_path / "loss.jsonl", 10**6).rows if "held_out" in row}
    assert logged == losses


def watched(base: Path, talks: list[trainer.Talk], folder: Path, report: trainer.Report = quiet) -> Any:
    """A run whose judge sees it get better up to step TURN, and then worse."""
    run = made(base, talks[:8], folder, WATCHED, held_out=talks[8:], report=report)
    run.judge = lambda: 1.0 + abs(run.state.global_step - TURN) / 100
    return run


@pytest.mark.slow
def test_early_stopping_survives_a_kill_at_any_judging(tiny: Path, talks: list[trainer.Talk], tmp_path: Path) -> None:
    """Broken off just before the best, just after it, and between the last step and the end."""
    whole = watched(tiny, talks, tmp_path / "whole")
    wanted = trainer.run(whole, None)
    assert wanted == {"steps": TURN + 4, "best_step": TURN, "held_out_loss": 1.0, "stopped_early": True}
    best = checkpoints.newest(tmp_path / "whole" / "checkpoints")
    assert best is not None and best.name == f"checkpoint-{TURN + 4}"

    class Cut(Exception): ...

    for at in (TURN, TURN + 3, TURN + 4):

        def cut(_stage: str, done: int, *_rest: object, at: int = at) -> None:
            if done == at:
                raise Cut

        with pytest.raises(Cut):
            trainer.run(watched(tiny, talks, tmp_path / str(at), cut), None)
        again = watched(tiny, talks, tmp_path / str(at))
        facts = trainer.run(again, checkpoints.newest(tmp_path / str(at) / "checkpoints"))
        assert facts == wanted and same(weights(whole.model), weights(again.model)), at

    # The run ended, and was killed before its adapter was written: nothing is trained again.
    ended = watched(tiny, talks, tmp_path / "whole", lambda *_: pytest.fail("it trained on"))
    assert trainer.run(ended, best) == wanted and same(weights(whole.model), weights(ended.model))
    # The best one was damaged on disk since: the next best will do.
    (tmp_path / "whole" / "checkpoints" / f"checkpoint-{TURN}" / "adapter_model.safetensors").write_bytes(b"")
    assert trainer.run(watched(tiny, talks, tmp_path / "whole"), best)["best_step"] == TURN + 2


def test_without_patience_nothing_is_judged(tiny: Path, talks: list[trainer.Talk], tmp_path: Path) -> None:
    run = made(tiny, talks[:4], tmp_path, FAST, held_out=talks[8:])
    facts = trainer.run(run, None)
    assert trainer.judgings(run.state) == {} and facts == {"steps": 2}


def test_patience_counts_judgings_after_the_best() -> None:
    assert not trainer.out_of_patience({}, 2)
    assert not trainer.out_of_patience({2: 3.0, 4: 3.0}, 2), "one judging without a gain"
    assert trainer.out_of_patience({2: 3.0, 4: 3.0, 6: 3.1}, 2)
    assert not trainer.out_of_patience({2: 3.0, 4: 3.1, 6: 2.9}, 2)
    assert not trainer.out_of_patience({2: 3.0, 4: 3.1, 6: 3.2}, 0)


@pytest.mark.parametrize("flag", ["rslora", "dora"])
def test_the_recipes_flags_reach_the_adapter(tiny: Path, talks: list[trainer.Talk], tmp_path: Path, flag: str) -> None:
    from dataclasses import replace

    run = made(tiny, talks[:4], tmp_path, replace(FAST, **{flag: True}))
    assert run.facts[flag] is True and run.facts["packing"] == "packed"
    trainer.run(run, None)
    trainer.save_adapter(run.model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert config[f"use_{flag}"] is True
    if flag == "dora":
        assert any("magnitude" in name for name in weights(run.model))
    else:  # alpha / sqrt(rank) instead of alpha / rank
        scales = [module.scaling for module in run.model.modules() if isinstance(getattr(module, "scaling", None), dict)]
        assert scales and all(scale["default"] == 4.0 for scale in scales)


def test_a_checkpoint_counts_only_while_its_manifest_verifies(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        draft = checkpoints.fresh_draft(tmp_path)
        (draft / "weights").write_bytes(bytes([number]) * 100)
        checkpoints.publish(draft, tmp_path / f"checkpoint-{number}")
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"\0" * 100)
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2" / "manifest.json").write_text("{}", "utf-8")
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-1"
    (tmp_path / "checkpoint-1" / "weights").unlink()
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "absent") is None


class Planted:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_planted_pickle_is_never_run(tiny: Path, talks: list[trainer.Talk], tmp_path: Path, name: str) -> None:
    """Even by somebody who could write the manifest as well: only weights are read from these files."""
    import hashlib
    import pickle

    made(tiny, talks, tmp_path / "run").train()
    _, newest = checkpoints._numbered(tmp_path / "run" / "checkpoints")[0]  # not the last step: there is work to resume
    assert not list(newest.rglob("training_args.bin"))
    mark = tmp_path / "run-by-a-pickle"
    (newest / name).write_bytes(pickle.dumps(Planted(mark)))
    assert not checkpoints.complete(newest), "the manifest tells"
    manifest = json.loads((newest / checkpoints.MANIFEST).read_text("utf-8"))
    manifest[name] = hashlib.sha256((newest / name).read_bytes()).hexdigest()
    (newest / checkpoints.MANIFEST).write_text(json.dumps(manifest))
    assert checkpoints.complete(newest)
    resumed = made(tiny, talks, tmp_path / "run")
    with pytest.raises(Exception, match=r"(?i)weights.only|pickle|unpickl"):
        resumed.train(resume_from_checkpoint=str(newest))
    assert not mark.exists()


def poison(base: Path, folder: Path, value: float, name: str = "model.layers.1.mlp.down_proj.weight") -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][0, 0] = value  # of the embedding: the row of <|endoftext|>, which is a candidate at every place
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_stops_before_the_optimizer_on_a_loss_that_is_not_finite(
    tiny: Path, talks: list[trainer.Talk], tmp_path: Path, value: float
) -> None:
    run = made(poison(tiny, tmp_path / "hf", value), talks, tmp_path)
    before = weights(run.model)
    with pytest.raises(trainer.NotFinite, match="step 1 because the loss became"):
        run.train()
    assert same(before, weights(run.model)), "no step was taken"
    assert checkpoints.newest(tmp_path / "checkpoints") is None


def test_training_stops_on_an_exploding_loss(tiny: Path, talks: list[trainer.Talk], tmp_path: Path) -> None:
    """A base with one absurd weight: every figure is finite, and none means anything."""
    run = made(poison(tiny, tmp_path / "hf", 1e6, "model.embed_tokens.weight"), talks, tmp_path)
    before = weights(run.model)
    with pytest.raises(trainer.NotFinite, match="step 1 because the loss became"):
        run.train()
    assert same(before, weights(run.model))


def test_a_weight_that_is_not_finite_is_never_saved(tiny: Path, talks: list[trainer.Talk], tmp_path: Path) -> None:
    run = made(tiny, talks, tmp_path)
    next(weight for name, weight in run.model.named_parameters() if "lora_B" in name).data[0, 0] = float("inf")
    with pytest.raises(trainer.NotFinite, match="not finite"):
        trainer.save_adapter(run.model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.slow
def test_qlora_trains_on_the_cpu(tiny: Path, talks: list[trainer.Talk], tmp_path: Path) -> None:
    from dataclasses import replace

    recipe = replace(FAST, method="qlora", epochs=3)
    run = made(tiny, talks, tmp_path, recipe, dtype="bfloat16", quantised=True)
    kinds = {type(module).__name__ for module in run.model.modules()}
    assert "Linear4bit" in kinds
    run.train()
    losses = [row["loss"] for row in LossLog(tmp_path / "loss.jsonl", 10**6).rows]
    assert losses[-1] < losses[0]
    trainer.save_adapter(run.model, tmp_path / "adapter")
    assert checkpoints.complete(tmp_path / "adapter")
    loading.load_adapted(tiny, tmp_path / "adapter")


def test_the_method_is_chosen_for_the_memory_there_is() -> None:
    billion = 10**9
    assert loading.choose_method("auto", 7 * billion, None) == "lora"
    assert loading.choose_method("auto", 7 * billion, 24 * billion) == "lora"
    assert loading.choose_method("auto", 7 * billion, 12 * billion) == "qlora"
    assert loading.choose_method("qlora", 1, None) == "qlora"
    assert loading.choose_method("lora", 70 * billion, 1) == "lora"


def test_full_disk_and_memory_are_sentences(tmp_path: Path) -> None:
    assert isinstance(translate(RuntimeError("basic_ios::clear: iostream error"), tmp_path), StorageFull)
    assert isinstance(translate(OSError(28, "No space left on device"), tmp_path), StorageFull)
    memory = translate(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), tmp_path)
    assert memory is not None and memory.code == "out_of_memory" and "train_memory_mb" in memory.message
    gone = translate(RuntimeError("CUDA error: unspecified launch failure"), tmp_path)
    assert gone is not None and "GPU stopped answering" in gone.message
    assert translate(RuntimeError("shapes do not match"), tmp_path) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a log and not for a checkpoint."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(place)], capture_output=True, check=False
    ).returncode
    if mounted != 0:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
async def test_a_full_disk_is_a_sentence_and_the_run_can_go_on(
    tiny: Path, examples_file: Path, small_disk: Path, tmp_path: Path
) -> None:
    tuner = HuggingFaceTuner(Settings(home=tmp_path / "home", disk_reserve_mb=0))
    data = dataset.build(dataset.read_examples(examples_file), tmp_path / "data")
    with pytest.raises(StorageFull, match="disk is full"):
        await tuner.fine_tune(tiny, data, FAST, small_disk / "run")
    assert not (small_disk / "run" / "adapter").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    trained = await tuner.fine_tune(tiny, data, FAST, small_disk / "run")
    assert checkpoints.complete(trained.adapter)
    assert (small_disk / "run").stat().st_mode & 0o077 == 0
    left = [path.name for path in (small_disk / "run").rglob("*") if path.is_file() and b"the museum" in path.read_bytes()]
    assert left == [], "no copy of the conversations outlives the training"
    again = await tuner.fine_tune(tiny, data, FAST, small_disk / "run")
    assert again.facts == trained.facts, "and the finished run is still known"


@pytest.mark.slow
async def test_what_the_child_reports_comes_back_as_its_class(tiny: Path, examples_file: Path, tmp_path: Path) -> None:
    tuner = HuggingFaceTuner(Settings(home=tmp_path / "home"))
    data = dataset.build(dataset.read_examples(examples_file), tmp_path / "data")
    with pytest.raises(ApplianceError) as caught:
        await tuner.fine_tune(poison(tiny, tmp_path / "hf", float("nan")), data, FAST, tmp_path / "run")
    assert caught.value.code == "not_finite" and "smaller rate" in caught.value.hint
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "done").exists()


async def test_memory_that_ran_out_is_tried_once_with_smaller_batches(
    tiny: Path, examples_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = HuggingFaceTuner(Settings(home=tmp_path / "home"))
    data = dataset.build(dataset.read_examples(examples_file), tmp_path / "data")
    asked: list[int] = []

    async def full(folder: Path, _tell: object) -> dict[str, Any]:
        asked.append(json.loads((folder / "job.json").read_text("utf-8"))["micro_batch"])
        raise OutOfMemory("Tuning needs more memory.", "Lower batch.")

    monkeypatch.setattr("appliance.tuning.huggingface.run_child", full)
    with pytest.raises(OutOfMemory):
        await tuner.fine_tune(tiny, data, FAST, tmp_path / "run")
    assert asked == [4, 2]


def test_smaller_batches_are_the_same_step(tiny: Path, talks: list[trainer.Talk], tmp_path: Path) -> None:
    tokenizer = loading.load_tokenizer(tiny)
    halves = trainer.build(loading.load_base(tiny), tokenizer, talks, FAST, tmp_path, micro_batch=2, report=quiet)
    assert (halves.args.per_device_train_batch_size, halves.args.gradient_accumulation_steps) == (2, 2)


def test_the_loss_log_survives_a_torn_line_and_draws(tmp_path: Path) -> None:
    path = tmp_path / "loss.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 3, "lo', "utf-8")
    log = LossLog(path, up_to_step=1)
    log.add({"step": 2, "loss": 2.0})
    log.draw(tmp_path / "loss.svg")
    assert [row["loss"] for row in LossLog(path, 9).rows] == [3.0, 2.0]
    svg = (tmp_path / "loss.svg").read_text("utf-8")
    assert svg.startswith("<svg") and "3.000 at step 1" in svg and "<script" not in svg
    assert "No steps yet" in curve([])


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, appliance.tuning.pipeline; print({'torch', 'transformers', 'trl', 'llama_cpp'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
