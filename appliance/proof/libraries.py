"""Every library that the box has is imported, and an object of it made, under the guard and with a recorder of its sockets.

A process of its own: one JSON line for each library, with what it tried to reach. The variable CI is not set, since a school's
machine does not set it and trl asks for news where it is missing. One that is not installed is said to be so.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from appliance import guard, network
from appliance.settings import load

_reached: list[str] = []


def _record(event: str, given: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        _reached.append(f"{event.partition('.')[2]} {str(given[-1] if event == 'socket.connect' else given[0])[:100]}")


class _Makes:
    """An object of each library, as far as it can be had without a model of its own. Later ones use what earlier ones made."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._settings = folder, load(home=folder)
        self._starter = self._settings.starter

    def torch(self) -> None:
        import torch

        torch.nn.Linear(2, 2)(torch.ones(1, 2))

    def tokenizers(self) -> None:
        from tokenizers import Tokenizer

        Tokenizer.from_file(str(self._starter / "tokenizer.json")).encode("a word")

    def safetensors(self) -> None:
        from safetensors.torch import load_file

        load_file(self._starter / "model.safetensors")

    def huggingface_hub(self) -> None:
        from huggingface_hub import HfApi

        HfApi()

    def transformers(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(self._starter))
        self._model: Any = AutoModelForCausalLM.from_pretrained(str(self._starter))

    def peft(self) -> None:
        from peft import LoraConfig, get_peft_model

        self._model = get_peft_model(self._model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))

    def datasets(self) -> None:
        from datasets import Dataset

        said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
        self._rows = Dataset.from_list([{"messages": said}] * 4)

    def accelerate(self) -> None:
        from accelerate import Accelerator

        Accelerator(cpu=True)

    def trl(self) -> None:
        from trl import DPOConfig, SFTConfig, SFTTrainer

        common: dict[str, Any] = {"output_dir": str(self._folder), "report_to": "none", "use_cpu": True}
        DPOConfig(**common)
        args = SFTConfig(max_length=64, **common)
        SFTTrainer(model=self._model, args=args, train_dataset=self._rows, processing_class=self._tokenizer)

    def bitsandbytes(self) -> None:
        from bitsandbytes.nn import Linear4bit

        Linear4bit(8, 8)

    def sentence_transformers(self) -> None:
        from appliance.engine.embedder import Embedder

        Embedder(1).embed(["a sentence"])

    def llama_cpp(self) -> None:
        import llama_cpp

        llama_cpp.llama_backend_init()

    def faiss(self) -> None:
        import faiss

        faiss.IndexFlatIP(8)

    def httpx(self) -> None:
        network.http_client(self._settings)  # the only one there is

    def openai(self) -> None:
        import openai

        openai.OpenAI(api_key="none", base_url="http://school.invalid/v1").close()

    def litellm(self) -> None:
        import litellm

        litellm.get_model_info("gpt-4o-mini")

    def dspy(self) -> None:
        import dspy

        dspy.Predict("question -> answer").set_lm(dspy.LM("openai/none", api_key="none", cache=False))

    def ldap3(self) -> None:
        import ldap3

        ldap3.Connection(ldap3.Server("ldap.school.invalid", get_info=ldap3.NONE))

    def authlib(self) -> None:
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        AsyncOAuth2Client("box", "secret", trust_env=False)

    def textstat(self) -> None:
        import textstat

        textstat.automated_readability_index("A short sentence of easy words.")

    def sqlalchemy(self) -> None:
        import sqlalchemy

        sqlalchemy.create_engine("sqlite://").connect().close()

    def uvicorn(self) -> None:
        import uvicorn

        uvicorn.Config("none:none", host="127.0.0.1")


ONLY_IMPORTED = (
    "alembic", "argon2", "babel", "bs4", "charset_normalizer", "click", "datasketch", "fastapi", "gepa", "gguf", "jinja2",
    "latex2mathml", "lxml", "markdown_it", "nh3", "numpy", "optuna", "phonenumbers", "pydantic_settings", "pygments", "pyotp",
    "pypdfium2", "pysqlite3", "python_multipart", "segno", "sentencepiece",
)  # fmt: skip


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _version(name: str) -> str:
    for package in _packages().get(name, []):
        return metadata.version(package)
    return ""


def _busy() -> float:
    """Seconds that this thread ran, or stood in line for a processor: on a machine with other work that is no waiting."""
    try:
        return sum(map(int, Path("/proc/thread-self/schedstat").read_text("ascii").split()[:2])) / 1e9
    except (OSError, ValueError):  # a kernel that does not count the line
        return time.thread_time()


def _make(name: str, make: Callable[[], object]) -> dict[str, Any]:
    """`waited`: seconds in which it did nothing, as for an answer that does not come."""
    _reached.clear()
    before, began, fault, here = sum(guard.attempts.values()), time.monotonic() - _busy(), "", True
    try:
        make()
    except ModuleNotFoundError as error:
        here = str(error.name).partition(".")[0] != name
        fault = str(error) if here else ""
    except Exception as error:  # noqa: BLE001 - a refused library may fail in any way; what counts is what it reached
        fault = f"{type(error).__name__}: {error}"[:200]
    return {
        "library": name, "version": _version(name) if here else "", "here": here, "fault": fault, "reached": list(_reached),
        "refused": sum(guard.attempts.values()) - before, "waited": time.monotonic() - _busy() - began,
    }  # fmt: skip


def main(names: list[str]) -> int:
    network.stay_offline()
    sys.addaudithook(_record)  # before the guard, which lets nobody after it see what it refuses
    guard.install()
    answer, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    with tempfile.TemporaryDirectory() as folder:
        makes = _Makes(Path(folder))
        known: dict[str, Callable[[], object]] = {
            name: getattr(makes, name) for name in vars(_Makes) if not name.startswith("_")
        }
        for name in ONLY_IMPORTED:
            known[name] = lambda name=name: importlib.import_module(name)  # type: ignore[misc]
        for name in names or list(known):
            answer.write(json.dumps(_make(name, known[name])) + "\n")
            answer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
