"""Whether the exported GGUF says what the trained model says.

The trained model (transformers, float32) and the file that will be served (llama.cpp) are given the same real conversations:
the chat template must be the same bytes, the token ids must be equal, the log-probabilities of the tutor's words must agree
within a stated tolerance, and left to go on by themselves both must write the same words. A mix-up of tensors, a missing
permutation, a wrong scale or another family's template shows here, before a pupil meets it. Exports nothing, repairs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from appliance.engine.handler import Message, Request
from appliance.engine.inspect import read_gguf
from appliance.engine.template import ChatTemplate
from appliance.errors import ApplianceError, ModelUnavailable

if TYPE_CHECKING:
    from appliance.engine.llama import Llama
    from appliance.engine.scheduler import LlamaHandler

# Why differences are allowed at all: the GGUF keeps the base in 16-bit floats and llama.cpp rounds activations to 16 bits
# before each product, where the reference computes in 32. Measured on an adapter of the starter, 388 tokens: the rounding
# moves a token's log-probability by 0.0004 on average and 0.003 at most. The slightest real faults that were tried moved it by
# 0.011 and 0.13 (the adapter's scale off by 2 %), 0.024 and 0.20 (keys of one layer lost), 0.039 and 0.41 (queries of one
# layer unpermuted). The limits stand ten times above rounding, which leaves room for deeper models, and below all of those.
MEAN_TOLERANCE = 0.005  # natural log, mean of absolute differences over all tokens
MAX_TOLERANCE = 0.05  # natural log, largest difference of one token
Kind = Literal["F16", "BF16", "Q8_0", "Q5_K_M", "Q4_K_M"]
# A file with fewer bits says something else by design, so only the mean is held to a limit, and words are not compared. The
# limits stand at twice what was measured where rounding hurts most, in very small models: BF16 0.005, Q8_0 0.025 to 0.047,
# Q5_K_M 0.10 to 0.23, Q4_K_M 0.14 to 0.21 (the starter on 730 tokens, tinystories-656k, random models of five families).
ROUNDED_TOLERANCE: dict[str, float] = {"BF16": 0.01, "Q8_0": 0.1, "Q5_K_M": 0.45, "Q4_K_M": 0.45}
# Where two next words are closer than rounding may move both, either may win: what follows such a tie is not compared.
TIE = 2 * MAX_TOLERANCE
GREEDY = 16  # tokens that each side writes by itself
CONVERSATIONS = 8  # fewest that are compared
CHOSEN = 12
# For a file that is made long after its training, when the conversations it was trained on need not be here any more.
SAMPLES = tuple(
    (Message("user", question), Message("assistant", answer))
    for question, answer in (
        ("Why does ice float on water?", "What happens to the space between the particles when water freezes?"),
        ("I got 7/12 for 1/3 + 1/4. Is that right?", "Yes. How did you choose 12 as the common denominator?"),
        ("What is a metaphor?", "It says that one thing is another. Can you find one in the first line of the poem?"),
        ("Where does a plant get its food from?", "It makes its own from light, water and air. What is that called?"),
        ("Solve 2x + 5 = 17.", "Which step would undo the + 5 first? Try it on both sides."),
        ("Who wrote the letter in chapter 3?", "Look at the last line of the letter. Whose name stands there?"),
        ("How far is it to the moon?", "About 384,000 km. How long would you walk at 5 km an hour?"),
        ("My circuit does not work.", "Let us check it in order: is the path closed, all the way round?"),
    )
)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the trained model makes of one conversation: `ids` of all tokens, log-probabilities of the last turn's.

    greedy: the tokens it goes on with by itself up to the first near tie, and `text`: their words; `rendered`: the conversation
    as its template writes it.
    """

    ids: list[int]
    logprobs: list[float]
    greedy: tuple[int, ...] = ()
    text: str = ""
    rendered: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reference(model: Any, tokenizer: Any, talks: Sequence[Sequence[Message]]) -> list[Reference]:
    """Score the last tutor's turn (and its end mark) of each talk with a transformers model in float32, and let it answer."""
    found = []
    for talk in talks:
        rows = [{"role": message.role, "content": message.content} for message in talk]
        how = {"tokenize": True, "return_dict": True}
        prompt = tokenizer.apply_chat_template(rows[:-1], add_generation_prompt=True, **how)["input_ids"]
        whole = tokenizer.apply_chat_template(rows, **how)["input_ids"]
        if whole[: len(prompt)] != prompt:
            raise ApplianceError("The chat template renders a prompt alone differently.", "Use another base model.")
        rendered = tokenizer.apply_chat_template(rows, tokenize=False)
        found.append(_reference(model, tokenizer, whole, prompt, rendered))
    return found


def text_reference(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[Reference]:
    """The same of plain texts, for a model without a chat template; it goes on from the first half of each text's tokens."""
    found = []
    for text in texts:
        whole = list(tokenizer.encode(text))
        one = _reference(model, tokenizer, whole, whole[:1], text)
        greedy, words = _goes_on(model, tokenizer, whole[: len(whole) // 2])
        found.append(Reference(whole, one.logprobs, greedy, words, text))
    return found


def _reference(model: Any, tokenizer: Any, whole: list[int], prompt: list[int], rendered: str) -> Reference:
    import torch

    start = len(prompt)
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0, start - 1 : -1].float()
    scores = logits.log_softmax(-1).gather(1, torch.tensor(whole[start:]).unsqueeze(1)).squeeze(1)
    greedy, text = _goes_on(model, tokenizer, prompt)
    return Reference(whole, [float(score) for score in scores], greedy, text, rendered)


def _goes_on(model: Any, tokenizer: Any, prompt: list[int]) -> tuple[tuple[int, ...], str]:
    """The likeliest tokens after `prompt`, up to GREEDY, the first near tie or the first mark; and their words."""
    import torch

    taken: list[int] = []
    past, step = None, prompt
    for _ in range(GREEDY):
        with torch.no_grad():
            out = model(torch.tensor([step]), past_key_values=past, use_cache=True)
        best = out.logits[0, -1].float().log_softmax(-1).topk(2)
        token = int(best.indices[0])
        if float(best.values[0] - best.values[1]) < TIE or token in tokenizer.all_special_ids:
            break
        taken.append(token)
        past, step = out.past_key_values, [token]
    # Decoded with the prompt, because some tokenizers drop a leading space; cut at the first half of a letter.
    words = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, after = tokenizer.decode(prompt, **words), tokenizer.decode([*prompt, *taken], **words)
    text = after[len(before) :] if after.startswith(before) else ""
    return tuple(taken), text.split("\ufffd")[0]


async def served_reference(served: LlamaHandler, talks: Sequence[Sequence[Message]]) -> list[Reference]:
    """What a file that was checked before makes of the talks: to compare another file with it, no training libraries needed."""
    found = []
    for talk in talks:
        ids, start = served.tokens(talk)
        found.append(Reference(ids, (await served.score(talk))[: len(ids) - start]))
    return found


async def parity(
    references: Sequence[Reference], talks: Sequence[Sequence[Message]], served: LlamaHandler, kind: Kind = "F16"
) -> dict[str, Any]:
    """Compare `references` with what `served` (started) gives for the same talks; the figures found.

    kind: of the served file. Raises ApplianceError where fewer than CONVERSATIONS are given, token ids differ, a limit is
    passed, or `served` writes other words.
    """
    if len(references) < CONVERSATIONS or len(references) != len(talks):
        raise ApplianceError(
            f"The parity check needs {CONVERSATIONS} conversations and has {len(references)}.", "Give more examples."
        )
    gaps: list[float] = []
    compared = 0
    for number, (one, talk) in enumerate(zip(references, talks, strict=True), start=1):
        ids, start = served.tokens(talk)
        # A line break that a template puts after the end mark is no part of the answer that is served.
        if ids != one.ids[: len(ids)] or len(one.ids) - len(ids) > 1 or len(one.ids) - start != len(one.logprobs):
            raise _refused(f"conversation {number} has other tokens in llama.cpp than in training")
        scores = await served.score(talk)
        gaps += [abs(ours - theirs) for ours, theirs in zip(one.logprobs, scores, strict=False)]
        if kind == "F16" and start + len(one.greedy) <= served.context and one.greedy:
            said = await _answer(served, talk[:-1], len(one.greedy))
            if not said.startswith(one.text):
                raise _refused(f"in conversation {number} it goes on {said!r} where the trained model says {one.text!r}")
            compared += len(one.greedy)
    return {"conversations": len(references), "greedy_tokens": compared} | _within(gaps, kind)


async def _answer(served: LlamaHandler, prompt: Sequence[Message], tokens: int) -> str:
    return "".join([chunk.text async for chunk in served.generate(Request(prompt, max_tokens=tokens))])


def text_parity(references: Sequence[Reference], served: Llama, kind: Kind = "F16") -> dict[str, Any]:
    """The same of plain texts, token by token. Raises ApplianceError."""
    gaps: list[float] = []
    compared = 0
    for number, one in enumerate(references, start=1):
        # What transformers puts before every text, llama.cpp is told to leave out: it adds it by itself nowhere in this house.
        before = len(one.ids) - len(served.tokenize(one.rendered, control=False))
        if before < 0 or one.ids[before:] != served.tokenize(one.rendered, control=False):
            raise _refused(f"text {number} has other tokens in llama.cpp than in training")
        gaps += [abs(ours - theirs) for ours, theirs in zip(one.logprobs, _scores(served, one.ids), strict=True)]
        if kind == "F16":
            if _greedy(served, one.ids[: len(one.ids) // 2], len(one.greedy)) != one.greedy:
                raise _refused(f"after half of text {number} it goes on with other words than the trained model")
            compared += len(one.greedy)
    return {"texts": len(references), "greedy_tokens": compared} | _within(gaps, kind)


def _scores(served: Llama, ids: list[int]) -> list[float]:
    """Log-probability of each token but the first; at most one batch of them."""
    import numpy as np

    served.forget(0)
    served.decode([(token, place, 0, True) for place, token in enumerate(ids[:-1])])
    found = []
    for place, token in enumerate(ids[1:]):
        logits = served.logits(place).astype(np.float64)
        found.append(float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())))
    return found


def _greedy(served: Llama, prompt: list[int], tokens: int) -> tuple[int, ...]:
    served.forget(0)
    served.decode([(token, place, 0, place == len(prompt) - 1) for place, token in enumerate(prompt)])
    taken: list[int] = []
    row = len(prompt) - 1
    while len(taken) < tokens:
        taken.append(int(served.logits(row).argmax()))
        served.decode([(taken[-1], len(prompt) + len(taken) - 1, 0, True)])
        row = 0
    return tuple(taken)


def _within(gaps: Sequence[float], kind: Kind) -> dict[str, Any]:
    """The figures of all differences. Raises ApplianceError where they pass the limits of this kind of file."""
    mean, largest = sum(gaps) / len(gaps), max(gaps)
    most = ROUNDED_TOLERANCE.get(kind, MEAN_TOLERANCE)
    top = MAX_TOLERANCE if kind == "F16" else float("inf")
    # Written so that a NaN is refused as well.
    if not (mean <= most and largest <= top):
        raise _refused(
            f"log-probabilities differ by {mean:.3g} on average and {largest:.3g} at most (allowed: {most:g} and {top:g})"
        )
    limits = {"mean_tolerance": most} | ({"max_tolerance": top} if kind == "F16" else {})
    return {"tokens": len(gaps), "mean_difference": mean, "max_difference": largest, "kind": kind} | limits


# --- the chat template ------------------------------------------------------------------------------------------------------


def chat_template(folder: Path) -> str:
    """The template that transformers renders with, exactly as it stands in a Hugging Face folder; empty where it has none.

    Read as bytes, because reading as text would change line ends. Raises ModelUnavailable.
    """
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if file.is_file():
            return file.read_bytes().decode("utf-8")
        found = json.loads(settings.read_text("utf-8")).get("chat_template") if settings.is_file() else None
        if isinstance(found, list):  # several, by name
            found = {one["name"]: one["template"] for one in found}
        return str((found.get("default") if isinstance(found, dict) else found) or "")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ModelUnavailable("The model's chat template cannot be read.", "Copy the model again.") from None


def same_template(
    served: Path, folder: Path, talks: Sequence[Sequence[Message]] = (), references: Sequence[Reference] = ()
) -> str:
    """SHA-256 of the chat template that the GGUF file and the Hugging Face folder share.

    With talks and their references also: that our renderer makes of it what transformers makes. Raises ApplianceError where a
    byte differs: a model that was tuned with one template and served with another repeats itself or never stops.
    """
    ours, theirs = read_gguf(served).template, chat_template(folder)
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (ours, theirs)]
    if ours != theirs:
        raise _refused(f"its chat template ({digests[0][:8]}) is not the one of the trained model ({digests[1][:8]})")
    template = ChatTemplate(ours, **_marks(folder))
    for number, (talk, one) in enumerate(zip(talks, references, strict=bool(references)), start=1):
        text = "".join(piece.text for piece in template.pieces(talk, answer=False))
        if references and text != one.rendered:
            raise _refused(f"conversation {number} is rendered as {text[:80]!r} and was as {one.rendered[:80]!r} in training")
    return digests[0]


def _marks(folder: Path) -> dict[str, str]:
    """What chat templates call bos_token and eos_token."""
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    found = {name: values.get(name) for name in ("bos_token", "eos_token")}
    return {name: str(mark.get("content", "") if isinstance(mark, dict) else mark or "") for name, mark in found.items()}


def _refused(why: str) -> ApplianceError:
    return ApplianceError(
        f"The exported model was not registered: {why}.", "Run the tuning again; if it is refused again, report the base model."
    )
