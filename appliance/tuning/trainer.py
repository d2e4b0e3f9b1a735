"""transformers' Trainer, held to the house's rules.

Loss on the tutor's turns only; checkpoints that are complete or absent; a stop before the optimizer steps on a loss or gradient
that is not finite; judging on held-out conversations, with the best weights kept; progress with an estimate of the time left.
Hides how a recipe becomes the trainer's settings. Rows, attention and loss are `packing.py`'s, preferences `preference.py`'s.
Does not spawn processes (`huggingface.py`) and does not speak to them (`train_child.py`). Imports torch when called.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, BadInput
from appliance.tuning import checkpoints, packing
from appliance.tuning.launch import together
from appliance.tuning.loss_log import LossLog
from appliance.tuning.recipe import Recipe
from appliance.tuning.run_folder import read_json, write_json

Report = Callable[[str, int, int, "float | None", dict[str, Any]], None]
Talk = list[dict[str, str]]

SMALL_MODEL = 300_000_000  # weights; below it checkpointing activations costs time and saves nothing that matters
# A model that guesses evenly among its vocabulary loses ln(vocabulary) per token; twice that is a run gone wrong.
EXPLODED = 2.0
JUDGED_ON = 32  # held-out conversations: enough to see a turn for the worse, a few seconds on two cores


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
    model: Any,
    tokenizer: Any,
    talks: list[Talk],
    recipe: Recipe,
    folder: Path,
    *,
    micro_batch: int,
    report: Report,
    held_out: Sequence[Talk] = (),
) -> Any:
    """A trainer for `run()`; checkpoints and loss log go below `folder`, `made.facts` says how it trains.

    held_out: what early stopping judges on, where the recipe asks for it. Raises Unsupported for a template that does not mark
    the tutor's turns.
    """
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.utils.logging.disable_progress_bar()
    rows = packing.encode(tokenizer, talks)
    why_padded = packing.use(model) if recipe.packing else "the recipe says so"
    plain_head = packing.has_plain_head(model)
    arguments = _arguments(model, recipe, folder, len(talks), micro_batch)
    transformers.set_seed(recipe.seed)  # before the adapter's weights are drawn
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            use_rslora=recipe.rslora,
            use_dora=recipe.dora,
            target_modules="all-linear",
        ),
    )
    if arguments.activation_checkpointing:
        adapted.enable_input_require_grads()
    made = _trainer_class()(
        model=adapted,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=rows,
        data_collator=(lambda some: packing.padded(some, tokenizer.pad_token_id)) if why_padded else packing.packed,
    )
    made.house_folder = folder / "checkpoints"
    made.packed, made.plain_head, made.mixed = not why_padded, plain_head, _mixed(model)
    made.patience = recipe.patience if held_out else 0
    made.held_out = packing.encode(tokenizer, list(held_out)[:JUDGED_ON]) if made.patience else []
    made.facts = {
        "packing": f"padded, by length: {why_padded}" if why_padded else "packed",
        "precision": "bfloat16" if made.mixed else "float32",
        "rslora": recipe.rslora,
        "dora": recipe.dora,
        "judged_on": len(made.held_out),
    }
    made.remove_callback(transformers.PrinterCallback)
    made.add_callback(_callbacks(made, recipe, folder, report))
    return made


def _mixed(model: Any) -> bool:
    """Whether products are taken in bfloat16: on a GPU, and on a processor that has instructions for it."""
    import torch

    if next(model.parameters()).is_cuda:
        return True
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def run(made: Any, newest: Path | None) -> dict[str, Any]:
    """Train to the end, from the checkpoint `newest` on where there is one, and leave the best weights in `made.model`.

    Facts: steps, and where it was judged held_out_loss, best_step, stopped_early. Raises NotFinite, and what the report raises.
    """
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(newest / "trainer_state.json")) if newest else None
    if state is not None and out_of_patience(judgings(state), getattr(made, "patience", 0)):
        made.state = state  # the run was broken off between its last step and its end
    else:
        made.train(resume_from_checkpoint=str(newest) if newest else None)
    facts: dict[str, Any] = {"steps": made.state.global_step}
    judged = judgings(made.state)
    if not judged:
        return facts
    # Were the best one damaged on disk, the next best would do; the last stands in the model as it is.
    whole = {step: loss for step, loss in judged.items() if checkpoints.complete(made.house_folder / f"checkpoint-{step}")}
    best = best_step(whole) or made.state.global_step
    if best in whole:
        load_adapter(made.model, made.house_folder / f"checkpoint-{best}")
    stopped = out_of_patience(judged, made.patience)
    return facts | {"held_out_loss": round(judged[best], 5), "best_step": best, "stopped_early": stopped}


def judgings(state: Any) -> dict[int, float]:
    """Held-out loss by step, from the trainer's own history: it stands in every checkpoint."""
    return {row["step"]: row["held_out"] for row in state.log_history if "held_out" in row}


def best_step(judged: dict[int, float]) -> int:
    """The earliest step with the lowest loss; 0 where none was judged."""
    return min(judged, key=lambda step: (judged[step], step), default=0)


def out_of_patience(judged: dict[int, float], patience: int) -> bool:
    """Whether the last `patience` judgings brought nothing better than what came before them."""
    return 0 < patience <= sum(step > best_step(judged) for step in judged)


def load_adapter(model: Any, folder: Path) -> None:
    """Put the adapter of a checkpoint into `model`."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


class Order:
    """The order of the examples, epoch by epoch, the same whether a run was broken off or not.

    grouped: talks of like length share a batch, because padding would cost up to half of the time. The batch with most tokens
    comes first of all, so that one that does not fit in memory shows at once. (The trainer's own grouping draws from a
    generator that a resumed run does not have.)
    """

    def __init__(self, lengths: list[int], batch: int, seed: int, *, grouped: bool = True) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0
        self.grouped = grouped

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
            near = order[start : start + window]
            if self.grouped:
                near.sort(key=lambda index: -self.lengths[index])
            batches += [near[at : at + self.batch] for at in range(0, len(near), self.batch)]
        rest = [batch for batch in batches if len(batch) < self.batch]  # a short batch comes last, or all would shift
        full = [batch for batch in batches if len(batch) == self.batch]
        draw.shuffle(full)
        if self.epoch == 0 and full:
            full.insert(0, full.pop(max(range(len(full)), key=lambda at: self._tokens(full[at]))))
        yield from (index for batch in [*full, *rest] for index in batch)

    def _tokens(self, batch: list[int]) -> int:
        """What a batch takes in memory: the longest talk for each of its rows, or all talks in one row."""
        lengths = [self.lengths[index] for index in batch]
        return max(lengths) if self.grouped else sum(lengths)


def _arguments(model: Any, recipe: Recipe, folder: Path, count: int, micro_batch: int) -> Any:
    from transformers import TrainingArguments

    on_gpu = next(model.parameters()).is_cuda
    accumulate = recipe.accumulate * max(1, recipe.batch // micro_batch)
    steps = max(1, math.ceil(recipe.epochs * math.ceil(math.ceil(count / micro_batch) / accumulate)))
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
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
        bf16=False,  # `compute_loss` casts: around the model's forward the trainer would turn all logits to float32
        use_cpu=not on_gpu,
        ddp_backend=None if on_gpu or together() == 1 else "gloo",
        remove_unused_columns=False,
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

    class HouseTrainer(Trainer):  # type: ignore[misc]
        house_folder: Path
        packed = plain_head = mixed = False
        patience = 0
        held_out: list[packing.Row]
        facts: dict[str, Any]
        loss_is_scaled_for_ga = True

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.model_accepts_loss_kwargs = True  # have it count the tokens of a whole step
            self._loss_shifts_labels = True

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:  # noqa: ARG002
            lengths = [len(row["input_ids"]) for row in self.train_dataset]
            batch = self.args.per_device_train_batch_size
            return Order(lengths, batch, self.args.data_seed, grouped=not self.packed)

        def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
            return str(self.house_folder / checkpoints.DRAFT)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            save_checkpoint(self, lambda: super(HouseTrainer, self)._save_checkpoint(model, trial))

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:  # noqa: ARG002
            """The mean over the tokens of the whole step, however many rows and processes it is spread over."""
            alone = model is self.model  # a wrapper must see the whole forward to share gradients among GPUs
            with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.mixed):
                total = packing.summed_loss(model, inputs, head=self.plain_head and alone)
            count = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"] != packing.IGNORED).sum()
            return total / count * (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            ceiling = EXPLODED * math.log(self.model.config.vocab_size)
            if not torch.isfinite(loss) or loss > ceiling:
                raise _stopped(f"the loss became {float(loss):.3g}", self.state.global_step + 1)
            return loss

        def judge(self) -> float:
            """Loss per token on the held-out conversations, as they are answered: without dropout. Draws nothing."""
            batch, total, count = self.args.per_device_train_batch_size, 0.0, 0
            with packing.answering(self.model), torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.mixed):
                for at in range(0, len(self.held_out), batch):
                    rows = self._prepare_inputs(self.data_collator(self.held_out[at : at + batch]))
                    total += float(packing.summed_loss(self.model, rows))
                    count += int((rows["labels"] != packing.IGNORED).sum())
            return total / max(1, count)

    return HouseTrainer


def save_checkpoint(made: Any, save: Callable[[], None]) -> None:
    """Have a trainer write a checkpoint aside, then publish it whole. Where several processes share a step, one publishes."""
    first = made.args.process_index == 0
    if first:
        checkpoints.fresh_draft(made.house_folder)
    made.accelerator.wait_for_everyone()
    save()
    made.accelerator.wait_for_everyone()
    if first:
        (written,) = (made.house_folder / checkpoints.DRAFT).iterdir()
        for name in ("training_args.bin", "README.md"):  # a pickle, and prose: neither is needed to resume
            (written / name).unlink(missing_ok=True)
        checkpoints.publish(written, made.house_folder / written.name)
        checkpoints.prune(made.house_folder, keep=best_step(judgings(made.state)))
    made.accelerator.wait_for_everyone()


def _stopped(what: str, step: int) -> NotFinite:
    return NotFinite(
        f"Training stopped at step {step} because {what}; nothing was published.",
        "Use a smaller rate in the recipe, and check that the base model is undamaged.",
    )


def _callbacks(trainer: Any, recipe: Recipe, folder: Path, report: Report) -> Any:
    import torch
    from transformers import TrainerCallback

    patience = getattr(trainer, "patience", 0)

    class House(TrainerCallback):  # type: ignore[misc]
        """Saves, judging, progress, the loss log and the guard against gradients that are not finite."""

        log: LossLog
        started = 0.0
        first = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.is_world_process_zero:
                self.log = LossLog(folder / "loss.jsonl", state.global_step)
            self.started, self.first = time.monotonic(), state.global_step
            # A tenth of the run, and never more than fifty steps, is what a power cut may cost.
            self.every = recipe.checkpoint_every or max(1, min(50, state.max_steps // 10))
            report("train", state.global_step, state.max_steps, None, {"resumed_at": state.global_step})

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            slopes = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
            sums = torch.stack([slope.sum() for slope in slopes.values()])  # one look, not one for each of them
            if not torch.isfinite(sums).all():
                name = list(slopes)[int((~torch.isfinite(sums)).nonzero()[0])]
                raise _stopped(f"a gradient ({name}) is not finite", state.global_step + 1)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.global_step % self.every and state.global_step < state.max_steps:
                return
            control.should_save = True
            if patience:
                held_out = trainer.judge()
                if not math.isfinite(held_out):
                    raise _stopped("the loss on held-out conversations is not finite", state.global_step)
                state.log_history.append({"step": state.global_step, "held_out": held_out})
                control.should_training_stop = out_of_patience(judgings(state), patience)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
            if not logs or "loss" not in logs or not state.is_world_process_zero:
                return
            row = {"step": state.global_step, "loss": logs["loss"], "rate": logs.get("learning_rate")}
            row |= {"gradient": logs.get("grad_norm"), "epoch": logs.get("epoch")}
            held_out = judgings(state).get(state.global_step)
            self.log.add(row if held_out is None else row | {"held_out": held_out})
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
    # Where the base lay on this machine means nothing elsewhere; the registry names it. peft writes a set in any order.
    modules = config.get("target_modules")
    config["target_modules"] = sorted(modules) if isinstance(modules, list) else modules
    write_json(draft / "adapter_config.json", config | {"base_model_name_or_path": None})
    checkpoints.publish(draft, target)
    return total
