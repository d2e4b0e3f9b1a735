"""`/v1` over a real connection, asked by programs that we did not write: OpenAI's client, `llm`, and `curl`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from appliance.accounts import Accounts
from appliance.db import Database
from appliance.settings import Settings
from tests.web.test_server import serving

QUESTION: Any = [{"role": "user", "content": "Why are leaves green?"}]
SAYS = "because chlorophyll takes in red and blue light [1]"


@dataclass
class Served:
    url: str
    chat: str
    embed: str
    accounts: Accounts


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = Settings(home=tmp_path_factory.mktemp("clients") / "home")
    with serving(settings.home, "0.01") as (address, _, _):
        database = Database(settings.database)
        accounts = Accounts(database, settings)
        local = accounts.local_administrator()
        chat, embed = (accounts.create_key(local, scope, scope)[1] for scope in ("chat", "embed"))
        yield Served(f"{address}/v1", chat, embed, accounts)
        database.close()


# --- OpenAI's client -------------------------------------------------------------------------------------------------
@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=served.chat, base_url=served.url, max_retries=0) as client:
        yield client


def test_openais_client_asks(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="default", messages=QUESTION, temperature=0.2, max_tokens=60, user="room 7")
    assert SAYS in (whole.choices[0].message.content or "") and whole.usage and whole.usage.total_tokens > 0
    assert [passage["id"] for passage in (whole.model_extra or {})["passages"]] == [12, 13]
    streamed = ""
    with client.chat.completions.create(
        model="default", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            streamed += chunk.choices[0].delta.content or "" if chunk.choices else ""
    assert SAYS in streamed and chunk.usage and chunk.usage.completion_tokens > 0
    with client.chat.completions.stream(model="default", messages=QUESTION) as events:
        assert SAYS in (events.get_final_completion().choices[0].message.content or "")


def test_openais_client_lists_models_and_compares_texts(client: openai.OpenAI, served: Served) -> None:
    assert {"default", "quotes"} <= {model.id for model in client.models.list()}
    other = client.with_options(api_key=served.embed)
    reply = other.embeddings.create(model="default", input=["a leaf", "a tree and a pond"])
    assert [one.index for one in reply.data] == [0, 1] and len(reply.data[0].embedding) == 4
    one = other.embeddings.create(model="default", input="a leaf").usage
    assert 0 < one.prompt_tokens < reply.usage.prompt_tokens == reply.usage.total_tokens
    long = other.embeddings.create(model="default", input="leaf " * 5000).usage
    assert long.prompt_tokens == 254, "no more of a text is read"


def test_openais_client_knows_our_faults(client: openai.OpenAI, served: Served) -> None:
    def ask(key: str = served.chat, **more: Any) -> None:
        client.with_options(api_key=key).chat.completions.create(**{"model": "default", "messages": QUESTION} | more)

    for kind, how in (
        (openai.AuthenticationError, {"key": "sk-school-wrong"}),
        (openai.PermissionDeniedError, {"key": served.embed}),
        (openai.NotFoundError, {"model": "nothing"}),
        (openai.BadRequestError, {"messages": []}),
        (openai.BadRequestError, {"tools": [{"type": "function", "function": {"name": "x"}}]}),
        (openai.BadRequestError, {"extra_body": {"id_slot": 1}}),
        (openai.APIStatusError, {"messages": [{"role": "user", "content": "x " * 9000}]}),
    ):
        with pytest.raises(kind) as caught:
            ask(**how)
        assert caught.value.body and caught.value.response.json()["error"]["message"].endswith("."), how


# --- llm -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def llm(served: Served, tmp_path: Path) -> Any:
    (tmp_path / "keys.json").write_text(json.dumps({"school": served.chat}))
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: school\n  model_name: default\n  api_base: {served.url}\n  api_key_name: school\n"
    )
    program = Path(sys.executable).with_name("llm")

    def run(*words: str) -> str:
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        done = subprocess.run([program, *words], capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_llm_asks_and_goes_on(llm: Any) -> None:
    assert "school" in llm("models")
    assert SAYS in llm("-m", "school", "Why are leaves green?")
    assert SAYS in llm("-m", "school", "--no-stream", "-o", "temperature", "0.1", "-s", "Be brief.", "Why are leaves green?")
    assert "Leaves look" in llm("-c", "And in autumn?")


# --- curl ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def curl(served: Served) -> Any:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: apt-get install curl")

    def run(path: str, body: Any = None, *more: str, key: str = served.chat) -> tuple[int, str]:
        command = ["curl", "-sS", "--max-time", "60", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {key}", *more]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", body if isinstance(body, str) else json.dumps(body)]
        done = subprocess.run([*command, served.url + path], capture_output=True, text=True, check=True)
        text, _, status = done.stdout.rpartition("\n")
        return int(status), text

    return run


def test_curl_asks(curl: Any) -> None:
    status, text = curl("/chat/completions", {"model": "default", "messages": QUESTION})
    assert status == 200 and SAYS in json.loads(text)["choices"][0]["message"]["content"]
    status, text = curl("/chat/completions", {"model": "default", "messages": QUESTION, "stream": True}, "-N")
    lines = [line for line in text.split("\n") if line]
    assert status == 200 and all(line.startswith(("data: ", ": ")) for line in lines) and lines[-1] == "data: [DONE]"
    words = [json.loads(line[6:]) for line in lines[:-1]]
    assert SAYS in "".join(word["choices"][0]["delta"].get("content", "") for word in words)
    assert curl("/models")[0] == 200


def test_curl_is_told_what_is_wrong(curl: Any) -> None:
    for status, body, key in (
        (401, {}, "nonsense"),
        (400, {}, None),
        (400, "{", None),
        (400, "NaN", None),
        (400, "[" * 9999, None),
    ):
        got, text = curl("/chat/completions", body, **({"key": key} if key else {}))
        assert got == status and json.loads(text)["error"]["message"]
    got, text = curl("/chat/completions", {"model": "default", "messages": QUESTION, "stream": True, "top_k": 4})
    assert got == 400 and "top_k" in text
    assert curl("/nowhere")[0] == 404
    assert curl("/chat/completions", None, "-X", "PUT")[0] == 405


def test_a_key_that_is_taken_back_is_dead_at_once(served: Served, curl: Any) -> None:
    local = served.accounts.local_administrator()
    id, key = served.accounts.create_key(local, "soon gone", "chat")
    assert curl("/models", key=key)[0] == 200
    served.accounts.revoke_key(local, id)
    assert curl("/models", key=key)[0] == 401
