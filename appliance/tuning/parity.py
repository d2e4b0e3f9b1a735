"""Whether the exported GGUF says what the trained model says.

The trained model (transformers, float32) and the file that will be served (llama.cpp) are given the same real conversations;
their token ids must be equal and their log-probabilities of the tutor's words must agree within a stated tolerance. A mix-up of
tensors, a missing permutation or a wrong scale shows here, before a pupil meets it. Exports nothing, repairs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from appliance.engine.handler import Message
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.engine.scheduler import LlamaHandler

# Why differences are allowed at all: the GGUF keeps the base in 16-bit floats and llama.cpp rounds activations to 16 bits
# before each product, where the reference computes in 32. Measured on an adapter of the starter, 388 tokens: the rounding
# moves a token's log-probability by 0.0004 on average and 0.003 at most. The slightest real faults that were tried moved it by
# 0.011 and 0.13 (the adapter's scale off by 2 %), 0.024 and 0.20 (keys of one layer lost), 0.039 and 0.41 (queries of one
# layer unpermuted). The limits stand ten times above rounding, which leaves room for deeper models, and below all of those.
MEAN_TOLERANCE = 0.005  # natural log, mean of absolute differences over all tokens
MAX_TOLERANCE = 0.05  # natural log, largest difference of one token
CONVERSATIONS = 8  # fewest that are compared
CHOSEN = 12


@dataclass(frozen=True, slots=True)
class Reference:
    """What the trained model makes of one conversation: `ids` of all tokens, log-probabilities of the last turn's."""

    ids: list[int]
    logprobs: list[float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reference(model: Any, tokenizer: Any, talks: Sequence[Sequence[Message]]) -> list[Reference]:
    """Score the last tutor's turn (and its end mark) of each talk with a transformers model in float32."""
    import torch

    found = []
    for talk in talks:
        rows = [{"role": message.role, "content": message.content} for message in talk]
        prompt = tokenizer.apply_chat_template(rows[:-1], add_generation_prompt=True, tokenize=True, return_dict=True)
        whole = tokenizer.apply_chat_template(rows, tokenize=True, return_dict=True)["input_ids"]
        start = len(prompt["input_ids"])
        if whole[:start] != prompt["input_ids"]:
            raise ApplianceError("The chat template renders a prompt alone differently.", "Use another base model.")
        with torch.no_grad():
            logits = model(torch.tensor([whole])).logits[0, start - 1 : -1].float()
        scores = logits.log_softmax(-1).gather(1, torch.tensor(whole[start:]).unsqueeze(1)).squeeze(1)
        found.append(Reference(whole, [float(score) for score in scores]))
    return found


async def parity(references: Sequence[Reference], talks: Sequence[Sequence[Message]], served: LlamaHandler) -> dict[str, Any]:
    """Compare `references` with what `served` (started) gives for the same talks; the figures found.

    Raises ApplianceError where fewer than CONVERSATIONS are given, token ids differ, or a limit is passed.
    """
    if len(references) < CONVERSATIONS or len(references) != len(talks):
        raise ApplianceError(
            f"The parity check needs {CONVERSATIONS} conversations and has {len(references)}.", "Give more examples."
        )
    gaps: list[float] = []
    for number, (one, talk) in enumerate(zip(references, talks, strict=True), start=1):
        ids, start = served.tokens(talk)
        # A line break that a template puts after the end mark is no part of the answer that is served.
        if ids != one.ids[: len(ids)] or len(one.ids) - len(ids) > 1 or len(one.ids) - start != len(one.logprobs):
            raise _refused(f"conversation {number} has other tokens in llama.cpp than in training")
        scores = await served.score(talk)
        gaps += [abs(ours - theirs) for ours, theirs in zip(one.logprobs, scores, strict=False)]
    mean, largest = sum(gaps) / len(gaps), max(gaps)
    # Written so that a NaN is refused as well.
    if not (mean <= MEAN_TOLERANCE and largest <= MAX_TOLERANCE):
        raise _refused(
            f"log-probabilities differ by {mean:.3g} on average and {largest:.3g} at most "
            f"(allowed: {MEAN_TOLERANCE:g} and {MAX_TOLERANCE:g})"
        )
    return {
        "conversations": len(references),
        "tokens": len(gaps),
        "mean_difference": mean,
        "max_difference": largest,
        "mean_tolerance": MEAN_TOLERANCE,
        "max_tolerance": MAX_TOLERANCE,
    }


def _refused(why: str) -> ApplianceError:
    return ApplianceError(
        f"The exported model was not registered: {why}.", "Run the tuning again; if it is refused again, report the base model."
    )
