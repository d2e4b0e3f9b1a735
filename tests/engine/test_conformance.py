"""One suite over every handler, so that each can stand in for any other.

Where a handler cannot do a thing (a fake has no chances to tell, a stranger's server does not count), it has to say so with
Unsupported or BadInput; what may differ between handlers is written in the sets below, and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import httpx
import pytest

from appliance import network
from appliance.engine.fake import Fake
from appliance.engine.handler import Chunk, Handler, Message, Request
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.engine.quotes import Quotes
from appliance.engine.scheduler import LlamaHandler
from appliance.engine.transformers_gpu import TransformersHandler
from appliance.errors import ApplianceError, BadInput, Busy, ModelUnavailable, TooLarge, Unsupported
from appliance.plugins import remote as servers
from appliance.plugins.openai import OpenAIHandler
from tests.engine.serving import engine_on_a_socket, peer_client, peer_server, transformers_served
from tests.outside import allow
from tests.plugins.openai_server import TUNED, Service, connected, service
from tests.test_egress import egress

QUESTION = [Message("system", "You are the school's teaching assistant."), Message("user", "Why are leaves green?")]
GREEN = "Chlorophyll reflects green light, which is why leaves look green. Roots take in water."
RIVER = "A river builds a delta where it meets the sea, because it drops its mud there."

STRANGERS = {"peer", "remote"}  # a server that is not ours: asked directly, and by the plugin, through the one way out
MODELS = {"llama", "transformers", "engine", *STRANGERS}  # a language model answers
DRAW = MODELS - STRANGERS  # a request's seed and temperature are all that counts; the peer takes other settings of its own too
SCHEMAS = {"llama", "engine"}
CHANCES = {"llama", "transformers", "engine"}
IN_PROCESS = {"llama", "transformers"}
UNHURRIED = {"quotes"}  # reads no prompt and is done before any deadline


@dataclass(frozen=True)
class Passage:
    document: str = "d1"
    title: str = "Photosynthesis"
    place: str = "p. 1"
    text: str = GREEN


async def _search(_text: str) -> list[Passage]:
    return [Passage()]


Fixture = Callable[[str], Any]


@asynccontextmanager
async def fake(_fixture: Fixture) -> AsyncIterator[Handler]:
    yield Fake()


@asynccontextmanager
async def quotes(_fixture: Fixture) -> AsyncIterator[Handler]:
    yield Quotes(_search)


@asynccontextmanager
async def llama(fixture: Fixture) -> AsyncIterator[Handler]:
    made = LlamaHandler(fixture("starter_gguf"), slots=4, threads=2)
    yield made
    await made.close()


@asynccontextmanager
async def transformers(fixture: Fixture) -> AsyncIterator[Handler]:
    yield fixture("hugging_face")


@asynccontextmanager
async def engine(fixture: Fixture) -> AsyncIterator[Handler]:
    async with engine_on_a_socket(fixture("starter_gguf")) as client:
        yield client


@asynccontextmanager
async def peer(fixture: Fixture) -> AsyncIterator[Handler]:
    client = peer_client(fixture("peer_address"))
    yield client
    await client.close()


@asynccontextmanager
async def remote(fixture: Fixture) -> AsyncIterator[Handler]:
    settings, address = fixture("settings"), fixture("peer_address")
    allow(settings, network.host(address.removeprefix("http://")))
    async with egress(settings):
        found = await servers.connect(settings, "peer", [address], context=1024)
        assert found.hosted is not None
        made = servers.handler(settings, found.hosted)
        yield made
        await made.close()


@asynccontextmanager
async def openai(fixture: Fixture) -> AsyncIterator[Handler]:
    """Through a real egress, from a local server that speaks the service's API."""
    settings = connected(fixture("tmp_path") / "box", fixture("openai_service"), openai_budget=1e6)
    async with egress(settings):
        made = OpenAIHandler(settings, TUNED)
        yield made
        await made.close()


@pytest.fixture(scope="module")
def openai_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("openai")) as made:
        yield made


@pytest.fixture(scope="module")
def hugging_face() -> Iterator[TransformersHandler]:
    with transformers_served() as made:
        yield made


@pytest.fixture(scope="module")
def peer_address(starter_gguf: Any) -> Iterator[str]:
    with peer_server(starter_gguf) as address:
        yield address


Make = Callable[[Fixture], AbstractAsyncContextManager[Handler]]
MAKERS = [
    fake,
    quotes,
    pytest.param(llama, marks=pytest.mark.llama),
    pytest.param(transformers, marks=pytest.mark.slow),
    pytest.param(engine, marks=pytest.mark.llama),
    pytest.param(peer, marks=[pytest.mark.llama, pytest.mark.slow]),
    pytest.param(remote, marks=[pytest.mark.llama, pytest.mark.slow]),
    openai,
]


@dataclass(frozen=True)
class Case:
    kind: str
    handler: Handler


@pytest.fixture(params=MAKERS, ids=["fake", "quotes", "llama", "transformers", "engine", "peer", "remote", "openai"])
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    make: Make = request.param
    async with make(request.getfixturevalue) as made:
        await made.start()
        yield Case(make.__name__, made)


@pytest.fixture
def handler(case: Case) -> Handler:
    return case.handler


async def collect(handler: Handler, request: Request) -> list[Chunk]:
    return [chunk async for chunk in handler.generate(request)]


async def text_of(handler: Handler, request: Request) -> str:
    return "".join(chunk.text for chunk in await collect(handler, request))


def asking(words: str = "Why are leaves green?", text: str = GREEN, **options: Any) -> Request:
    return Request([Message("user", words)], question=words, passages=[Passage(text=text)], **options)


def same(one: str, other: str) -> int:
    """Letters that both begin with."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# --- an answer ------------------------------------------------------------------------------------------------------------
async def test_it_is_a_handler(case: Case) -> None:
    assert isinstance(case.handler, Handler)
    assert case.handler.name and case.handler.slots >= 1
    health = await case.handler.health()
    assert health.ok and (health.detail or case.kind in STRANGERS)


async def test_an_answer_ends_once_and_says_who_gave_it(case: Case) -> None:
    request = Request(QUESTION, question="Why are leaves green?", passages=[Passage()], max_tokens=40)
    chunks = await collect(case.handler, request)
    assert [chunk.finish is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1]
    assert last.finish in ("stop", "length")
    assert last.handler and last.model
    assert all(chunk.usage is None for chunk in chunks[:-1])
    if case.kind in STRANGERS and last.usage is None:
        return  # it does not tell while it streams
    assert last.usage and last.usage.prompt > 0 and 0 <= last.usage.completion <= 40


async def test_greedy_repeats_exactly(handler: Handler) -> None:
    request = Request(QUESTION, question="Why are leaves green?", max_tokens=24)
    await text_of(handler, request)  # from here on as much of the prompt is in the cache each time, and rounds alike
    assert await text_of(handler, request) == await text_of(handler, request)


async def test_the_longest_answer_is_as_long_as_was_asked(case: Case) -> None:
    if case.kind not in DRAW:
        return
    last = (await collect(case.handler, asking(max_tokens=17, ignore_eos=True)))[-1]
    assert last.finish == "length"
    assert last.usage and last.usage.completion == 17


async def test_emoji_and_right_to_left_come_back_whole(case: Case) -> None:
    words = "🍎🍏 مرحبا \u202e שלום 👩‍🏫"
    chunks = await collect(case.handler, asking(words, max_tokens=20))
    assert all("\ufffd" not in chunk.text for chunk in chunks)
    if case.kind == "fake":
        assert "".join(chunk.text for chunk in chunks) == " ".join(words.upper().split())


@pytest.mark.parametrize("wanted", ["🍎🍏 שלום 👩‍🏫 مرحبا", 'a backslash: \\ud83c\\udf4e and a "quote"\nbelow'])
@pytest.mark.parametrize("held", ["value", "name"])
async def test_signs_of_many_bytes_are_never_split(case: Case, wanted: str, held: str) -> None:
    """The model is held to a text of signs that are several tokens each, or that have a meaning in a grammar."""
    if case.kind not in SCHEMAS:
        return
    named = {"type": "object", "properties": {wanted: {"const": 1}}, "required": [wanted], "additionalProperties": False}
    schema = {"enum": [wanted]} if held == "value" else named
    chunks = await collect(case.handler, asking(max_tokens=150, schema=schema))
    assert json.loads("".join(chunk.text for chunk in chunks)) == (wanted if held == "value" else {wanted: 1})
    assert all("\ufffd" not in chunk.text for chunk in chunks)


# --- drawing --------------------------------------------------------------------------------------------------------------
def dicing(seed: int | None) -> Request:
    return Request(QUESTION, max_tokens=30, temperature=1.5, top_p=1.0, min_p=0.0, top_k=0, seed=seed, ignore_eos=True)


async def test_a_seed_repeats_and_another_does_not(case: Case) -> None:
    await text_of(case.handler, dicing(7))  # as above
    texts = [await text_of(case.handler, dicing(seed)) for seed in (7, 7, 8)]
    if case.kind not in STRANGERS:  # it computes less of a prompt that it has seen, and rounds differently then
        assert texts[0] == texts[1]
    if case.kind in DRAW:
        assert texts[0] != texts[2]


@pytest.mark.parametrize("seed", [-1, None])
async def test_no_seed_draws_one(case: Case, seed: int | None) -> None:
    texts = [await text_of(case.handler, dicing(seed)) for _ in range(2)]
    if case.kind in DRAW:
        assert texts[0] != texts[1]


async def test_a_stop_text_ends_the_answer_also_where_it_spans_chunks(case: Case) -> None:
    request = asking(max_tokens=24)
    chunks = [chunk.text for chunk in await collect(case.handler, request) if chunk.text]
    whole = "".join(chunks)
    stops = [left[-2:] + right[:2] for left, right in pairwise(chunks[1:]) if left and right]
    stop = stops[len(stops) // 2] if stops else whole[1:3]
    answer = await collect(case.handler, replace(request, stop=["never said", stop]))
    assert "".join(chunk.text for chunk in answer) == whole[: whole.index(stop)]
    assert answer[-1].finish == "stop"


async def test_chances_are_told_where_there_are_any(case: Case) -> None:
    try:
        chunks = await collect(case.handler, asking(max_tokens=8, logprobs=3, ignore_eos=True))
    except Unsupported as error:
        assert error.hint and case.kind not in CHANCES
        return
    chances = [chance for chunk in chunks for chance in chunk.chances]
    if case.kind not in CHANCES:
        return
    assert len(chances) == 8
    for chance in chances:
        assert chance.logprob <= 0 and len(chance.top) == 3
        values = [value for _, value in chance.top]
        assert values == sorted(values, reverse=True)
        assert chance.logprob == pytest.approx(values[0], abs=1e-4), "greedy takes the likeliest"
    assert "".join(chance.text for chance in chances) == "".join(chunk.text for chunk in chunks)


async def test_a_schema_is_kept_or_refused(case: Case) -> None:
    schema = {"type": "object", "properties": {"green": {"enum": ["yes", "no"]}}, "required": ["green"]}
    request = asking(max_tokens=60, schema=schema)
    if case.kind in SCHEMAS:
        assert json.loads(await text_of(case.handler, request))["green"] in ("yes", "no")
        with pytest.raises(BadInput) as caught:
            await collect(case.handler, replace(request, schema={"$ref": "http://example.org/schema"}))
    elif case.kind in STRANGERS:
        with pytest.raises(ApplianceError):  # it does not know this format; our client tells whatever it says
            await collect(case.handler, request)
        return
    else:
        with pytest.raises((Unsupported, BadInput)) as caught:
            await collect(case.handler, request)
    assert caught.value.hint


# --- several at once ------------------------------------------------------------------------------------------------------
async def test_leaving_early_is_harmless(handler: Handler) -> None:
    for _ in range(5):
        stream = handler.generate(Request(QUESTION, question="Why are leaves green?", max_tokens=60))
        await anext(stream)
        await stream.aclose()
    assert (await collect(handler, Request(QUESTION, question="Why are leaves green?", max_tokens=8)))[-1].finish


async def test_who_leaves_frees_the_place_at_once(case: Case) -> None:
    """All places are taken by answers of many seconds; they are left, and the next question does not wait for them."""
    streams = [
        case.handler.generate(asking(max_tokens=900, ignore_eos=True)) for _ in range(4 if case.kind not in STRANGERS else 1)
    ]
    for stream in streams:
        await anext(stream)
    await asyncio.gather(*(stream.aclose() for stream in streams))
    began = time.monotonic()
    chunks = await collect(case.handler, asking(max_tokens=2))
    assert chunks[-1].finish
    if case.kind in IN_PROCESS:
        assert all(chunk.place is None for chunk in chunks)
    if case.kind in DRAW:
        assert time.monotonic() - began < 2.0
    while case.kind in IN_PROCESS and (await case.handler.health()).facts["running"]:
        assert time.monotonic() - began < 2.0, "what was left runs on"
        await asyncio.sleep(0.01)


async def test_many_at_once_all_get_their_own_end(handler: Handler) -> None:
    requests = [Request([Message("user", f"What is {n}?")], question=f"What is {n}?", max_tokens=10) for n in range(12)]
    answers = await asyncio.gather(*(collect(handler, request) for request in requests))
    assert all(chunks[-1].finish for chunks in answers)


async def test_two_answers_at_once_do_not_mix(handler: Handler) -> None:
    """Rounding may differ in a batch, so an answer has to be nearer to itself alone than to the other, not equal to it."""
    asked = [asking(max_tokens=16), asking("Where does a river build a delta?", RIVER, max_tokens=16)]
    alone = [await text_of(handler, request) for request in asked]
    assert alone[0] != alone[1]
    together = await asyncio.gather(*(text_of(handler, request) for request in asked * 2))
    for position, text in enumerate(together):
        own, other = (same(text, alone[(position + shift) % 2]) for shift in (0, 1))
        assert own > other, (text, alone)


# --- counting -------------------------------------------------------------------------------------------------------------
async def test_count_grows_with_the_words(case: Case) -> None:
    try:
        short = await case.handler.count([Message("user", "one two three")])
    except Unsupported as error:
        assert error.hint and case.kind in STRANGERS
        return
    long = await case.handler.count([Message("user", "one two three " * 20)])
    assert 0 < short < long


async def test_score_is_one_log_probability_a_token_or_unsupported(handler: Handler) -> None:
    conversation = [*QUESTION, Message("assistant", "Because of chlorophyll.")]
    try:
        scores = await handler.score(conversation)
    except Unsupported as error:
        assert error.hint
        return
    assert len(scores) >= 3
    assert all(score <= 0 for score in scores)
    assert scores == await handler.score(conversation)
    with pytest.raises(BadInput):
        await handler.score(QUESTION)


# --- bad input ------------------------------------------------------------------------------------------------------------
async def test_a_prompt_that_cannot_fit_is_refused_with_the_counts(case: Case) -> None:
    if case.kind == "quotes":
        return  # it reads no prompt, so none is too long
    # A stranger's server may break off instead; ours tell the counts.
    with pytest.raises((TooLarge, ModelUnavailable) if case.kind in STRANGERS else TooLarge) as caught:
        await collect(case.handler, Request([Message("user", "word " * 9000)], max_tokens=10))
    assert caught.value.hint
    if case.kind not in STRANGERS:
        assert any(sign.isdigit() for sign in caught.value.message)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "9001 tokens are too many", "code": "context_length_exceeded"}}, TooLarge),
        (422, {"error": {"message": "no such field", "code": None}}, BadInput),
        (500, {"error": {"message": "out of memory"}}, ModelUnavailable),
        (502, "<html>Bad gateway</html>", ModelUnavailable),
    ],
)
async def test_what_a_stranger_refuses_arrives_as_our_own_error(status: int, body: Any, kind: type[ApplianceError]) -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=body if isinstance(body, str) else json.dumps(body))

    def connect() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://stranger")

    client = OpenAICompatible(connect, name="stranger", own=False)
    with pytest.raises(kind) as caught:
        await collect(client, asking())
    assert type(caught.value) is kind
    await client.close()


async def test_a_conversation_without_a_message_is_refused(case: Case) -> None:
    with pytest.raises(BadInput) as caught:
        await collect(case.handler, Request([], max_tokens=4))
    assert caught.value.hint
    with pytest.raises((BadInput, Unsupported)):
        await case.handler.count([])


async def test_a_deadline_ends_an_answer_that_takes_longer(case: Case) -> None:
    if case.kind in UNHURRIED:
        return
    with pytest.raises(Busy) as caught:
        await collect(case.handler, asking("word " * 400, max_tokens=400, ignore_eos=True, deadline=0.001))
    assert caught.value.hint and caught.value.retry_after > 0
    assert (await collect(case.handler, asking(max_tokens=2)))[-1].finish


async def test_only_our_own_exceptions_cross_the_border(handler: Handler) -> None:
    for messages in ([Message("user", "\x00\ud800".encode("utf-8", "replace").decode())], [Message("user", "")]):
        try:
            await collect(handler, Request(messages, max_tokens=4))
        except ApplianceError as error:
            assert error.message
