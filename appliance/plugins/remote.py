"""Other model servers as one handler: any that speak OpenAI's dialect, such as a district's vLLM, llama-server or Ollama.

A model may stand on several servers. The least busy one is asked; where one fails before its first word another is asked in its
place, and it is left alone for a while that grows, until a look at it in the background finds it well again, so that nobody
waits for a dead one twice. Hides the addresses, the key and the certificate. Everything goes out through `network.http_client`,
so only to hosts that the administrator allowed by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from appliance import network
from appliance.accounts.secret_file import secret_in
from appliance.engine.handler import Chunk, Health, Message, Request
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.errors import ApplianceError, BadInput, Busy, Forbidden, ModelUnavailable, Unreachable, Unsupported
from appliance.plugins import Plugin, require_way_out
from appliance.registry import Manifest

if TYPE_CHECKING:
    import httpx

    from appliance.settings import Settings

NAME = "remote"
CAPACITY = 4  # answers at once of a server of which nothing else is said
CONTEXT = 4096  # tokens of a model whose server does not tell
PATIENCE = 60.0  # seconds without a byte after which a server counts as dead
CONNECT_SECONDS = 5.0
LOOK_SECONDS = 3.0
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # before a failed server is looked at again


@dataclass(eq=False, slots=True)
class Server:
    """One address. capacity: answers that it bears at once. `why`: what was last wrong with it, None while it is well."""

    url: str
    client: OpenAICompatible
    capacity: int = CAPACITY
    open: int = 0
    failures: int = 0
    again: float = 0.0
    why: ApplianceError | None = None

    def failed(self, error: ApplianceError, first_wait: float) -> None:
        self.why, self.again = error, time.monotonic() + min(first_wait * 2**self.failures, LONGEST_WAIT)
        self.failures += 1

    def well(self) -> None:
        self.why, self.failures = None, 0


@dataclass(eq=False)
class Servers:
    """A handler over every server of one model. first_wait: seconds after its first fault until one is looked at again."""

    servers: Sequence[Server]
    model: str
    context: int = CONTEXT
    first_wait: float = FIRST_WAIT
    name: str = NAME
    slots: int = field(init=False)
    _looks: dict[Server, asyncio.Task[None]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = sum(server.capacity for server in self.servers)

    async def start(self) -> None:
        """Look at every server. Raises what is wrong where none is well."""
        await asyncio.gather(*(self._look(server) for server in self.servers))
        if all(server.why for server in self.servers):
            raise self._none()

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        request = replace(request, model=self.model)
        ends = None if request.deadline is None else time.monotonic() + request.deadline
        tried: list[Server] = []
        fault: ApplianceError | None = None
        while server := self._next(tried):
            tried.append(server)
            said = False
            server.open += 1
            try:
                async with contextlib.aclosing(server.client.generate(request)) as chunks:
                    async for chunk in chunks:
                        said = said or bool(chunk.text)
                        yield chunk
                server.well()
                return
            except (BadInput, Unsupported):
                raise  # what was asked is at fault, and no other server would take it
            except ApplianceError as error:
                fault = error
                if not isinstance(error, Busy):
                    server.failed(error, self.first_wait)
                if said or (ends is not None and time.monotonic() >= ends):
                    raise
            finally:
                server.open -= 1
            if ends is not None:
                request = replace(request, deadline=ends - time.monotonic())
        raise self._none(fault)

    async def count(self, messages: Sequence[Message]) -> int:
        raise Unsupported(f"Another machine's server does not count {len(messages)} messages.", "Count with a local model.")

    async def score(self, messages: Sequence[Message]) -> list[float]:
        raise Unsupported(f"Another machine's server gives no chances of {len(messages)} messages.", "Ask a local model.")

    async def health(self) -> Health:
        """What is known; a server that failed is looked at in the background, and nobody waits for that."""
        self._look_again()
        well = [server for server in self.servers if server.why is None]
        facts = {server.url: {"open": server.open, "well": server.why is None} for server in self.servers}
        if not well:
            return Health(False, self._none().message, self.model, facts)
        return Health(True, f"{len(well)} of {len(self.servers)} servers are well.", self.model, facts)

    async def close(self) -> None:
        for task in self._looks.values():
            task.cancel()
        await asyncio.gather(*self._looks.values(), return_exceptions=True)
        for server in self.servers:
            await server.client.close()

    # -----------------------------------------------------------------------------------------------------------------
    def _next(self, tried: Sequence[Server]) -> Server | None:
        """The least busy of those that are well, by its capacity; the first named of several."""
        self._look_again()
        left = [server for server in self.servers if server.why is None and server not in tried]
        return min(left, key=lambda server: server.open / server.capacity, default=None)

    def _look_again(self) -> None:
        for server in self.servers:
            if server.why is not None and server not in self._looks and time.monotonic() >= server.again:
                task = self._looks[server] = asyncio.create_task(self._look(server))
                task.add_done_callback(lambda _task, server=server: self._looks.pop(server, None))  # type: ignore[misc]

    async def _look(self, server: Server) -> None:
        """Ask a server what it has, and note how it is."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                names = await server.client.models()
            if self.model not in names:
                raise _unknown(self.model, server.url, names)
        except TimeoutError:
            server.failed(ModelUnavailable(f"{server.url} does not answer.", "Check that it is on."), self.first_wait)
        except ApplianceError as error:
            server.failed(error, self.first_wait)
        else:
            server.well()

    def _none(self, fault: ApplianceError | None = None) -> ApplianceError:
        """Why nobody answers, as one error."""
        fault = fault or next((server.why for server in self.servers if server.why is not None), None)
        if isinstance(fault, (Busy, Forbidden)) or (fault is not None and len(self.servers) == 1):
            return type(fault)(fault.message, fault.hint)
        told = f" {fault.message}" if fault is not None else ""
        return ModelUnavailable(
            f"None of the {len(self.servers)} servers of {self.model} answers.{told}", "Try again in a moment."
        )


# --- made from what is known of them ---------------------------------------------------------------------------------------
def checked(settings: Settings, url: str) -> str:
    """An address without its /v1. Raises BadInput for what is none, or is without encryption where that is not meant."""
    url = re.sub(r"(/v1)?/*$", "", url.strip())
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
        raise BadInput(f"{url[:80]!r} is not the address of a server.", "Write it as https://llm.district.example/v1.")
    if parts.scheme == "http":
        address = network.address_of(host)
        near = host == "localhost" or (address is not None and address.is_private)
        here = host == "localhost" or (address is not None and address.is_loopback)
        if not near:
            raise BadInput(f"{url} would send every word without encryption.", "Use https://, or a private address.")
        if not here and not settings.hosted_http:
            raise BadInput(
                f"{url} would send every word without encryption, through the school's own network.",
                "Use https://; or, knowing that, set hosted_http = true.",
            )
    return url


def _client(settings: Settings, url: str, key_file: Path | None, ca_file: Path | None, context: int) -> OpenAICompatible:
    def signed(request: httpx.Request) -> httpx.Request:
        if key_file is not None:  # read anew each time: a new key needs no restart, and none is kept
            try:
                request.headers["authorization"] = f"Bearer {secret_in(key_file)}"
            except BadInput as error:
                raise ModelUnavailable(error.message, error.hint) from None
        return request

    def connect() -> httpx.AsyncClient:
        import httpx

        try:
            client = network.http_client(settings, ca_file=ca_file)
        except OSError as error:
            raise ModelUnavailable(f"The certificate file {ca_file} cannot be used ({error}).", "Check the path.") from None
        client.base_url = httpx.URL(url)
        client.timeout = httpx.Timeout(PATIENCE, connect=CONNECT_SECONDS)
        client.auth = signed
        return client

    return OpenAICompatible(connect, name=NAME, own=False, context=context)


def handler(settings: Settings, hosted: Mapping[str, Any]) -> Servers:
    """For the facts that `connect` gave. Raises BadInput where they are damaged or an address is no longer meant."""
    try:
        key_file, ca_file = (Path(hosted[key]) if hosted.get(key) else None for key in ("key_file", "ca_file"))
        context = int(hosted["context"])
        servers = [
            Server(url, _client(settings, url, key_file, ca_file, context), max(1, int(one.get("capacity", CAPACITY))))
            for one in hosted["servers"]
            for url in [checked(settings, str(one["url"]))]
        ]
        if not servers:
            raise ValueError("no server")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadInput(
            "What is known of that model's servers is damaged.", "Connect it again: `appliance models connect`."
        ) from None
    return Servers(servers, str(hosted["model"]), context)


async def connect(
    settings: Settings,
    name: str,
    urls: Sequence[str],
    *,
    model: str = "",
    key_file: Path | None = None,
    context: int = 0,
    ca_file: Path | None = None,
    capacity: int = CAPACITY,
    price: tuple[float, float] | None = None,
    currency: str = "",
) -> Manifest:
    """What the registry takes for a model on these servers, once each has said that it has it.

    model: its name there; "" takes the only one there is. context: tokens; 0 takes what the servers tell. price: of a million
    tokens in and out, in `currency`, None where nobody knows or charges. Raises ApplianceError.
    """
    sizes: list[int] = []
    wanted = [checked(settings, url) for url in dict.fromkeys(urls)]
    for url in wanted:
        client = _client(settings, url, key_file and key_file.resolve(), ca_file and ca_file.resolve(), context)
        try:
            listed = await client.listed()
        except (ModelUnavailable, Unreachable) as error:
            raise type(error)(f"{url}: {error.message}", error.hint) from None
        finally:
            await client.close()
        names = [str(one["id"]) for one in listed]
        model = model or (names[0] if len(names) == 1 else "")
        if model not in names:
            raise _unknown(model, url, names)
        sizes += _sizes(listed[names.index(model)])
    context = context or min(sizes, default=CONTEXT)
    files = {key: str(path.resolve()) for key, path in (("key_file", key_file), ("ca_file", ca_file)) if path is not None}
    servers = [{"url": url, "capacity": capacity} for url in wanted]
    hosted = {"plugin": NAME, "model": model, "servers": servers, "context": context, **files}
    if price is not None:
        hosted["price"] = {"input": price[0], "output": price[1], "currency": currency}
    title = f"{model} on {', '.join(sorted({urlsplit(url).hostname or '' for url in wanted}))}"
    return Manifest(id=name, kind="hosted", title=title, licence="not known", context=context, files={}, hosted=hosted)


def _sizes(told: Mapping[str, Any]) -> list[int]:
    """The context that a server tells: vLLM as `max_model_len`, llama-server among `meta`."""
    meta = told.get("meta")
    found = (told.get("max_model_len"), meta.get("n_ctx") or meta.get("n_ctx_train") if isinstance(meta, dict) else None)
    return [size for size in found if isinstance(size, int) and size > 0]


def _unknown(model: str, url: str, names: Sequence[str]) -> ModelUnavailable:
    listed = ", ".join(name[:60] for name in names[:8]) or "none"
    wanted = f"{model!r}" if model else "a model that was not named"
    return ModelUnavailable(f"{url} does not serve {wanted}.", f"It lists: {listed}. Name one of them with --model.")


def _price(_settings: Settings, hosted: Mapping[str, Any], prompt: int, completion: int) -> tuple[float, str] | None:
    """By what the administrator wrote down as it was connected."""
    price = hosted.get("price")
    if price is None:
        return None
    return (prompt * price["input"] + completion * price["output"]) / 1e6, str(price["currency"])


PLUGIN = Plugin(NAME, "Another model server", check=require_way_out, handler=handler, price=_price)
