"""The line to OpenAI: its key, the clients that reach it through egress, and its faults as ours.

Hides where the key lies and that nothing else dials: the official client and the one for answers both stand on
`network.http_client`. The service's words are shown only without keys and without long quotations, which may be what a pupil
wrote; nothing of either is logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from appliance import network
from appliance.accounts.secret_file import secret_in
from appliance.errors import ApplianceError, BadInput, Busy, ModelUnavailable, NotFound, TooLarge, Unreachable
from appliance.network import Host

if TYPE_CHECKING:
    import httpx
    from openai import AsyncOpenAI

    from appliance.settings import Settings

CREDENTIAL = "openai-key"
WORDS = 300  # characters shown of what the service says
_KEY = re.compile(r"\b(sk|sess|ek)-[\w*.-]{4,}")
_QUOTED = re.compile(r"(['\"`\u201c])[^\n]{40,}?(['\"`\u201d])")


class Refused(ModelUnavailable):
    """The service will not work for this account, however often it is asked: the key, or the money."""


def hosts(settings: Settings) -> tuple[Host, ...]:
    """The one host that is dialled."""
    parts = urlsplit(settings.openai_url)
    if not parts.hostname:
        return ()
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return (network.host(name, parts.port or {"http": 80, "https": 443}[parts.scheme]),)


# --- the key --------------------------------------------------------------------------------------------------------------
def key(settings: Settings) -> str:
    """The key of the school's account, read anew each time. Raises BadInput where there is none, or others can read it."""
    found = _credential() if settings.openai_key_file is None else secret_in(settings.openai_key_file)
    if not re.fullmatch(r"[\x21-\x7e]{8,500}", found):
        place = str(settings.openai_key_file or f"the systemd credential {CREDENTIAL}")
        raise BadInput("What is kept as the key for OpenAI is no key.", f"Write the key, and nothing else, into {place}.")
    return found


def _credential() -> str:
    """From systemd's store, whose files only this service can read whatever their mode shows."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    try:
        return (Path(folder) / CREDENTIAL).read_text("utf-8").strip() if folder else _no_key()
    except (OSError, UnicodeDecodeError):
        return _no_key()


def _no_key() -> str:
    raise BadInput(
        "The box has no key for OpenAI.",
        f"Write it into a file that only the appliance can read (chmod 0600), and name that in the setting openai_key_file; or "
        f"give the service the systemd credential {CREDENTIAL}.",
    )


# --- the clients ----------------------------------------------------------------------------------------------------------
def answers_client(settings: Settings) -> httpx.AsyncClient:
    """For answers; the dialect's paths begin at /v1. Faults of the service are raised as ours before anybody reads them."""
    secret = key(settings)
    client = network.http_client(settings, ca_file=settings.openai_ca_file, timeout=settings.openai_seconds)
    client.base_url = settings.openai_url.removesuffix("/v1")
    client.headers["Authorization"] = f"Bearer {secret}"

    async def refuse(response: httpx.Response) -> None:
        if response.status_code != 200:
            await response.aread()
            raise fault(response.status_code, response.text, response.headers, secret)

    client.event_hooks = {"response": [refuse]}
    return client


@contextlib.asynccontextmanager
async def official_client(settings: Settings) -> AsyncIterator[AsyncOpenAI]:
    """The official client, for files and jobs; it repeats nothing by itself. Every fault leaves as ours."""
    network.require(settings, *_name_and_port(settings))  # before its package is imported
    secret = key(settings)
    os.environ.pop("OPENAI_LOG", None)  # it would write down what is sent
    import openai

    logging.getLogger("openai").setLevel(logging.WARNING)
    http: Any = network.http_client(settings, ca_file=settings.openai_ca_file, timeout=settings.openai_seconds)
    client = openai.AsyncOpenAI(
        api_key=secret, base_url=settings.openai_url, organization="", project="", http_client=http, max_retries=0,
        timeout=settings.openai_seconds,
    )  # fmt: skip
    try:
        with _translated(secret):
            yield client
    finally:
        await http.aclose()


def _name_and_port(settings: Settings) -> tuple[str, int]:
    (host,) = hosts(settings)
    return host.name, host.port


@contextlib.contextmanager
def _translated(secret: str) -> Iterator[None]:
    import openai
    import pydantic

    try:
        yield
    except openai.APIStatusError as error:
        raise fault(error.status_code, error.response.text, error.response.headers, secret) from None
    except openai.APITimeoutError:
        raise too_slow() from None
    except openai.APIConnectionError:
        raise broken() from None
    except (openai.OpenAIError, pydantic.ValidationError, ValueError, TypeError, AttributeError):
        raise ModelUnavailable("OpenAI sent something that is no answer.", "Try again in a moment.") from None


# --- what it says -----------------------------------------------------------------------------------------------------------
def too_slow() -> ApplianceError:
    return Unreachable("OpenAI took too long to answer.", "Try again in a moment; the setting openai_seconds is the limit.")


def broken() -> ApplianceError:
    return Unreachable("The line to OpenAI is down, or broke off.", "Check the box's line, then run the same command again.")


def fault(status: int, body: str, headers: Mapping[str, str], secret: str) -> ApplianceError:
    """What an HTTP status of the service means here."""
    about = _about(body)
    code = str(about.get("code") or about.get("type") or "")
    if status == 401 or code in ("invalid_api_key", "account_deactivated"):
        return Refused(
            "OpenAI does not accept the key: it is wrong, or has expired or been taken back.",
            "Make a new one in the school's account there, and write it where the old one is kept.",
        )
    if code in ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active") or status == 402:
        return Refused("The school's account at OpenAI is out of money.", "Pay in there, then try again.")
    if status == 403:
        return Refused(
            f"OpenAI does not allow this to the account: {said(about, secret)}",
            "Look at what the key may do, in the account there.",
        )
    if status == 429:
        return Busy("OpenAI has too much to do just now.", "Try again in a moment.", retry_after=_seconds(headers))
    if status == 404 or code == "model_not_found":
        return NotFound(f"OpenAI does not have that: {said(about, secret)}", "`appliance tune openai models` lists its models.")
    if code == "context_length_exceeded" or status == 413:
        return TooLarge(f"That is more than OpenAI takes: {said(about, secret)}", "Send less at once.")
    if 400 <= status < 500:
        return BadInput(f"OpenAI refuses this: {said(about, secret)}", "Correct it, then try again.")
    return ModelUnavailable(f"OpenAI cannot answer now (HTTP status {status}).", "Try again in a moment.")


def _about(body: str) -> dict[str, Any]:
    try:
        found = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def said(about: Mapping[str, Any], secret: str = "") -> str:
    """Its words in one line: without keys, without long quotations."""
    words = " ".join(str(about.get("message") or about.get("code") or "it does not say why.").split())
    return plain(words, secret)


def plain(words: str, secret: str = "") -> str:
    words = words.replace(secret, "[key]") if secret else words
    return _QUOTED.sub("[...]", _KEY.sub("[key]", words))[:WORDS]


def _seconds(headers: Mapping[str, str]) -> float:
    try:
        return min(max(float(headers.get("retry-after", "")), 0.1), 120.0)
    except ValueError:
        return 5.0
