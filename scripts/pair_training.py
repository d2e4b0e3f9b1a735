"""How the changes to the sentence model are learned by which `appliance.practice.pairs` reads a line and the turn after it.

The published all-MiniLM-L6-v2 stays as it is; what is learned are changes of rank 8 to the products of its layers (LoRA, Hu et
al. 2021), what tells the two texts apart, and one linear head for each label: once for the exchanges of mathematics lessons,
once for those of the language tutors. Rounds, and how much the linear model counts beside it, were chosen by cross-validation
over parts 1 to 4 of the rows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from move_data import Rows, rows, uptake_shares

from appliance.practice import pairs

RANK, SCALE = 8, 2.0
EPOCHS = {"lessons": 4, "tutoring": 5}
BATCH, POOL = 32, 8  # a pool of so many batches is sorted by length, so that little is padded
RATE, HEAD_RATE, DECAY, WARM = 1e-3, 1e-3, 0.01, 0.1
DROPPED, HEAD_SCALE = 0.1, 3.0
DISPUTED = 1 / 6  # how far a label on the task is from sure where one of its raters said otherwise
LEAST, MOST = 0.7, 3.0  # what a row of a common and of a rare label counts for
SEED = 1
THREE = 3  # classes of uptake, before the yes/no labels: not read in the end, but a lesson is understood better with them
KIND = {"pupil on task": "lessons", "teacher on task": "lessons", "tutor actions": "tutoring"}
OWN = {"pupil on task": slice(0, 1), "teacher on task": slice(1, 2), "tutor actions": slice(0, 5)}  # outputs that are kept


@dataclass(frozen=True)
class Exchange:
    """wanted: a share for each output of its set, known: 1 where it was judged."""

    pupil: str
    teacher: str
    wanted: np.ndarray[Any, Any]
    known: np.ndarray[Any, Any]


def exchanges(data: Path, kind: str, parts: Sequence[int]) -> list[Exchange]:
    if kind == "tutoring":
        of = rows(data, "tutor actions", parts)
        known = np.ones(of.labels.shape[1], np.float32)
        return [Exchange(*one, known) for one in zip(of.pupil, of.teacher, of.labels.astype(np.float32), strict=True)]
    found: dict[tuple[str, str], Exchange] = {}

    def place(pupil: str, teacher: str) -> Exchange:
        size = THREE + 2
        return found.setdefault(
            (pupil, teacher), Exchange(pupil, teacher, np.zeros(size, np.float32), np.zeros(size, np.float32))
        )

    for at, task in enumerate(("pupil on task", "teacher on task"), THREE):
        of = rows(data, task, parts)
        assert of.agreed is not None
        for pupil, teacher, label, agreed in zip(of.pupil, of.teacher, of.labels, of.agreed, strict=True):
            one = place(pupil, teacher)
            one.wanted[at], one.known[at] = abs(label - (DISPUTED if agreed < THREE else 0)), 1
    graded = uptake_shares(data, parts)
    assert graded.shares is not None
    for pupil, teacher, shares in zip(graded.pupil, graded.teacher, graded.shares, strict=True):
        one = place(pupil, teacher)
        one.wanted[:THREE], one.known[:THREE] = shares, 1
    return list(found.values())


# --- learning --------------------------------------------------------------------------------------------------------------
def changes(data: Path, kind: str, parts: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """What `pairs` reads this set with, learned from these parts of its rows."""
    import torch

    torch.manual_seed(SEED)
    draw = np.random.default_rng(SEED)
    learned = exchanges(data, kind, parts)
    read = pairs.tokens(pairs.published())
    cut = [pairs.cut(read(one.pupil), read(one.teacher)) for one in learned]
    wanted, known = (torch.tensor(np.stack([getattr(one, name) for one in learned])) for name in ("wanted", "known"))
    net, outer = _net(wanted.shape[1])
    weigh = _weighed(wanted, known, THREE if kind == "lessons" else 0)
    groups = [{"params": net.changed, "lr": RATE}, {"params": outer, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    steps = EPOCHS[kind] * math.ceil(len(learned) / BATCH)
    slope = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (WARM * steps)) * max(0.02, 1 - step / steps)
    )
    for epoch in range(EPOCHS[kind]):
        lost = 0.0
        for batch in _batches(draw, [len(ids) for ids, _ in cut]):
            with torch.autocast("cpu", torch.bfloat16):
                said = net.read([cut[at] for at in batch]).float()
            loss = weigh(said, batch) / len(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*net.changed, *outer], 1.0)
            optimizer.step()
            slope.step()
            lost += float(loss.detach())
        print(f"{kind:16} {len(learned)} exchanges, round {epoch + 1}: {lost * BATCH / len(learned):.3f}", flush=True)
    return net.kept(THREE if kind == "lessons" else 0)


def save(changed: Mapping[str, Mapping[str, np.ndarray[Any, Any]]]) -> None:
    np.savez(pairs.CHANGES, **{f"{kind}/{name}": value for kind, values in changed.items() for name, value in values.items()})
    print(f"{pairs.CHANGES.name}: {pairs.CHANGES.stat().st_size // 1000} kB")


def scores(reader: pairs.Reader, task: str, of: Rows) -> np.ndarray[Any, Any]:
    found = [reader.read(KIND[task], heard, said) for heard, said in zip(of.pupil, of.teacher, strict=True)]
    return np.array(found)[:, OWN[task]]


def _batches(draw: np.random.Generator, lengths: Sequence[int]) -> list[list[int]]:
    """Every row once, with others about as long."""
    order = draw.permutation(len(lengths)).tolist()
    pools = [sorted(order[at : at + BATCH * POOL], key=lambda row: lengths[row]) for at in range(0, len(order), BATCH * POOL)]
    batches = [pool[at : at + BATCH] for pool in pools for at in range(0, len(pool), BATCH)]
    return [batches[at] for at in draw.permutation(len(batches))]


def _weighed(wanted: Any, known: Any, classes: int) -> Callable[[Any, list[int]], Any]:
    """The loss of a batch, in which rare labels count for more."""
    import torch

    share = (wanted * known).sum(0) / known.sum(0)

    def counts(part: Any) -> Any:
        return (0.5 / part.clamp(min=1e-3)).sqrt().clamp(LEAST, MOST)

    yes, no = counts(share[classes:]), counts(1 - share[classes:])
    each = (2 / 3) ** 0.5 * counts(share[:classes])

    def loss(said: Any, batch: list[int]) -> Any:
        ask, sure = wanted[batch], known[batch]
        binary = torch.nn.functional.binary_cross_entropy_with_logits
        apart = binary(said[:, classes:], ask[:, classes:], reduction="none")
        total = (apart * (ask[:, classes:] * yes + (1 - ask[:, classes:]) * no) * sure[:, classes:]).sum()
        if classes:
            total = total - (ask[:, :classes] * said[:, :classes].log_softmax(1) * each * sure[:, :classes]).sum()
        return total

    return loss


class _Net:
    """The published model with its changes and a head. PyTorch does the arithmetic, and `pairs` has to agree with it."""

    def __init__(self, model: Any, low: dict[str, Any], head: Any) -> None:
        self._model, self._low, self._head = model, low, head
        self._segments = model.embeddings.token_type_embeddings.weight.requires_grad_(True)
        self.changed = [*(one for pair in low.values() for one in pair), self._segments]

    def read(self, batch: Sequence[tuple[list[int], int]]) -> Any:
        import torch

        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([one + [0] * (longest - len(one)) for one, _ in batch])
        place = torch.arange(longest)
        ends, sides = (torch.tensor(one)[:, None] for one in ([len(ids) for ids, _ in batch], [side for _, side in batch]))
        there, first = (place < ends), (place < sides)
        second = there & ~first
        seen = self._model(input_ids=ids, attention_mask=there.long(), token_type_ids=second.long()).last_hidden_state.float()
        means = [(seen * side[..., None]).sum(1) / side.sum(1, keepdim=True) for side in (first, second)]
        return self._head(torch.nn.functional.dropout(torch.cat([seen[:, 0], *means], 1), DROPPED) * HEAD_SCALE)

    def kept(self, first_output: int) -> dict[str, np.ndarray[Any, Any]]:
        head = self._head.weight[first_output:] * HEAD_SCALE
        found = {"segments": self._segments, "head": head, "bias": self._head.bias[first_output:]}
        for name, (first, second) in self._low.items():
            found |= {f"{name}.a": first, f"{name}.b": second * SCALE}
        return {name: value.detach().numpy().astype(np.float16) for name, value in found.items()}


def _net(outputs: int) -> tuple[_Net, list[Any]]:
    """The model as published, with changes that change nothing yet; and the head's parameters."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(pairs.published()), attn_implementation="sdpa").train()
    model.pooler = None
    for one in model.parameters():
        one.requires_grad = False
    low = {}
    for number, layer in enumerate(model.encoder.layer):
        for which, name in pairs.PRODUCTS.items():
            linear = layer.get_submodule(name).to(torch.bfloat16)
            first = torch.nn.Parameter(torch.randn(RANK, linear.in_features) / math.sqrt(linear.in_features))
            second = torch.nn.Parameter(torch.zeros(linear.out_features, RANK))
            linear.register_forward_hook(
                lambda _, given, found, first=first, second=second: found + given[0] @ first.T @ second.T * SCALE
            )
            low[f"{number}.{which}"] = (first, second)
    head = torch.nn.Linear(3 * model.config.hidden_size, outputs)
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.zeros_(head.bias)
    return _Net(model, low, head), list(head.parameters())
