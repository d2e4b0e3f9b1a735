"""A model's card says what a teacher wants to know, and nothing that was not recorded."""

from __future__ import annotations

from appliance.registry import FileFact, Manifest
from appliance.tuning.card import WARNING, card

TUNED = Manifest(
    id="history-2026", kind="adapter", title="Our history tutor", licence="Apache-2.0", context=4096,
    files={"adapter.gguf": FileFact("0" * 64, 3_400_000)}, base="qwen", parents=("qwen",), dataset="d" * 64, recipe="e" * 64,
    report={"passed": True, "baseline": "qwen", "reasons": ["Loss per token fell by 12 %."]}, created=1_790_000_000.0,
    aliases=("champion",),
)  # fmt: skip
DATASET = {
    "train": 181, "held_out": 36, "subject": {"history": 217}, "licence": {"CC BY 4.0": 217},
    "redactions": {"name": 12, "birth_date": 1},
}  # fmt: skip


def test_a_tuned_models_card() -> None:
    text = card(TUNED, DATASET)
    for said in (
        "Our history tutor", "from qwen", "181 conversations", "36 more were kept back", "history (217)", "12 x name",
        "1 x birth date", "passed the gate", "fell by 12 %", "It answers in this school now", "d" * 64, "3.4 MB",
    ):  # fmt: skip
        assert said in text, said
    assert WARNING not in text


def test_a_refused_starter_says_both() -> None:
    import dataclasses

    refused = dataclasses.replace(TUNED, starter=True, aliases=(), report={"passed": False, "baseline": "qwen", "reasons": []})
    text = card(refused)
    assert WARNING in text and "did **not** pass" in text and "answers in this school" not in text


def test_a_base_claims_no_tuning() -> None:
    base = Manifest(id="qwen", kind="base", title="Qwen", licence="Apache-2.0", context=4096, files={})
    text = card(base)
    assert "not tuned here" in text and "How it was judged" not in text
