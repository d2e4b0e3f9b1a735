"""trl's DPO and KTO trainers, held to the same rules as `trainer.py`: learning from corrections and from thumbs.

DPO (arXiv 2305.18290) makes the teacher's correction likelier than the reply it corrects; KTO (arXiv 2402.01306) learns from
single replies with a thumb up or down. The measure is the base itself: the same model with its adapter switched off, so no
second copy is loaded. Hides the shape of trl's rows and how a recipe becomes its settings; which rows may be used was decided
before (`selection.py`). Imports torch when called.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from appliance.errors import BadInput
from appliance.tuning import checkpoints, trainer
from appliance.tuning.recipe import Recipe
from appliance.tuning.trainer import Report, Talk

Row = dict[str, Any]
MOST_WEIGHT = 8.0  # of the rarer kind of thumb: beyond it a handful of replies would decide alone


def prepare_preferences(tokenizer: Any, rows: list[Row], length: int) -> tuple[list[Row], dict[str, int]]:
    """The rows in trl's shape, and how many were left out or shortened.

    rows: {"messages", "chosen", "rejected"} for corrections, {"messages", "completion", "good"} for thumbs; messages end with
    the pupil's turn. As in `trainer.fit` a row that is too long loses its oldest turns, never a reply, and one that contains
    the model's own marks is left out. Raises BadInput where nothing is left, or where all thumbs point the same way.
    """
    marks = [mark for mark in tokenizer.all_special_tokens if mark]
    facts = {"left_out_marks": 0, "left_out_long": 0, "left_out_same": 0, "shortened": 0}
    kept: list[Row] = []
    for row in rows:
        prompt: Talk = list(row["messages"])
        replies = [row["chosen"], row["rejected"]] if "chosen" in row else [row["completion"]]
        if any(mark in text for text in [*(turn["content"] for turn in prompt), *replies] for mark in marks):
            facts["left_out_marks"] += 1
        elif len(replies) == 2 and replies[0].strip() == replies[1].strip():
            facts["left_out_same"] += 1
        elif not (short := _shortened(tokenizer, prompt, replies, length)):
            facts["left_out_long"] += 1
        else:
            facts["shortened"] += len(short) != len(prompt)
            kept.append({"prompt": short} | _replies(row))
    if not kept:
        raise BadInput(
            f"None of the {len(rows)} rows can be used: {facts['left_out_long']} are longer than {length} tokens, "
            f"{facts['left_out_marks']} contain the model's own marks, {facts['left_out_same']} correct nothing.",
            "Shorten the examples, or raise length in the recipe.",
        )
    if "label" in kept[0] and len({row["label"] for row in kept}) == 1:
        raise BadInput(
            f"All {len(kept)} thumbs point {'up' if kept[0]['label'] else 'down'}: there is nothing to tell apart.",
            'Collect some of the other kind, or train on the good replies with objective = "imitate".',
        )
    return kept, facts


def _replies(row: Row) -> Row:
    def turn(name: str) -> Talk:
        return [{"role": "assistant", "content": row[name]}]

    if "chosen" in row:
        return {"chosen": turn("chosen"), "rejected": turn("rejected")}
    return {"completion": turn("completion"), "label": bool(row["good"])}


def _shortened(tokenizer: Any, prompt: Talk, replies: list[str], length: int) -> Talk:
    """The prompt with as many of its newest turns as fit beside the longest reply; empty where not even the last one does."""

    def fits(talk: Talk) -> bool:
        talks = [[*talk, {"role": "assistant", "content": reply}] for reply in replies]
        return all(trainer._tokens(tokenizer, one) <= length for one in talks)

    short = list(prompt)
    start = 1 if short and short[0]["role"] == "system" else 0
    while len(short) - start > 1 and not fits(short):
        del short[start]
        while len(short) - start > 1 and short[start]["role"] != "user":
            del short[start]
    return short if len(short) > start and fits(short) else []


def build(
    model: Any, tokenizer: Any, rows: list[Row], recipe: Recipe, folder: Path, *, micro_batch: int, report: Report
) -> Any:
    """A trainer ready to `train()` on rows of `prepare_preferences`; checkpoints and loss log go below `folder`."""
    import datasets
    import transformers
    from peft import LoraConfig

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(recipe.seed)  # before the adapter's weights are drawn
    if recipe.objective == "kto":
        micro_batch = max(2, micro_batch)  # the replies of a batch are each other's measure
        rows = _mixed(rows, recipe.seed)
        if len(rows) % micro_batch == 1:
            rows = rows[:-1]  # alone in the last batch it would be measured by itself
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,  # the model with and without its adapter must differ by what was learnt alone
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        target_modules="all-linear",
    )
    made = _trainer_class(recipe.objective)(
        model=model,
        args=_arguments(model, recipe, folder, rows, micro_batch),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=lora,
    )
    made.house_folder = folder / "checkpoints"
    made.remove_callback(transformers.PrinterCallback)
    made.add_callback(trainer._callbacks(made, recipe, folder, report))
    return made


def _mixed(rows: list[Row], seed: int) -> list[Row]:
    """Drawn anew and spread evenly, so that every batch holds thumbs of both kinds: trl keeps this order in every epoch."""
    draw = random.Random(seed)
    placed: list[tuple[float, Row]] = []
    for label in (True, False):
        kind = [row for row in rows if row["label"] is label]
        draw.shuffle(kind)
        placed += [((at + 0.5) / len(kind), row) for at, row in enumerate(kind)]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def _arguments(model: Any, recipe: Recipe, folder: Path, rows: list[Row], micro_batch: int) -> Any:
    from trl import DPOConfig, KTOConfig

    on_gpu = next(model.parameters()).is_cuda
    accumulate = recipe.accumulate * max(1, recipe.batch // micro_batch)
    steps = max(1, math.ceil(recipe.epochs * math.ceil(math.ceil(len(rows) / micro_batch) / accumulate)))
    kind, options = DPOConfig, {"beta": recipe.beta}
    if recipe.objective == "kto":
        good = sum(row["label"] for row in rows)
        bad = len(rows) - good
        # Equation 8 of the paper: both kinds together weigh the same.
        options |= {"desirable_weight": min(MOST_WEIGHT, max(1.0, bad / max(1, good)))}
        options |= {"undesirable_weight": min(MOST_WEIGHT, max(1.0, good / max(1, bad)))}
        kind = KTOConfig
    return kind(
        output_dir=str(folder / "checkpoints"),
        max_length=None,  # nothing is cut: what is too long was left out
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
        activation_checkpointing=model.num_parameters() > trainer.SMALL_MODEL,
        bf16=trainer._mixed(model),
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # the callback decides, `_save_checkpoint` writes
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
        **options,
    )


def _trainer_class(objective: str) -> type[Any]:
    import torch
    from transformers import Trainer
    from trl import DPOTrainer, KTOTrainer

    parent: type[Any] = KTOTrainer if objective == "kto" else DPOTrainer

    class Preferring(parent):  # type: ignore[misc]
        house_folder: Path

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            if objective == "kto":
                return super()._get_train_sampler(train_dataset)
            rows = self.train_dataset
            replies = zip(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], strict=True)
            lengths = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in replies]
            return trainer.Order(lengths, self.args.per_device_train_batch_size, self.args.data_seed)

        def _get_output_dir(self, trial: Any) -> str:  # noqa: ARG002
            return str(self.house_folder / checkpoints.DRAFT)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            # trl's own adds a model card that nobody reads
            trainer.save_checkpoint(self, lambda: Trainer._save_checkpoint(self, model, trial))

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if not torch.isfinite(loss) or loss > trainer.EXPLODED * math.log(self.model.config.vocab_size):
                raise trainer._stopped(f"the loss became {float(loss):.3g}", self.state.global_step + 1)
            return loss

    return Preferring
