"""A tiny random model of the starter's shape with a tokenizer of its own, and examples to tune it on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import network

network.stay_offline()

with warnings.catch_warnings():
    # What the libraries say about each other while they are imported is not about our code.
    warnings.simplefilter("ignore")
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import transformers
    import trl  # noqa: F401

transformers.utils.logging.disable_progress_bar()

MARKS = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# The libraries warn about their own next versions; a fault of ours would still be an error.
LIBRARY_WARNINGS = (
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore:.*pin_memory.*:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tuning" in item.path.parts:
            for line in LIBRARY_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(line), append=False)


THINGS = ["river", "poem", "triangle", "magnet", "castle", "verb", "seed", "fraction", "comet", "map"]
PLACES = ["the book", "our garden", "last lesson", "the museum", "a story", "the old film", "my notes", "the test"]
DOINGS = ["measure", "draw", "compare", "explain", "spell", "sort", "colour", "count", "name"]


def talk(number: int) -> list[dict[str, str]]:
    """One short lesson; every number below 720 gives another question."""
    thing, place, doing = THINGS[number % 10], PLACES[number % 8], DOINGS[number % 9]
    return [
        {"role": "user", "content": f"How do I {doing} the {thing} from {place}?"},
        {"role": "assistant", "content": f"Look at the {thing} again. Which part of it would you {doing} first?"},
        {"role": "user", "content": f"The part that I saw in {place}."},
        {"role": "assistant", "content": f"Yes. So what does that tell you about every other {thing} that you know?"},
    ]


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    return [{"id": f"t{n}", "messages": talk(n), "subject": "science", "licence": "CC BY 4.0"} for n in range(72)]


@pytest.fixture(scope="session")
def examples_file(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "lessons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    return build_model


def build_model(folder: Path, texts: list[str], *, layers: int = 2, vocabulary: int = 600, **config: Any) -> Path:
    """A random Llama of the starter's kind, saved as safetensors with its tokenizer."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(mark, special=True, normalized=False) for mark in MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=MARKS[0],
        pad_token=MARKS[0],
        eos_token=MARKS[4],
        additional_special_tokens=MARKS[1:4],
        chat_template=TEMPLATE,
        model_max_length=256,
    ).save_pretrained(folder)
    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 4,
        # Random weights of the usual size leave attention all but even, and a mix-up of heads would hardly show.
        "initializer_range": 0.15,
    }
    LlamaForCausalLM(LlamaConfig(**(shape | config))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return build_model(folder, [message["content"] for row in rows for message in row["messages"]])


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    os.environ.pop("ACCELERATE_USE_CPU", None)
