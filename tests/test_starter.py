"""The starter model that comes with the box: small, honest about itself, and loadable by both sides."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "models" / "starter"


def test_the_weights_are_those_of_the_card_and_small() -> None:
    card = json.loads((FOLDER / "card.json").read_text("utf-8"))
    weights = FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 25_000_000
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == card["sha256"]


def test_it_beats_an_n_gram_model_clearly_on_the_same_held_out_text() -> None:
    scores = json.loads((FOLDER / "card.json").read_text("utf-8"))["bits_per_byte"]
    assert scores["model"] < 0.9 * scores["ngram"]


def test_the_card_says_what_it_is_what_it_learned_from_and_shows_twenty_samples() -> None:
    card = (FOLDER / "README.md").read_text("utf-8")
    assert "for pupils" in " ".join(card.split()) and re.search(r"^license:", card, re.M)
    for never in ("oatutor", "feedback"):
        assert never in card.lower(), "what it never saw is named"
    assert len(re.findall(r"^### ", card, re.M)) >= 20


def test_its_chat_template_marks_the_tutors_words() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "What have you tried?"}]
    made = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    learned = [token for token, mark in zip(made["input_ids"], made["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(learned) == "What have you tried?<|end|>"
