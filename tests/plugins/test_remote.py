"""Other model servers: the least busy is asked, a dead one is not waited for twice, and no word goes where none may."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.handler import Chunk, Message, Request
from appliance.errors import ApplianceError, BadInput, Busy, Forbidden, ModelUnavailable, TooLarge, Unreachable
from appliance.network import Host, Policy
from appliance.plugins import remote
from appliance.plugins.hosting import Hosting
from appliance.settings import Settings
from tests.outside import allow
from tests.plugins.far import Far, far
from tests.test_egress import egress

ASKING = Request([Message("user", "Why are leaves green?")], max_tokens=20, inside=False)


def facts(*servers: Far, **more: Any) -> dict[str, Any]:
    listed = [{"url": one.url, "capacity": 2} for one in servers]
    return {"plugin": "remote", "model": "big", "servers": listed, "context": 8192} | more


@contextlib.asynccontextmanager
async def reached(settings: Settings, *servers: Far) -> AsyncIterator[remote.Servers]:
    """A handler for them, through a real way out."""
    allow(settings, *(one.host for one in servers))
    async with egress(settings):
        made = remote.handler(settings, facts(*servers))
        made.first_wait = 0.05
        try:
            yield made
        finally:
            await made.close()


async def collect(handler: remote.Servers, request: Request = ASKING) -> list[Chunk]:
    return [chunk async for chunk in handler.generate(request)]


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def test_an_answer_comes_whole_and_what_the_server_says_of_itself_is_not_believed(settings: Settings) -> None:
    async with far() as one, reached(settings, one) as handler:
        await handler.start()
        chunks = await collect(handler, replace(ASKING, user="ann", group="7B"))
        assert text(chunks) == one.says
        assert {(chunk.handler, chunk.place) for chunk in chunks} == {("remote", None)}
        assert chunks[-1].usage and (chunks[-1].usage.prompt, chunks[-1].usage.completion) == (21, 6)
        assert one.asked[0]["model"] == "big" and "ann" not in str(one.asked) and "7B" not in str(one.asked)
        assert (await handler.health()).ok and handler.slots == 2


@pytest.mark.parametrize("mood", ["dies", "500", "401", "429"])
async def test_one_that_fails_before_its_first_word_is_replaced_by_another(settings: Settings, mood: str) -> None:
    async with far(mood=mood) as bad, far() as good, reached(settings, bad, good) as handler:
        assert text(await collect(handler)) == good.says and len(good.asked) == 1
        assert text(await collect(handler)) == good.says
        well = [one["well"] for one in (await handler.health()).facts.values()]
        assert well == [mood == "429", True], "that one has only too much to do"


async def test_one_that_breaks_off_in_the_middle_is_an_error_and_nothing_is_said_twice(settings: Settings) -> None:
    async with far(mood="breaks") as bad, far() as good, reached(settings, bad, good) as handler:
        said: list[str] = []
        with pytest.raises(ModelUnavailable) as caught:
            async for chunk in handler.generate(ASKING):
                said.append(chunk.text)
        assert "".join(said) == "Leaves are" and caught.value.hint and good.asked == []
        assert text(await collect(handler)) == good.says


async def test_a_dead_one_is_found_well_again_in_the_background(settings: Settings) -> None:
    async with far(mood="dies") as one, reached(settings, one) as handler:
        with pytest.raises(ModelUnavailable):
            await collect(handler)
        with pytest.raises(ModelUnavailable):
            await collect(handler)
        assert len(one.asked) == 1, "nobody waits for it twice"
        one.mood = "well"
        async with asyncio.timeout(10):
            while not (await handler.health()).ok:
                await asyncio.sleep(0.01)
        assert text(await collect(handler)) == one.says and one.listed >= 1


async def test_a_failed_one_is_looked_at_less_and_less_often(settings: Settings) -> None:
    async with far(mood="500") as one, reached(settings, one) as handler:
        server = handler.servers[0]
        waits = []
        for _ in range(12):
            server.failed(ModelUnavailable("down"), 1.0)
            waits.append(server.again - asyncio.get_running_loop().time())
        assert [round(wait) for wait in waits[:4]] == [1, 2, 4, 8] and round(waits[-1]) == 60
        with pytest.raises(ModelUnavailable):
            await handler.start()
        one.mood = "well"
        await handler.start()
        assert server.failures == 0


async def test_a_slow_one_is_given_up_and_another_answers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    monkeypatch.setattr(remote, "LOOK_SECONDS", 0.2)
    async with far(mood="mute") as slow, far() as good, reached(settings, slow, good) as handler:
        assert text(await collect(handler)) == good.says
        good.mood = "mute"
        with pytest.raises(ModelUnavailable, match="does not answer"):
            await handler.start()


async def test_time_that_is_used_up_is_not_given_again(settings: Settings) -> None:
    async with far(mood="mute") as slow, far() as good, reached(settings, slow, good) as handler:
        with pytest.raises(Busy):
            await collect(handler, replace(ASKING, deadline=0.1))
        assert good.asked == [] and (await handler.health()).ok


async def test_the_least_busy_is_asked_and_a_larger_one_bears_more(settings: Settings) -> None:
    async with far(mood="waits") as small, far(mood="waits") as large, reached(settings, small, large) as handler:
        handler.servers[1].capacity = 6
        tasks = []
        for number in range(1, 9):
            tasks.append(asyncio.create_task(collect(handler)))
            async with asyncio.timeout(10):
                while len(small.asked) + len(large.asked) < number:
                    await asyncio.sleep(0.005)
        assert (len(small.asked), len(large.asked)) == (2, 6)
        small.gate.set()
        large.gate.set()
        assert {text(chunks) for chunks in await asyncio.gather(*tasks)} == {small.says}
        assert all(server.open == 0 for server in handler.servers)


async def test_who_leaves_frees_the_place(settings: Settings) -> None:
    async with far(mood="waits") as one, reached(settings, one) as handler:
        async with aclosing(handler.generate(ASKING)) as chunks:
            await anext(chunks)
            assert handler.servers[0].open == 1
        assert handler.servers[0].open == 0 and handler.servers[0].why is None


async def test_what_was_asked_wrongly_is_not_asked_again_elsewhere(settings: Settings) -> None:
    async with far(mood="400") as one, far() as other, reached(settings, one, other) as handler:
        with pytest.raises(BadInput):
            await collect(handler)
        one.mood = "413"
        with pytest.raises((TooLarge, BadInput)):
            await collect(handler)
        assert other.asked == []


async def test_a_key_is_read_from_its_file_each_time_and_never_shown(settings: Settings, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-first\n")
    key.chmod(0o600)
    async with far() as one, reached(settings, one):
        handler = remote.handler(settings, facts(one, key_file=str(key)))
        await collect(handler)
        key.write_text("sk-second\n")
        await collect(handler)
        sent = [line for head in one.heads for line in head.split("\r\n") if line.lower().startswith("authorization")]
        assert [line.partition(": ")[2] for line in sent] == ["Bearer sk-first", "Bearer sk-second"]
        one.mood = "401"
        with pytest.raises(ModelUnavailable) as caught:
            await collect(handler)
        assert "sk-" not in f"{caught.value.message}{caught.value.hint}" and "key" in caught.value.message
        await handler.close()
        key.chmod(0o644)
        handler = remote.handler(settings, facts(one, key_file=str(key)))
        with pytest.raises(ModelUnavailable, match="Others than the appliance may read"):
            await collect(handler)
        await handler.close()


# --- no word goes where none may -------------------------------------------------------------------------------------------
async def test_a_host_that_is_not_allowed_gets_no_byte(settings: Settings) -> None:
    async with far() as one, far() as other, egress(settings):
        handler = remote.handler(settings, facts(one))
        with pytest.raises(Forbidden, match="air-gapped") as caught:
            await collect(handler)
        assert f"appliance network allow 127.0.0.1:{one.port}" in caught.value.hint
        allow(settings, other.host)
        await handler.close()
        handler = remote.handler(settings, facts(one))
        with pytest.raises(Forbidden, match="does not name it"):
            await collect(handler)
        assert one.heads == []
        await handler.close()


async def test_without_the_way_out_it_says_so(settings: Settings) -> None:
    async with far() as one:
        allow(settings, one.host)
        handler = remote.handler(settings, facts(one))
        with pytest.raises((Unreachable, ModelUnavailable)) as caught:
            await collect(handler)
        assert caught.value.hint and one.heads == []
        await handler.close()


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://llm.district.example/v1", "https://llm.district.example"),
        ("https://llm.district.example:8443/big/v1/", "https://llm.district.example:8443/big"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://10.0.0.7:8000", None),  # the school's own network: only where a setting says so
        ("http://llm.district.example", None), ("http://93.184.216.34", None), ("ftp://10.0.0.7", None), ("10.0.0.7", None),
        ("https://user:word@llm.example", None), ("https://llm.example/v1?key=1", None), ("https://", None),
        ("http://127.0.0.1.evil.example", None), ("https://llm.example:port", None), ("https://[::1", None),
    ],
)  # fmt: skip
def test_which_addresses_are_taken(settings: Settings, url: str, kept: str | None) -> None:
    if kept is None:
        with pytest.raises(BadInput) as caught:
            remote.checked(settings, url)
        assert caught.value.hint
    else:
        assert remote.checked(settings, url) == kept


def test_a_private_address_without_encryption_where_the_school_says_so(settings: Settings) -> None:
    meant = settings.model_copy(update={"hosted_http": True})
    assert remote.checked(meant, "http://10.0.0.7:8000/v1") == "http://10.0.0.7:8000"
    with pytest.raises(BadInput):
        remote.checked(meant, "http://llm.district.example")


# --- connecting ------------------------------------------------------------------------------------------------------------
async def test_a_model_is_connected_once_each_server_said_that_it_has_it(settings: Settings) -> None:
    async with far() as one, far(models=[{"id": "big"}, {"id": "small"}]) as other, contextlib.AsyncExitStack() as stack:
        allow(settings, one.host, other.host)
        await stack.enter_async_context(egress(settings))
        made = await remote.connect(settings, "district", [one.url, other.url, one.url])
        assert (made.kind, made.context, made.hosted and made.hosted["model"]) == ("hosted", 8192, "big")
        assert made.hosted and [server["url"] for server in made.hosted["servers"]] == [one.url[:-3], other.url[:-3]]
        with pytest.raises(ModelUnavailable, match="a model that was not named") as caught:
            await remote.connect(settings, "district", [other.url])
        assert "big, small" in caught.value.hint
        with pytest.raises(ModelUnavailable, match=r"does not serve 'huge'"):
            await remote.connect(settings, "district", [one.url], model="huge")
        one.mood = "dies"
        with pytest.raises(ModelUnavailable, match=f"127.0.0.1:{one.port}"):
            await remote.connect(settings, "district", [one.url])


@pytest.mark.parametrize("damage", [{"servers": []}, {"servers": [1]}, {"context": "x"}, {"servers": [{"url": "http://a.b"}]}])
def test_damaged_facts_are_an_error_of_ours(settings: Settings, damage: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        remote.handler(settings, {"model": "big", "context": 1, "servers": [{"url": "https://a.example"}]} | damage)


# --- how long a handler lives -------------------------------------------------------------------------------------------------
async def test_a_handler_is_kept_until_the_policy_changes_and_closed_once_unused(settings: Settings) -> None:
    hosting = Hosting(settings)
    async with far() as one:
        with pytest.raises(Forbidden, match="air-gapped"):
            async with hosting.use(facts(one)):
                pass
        allow(settings, one.host)
        async with egress(settings), hosting.use(facts(one)) as first, hosting.use(facts(one)) as again:
            assert first is again
            allow(settings, Host("other.example", 443))
            async with hosting.use(facts(one)) as second:
                assert second is not first and text(await collect(first)) == one.says  # type: ignore[arg-type]
        Policy(settings.network).deny("127.0.0.1")
        async with hosting.use(facts(one)) as third:
            with pytest.raises(Forbidden):
                await collect(third)  # type: ignore[arg-type]
        Policy(settings.network).deny("other.example")
        with pytest.raises(Forbidden, match="air-gapped"):
            async with hosting.use(facts(one)):
                pass
        await hosting.close()


async def test_a_plugin_that_is_not_there_is_said_plainly(settings: Settings) -> None:
    allow(settings, Host("other.example", 443))
    hosting = Hosting(settings)
    for name in ("gone", "dspy"):
        with pytest.raises(ApplianceError) as caught:
            async with hosting.use({"plugin": name, "model": "x"}):
                pass
        assert caught.value.message and caught.value.hint
    await hosting.close()
