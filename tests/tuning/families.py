"""Small models with random weights, one of each family that schools are likely to bring, with tokenizers of the family's kind.

Each has what makes its family hard to export: Llama scaled rotary embeddings, Qwen biases or norms in its attention and NFC,
Gemma a SentencePiece vocabulary, shifted norms and windows, Phi fused projections. Weights are larger than usual, so that the
predictions are far from even and a fault moves them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
QWEN_2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] "
    "+ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

TEMPLATES = (HEADERS, CHATML, TURNS, PLAIN)


def byte_level(
    folder: Path, texts: Iterable[str], pattern: str, marks: Sequence[str], template: str, *, bos: str, eos: str, **model: Any
) -> int:
    """A byte-level BPE tokenizer of its own that cuts text by `pattern`; the size of its vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    nfc = model.pop("nfc", False)
    tokenizer = Tokenizer(models.BPE(**model))
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(mark, special=True, normalized=False) for mark in marks],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=marks[0], chat_template=template
    ).save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def sentence_piece(folder: Path, texts: Iterable[str], marks: Sequence[str], template: str) -> int:
    """A SentencePiece BPE vocabulary with bytes, as Gemma has, and the same as tokenizer.json; its size."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(texts)), model_writer=written, model_type="bpe", vocab_size=600, byte_fallback=True,
        add_dummy_prefix=False, normalization_rule_name="identity", remove_extra_whitespaces=False, pad_id=0, eos_id=1,
        bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", control_symbols=list(marks),
        user_defined_symbols=["\n"], minloglevel=2,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    size = pieces.get_piece_size()
    vocab = {pieces.id_to_piece(number): number for number in range(size)}
    plain = [p for p, n in vocab.items() if not (pieces.is_control(n) or pieces.is_byte(n) or pieces.is_unknown(n))]
    merges = [
        (-pieces.get_score(vocab[piece]), vocab[piece[:at]], vocab[piece[at:]], piece[:at], piece[at:])
        for piece in plain
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab, [row[3:] for row in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in ("<pad>", "<eos>", "<bos>", *marks)]
    )
    tokenizer.add_tokens([AddedToken("\n", special=False, normalized=False)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<end_of_turn>", pad_token="<pad>", unk_token="<unk>",
        chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    return int(tokenizer.get_vocab_size())


SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "initializer_range": 0.15,
}  # fmt: skip


def llama(folder: Path, texts: list[str]) -> Path:
    """Llama 3: its cut of words, whole words first, and rotary frequencies scaled in three bands."""
    from transformers import LlamaConfig, LlamaForCausalLM

    marks = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    size = byte_level(
        folder, texts, LLAMA_3, marks, HEADERS, bos="<|begin_of_text|>", eos="<|eot_id|>", ignore_merges=True
    )  # fmt: skip
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 32
    return _saved(folder, LlamaForCausalLM, LlamaConfig(vocab_size=size, rope_parameters=rope, **SHAPE))


def qwen(folder: Path, texts: list[str]) -> Path:
    """Qwen 2: biases in its attention, one table for input and output; stored in 16 bits and in several files."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    size = byte_level(folder, texts, QWEN_2, marks, CHATML, bos="<|endoftext|>", eos="<|im_end|>", nfc=True)
    config = Qwen2Config(vocab_size=size, tie_word_embeddings=True, **SHAPE)
    return _saved(folder, Qwen2ForCausalLM, config, dtype="bfloat16", max_shard_size="60KB")


def qwen3(folder: Path, texts: list[str]) -> Path:
    """Qwen 3: norms of queries and keys."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    size = byte_level(folder, texts, QWEN_2, marks, CHATML, bos="<|endoftext|>", eos="<|im_end|>", nfc=True)
    return _saved(folder, Qwen3ForCausalLM, Qwen3Config(vocab_size=size, head_dim=32, **SHAPE))


def gemma(folder: Path, texts: list[str]) -> Path:
    """Gemma 3: SentencePiece, norms stored less one, five layers that see a window and one that sees all."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    size = sentence_piece(folder, texts, ["<start_of_turn>", "<end_of_turn>"], TURNS)
    shape = SHAPE | {"num_hidden_layers": 6, "initializer_range": 0.08}
    config = Gemma3TextConfig(
        vocab_size=size, head_dim=16, sliding_window=32, query_pre_attn_scalar=16, bos_token_id=2, eos_token_id=5,
        pad_token_id=0, **shape,
    )  # fmt: skip
    return _saved(folder, Gemma3ForCausalLM, config)


def phi(folder: Path, texts: list[str]) -> Path:
    """Phi 3 and 4: queries, keys and values in one projection, gate and up in another."""
    from transformers import Phi3Config, Phi3ForCausalLM

    marks = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    size = byte_level(folder, texts, GPT_4O, marks, PLAIN, bos="<|endoftext|>", eos="<|end|>")
    marks_at = {"bos_token_id": 0, "eos_token_id": 4, "pad_token_id": 0, "original_max_position_embeddings": 256}
    return _saved(folder, Phi3ForCausalLM, Phi3Config(vocab_size=size, **marks_at, **SHAPE))


FAMILIES: dict[str, Callable[[Path, list[str]], Path]] = {"llama": llama, "qwen": qwen, "gemma": gemma, "phi": phi}


def _saved(folder: Path, kind: Any, config: Any, dtype: str = "float32", **options: Any) -> Path:
    import torch

    torch.manual_seed(7)
    model = kind(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # which begin as all ones or all zeros, and would hide a mix-up
                weight.add_(torch.randn_like(weight) * 0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder, **options)
    return folder


def adapted(base: Path, folder: Path, *, seed: int = 3, **options: Any) -> Path:
    """A LoRA adapter on every layer, with weights of a size that training reaches, which says another path for its base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(**({"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 12, "target_modules": "all-linear"} | options))
    plain = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype=torch.float32)
    model = get_peft_model(plain, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                weight.normal_(std=0.1)
            elif "modules_to_save" in name or "magnitude" in name:
                weight.mul_(1 + torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    change(folder / "adapter_config.json", base_model_name_or_path="/home/somebody/models/Another-3B-unsloth-bnb-4bit")
    return folder


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")
