"""What would leave the building for fine-tuning: read, screened, checked against the service's rules, written down to be read.

Hides which rows may go (consent, licence, withdrawal), that personal data is taken out first, the service's two row shapes and
its limits. A run's folder lies with the other tuning runs, so that withdrawn rows are erased from it like from those: `data/`
with the held-out part that stays here, `sent.jsonl` exactly as it would be sent, `leaving.txt` that says so to a person.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from appliance.db import Database
from appliance.engine.handler import Message
from appliance.errors import BadInput, from_os_error
from appliance.files import sha256_of, write_atomically
from appliance.plugins.openai_money import Price, Prices, epochs_of, tokens, tokens_of
from appliance.redact import Redactor, Roster
from appliance.settings import Settings
from appliance.tuning import dataset
from appliance.tuning.dataset import Dataset
from appliance.tuning.examples import Example, Fault, placed, refuse
from appliance.tuning.incoming import Incoming
from appliance.tuning.incoming import read as incoming
from appliance.tuning.licences import forbids
from appliance.tuning.run_folder import read_json, write_json
from appliance.tuning.sets import Sets
from appliance.tuning.store import ExampleStore

LEAST_ROWS = 10
FILE_BYTES = 512_000_000
SUFFIX_CHARACTERS = 64
MethodName = Literal["supervised", "preference"]
# What a row is left out for, as a person reads it.
LEFT_OUT = {
    "withdrawn": "withdrawn", "no_consent": "without consent", "licence": "licence does not allow it",
    "rated_down": "rated down, not corrected", "no_pair": "no reply to compare with", "in_training": "in the training file",
    "duplicates": "duplicates", "near_held_out": "near what judges the model", "near_evaluation": "near an evaluation item",
    "near_duplicates": "near-duplicates",
}  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """What is asked of the service; None leaves a figure to it."""

    model: str
    method: MethodName = "supervised"
    suffix: str = ""
    epochs: int | None = None
    batch: int | None = None
    rate: float | None = None
    beta: float | None = None
    seed: int | None = None

    def hyperparameters(self) -> dict[str, float | int]:
        given = {"n_epochs": self.epochs, "batch_size": self.batch, "learning_rate_multiplier": self.rate, "beta": self.beta}
        return {name: value for name, value in given.items() if value is not None}

    def check(self, price: Price) -> None:
        """Raises BadInput for what the service would refuse."""
        if self.method not in price.methods:
            raise BadInput(
                f"{price.name} cannot be tuned by the method {self.method}.", f"It can by {' and '.join(price.methods)}."
            )
        if len(self.suffix) > SUFFIX_CHARACTERS or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in self.suffix):
            raise BadInput(f"The suffix {self.suffix[:80]!r} cannot be.", "Use letters, digits and dashes, 64 at most.")
        if self.beta is not None and self.method != "preference":
            raise BadInput("beta is a figure of the method preference.", "Leave --beta out, or add --method preference.")
        for name, value in self.hyperparameters().items():
            if value <= 0:
                raise BadInput(f"{name} is {value}.", "Give a number above 0, or leave it to the service.")


@dataclass(frozen=True)
class Part:
    """One file as it would be sent. tokens: a careful estimate of all its rows."""

    file: Path
    rows: int
    tokens: int
    bytes: int
    sha256: str

    @property
    def remote_name(self) -> str:
        """Says nothing of the school, and is the same for the same content: what was sent once is found again."""
        return f"examples-{self.sha256[:24]}.jsonl"


def content_of(part: Part) -> bytes:
    """What is sent: the very bytes that somebody answered for. Raises BadInput where the file holds others by now."""
    try:
        found = part.file.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"reading {part.file.name}") from None
    if hashlib.sha256(found).hexdigest() != part.sha256:
        raise _changed(part.file.parent.name)
    return found


@dataclass(frozen=True)
class Prepared:
    """A run, ready to be sent once somebody has confirmed it. cost: of the training, as estimated, in `currency`."""

    id: str
    folder: Path
    wish: Wish
    train: Part
    validation: Part | None
    digest: str
    held_out: int
    epochs: int
    cost: float
    currency: str
    dated: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def leaving(self) -> Path:
        return self.folder / "leaving.txt"

    def to_json(self) -> dict[str, Any]:
        raw = dataclasses.asdict(self)
        for part in ("train", "validation"):
            if raw[part]:
                raw[part]["file"] = Path(raw[part]["file"]).name
        return {name: value for name, value in raw.items() if name != "folder"}

    @classmethod
    def load(cls, folder: Path) -> Prepared:
        """As it was prepared. Raises BadInput where anything of it is gone or was changed."""
        raw = read_json(folder / "openai.json")
        try:
            parts = {
                name: Part(**(raw[name] | {"file": folder / Path(raw[name]["file"]).name})) if raw[name] else None
                for name in ("train", "validation")
            }
            made = cls(**{**raw, **parts, "folder": folder, "wish": Wish(**raw["wish"])})
            if any(part is not None and sha256_of(part.file) != part.sha256 for part in parts.values()):
                raise ValueError
        except (OSError, TypeError, KeyError, ValueError, AttributeError):
            raise _changed(folder.name) from None
        return made


def _changed(run: str) -> BadInput:
    return BadInput(
        f"What was prepared as {run} is gone or was changed; nothing of it is sent.",
        "Prepare it again: `appliance tune openai start --examples FILE --dry-run`.",
    )


# --- reading ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Row:
    example: Example
    rejected: str = ""


class _Reading:
    """Files to rows that may be sent, without personal data; what was left out and taken out is counted."""

    def __init__(self, database: Database, wish: Wish, price: Price) -> None:
        self._store = ExampleStore(database)
        self._redactor = Redactor(Roster(database).names())
        self._wish, self._price = wish, price
        self.left_out: Counter[str] = Counter()
        self.redactions: Counter[str] = Counter()
        self.considered = 0

    def read(self, path: Path) -> list[_Row]:
        """Raises BadInput with every fault, NotFound."""
        good, faults = placed(path)
        gone, erased = self._store.gone(), self._store.withdrawn()
        kept = []
        for file, line, example in good:
            self.considered += 1
            row, wrong = incoming(example, file, line)
            faults += wrong
            if row is None:
                continue
            why = "withdrawn" if row.id in erased or gone(example.author) else _forbidden(row) or self._unfit(example, row)
            if why:
                self.left_out[why] += 1
                continue
            taken = self._taken(example, row)
            faults += self._limits(taken, file, line)
            kept.append(taken)
        refuse(faults)
        return kept

    def facts(self) -> dict[str, Any]:
        """Counts, no words."""
        return {"considered": self.considered, "left_out": dict(self.left_out), "redactions": dict(self.redactions)}

    def _unfit(self, example: Example, row: Incoming) -> str:
        if self._wish.method == "preference":
            return "" if _other(example, row) else "no_pair"
        return "rated_down" if row.values["rating"] == "down" and not row.values["correction"] else ""

    def _taken(self, example: Example, row: Incoming) -> _Row:
        def text(words: str) -> str:
            found = self._redactor.redact(words)
            self.redactions.update(found.counts)
            return found.text

        *talk, last = example.messages
        said = [*talk, Message("assistant", row.values["correction"] or last.content)]
        messages = tuple(Message(message.role, text(message.content)) for message in said)
        rejected = text(_other(example, row)) if self._wish.method == "preference" else ""
        author = self._store.people.author(example.author)
        return _Row(dataclasses.replace(example, id=row.id, messages=messages, author=author, extra={}), rejected)

    def _limits(self, row: _Row, file: str, line: int) -> Iterator[Fault]:
        count, most = _tokens(row), self._price.row_tokens
        if count > most:
            yield Fault(
                file, line, f"this row has about {count} tokens, and {self._price.name} takes {most}.",
                "Split the conversation, or shorten it.",
            )  # fmt: skip
        if row.rejected and row.rejected.strip() == row.example.messages[-1].content.strip():
            yield Fault(file, line, "both replies are the same.", "Write the reply that is better, or take the row out.")


def _other(example: Example, row: Incoming) -> str:
    """The reply that is not preferred, where the row has two."""
    if row.values["correction"]:
        return example.messages[-1].content
    rejected = example.extra.get("rejected")
    return rejected if isinstance(rejected, str) and rejected.strip() else ""


def _forbidden(row: Incoming) -> str:
    """Stricter than at home: what was said in a lesson leaves the building only with a recorded consent."""
    values = row.values
    lesson = values["user_role"] or values["class_name"] or values["rating"] or values["consent"] is not None
    if lesson and values["consent"] is not True:
        return "no_consent"
    return "licence" if values["licence"] and forbids(values["licence"]) else ""


def _tokens(row: _Row) -> int:
    return tokens_of(row.example.messages) + (tokens(row.rejected) if row.rejected else 0)


# --- preparing --------------------------------------------------------------------------------------------------------------
def prepare(
    settings: Settings, database: Database, wish: Wish, listed: Prices, examples: Path, validation: Path | None, host: str
) -> Prepared:
    """Read, screen, check, write the run's folder. Nothing is sent. Raises BadInput with every fault, NotFound, StorageFull."""
    price = listed.of(wish.model)
    wish.check(price)
    reading = _Reading(database, wish, price)
    rows = reading.read(examples)
    checked = reading.read(validation) if validation is not None else None
    fresh = settings.runs / f".openai-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        data = _dataset(settings, rows, fresh / "data", reading)
        by_print = {dataset.fingerprint(row.example): row for row in rows}
        train = _write(fresh / "sent.jsonl", [by_print[dataset.fingerprint(one)] for one in data.train])
        known = {dataset.fingerprint(one) for one in (*data.train, *data.held_out)}
        held = None if checked is None else _write(fresh / "validation.jsonl", _others(checked, known, reading.left_out))
        id = _id(wish, data.digest, train, held)
        ExampleStore(database).record(data.digest, data)
        epochs = epochs_of(wish.epochs, train.rows)
        made = Prepared(
            id=id, folder=settings.runs / id, wish=wish, train=train, validation=held, digest=data.digest,
            held_out=len(data.held_out), epochs=epochs, cost=train.tokens * epochs * price.training / 1e6,
            currency=listed.currency, dated=listed.dated,
            facts=reading.facts(),
        )  # fmt: skip
        place = made.folder if _whole(made) else fresh  # the same content: its digest is the folder's name
        write_json(place / "openai.json", made.to_json())
        write_json(place / "recipe.json", {"plugin": "openai", **dataclasses.asdict(wish)})
        write_atomically(place / "leaving.txt", leaving(made, listed, host))
        if place == fresh:
            shutil.rmtree(made.folder, ignore_errors=True)
            fresh.rename(made.folder)
    except OSError as error:
        raise from_os_error(error, "preparing the examples") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Prepared.load(made.folder)


def _whole(made: Prepared) -> bool:
    """Whether the same run lies there already, perhaps under way."""
    try:
        return Prepared.load(made.folder).id == made.id
    except BadInput:
        return False


def _dataset(settings: Settings, rows: Sequence[_Row], folder: Path, reading: _Reading) -> Dataset:
    """Split as for every run, so that a part which is not sent can judge the model; with hardly enough rows all are sent."""
    _enough(len(rows), reading)
    examples = [row.example for row in rows]
    asked = Sets.load(settings.content).examples()
    facts = {"redactions": dict(sorted(reading.redactions.items())), "screened": dict(reading.left_out)}
    data = dataset.build(examples, folder, evaluation=asked, facts=facts)
    if len(data.train) < LEAST_ROWS:
        data = dataset.build(examples, folder, evaluation=asked, held_out_share=0.0, facts=facts)
    for name, count in data.card["dropped"].items():
        if count:
            reading.left_out[name] += count
    _enough(len(data.train), reading)
    return data


def _enough(count: int, reading: _Reading) -> None:
    if count >= LEAST_ROWS:
        return
    out = ", ".join(f"{number} {LEFT_OUT.get(name, name)}" for name, number in reading.left_out.items())
    raise BadInput(
        f"{count} examples can be sent, and OpenAI takes no fewer than {LEAST_ROWS}" + (f" (left out: {out})." if out else "."),
        "Give more examples; 50 or more that differ from one another make a difference.",
    )


def _others(rows: Sequence[_Row], known: set[str], left_out: Counter[str]) -> list[_Row]:
    """The rows for validation that are not trained on as well."""
    kept = [row for row in rows if dataset.fingerprint(row.example) not in known]
    left_out["in_training"] += len(rows) - len(kept)
    if not kept:
        raise BadInput("No row of the validation file is left.", "Give rows that do not stand in the training file.")
    return kept


def sent(row: _Row) -> dict[str, Any]:
    """A row in the service's shape: what was said, and nothing else of it."""
    said = [{"role": message.role, "content": message.content} for message in row.example.messages]
    if not row.rejected:
        return {"messages": said}
    other = [{"role": "assistant", "content": row.rejected}]
    return {"input": {"messages": said[:-1]}, "preferred_output": said[-1:], "non_preferred_output": other}


def _write(path: Path, rows: Sequence[_Row]) -> Part:
    text = "".join(json.dumps(sent(row), ensure_ascii=False) + "\n" for row in rows).encode()
    if len(text) > FILE_BYTES:
        raise BadInput(f"{path.name} would have {len(text)} bytes, and OpenAI takes {FILE_BYTES}.", "Send fewer examples.")
    write_atomically(path, text)
    return Part(path, len(rows), sum(_tokens(row) for row in rows), len(text), hashlib.sha256(text).hexdigest())


def _id(wish: Wish, digest: str, train: Part, validation: Part | None) -> str:
    """The same rows with the same wishes are the same run."""
    named = [dataclasses.asdict(wish), digest, train.sha256, validation.sha256 if validation else ""]
    return "openai-" + hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def leaving(made: Prepared, listed: Prices, host: str) -> str:
    """What a person reads before they answer for it."""
    old = f"{listed.old} " if listed.old else ""
    lines = [
        f"This would leave the building, for {host}, to tune {made.wish.model} ({made.wish.method}):",
        "",
        *_part("sent.jsonl", made.train),
        *(_part("validation.jsonl", made.validation) if made.validation else ()),
        f"and the wishes: {json.dumps(made.wish.hyperparameters() | {'suffix': made.wish.suffix, 'seed': made.wish.seed})}",
        "",
        "Nothing else: no ids, no authors, no classes, no names of files. Open the files; they are exactly what is sent.",
        f"Taken out of the texts before: {_counts(made.facts['redactions'])}.",
        f"Left out of {made.facts['considered']} rows: {_counts(made.facts['left_out'], LEFT_OUT)}.",
        f"Kept here to judge the model: {made.held_out} conversations.",
        "",
        f"Cost: about {listed.money(made.cost)} for {made.epochs} passes over {made.train.tokens} tokens, carefully estimated,",
        f"by prices as of {made.dated}. {old}Check them before you confirm; where they differ,",
        "correct a copy of appliance/content/openai.toml, name it in the setting openai_prices, and run this again.",
        "At the other end the files are to be deleted after 30 days, a model that was made of them stays. Both can be deleted",
        f"there before: `appliance tune openai delete {made.id} --with-model`.",
    ]
    return "\n".join(lines) + "\n"


def _part(name: str, part: Part) -> list[str]:
    return [f"  {name}: {part.rows} rows, {part.bytes} bytes, about {part.tokens} tokens", f"    sha256 {part.sha256}"]


def _counts(counts: Mapping[str, int], names: Mapping[str, str] = cast("Mapping[str, str]", {})) -> str:
    return ", ".join(f"{number} {names.get(name, name)}" for name, number in counts.items() if number) or "nothing"
