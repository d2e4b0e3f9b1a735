"""A conversation in a packed row is exactly what it is alone: logits, loss and gradients, in every family we name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Unsupported
from appliance.tuning import loading, packing, trainer
from appliance.tuning.recipe import Recipe

STARTER = Path(__file__).resolve().parents[2] / "models" / "starter"
SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Windows of six tokens: every conversation below is longer, so a mask that forgot the window would show.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 6}),
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {}),
    "gemma": ("GemmaConfig", {}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {"sliding_window": 6}),
}


def model_of(family: str) -> Any:
    import torch
    import transformers

    name, extra = FAMILIES[family]
    torch.manual_seed(3)
    config = getattr(transformers, name)(**(SHAPE | extra))
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def rows_of(sizes: list[int], vocabulary: int = 96) -> list[packing.Row]:
    """Rows whose first third carries no loss, as a pupil's turn."""
    import torch

    draw = torch.Generator().manual_seed(5)
    rows = []
    for size in sizes:
        ids = torch.randint(3, vocabulary, (size,), generator=draw).tolist()
        rows.append({"input_ids": ids, "labels": [packing.IGNORED] * (size // 3) + ids[size // 3 :]})
    return rows


def slopes(model: Any, losses: list[Any]) -> dict[str, Any]:
    model.zero_grad()
    sum(losses).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_exact(model: Any, rows: list[packing.Row]) -> None:
    """Packed by our attention against each row alone by the library's own: loss and every gradient."""
    import torch

    model.eval()
    model.set_attn_implementation("sdpa")
    alone = []
    for row in rows:
        batch = packing.packed([row])
        batch.pop("packed_lengths")
        alone.append(model(**batch, use_cache=False).loss * sum(label != packing.IGNORED for label in row["labels"][1:]))
    wanted = slopes(model, alone)
    assert packing.use(model) == ""
    together = packing.summed_loss(model, packing.packed(rows))
    found = slopes(model, [together])
    assert float(together.detach()) == pytest.approx(float(sum(alone).detach()), rel=1e-5)
    assert wanted.keys() == found.keys()
    for name, slope in wanted.items():
        torch.testing.assert_close(found[name], slope, rtol=2e-4, atol=2e-5 * float(slope.abs().max() + 1e-3), msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_conversation_is_what_it_is_alone(family: str) -> None:
    assert_exact(model_of(family), rows_of([17, 9, 31, 8]))


@pytest.mark.skipif(not (STARTER / "model.safetensors").is_file(), reason="models/starter is not built")
def test_a_packed_conversation_is_what_it_is_alone_for_the_starter(rows: list[dict[str, Any]]) -> None:
    talks = [row["messages"] for row in rows[:5]]
    assert_exact(loading.load_base(STARTER), packing.encode(loading.load_tokenizer(STARTER), talks))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_stands_before_a_conversation_does_not_reach_it(family: str) -> None:
    """To the last bit: the same shapes, only the first conversation's words differ."""
    import torch

    model = model_of(family).eval()
    assert packing.use(model) == ""
    one, other, last = rows_of([12, 12, 15])
    with torch.no_grad():
        first, second = (
            model(**{k: v for k, v in packing.packed([row, last]).items() if k != "labels"}, use_cache=False).logits[0]
            for row in (one, other)
        )
    assert torch.equal(first[12:], second[12:]) and not torch.equal(first[:12], second[:12])


def test_the_probe_sees_a_model_that_reads_across(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over the whole row, and a state that is carried on: both are found out and nothing is changed."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def leaky(*given: Any, packed_lengths: Any = None, **options: Any) -> Any:  # noqa: ARG001
        return sdpa_attention_forward(*given, **options)

    model = model_of("llama")
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_attention", leaky)
        assert packing.use(model) == "a conversation is seen by the next one in its row"
    assert model.config._attn_implementation == "sdpa"
    assert packing.use(model) == ""


def test_an_architecture_that_carries_a_state_on_is_not_packed() -> None:
    import transformers

    config = transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert packing.use(model) != ""


def test_attention_without_lengths_is_refused_not_guessed() -> None:
    model = model_of("llama")
    assert packing.use(model) == ""
    batch = packing.packed(rows_of([8, 8]))
    batch.pop("packed_lengths")
    with pytest.raises(Unsupported, match="does not say where"):
        model(**batch, use_cache=False)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi"])
def test_the_head_in_pieces_gives_the_same_loss_and_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = model_of(family).eval()
    assert packing.use(model) == "" and packing.has_plain_head(model)
    batch = packing.packed(rows_of([17, 9, 31, 8]))
    whole = packing.summed_loss(model, batch)
    wanted = slopes(model, [whole])
    monkeypatch.setattr(packing, "LOGITS", 96 * 7)  # seven places at a time
    pieces = packing.summed_loss(model, batch, head=True)
    found = slopes(model, [pieces])
    assert float(pieces.detach()) == pytest.approx(float(whole.detach()), rel=1e-6)
    for name, slope in wanted.items():
        torch.testing.assert_close(found[name], slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max() + 1e-3), msg=name)


def test_a_head_that_caps_its_logits_is_not_taken_apart() -> None:
    import transformers

    config = transformers.Gemma3TextConfig(**(SHAPE | {"final_logit_softcapping": 2.0}))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    assert not packing.has_plain_head(model)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_padded_batch_has_the_same_loss(family: str) -> None:
    """What is used where packing is not possible, or not wanted."""
    model = model_of(family).eval()
    rows = rows_of([17, 9, 31, 8])
    wide = packing.summed_loss(model, packing.padded(rows, 0))
    assert packing.use(model) == ""
    assert float(wide.detach()) == pytest.approx(float(packing.summed_loss(model, packing.packed(rows)).detach()), rel=1e-5)


def test_training_falls_back_to_padding_and_says_so(
    tiny: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "probe", lambda _model: "a reason")
    recipe = Recipe(rank=4, epochs=1, batch=4, length=128)
    made = trainer.build(
        loading.load_base(tiny), loading.load_tokenizer(tiny), [row["messages"] for row in rows[:8]], recipe, tmp_path,
        micro_batch=4, report=lambda *_: None,
    )  # fmt: skip
    assert made.facts["packing"] == "padded, by length: a reason"
    assert next(iter(made.get_train_dataloader()))["attention_mask"].shape[0] == 4
    assert trainer.run(made, None)["steps"] == 2


def test_recomputed_activations_know_where_conversations_end(
    tiny: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large models keep fewer activations; what is computed again must see the same lengths and draw the same dropout."""
    import torch
    from peft import get_peft_model_state_dict

    recipe = Recipe(rank=4, rate=1e-2, epochs=1, batch=4, length=128)
    found = []
    for large in (False, True):
        monkeypatch.setattr(trainer, "SMALL_MODEL", 0 if large else 10**9)
        made = trainer.build(
            loading.load_base(tiny), loading.load_tokenizer(tiny), [row["messages"] for row in rows[:12]], recipe,
            tmp_path / str(large), micro_batch=4, report=lambda *_: None,
        )  # fmt: skip
        assert made.args.activation_checkpointing is large
        trainer.run(made, None)
        found.append(get_peft_model_state_dict(made.model))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_packed_and_padded_steps_learn_the_same(
    make_model: Callable[..., Path], rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same conversations a step and the same mean over their tokens: after an epoch the weights differ by rounding."""
    import torch
    from peft import get_peft_model_state_dict

    base = make_model(tmp_path / "hf", [message["content"] for row in rows for message in row["messages"]])
    monkeypatch.setattr(trainer, "_mixed", lambda _model: False)
    monkeypatch.setattr(trainer.Order, "__iter__", lambda self: iter(range(len(self.lengths))))
    found = []
    for packs in (True, False):
        recipe = Recipe(rank=4, dropout=0.0, rate=1e-3, epochs=1, batch=4, length=128, packing=packs)
        made = trainer.build(
            loading.load_base(base), loading.load_tokenizer(base), [row["messages"] for row in rows[:14]], recipe,
            tmp_path / str(packs), micro_batch=4 if packs else 2, report=lambda *_: None,
        )  # fmt: skip
        trainer.run(made, None)
        found.append(get_peft_model_state_dict(made.model))
    moved = 0.0
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=0, atol=2e-4, msg=name)
        moved = max(moved, float(weight.abs().max()) if "lora_B" in name else 0.0)
    assert moved > 2e-3, "nothing was learnt, so nothing was compared"
