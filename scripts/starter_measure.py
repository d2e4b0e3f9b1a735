"""How good the starter model is, and the card that says so.

Used by build-starter-model. Measures the written files, not the model in memory: bits per byte on
held-out text beside an n-gram model, answers to held-out questions with sources, and samples that
nobody chooses. It says nothing about how good the model is for pupils: it is not made for them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import starter_corpus as corpus
import torch
import torch.nn.functional as F
from starter_corpus import BREAK, CONTEXT, END, VOCABULARY, Item
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM


@torch.inference_mode()
def bits(model: LlamaForCausalLM, items: list[Item]) -> list[float]:
    """Bits that the model needs for each unit; nothing but a break stands before it."""
    pieces = []
    for number, item in enumerate(items):
        ids = [*item.ids.tolist(), BREAK]
        pieces += [(number, [BREAK, *ids[at : at + CONTEXT]]) for at in range(0, len(ids), CONTEXT)]
    pieces.sort(key=lambda piece: len(piece[1]))
    found = [0.0] * len(items)
    for at in range(0, len(pieces), 8):
        group = pieces[at : at + 8]
        longest = max(len(ids) for _, ids in group)
        batch = torch.tensor([p + [BREAK] * (longest - len(p)) for _, p in group], device=model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.dtype == torch.float32):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
        each = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        for (number, piece), row in zip(group, each, strict=True):
            found[number] += float(row[: len(piece) - 1].double().sum()) / math.log(2)
    return found


def ngram_bits(training: list[Item], tests: list[Item], order: int = 5) -> list[float]:
    """The same for an interpolated Kneser-Ney model of this order, over the same tokens.

    Five tokens of 12 bits fit one 64-bit number, so that sorting does all the counting.
    """
    if VOCABULARY > 4096 or order > 5:
        raise ValueError("an n-gram must fit 64 bits")

    def grams(items: list[Item]) -> tuple[list[np.ndarray], np.ndarray]:
        pad = np.zeros(order - 1, np.uint64)
        stream = np.concatenate([part for i in items for part in (pad, i.ids.astype(np.uint64), pad[:1])])
        keep = np.concatenate([np.r_[np.zeros(order - 1, bool), np.ones(len(i.ids) + 1, bool)] for i in items])
        keys, key = [], np.zeros_like(stream)
        for back in range(order):
            key = key | (np.r_[np.zeros(back, np.uint64), stream[: len(stream) - back]] << np.uint64(12 * back))
            keys.append(key[keep])
        return keys, np.cumsum([len(i.ids) + 1 for i in items])

    def look_up(table: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
        return np.where(table[place] == wanted, values[place], 0)

    tested, ends = grams(tests)
    keys, counts = np.unique(grams(training)[0][-1], return_counts=True)
    tables = []
    for length in range(order, 0, -1):  # below the top, a count is the number of different tokens before
        tables.append((keys, counts))
        if length > 1:
            keys, counts = np.unique(keys & np.uint64((1 << 12 * (length - 1)) - 1), return_counts=True)
    chance = np.full(len(tested[0]), 1 / VOCABULARY)
    for length, (keys, counts) in enumerate(reversed(tables), 1):
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        before, starts, kinds = np.unique(keys >> np.uint64(12), return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, starts)
        history = tested[length - 1] >> np.uint64(12)
        total, kind = look_up(before, totals, history), look_up(before, kinds, history)
        count = look_up(keys, counts, tested[length - 1])
        mixed = (np.maximum(count - discount, 0) + discount * kind * chance) / np.maximum(total, 1)
        chance = np.where(total > 0, mixed, chance)
    return [float(part.sum()) for part in np.split(-np.log2(chance), ends[:-1])]


def grounded_score(model: Any, tokenizer: Any, units: list[corpus.Unit]) -> dict[str, Any]:
    """Greedy answers to held-out made-by-rule questions, against the sentence and number expected."""
    right = exact = asked = first = 0
    for unit in [u for u in units if u.held_out and u.source == "grounded"][:60]:
        wanted = unit.messages[-1]["content"]
        if "[" not in wanted:
            continue
        given = reply(model, tokenizer, render_prompt(tokenizer, unit.messages[:-1]), greedy=True, most=110)
        asked += 1
        right += given.rfind("[") >= 0 and given[given.rfind("[") :][:3] == wanted[wanted.rfind("[") :][:3]
        first += "[1]" in wanted
        exact += given.split(" [")[0] == wanted.split(" [")[0]
    return {"asked": asked, "right_source": right, "right_sentence": exact, "first_is_right": first}


def render_prompt(tokenizer: Any, messages: list[corpus.Message]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@torch.inference_mode()
def reply(model: Any, tokenizer: Any, prompt: str, greedy: bool, most: int = 90, seed: int = 0) -> str:
    torch.manual_seed(seed)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)], device=model.device)
    choice = GenerationConfig(
        do_sample=not greedy,
        max_new_tokens=most,
        eos_token_id=[END, BREAK],
        pad_token_id=BREAK,
        **({} if greedy else {"temperature": 0.7, "top_p": 0.9}),
    )
    out = model.generate(ids, generation_config=choice, attention_mask=torch.ones_like(ids))
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def samples(model: Any, tokenizer: Any, units: list[corpus.Unit]) -> list[dict[str, str]]:
    """Twenty samples: what is asked was fixed before, and nothing is chosen or edited."""
    asks: list[tuple[str, str, str]] = []
    held = [u for u in units if u.held_out and u.source == "grounded"]
    for unit in held[:6]:
        asks.append(("sources (held out)", unit.messages[1]["content"], render_prompt(tokenizer, unit.messages[:2])))
    for title, text, question in corpus.SAMPLE_SOURCES:
        body = f"Sources:\n[1] {title}\n{text}\n\nQuestion: {question}"
        talk = [{"role": "system", "content": corpus.INSTRUCTIONS[0]}, {"role": "user", "content": body}]
        asks.append(("sources", body, render_prompt(tokenizer, talk)))
    for question in corpus.SAMPLE_QUESTIONS:
        talk = [{"role": "system", "content": corpus.TUTORING[0]}, {"role": "user", "content": question}]
        asks.append(("tutoring", question, render_prompt(tokenizer, talk)))
    asks += [("plain text", start, start) for start in corpus.SAMPLE_STARTS]
    found = []
    for number, (kind, shown, prompt) in enumerate(asks[:20]):
        greedy = number % 2 == 0
        text = reply(model, tokenizer, prompt, greedy, seed=number)
        found.append(
            {
                "kind": kind,
                "how": "greedy" if greedy else f"temperature 0.7, top-p 0.9, seed {number}",
                "asked": shown,
                "answer": text,
            }
        )
    return found


def everything(folder: Path, units: list[corpus.Unit], items: list[Item]) -> dict[str, Any]:
    """Held-out bits per byte of the written model and of the n-gram, by source, and the samples."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tests = [i for i in items if i.held_out]
    training = [i for i in items if not i.held_out]
    rows = list(zip(tests, bits(model, tests), ngram_bits(training, tests), strict=True))
    table = {}
    for name in [*corpus.SOURCES, "overall"]:
        mine = [r for r in rows if name in (r[0].source, "overall")]
        size = sum(r[0].text_bytes for r in mine)
        if size:
            table[name] = {
                "units": len(mine),
                "bytes": size,
                "tokens": sum(len(r[0].ids) for r in mine),
                "model": sum(r[1] for r in mine) / size,
                "ngram": sum(r[2] for r in mine) / size,
            }
    return {
        "bits_per_byte": table,
        "grounded": grounded_score(model, tokenizer, units),
        "samples": samples(model, tokenizer, units),
        "training_units": {n: sum(i.source == n for i in training) for n in corpus.SOURCES},
        "training_tokens_one_pass": {
            n: round(sum(len(i.ids) * i.weight for i in training if i.source == n)) for n in corpus.SOURCES
        },
    }


# --- the card -----------------------------------------------------------------------------------

LICENCE = "Apache-2.0 (weights); trained on data under CC BY 4.0, CC BY 2.5, MIT, public domain"

CARD = """---
license: apache-2.0
---
# The starter model

A very small language model that ships with the box so that every part of it can be tried before a school
brings its own model: upload, search, chat, tuning, back-up. **It is a starter, for trying the box, not for
pupils.** It writes sentences that look right and are often wrong, and it knows almost nothing.

This card is written by `scripts/build-starter-model`, from what that run measured.

| | |
|---|---|
| parameters | {parameters:,} (Llama architecture, 6 layers, width 256, 4 heads, 2 key-value heads, tied embeddings) |
| context | {context} tokens |
| vocabulary | {vocabulary} (byte-level BPE, GPT-2's splitting) |
| weights | bf16, `model.safetensors`, {file_bytes:,} bytes |
| sha256 | `{sha256}` |
| licence of the weights | Apache-2.0 |
| tokens seen | {tokens_seen:,} in {steps:,} steps ({passes_done:.1f} passes over the weighted sets) |
| time | {minutes:.0f} minutes on {machine}, shared with other work |

## How good it is

Bits per byte on held-out text, lower is better, for the file in this folder and for an interpolated
Kneser-Ney model of order 5 over the same tokens, counted on the same training text. Role marks count as
bits and not as bytes. Two per cent of the book blocks, lesson sections and conversations were held out by
hash; held-out paragraphs that also stand in the training text were dropped.

| source | held-out bytes | this model | n-gram |
|---|---:|---:|---:|
{table}

Read it with care: the algebra books share passages nearly word for word, and most tutor lines of CIMA are
templates about a few exercises, which an n-gram model knows by heart: those rows say little about new text.
Rows with few bytes are only a hint.

{asked} held-out questions with sources, made by rule and answered greedily: {right_source} answers cite the
right source (citing [1] always would be right {first_is_right} times), {right_sentence} copy the expected sentence
word for word.
The answers in the samples are cut after 90 tokens.

## What it was trained on

| set | licence | credit | units | tokens in one pass |
|---|---|---|---:|---:|
{sets}

Publishers' notices were taken out of the text: their names are not ours to imitate. They have not endorsed
this model. Changes made to the sets: white space and Markdown marks tidied, an instruction put before some
conversations, exchanges made by rule from the books (below).

Left out on purpose:

- OATutor: the box is tuned and judged on it.
- Book2Dial: share-alike licence.
- The feedback test set, and every conversation in CIMA, Bridge and Uptake that it was taken from (also the
  other rows of the same conversation): it is the test of retraining.
- The retrieval questions, the unanswerable questions and the project's example exchanges: they are tests.
- Chapters that exist as PDF only (Prealgebra 7-11, the Siyavula science chapters): the script reads EPUB,
  Markdown, text and HTML.

## Recipe

- Rows of {context} tokens; a conversation is never cut; {rows} rows a step (a quarter of that in the first 5 %,
  half until 40 %).
- Muon for the hidden matrices (rate 0.01), AdamW for embeddings and norms (0.004); warm-up over 60 steps, then
  steady, then linear to nothing over the last 30 % of the budget. bf16 autocast, gradient norm cut at 1.
- About a quarter of the tokens are exchanges made by rule from the textbooks and lessons: one to three numbered
  sources, a question on a key phrase, the answering sentence copied with its number. One in twenty asks what
  no source says. Their answers count {answer_weight} times in the loss.
- The budget is a time, so two runs do not give the same file.
- Chat format: `<|system|>`, `<|user|>` or `<|assistant|>`, the text, `<|end|>`; nothing in front and no line ends
  between. `<|endoftext|>` separates documents.

## Limits

- Facts, sums and advice are unreliable. Do not put it before pupils.
- It copies sentences from sources only some of the time, and may choose the wrong sentence or cite the wrong
  source: the figures above stand beside what always citing the first would give.
- English only. Scraps of the training sets show through.
- No safety training. The box's own checks are what stands between it and a reader.

## Samples

Twenty, unedited and not chosen: what is asked was fixed before the model existed.
{samples}
"""


def write_card(results: dict[str, Any], folder: Path) -> None:
    """README.md and card.json, from the results alone."""
    scores = results["bits_per_byte"]
    table = [f"| {name} | {row['bytes']:,} | {row['model']:.3f} | {row['ngram']:.3f} |" for name, row in scores.items()]
    sets = [
        f"| {s.name} | {s.licence} | {s.attribution} | {results['training_units'][s.name]:,} "
        f"| {results['training_tokens_one_pass'][s.name]:,} |"
        for s in corpus.SOURCES.values()
    ]
    shown = []
    for number, sample in enumerate(results["samples"], 1):
        asked, answer = ("\n".join("    " + line for line in sample[key].splitlines()) for key in ("asked", "answer"))
        shown.append(f"\n### {number}. {sample['kind']}, {sample['how']}\n\n{asked}\n\nAnswer:\n\n{answer or '    (empty)'}")
    text = CARD.format(
        **{k: results[k] for k in ("parameters", "file_bytes", "sha256", "tokens_seen", "steps", "minutes", "machine")},
        **results["grounded"],
        context=CONTEXT,
        vocabulary=VOCABULARY,
        rows=results["rows_per_step"],
        answer_weight=results["answer_weight"],
        table="\n".join(table),
        sets="\n".join(sets),
        samples="\n".join(shown),
        passes_done=results["tokens_seen"] / sum(results["training_tokens_one_pass"].values()),
    )
    (folder / "README.md").write_text(text, "utf-8")
    facts = {
        "name": "starter",
        "purpose": "for trying the box, not for pupils",
        "parameters": results["parameters"],
        "context": CONTEXT,
        "vocabulary": VOCABULARY,
        "licence": LICENCE,
        "tokens": results["tokens_seen"],
        "minutes": round(results["minutes"], 1),
        "machine": results["machine"],
        "sha256": results["sha256"],
        "bits_per_byte": {
            "model": round(scores["overall"]["model"], 4),
            "ngram": round(scores["overall"]["ngram"], 4),
            "by_source": {n: {k: round(v[k], 4) for k in ("model", "ngram")} for n, v in scores.items() if n != "overall"},
        },
        "grounded": results["grounded"],
    }
    (folder / "card.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
