"""trl's SFTTrainer, held to the house's rules.

Loss on the tutor's turns only; checkpoints that are complete or absent; a stop before the optimizer steps on a loss or gradient
that is not finite; progress with an estimate of the time left. Hides how a recipe becomes trl's settings. Does not spawn
processes (`huggingface.py`) and does not speak to them (`train_child.py`). Imports torch when called.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, BadInput, Unsupported
from appliance.tuning import checkpoints
from appliance.tuning.loss_log import LossLog
from appliance.tuning.recipe import Recipe
from appliance.tuning.run_folder import read_json, write_json

Report = Callable[[str, int, int, "float | None", dict[str, Any]], None]
Talk = list[dict[str, str]]

SMALL_MODEL = 300_000_000  # weights; below it checkpointing activations costs time and saves nothing that matters
# A model that guesses evenly among its vocabulary loses ln(vocabulary) per token; twice that is a run gone wrong.
EXPLODED = 2.0


class NotFinite(ApplianceError):
    """The loss or a weight is not a number any more; nothing was published."""

    code = "not_finite"


def fit(tokenizer: Any, talks: list[Talk], length: int) -> tuple[list[Talk], dict[str, int]]:
    """The talks as they will be trained on, and how many were left out or shortened.

    A talk that is too long loses its oldest turns, never the tutor's last. One that contains the model's own marks is left
    out: it would teach the model to end its turn where a pupil typed the mark. Raises BadInput where nothing is left.
    """
    marks = [mark for mark in tokenizer.all_special_tokens if mark]
    kept: list[Talk] = []
    facts = {"left_out_marks": 0, "left_out_long": 0, "shortened": 0}
    for talk in talks:
        if any(mark in message["content"] for message in talk for mark in marks):
            facts["left_out_marks"] += 1
            continue
        short = list(talk)
        start = 1 if short[0]["role"] == "system" else 0
        while _tokens(tokenizer, short) > length and len(short) - start > 2:
            del short[start]
            while len(short) - start > 2 and short[start]["role"] != "user":
                del short[start]
        if _tokens(tokenizer, short) > length:
            facts["left_out_long"] += 1
            continue
        facts["shortened"] += len(short) != len(talk)
        kept.append(short)
    if not kept:
        raise BadInput(
            f"None of the {len(talks)} training examples fits: {facts['left_out_long']} are longer than {length} tokens, "
            f"{facts['left_out_marks']} contain the model's own marks.",
            "Shorten the examples, or raise length in the recipe.",
        )
    return kept, facts


def _tokens(tokenizer: Any, talk: Talk) -> int:
    return len(tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"])


def build(
    model: Any, tokenizer: Any, talks: list[Talk], recipe: Recipe, folder: Path, *, micro_batch: int, report: Report
) -> Any:
    """A trainer ready to `train()`; checkpoints and loss log go below `folder`. Raises Unsupported for a template that
    does not mark the tutor's turns."""
    import datasets
    import transformers
    from peft import LoraConfig

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(recipe.seed)  # before the adapter's weights are drawn
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules="all-linear"
    )
    arguments = _arguments(model, recipe, folder, len(talks), micro_batch)
    try:
        trainer = _trainer_class()(
            model=model,
            args=arguments,
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list([{"messages": talk} for talk in talks]),
            peft_config=lora,
        )
    except (ValueError, RuntimeError) as error:
        if "template" not in str(error) and "assistant" not in str(error):
            raise
        raise Unsupported(
            "The chat template of this model does not mark which words are the tutor's.",
            "Add {% generation %} marks to the model's chat template, or use another model.",
        ) from None
    trainer.house_folder = folder / "checkpoints"
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(_callbacks(trainer, recipe, folder, report))
    return trainer


class Order:
    """The order of the examples, epoch by epoch, the same whether a run was broken off or not.

    Talks of like length share a batch, because padding would cost up to half of the time; the longest come first of all, so
    that a batch that does not fit in memory shows at once. (The trainer's own grouping draws from a generator that a resumed
    run does not have.)
    """

    def __init__(self, lengths: list[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"{self.seed} {self.epoch}")
        order = list(range(len(self.lengths)))
        draw.shuffle(order)
        window = self.batch * 8
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=lambda index: -self.lengths[index])
            batches += [near[at : at + self.batch] for at in range(0, len(near), self.batch)]
        rest = [batch for batch in batches if len(batch) < self.batch]  # a short batch comes last, or all would shift
        full = [batch for batch in batches if len(batch) == self.batch]
        draw.shuffle(full)
        if self.epoch == 0 and full:
            full.insert(0, full.pop(max(range(len(full)), key=lambda at: max(self.lengths[i] for i in full[at]))))
        yield from (index for batch in [*full, *rest] for index in batch)


def _arguments(model: Any, recipe: Recipe, folder: Path, count: int, micro_batch: int) -> Any:
    from trl import SFTConfig

    on_gpu = next(model.parameters()).is_cuda
    accumulate = recipe.accumulate * max(1, recipe.batch // micro_batch)
    steps = max(1, math.ceil(recipe.epochs * math.ceil(math.ceil(count / micro_batch) / accumulate)))
    return SFTConfig(
        output_dir=str(folder / "checkpoints"),
        assistant_only_loss=True,
        max_length=recipe.length,
        packing=False,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.rate,
        lr_scheduler_type="linear",
        warmup_steps=int(steps * recipe.warmup),
        weight_decay=0.0,
        max_grad_norm=recipe.clip,
        seed=recipe.seed,
        data_seed=recipe.seed,
        activation_checkpointing=model.num_parameters() > SMALL_MODEL,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # the callback decides, `_save_checkpoint` writes
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
    )


def _trainer_class() -> type[Any]:
    import torch
    from transformers import Trainer
    from trl import SFTTrainer

    class HouseTrainer(SFTTrainer):  # type: ignore[misc]
        house_folder: Path

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:  # noqa: ARG002
            lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
            return Order(lengths, self.args.per_device_train_batch_size, self.args.data_seed)

        def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
            return str(self.house_folder / checkpoints.DRAFT)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            draft = checkpoints.fresh_draft(self.house_folder)
            Trainer._save_checkpoint(self, model, trial)  # trl's own adds a model card that nobody reads
            (written,) = draft.iterdir()
            for name in ("training_args.bin", "README.md"):  # a pickle, and prose: neither is needed to resume
                (written / name).unlink(missing_ok=True)
            checkpoints.publish(written, self.house_folder / written.name)
            checkpoints.prune(self.house_folder)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            ceiling = EXPLODED * math.log(self.model.config.vocab_size)
            if not torch.isfinite(loss) or loss > ceiling:
                raise _stopped(f"the loss became {float(loss):.3g}", self.state.global_step + 1)
            return loss

    return HouseTrainer


def _stopped(what: str, step: int) -> NotFinite:
    return NotFinite(
        f"Training stopped at step {step} because {what}; nothing was published.",
        "Use a smaller rate in the recipe, and check that the base model is undamaged.",
    )


def _callbacks(trainer: Any, recipe: Recipe, folder: Path, report: Report) -> Any:
    import torch
    from transformers import TrainerCallback

    class House(TrainerCallback):  # type: ignore[misc]
        """Saves, progress, the loss log and the guard against gradients that are not finite."""

        log: LossLog
        started = 0.0
        first = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            self.log = LossLog(folder / "loss.jsonl", state.global_step)
            self.started, self.first = time.monotonic(), state.global_step
            # A tenth of the run, and never more than fifty steps, is what a power cut may cost.
            self.every = recipe.checkpoint_every or max(1, min(50, state.max_steps // 10))
            report("train", state.global_step, state.max_steps, None, {"resumed_at": state.global_step})

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            for name, weight in trainer.model.named_parameters():
                if weight.grad is not None and not torch.isfinite(weight.grad).all():
                    raise _stopped(f"a gradient ({name}) is not finite", state.global_step + 1)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
                control.should_save = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
            if not logs or "loss" not in logs:
                return
            row = {"step": state.global_step, "loss": logs["loss"], "rate": logs.get("learning_rate")}
            self.log.add(row | {"gradient": logs.get("grad_norm"), "epoch": logs.get("epoch")})
            each = (time.monotonic() - self.started) / max(1, state.global_step - self.first)
            left = each * (state.max_steps - state.global_step)
            report("train", state.global_step, state.max_steps, left, {"loss": logs["loss"]})

    return House()


def save_adapter(model: Any, target: Path) -> int:
    """Write the adapter as safetensors, complete or not at all; the number of its weights. Raises NotFinite, OSError."""
    import torch
    from peft import get_peft_model_state_dict

    total = 0
    for name, tensor in get_peft_model_state_dict(model).items():
        if not torch.isfinite(tensor).all():
            raise NotFinite(
                f"The trained weights {name} are not finite; nothing was published.", "Use a smaller rate in the recipe."
            )
        total += tensor.numel()
    draft = checkpoints.fresh_draft(target.parent)
    model.save_pretrained(draft, safe_serialization=True)
    (draft / "README.md").unlink(missing_ok=True)
    config = read_json(draft / "adapter_config.json")
    # Where the base lay on this machine means nothing elsewhere; the registry names it.
    write_json(draft / "adapter_config.json", config | {"base_model_name_or_path": None})
    checkpoints.publish(draft, target)
    return total
