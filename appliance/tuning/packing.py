"""Conversations -> rows of tokens: which tokens carry loss, several conversations in one row, and the loss over such a row.

A padded batch spends up to half of its time on padding, and the vocabulary's logits on tokens that nobody learns from. Here
conversations stand end to end in one row; positions start again with each, attention is computed within each alone, so none
sees another, and logits are made only where the tutor speaks. `probe` tries a model first: one that cannot do this exactly is
trained on padded batches instead. Knows nothing of recipes or of the trainer. Imports torch when called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from appliance.errors import Unsupported

Row = dict[str, list[int]]  # input_ids, labels
IGNORED = -100  # the label of a token that carries no loss
ATTENTION = "appliance_packed"
LOGITS = 2**25  # as many are held at once; beyond, the head is computed in pieces and again in the backward pass
# Differences of logits, in their own standard deviations, that rounding explains: float32, and bfloat16 or 4-bit weights.
ROUNDING = {"float32": 1e-3, "low": 0.05}


def encode(tokenizer: Any, talks: list[list[dict[str, str]]]) -> list[Row]:
    """Token ids and labels of each talk; only the tutor's words and end marks carry loss.

    A template without marks for them is replaced, for training only, by trl's marked copy of the same template where it has
    one. Raises Unsupported for a template that does not mark the tutor's turns.
    """
    template = _marked_template(tokenizer)
    rows = []
    for talk in talks:
        made = tokenizer.apply_chat_template(
            talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template=template
        )
        ids = list(made["input_ids"])
        labels = [id if learnt else IGNORED for id, learnt in zip(ids, made["assistant_masks"], strict=True)]
        labels[0] = IGNORED  # nothing comes before it that could foretell it
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def _marked_template(tokenizer: Any) -> str:
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    template = tokenizer.chat_template
    if not has_generation_markers(template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError:  # not one that trl knows
            template = None
    if not template:
        raise Unsupported(
            "The chat template of this model does not mark which words are the tutor's.",
            "Add {% generation %} marks to the model's chat template, or use another model.",
        )
    return str(template)


# --- rows -----------------------------------------------------------------------------------------------------------------


def packed(rows: list[Row]) -> dict[str, Any]:
    """One row, the talks end to end: input_ids, labels and position_ids of shape (1, tokens), and `packed_lengths`."""
    import torch

    ids = [id for row in rows for id in row["input_ids"]]
    labels = [label for row in rows for label in row["labels"]]
    places = [place for row in rows for place in range(len(row["input_ids"]))]
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([places]),
        "packed_lengths": [len(row["input_ids"]) for row in rows],
    }


def padded(rows: list[Row], filler: int) -> dict[str, Any]:
    """A row for each talk, filled up on the right: input_ids, labels and attention_mask of shape (talks, longest)."""
    import torch

    shape = (len(rows), max(len(row["input_ids"]) for row in rows))
    batch = {
        "input_ids": torch.full(shape, filler),
        "labels": torch.full(shape, IGNORED),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    for at, row in enumerate(rows):
        size = len(row["input_ids"])
        batch["input_ids"][at, :size] = torch.tensor(row["input_ids"])
        batch["labels"][at, :size] = torch.tensor(row["labels"])
        batch["attention_mask"][at, :size] = 1
    return batch


# --- attention ------------------------------------------------------------------------------------------------------------


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    packed_lengths: list[int] | None = None,
    **options: Any,
) -> tuple[Any, None]:
    """Causal attention within each of the talks of a row; query, key, value of shape (1, heads, tokens, size)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is not None or packed_lengths is None or options.get("position_bias") is not None:
        raise Unsupported("This architecture does not say where a conversation in a row ends.", "Set packing = false.")
    window = options.get("sliding_window")
    parts = []
    for one in zip(*(tensor.split(packed_lengths, dim=2) for tensor in (query, key, value)), strict=True):
        mask = _window(one[0].shape[2], window, query.device) if window and one[0].shape[2] > window else None
        parts.append(sdpa_attention_forward(module, *one, mask, **options)[0])
    return torch.cat(parts, dim=1), None


def _window(length: int, window: int, device: Any) -> Any:
    """Who sees whom where each token sees itself and the `window` - 1 before it."""
    import torch

    place = torch.arange(length, device=device)
    ago = place[:, None] - place[None, :]
    return ((ago >= 0) & (ago < window))[None, None]


def use(model: Any) -> str:
    """Have `model` attend within each conversation of a row. "" where it can, else why it cannot: then nothing is changed."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(ATTENTION)
        reason = probe(model)
    except (Unsupported, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if reason:
        model.set_attn_implementation(before)
    return reason


def probe(model: Any) -> str:
    """Whether a conversation in a row gets the logits that it gets alone, whatever stands before it: "" or what differs."""
    import torch

    size = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(11)
    one, other, talk = (torch.randint(size, (count,), generator=draw).tolist() for count in (9, 9, 12))

    def logits(*talks: list[int]) -> Any:
        batch = packed([{"input_ids": ids, "labels": ids} for ids in talks])
        batch.pop("labels")
        found = model(**_moved(batch, model.device), use_cache=False).logits
        return found[0, -len(talk) :].float()

    with answering(model):
        alone, after_one, after_other = logits(talk), logits(one, talk), logits(other, talk)
    exact = next(model.parameters()).dtype == torch.float32
    limit = ROUNDING["float32" if exact else "low"] * float(alone.std())
    if float((after_one - after_other).abs().max()) > limit / 10:
        return "a conversation is seen by the next one in its row"
    return "" if float((alone - after_one).abs().max()) <= limit else "a conversation in a row is not what it is alone"


@contextlib.contextmanager
def answering(model: Any) -> Iterator[None]:
    """Without dropout and without gradients, as a model answers; afterwards as before.

    Not `model.eval()`: bitsandbytes repacks the 4-bit weights of a CPU when they are used in that mode, and backward passes
    through those are wrong.
    """
    import torch

    modules = list(model.modules())
    before = [module.training for module in modules]
    for module in modules:
        module.training = type(module).__module__.startswith("bitsandbytes")
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def _moved(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}


# --- loss -----------------------------------------------------------------------------------------------------------------


def summed_loss(model: Any, batch: dict[str, Any], *, head: bool = False) -> Any:
    """Cross-entropy summed over the tokens of `batch` that carry loss, in float32.

    Logits are made only at places where some row has a label. head: compute the vocabulary's logits in pieces where they are
    many (`has_plain_head` says whether that is exact; not under a wrapper that shares gradients among several GPUs).
    """
    import torch
    from torch.nn.functional import cross_entropy

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    after = batch["labels"][:, 1:]
    at = (after != IGNORED).any(dim=0).nonzero().flatten()
    wanted = after[:, at].reshape(-1)
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not head or wanted.numel() * core.get_output_embeddings().weight.shape[0] <= LOGITS:
        logits = model(**inputs, use_cache=False, logits_to_keep=at).logits
        return cross_entropy(logits.flatten(0, 1).float(), wanted, ignore_index=IGNORED, reduction="sum")
    hidden = core.base_model(**inputs, use_cache=False).last_hidden_state[:, at].flatten(0, 1)
    top = core.get_output_embeddings()
    piece = max(1, LOGITS // top.weight.shape[0])

    def part(states: Any, labels: Any) -> Any:
        return cross_entropy(top(states).float(), labels, ignore_index=IGNORED, reduction="sum")

    pairs = zip(hidden.split(piece), wanted.split(piece), strict=True)
    return sum(torch.utils.checkpoint.checkpoint(part, *pair, use_reentrant=False) for pair in pairs)


def has_plain_head(model: Any) -> bool:
    """Whether the model's logits are its last hidden states through its head and nothing else (no capping, no scale)."""
    import torch

    try:
        ids = torch.arange(1, 9, device=model.device)[None]
        batch: dict[str, Any] = {"input_ids": ids, "position_ids": torch.arange(8, device=model.device)[None]}
        if model.config._attn_implementation == ATTENTION:
            batch["packed_lengths"] = [8]
        with answering(model):
            whole = model(**batch, use_cache=False).logits
            plain = model.get_output_embeddings()(model.base_model(**batch, use_cache=False).last_hidden_state)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    return bool(torch.equal(whole, plain))
