"""`appliance models connect` and what the other commands say of a model of another machine, at a real command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.app import Appliance
from appliance.cli import main
from appliance.network import Policy
from appliance.plugins import remote
from appliance.prompts import load
from appliance.registry import Registry
from appliance.settings import Settings
from tests.outside import allow
from tests.plugins.far import far
from tests.test_egress import egress


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[dict[str, Any]]]:
    """A command in a thread of this process: the document of one that ends well; the last two lines of one that does not."""

    async def made(home: Path, *words: str, code: int = 0) -> dict[str, Any]:
        def here() -> int:
            with pytest.raises(SystemExit) as ended:
                main(["--home", str(home), *words, "--json"])
            return int(str(ended.value.code or 0))

        capsys.readouterr()
        ended = await asyncio.to_thread(here)
        out, err = capsys.readouterr()
        assert ended == code, err
        found: dict[str, Any] = json.loads(out) if out else {"told": err.strip().splitlines()[-2:]}
        return found

    return made


async def test_a_model_of_another_machine_at_the_command_line(
    tmp_path: Path, run: Callable[..., Awaitable[dict[str, Any]]]
) -> None:
    settings = Settings(home=tmp_path / "home")
    async with far() as server, far(mood="dies") as dead, contextlib.AsyncExitStack() as stack:
        allow(settings, server.host, dead.host)
        await stack.enter_async_context(egress(settings))
        made = await run(settings.home, "models", "connect", "district", "--url", server.url)
        assert made == {"id": "district", "model": "big", "servers": [server.url[:-3]], "context": 8192}
        refused = (await run(settings.home, "models", "connect", "other", "--url", dead.url, code=1))["told"]
        assert refused[0].startswith(f"Error: {dead.url[:-3]}: ") and refused[1].startswith("Try: ")
        words = ("models", "connect", "district", "--url", server.url, "--price", "0.5", "1.5")
        assert "needs its money" in (await run(settings.home, *words, code=2))["told"][-1]
        await run(settings.home, *words, "--currency", "EUR")
        (row,) = (await run(settings.home, "models", "list"))["models"]
        assert row["cost"] == "0.5 in, 1.5 out EUR/million tokens"
        hosted = Registry(settings.models).get("district").hosted or {}
        assert remote.PLUGIN.price is not None and remote.PLUGIN.price(settings, hosted, 1_000_000, 2_000_000) == (3.5, "EUR")
        assert (row["id"], row["kind"], row["method"], row["format"], row["bytes"]) == (
            "district",
            "hosted",
            "connected",
            "hosted",
            0,
        )
        told = (await run(settings.home, "models", "promote", "district", code=4))["told"]
        assert "never judged" in told[0]
        assert (await run(settings.home, "models", "promote", "district", "--accept", "tried"))["promoted"] is True
        told = (await run(settings.home, "models", "export", "district", str(tmp_path / "x.gguf"), code=1))["told"]
        assert told[0] == "Error: district is on another machine: there is no file to copy." and told[1].startswith("Try: ")
    Policy(settings.network).deny("127.0.0.1")
    told = (await run(settings.home, "models", "evaluate", "district", code=1))["told"]
    assert "nothing to judge 'district' against" in told[0] and "--against" in told[1]


def test_a_prompt_program_answers_to_the_same_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "home"

    def here(*words: str, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["--home", str(home), "models", *words, "--json"])
        out, err = capsys.readouterr()
        assert ended.value.code == code, err
        return json.loads(out) if out else err.strip().splitlines()[-2:]

    box = Appliance.open(Settings(home=home))
    me, words = box.accounts.local_administrator(), load("assessment").as_program()
    good = box.chat.programs.add(me, words, report={"passed": True, "method": "bootstrap"}, maker="dspy")
    plain = box.chat.programs.add(me, words, maker="import")
    box.library.close()
    box.database.close()
    assert [one["id"] for one in here("compare", good.id, plain.id)["compared"]] == [good.id, plain.id]
    told = here("evaluate", plain.id, code=1)
    assert "nothing here can judge it" in told[0] and f"promote {plain.id} --accept" in told[1]
    assert "never judged" in here("promote", plain.id, code=4)[0]
    assert here("promote", good.id)["module"] == "assessment"
    row = next(row for row in here("list")["models"] if row["id"] == good.id)
    assert (row["kind"], row["method"], row["base"]) == ("program", "dspy bootstrap", "assessment")
    assert row["aliases"] == ["champion"]
