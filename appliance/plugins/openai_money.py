"""What work by OpenAI costs: estimated before anything is sent, counted as answers come, and capped for each month.

Hides the price list, how tokens are estimated without the service's own tokenizer (which would have to be fetched), and the
file in which a month's spending stands. Asks nobody and sends nothing.
"""

from __future__ import annotations

import calendar
import contextlib
import fcntl
import json
import math
import re
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from appliance.engine.handler import Message, Usage
from appliance.errors import BadInput, UsedUp, from_os_error
from appliance.files import make_folder, write_atomically
from appliance.settings import Settings

MILLION = 1_000_000
OLD_DAYS = 120  # after which a list of prices is said to be old
MESSAGE_TOKENS, TALK_TOKENS = 4, 3  # of the marks around a message, and around a conversation
# The service's own way with n_epochs "auto", as its guide to preparing data tells it.
USUAL_EPOCHS, LEAST_SEEN, MOST_SEEN, MOST_EPOCHS = 3, 100, 25_000, 25
_PIECES = re.compile(r"[A-Za-z]+|[0-9]{1,3}|\s+|[^\s\x00-\x7f]+|[\x00-\x7f]")


# --- tokens -------------------------------------------------------------------------------------------------------------
def tokens(text: str) -> int:
    """A careful estimate: more than the service counts, by about a seventh in English, by far more in other scripts."""
    count = 0
    for piece in _PIECES.finditer(text):
        part = piece[0]
        if not part.isascii():
            count += math.ceil(len(part.encode("utf-8", "replace")) / 2)
        elif part.isalpha():
            count += math.ceil(len(part) / 5)
        elif part != " " or not text[piece.end() : piece.end() + 1].isalpha():  # one space before a word is part of it
            count += 1
    return count


def tokens_of(messages: Sequence[Message]) -> int:
    """The same for a conversation."""
    return TALK_TOKENS + sum(MESSAGE_TOKENS + tokens(message.content) for message in messages)


def epochs_of(asked: int | None, rows: int) -> int:
    """How often the service goes through the rows; None is its own choice."""
    if asked is not None:
        return asked
    if rows * USUAL_EPOCHS < LEAST_SEEN:
        return min(MOST_EPOCHS, max(USUAL_EPOCHS, LEAST_SEEN // max(rows, 1)))
    if rows * USUAL_EPOCHS > MOST_SEEN:
        return max(1, MOST_SEEN // rows)
    return USUAL_EPOCHS


# --- prices -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Price:
    """Of one base model: money for a million tokens; row_tokens and context in tokens."""

    name: str
    training: float
    input: float
    cached: float
    output: float
    row_tokens: int
    context: int
    methods: tuple[str, ...]

    def answer(self, usage: Usage) -> float:
        fresh = max(usage.prompt - usage.cached, 0)
        return (fresh * self.input + usage.cached * self.cached + usage.completion * self.output) / MILLION


@dataclass(frozen=True, slots=True)
class Prices:
    """The list, with the day on which somebody looked."""

    dated: str
    currency: str
    models: dict[str, Price]

    def of(self, model: str) -> Price:
        """The price of a base model, or of one that was tuned from it ("ft:BASE:..."). Raises BadInput."""
        base = model.split(":")[1] if model.startswith("ft:") and model.count(":") else model
        for name, price in sorted(self.models.items()):
            if base == name or re.fullmatch(re.escape(base) + r"-\d{4}-\d{2}-\d{2}", name):
                return price
        names = ", ".join(sorted(self.models))
        raise BadInput(
            f"The list of prices does not have the model {base[:80]!r}, so nobody knows what it would cost.",
            f"Take one of {names}, or add it to a list of your own (the setting openai_prices).",
        )

    @property
    def old(self) -> str:
        """A sentence where the list is so old that its prices may well be others by now; else ""."""
        days = (datetime.now(UTC).date() - date.fromisoformat(self.dated)).days
        return f"That list of prices is {days // 30} months old." if days > OLD_DAYS else ""

    def money(self, amount: float) -> str:
        return f"{amount:.2f} {self.currency}" if amount >= 0.01 or not amount else f"less than 0.01 {self.currency}"


def prices(settings: Settings) -> Prices:
    """The list that holds for this box. Raises BadInput where it cannot be read."""
    path = settings.openai_prices or settings.content / "openai.toml"
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
        models = {name: _price(name, facts) for name, facts in raw["models"].items()}
        return Prices(date.fromisoformat(str(raw["dated"])).isoformat(), str(raw["currency"]), models)
    except OSError as error:
        raise from_os_error(error, "reading the prices") from None
    except KeyError as error:
        raise BadInput(f"The prices in {path} lack {error}.", "Compare the file with appliance/content/openai.toml.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(
            f"The prices in {path} cannot be read: {error}.", "Compare the file with appliance/content/openai.toml."
        ) from None


def _price(name: str, facts: dict[str, Any]) -> Price:
    training, asked, cached, said = (float(facts[key]) for key in ("training", "input", "cached", "output"))
    longest, context = (int(facts[key]) for key in ("row_tokens", "context"))
    if not all(0 <= value < math.inf for value in (training, asked, cached, said)) or min(longest, context) < 1:
        raise ValueError(f"{name} has a price or a size that cannot be")
    return Price(name, training, asked, cached, said, longest, context, tuple(str(method) for method in facts["methods"]))


# --- the cap of a month -------------------------------------------------------------------------------------------------
class Budget:
    """What answers may cost in a calendar month (UTC), over all processes of the box; kept in a file of its home.

    What an answer can cost at most is taken before it is asked for, and given back when its real cost is known: several at
    once cannot overdraw it together, and a process that is killed in between leaves too much counted, never too little.
    """

    def __init__(self, settings: Settings, listed: Prices) -> None:
        self._cap, self._listed = settings.openai_budget, listed
        self._path = settings.openai / "spending.json"

    def spent(self) -> float:
        """So far in this month."""
        return self._read().get(_month(), 0.0)

    def take(self, amount: float) -> str:
        """Put so much down for an answer; the month that it counts in. Raises UsedUp where it is not there any more."""
        month = _month()
        with self._changing() as months:
            spent = months.get(month, 0.0)
            self._have(spent, amount)
            months[month] = spent + amount
        return month

    def look(self, amount: float) -> None:
        """Raises UsedUp where so much is not there any more; takes nothing."""
        self._have(self.spent(), amount)

    def _have(self, spent: float, amount: float) -> None:
        if spent + amount <= self._cap:
            return
        left = self._listed.money(max(self._cap - spent, 0.0))
        raise UsedUp(
            f"This month's money for OpenAI is used up: {left} of {self._listed.money(self._cap)} is left.",
            "It goes on next month, or with a larger openai_budget in the settings.",
            retry_after=_until_next_month(),
        )

    def settle(self, month: str, taken: float, real: float) -> None:
        """The real cost in place of what was put down."""
        with self._changing() as months:
            months[month] = max(months.get(month, 0.0) - taken + real, 0.0)

    def _read(self) -> dict[str, float]:
        try:
            kept = {str(month): float(amount) for month, amount in json.loads(self._path.read_text("utf-8")).items()}
            if not all(0 <= amount < math.inf for amount in kept.values()):
                raise ValueError
            return kept
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise from_os_error(error, "reading what OpenAI has cost") from None
        except (ValueError, TypeError, AttributeError):
            raise BadInput(
                f"{self._path} is damaged, so nobody knows what OpenAI has cost this month.",
                "Look up the cost at OpenAI, then remove that file: counting begins anew.",
            ) from None

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, float]]:
        """The months, written when this ends; one process at a time."""
        try:
            make_folder(self._path.parent)
            lock = open(self._path.parent / "spending.lock", "a")  # noqa: SIM115 - closed below, and the lock with it
        except OSError as error:
            raise from_os_error(error, "counting what OpenAI costs") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            months = self._read()
            yield months
            write_atomically(self._path, json.dumps(months, indent=1) + "\n")


def _month() -> str:
    return time.strftime("%Y-%m", time.gmtime())


def _until_next_month() -> float:
    now = time.gmtime()
    year, month = (now.tm_year + 1, 1) if now.tm_mon == 12 else (now.tm_year, now.tm_mon + 1)
    return max(float(calendar.timegm((year, month, 1, 0, 0, 0))) - time.time(), 1.0)
