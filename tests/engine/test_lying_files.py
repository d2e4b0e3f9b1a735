"""Damaged model files, loaded beside one that serves: whatever was done to them, the engine's process lives and goes on."""

from __future__ import annotations

import asyncio
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.engine.handler import Chunk, Message, Request
from appliance.engine.loaded import ModelFiles
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.errors import ApplianceError, ModelUnavailable
from tests.engine.serving import engine_on_a_socket

pytestmark = pytest.mark.llama
QUESTION = [Message("user", "What is a fraction?")]


async def collect(engine: OpenAICompatible, request: Request) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


def damaged(whole: bytes, header: int, draw: random.Random) -> tuple[str, bytes]:
    """What was done to a model file, and the file: cut, bits flipped in its header, lengths that lie, types that are none, odd
    values, a token twice."""
    at = draw.randrange(header)
    match draw.choice(("cut", "flip", "length", "type", "value", "value", "token")):
        case "cut":
            end = draw.choice((at, draw.randrange(header, len(whole))))
            return f"cut at {end}", whole[:end]
        case "flip":
            changed = bytearray(whole)
            places = [draw.randrange(draw.choice((64, 2000, header))) for _ in range(draw.randint(1, 4))]
            for place in places:
                changed[place] ^= 1 << draw.randrange(8)
            return f"bits flipped at {places}", bytes(changed)
        case "length":
            at = draw.choice((at, draw.randrange(2000)))
            lie = draw.choice((2**63, 2**64 - 1, 2**63 - 1, 2**32, len(whole), 0))
            return f"{lie} at {at}", whole[:at] + struct.pack("<Q", lie) + whole[at + 8 :]
        case "value":
            key = draw.choice(list(re.finditer(rb"(llama|tokenizer\.ggml|general)\.[a-z_.]+", whole[:header])))
            at = key.end() + draw.choice((0, 4, 4, 4, 8))
            odd = draw.choice(
                (b"\0\0\0\0", b"\1\0\0\0", b"\3\0\0\0", b"\0\0\xc0\x7f", b"\0\0\x80\xbf", b"\xff" * 4, b"\0\0\1\0")
            )
            return f"{odd!r} at {at}, behind {key[0]!r}", whole[:at] + odd + whole[at + 4 :]
        case "token":
            first, second = draw.sample(list(re.finditer(rb"\x04\0{7}(....)", whole[:header], re.S)), 2)
            return f"{first[1]!r} at {second.start()}", whole[: second.start()] + first[0] + whole[second.end() :]
        case _:
            at = draw.choice((at, draw.randrange(2000)))
            return f"type at {at}", whole[:at] + struct.pack("<I", draw.choice((13, 99, 2**31, 2**32 - 1))) + whole[at + 4 :]


def serve_while_files_lie(gguf: str, folder: str, seed: str, count: str) -> None:
    """In a process of its own: one model serves somebody all the time, and damaged ones are loaded beside it."""
    whole, draw = Path(gguf).read_bytes(), random.Random(int(seed))
    header = whole.rindex(b"token_embd.weight") + 4000

    def resolve(name: str) -> ModelFiles:
        return ModelFiles(name, Path(gguf) if name == "default" else Path(folder) / f"{name}.gguf", None, 1024)

    async def run() -> None:
        async with engine_on_a_socket(Path(gguf), resolve=resolve) as engine:
            request = Request(QUESTION, max_tokens=12, schema={"enum": ["It is a part."]})
            for number in range(int(count)):
                path = Path(folder) / f"damaged-{number}.gguf"
                how, data = damaged(whole, header, draw)
                path.write_bytes(data)
                print(f"{number}: {how}", flush=True)  # noqa: T201 - the test reads it
                served = asyncio.create_task(collect(engine, request))
                try:
                    await engine.load(path.stem)
                    print("loaded", flush=True)  # noqa: T201
                except ApplianceError as error:
                    assert error.message and error.hint, how
                    assert not isinstance(error, ModelUnavailable) or path.stem in error.message, error.message
                    print("refused", flush=True)  # noqa: T201
                path.unlink()
                assert "".join(chunk.text for chunk in await served) == '"It is a part."'
            assert (await engine.health()).ok

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("count", [80, pytest.param(3000, marks=pytest.mark.long)])
def test_damaged_files_leave_the_old_model_serving(starter_gguf: Path, tmp_path: Path, count: int) -> None:
    code = "import sys; from tests.engine.test_lying_files import serve_while_files_lie; serve_while_files_lie(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(starter_gguf), str(tmp_path), "7", str(count)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, (done.stdout[-300:], done.stderr[-2000:])
    told = done.stdout.splitlines()
    assert told.count("refused") + told.count("loaded") == count and told.count("refused") > count / 2
