"""The text that the starter model is trained on: reading, cleaning, splitting, made-by-rule exchanges.

Used by build-starter-model. It reads only sets whose licence lets them train a model that is given
away, and it leaves out everything that the box is tuned or judged on. It does not download anything
and it does not train.
"""

from __future__ import annotations

import csv
import hashlib
import html.parser
import itertools
import json
import random
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 1024
VOCABULARY = 4096
SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
BREAK, _, _, ASSISTANT, END = range(5)
HELD_OUT_PERCENT = 2
BLOCK_CHARS = 2600  # a book block: about 700 tokens, so that most blocks fit whole in one training row
Message = dict[str, str]

INSTRUCTIONS = [
    "You are the school's teaching assistant. Answer from the sources and cite them as [1]. Give one hint at a time.",
    "You are a patient tutor. Use only the sources and cite them as [1].",
    "Answer from the sources and cite them as [1], [2]. If they do not say, say so.",
    "You are the school's teaching assistant. Be short, be kind, and cite the sources.",
]
TUTORING = [
    "You are the school's teaching assistant. Give one hint at a time.",
    "You are a patient tutor. Help the pupil to think; do not just give the answer.",
    "You are a teaching assistant. Be short and kind.",
]
NOT_THERE = [
    "The sources do not say. Try other words, or ask your teacher.",
    "I cannot find that in the sources. Ask your teacher, or try other words.",
]

# What the samples of the model card are made from; fixed before any model answered.
SAMPLE_SOURCES = [
    (
        "The Water Cycle",
        "Evaporation is the change from liquid water into a gas called water vapour. When the Sun warms "
        "a puddle, the water slowly turns into water vapour and mixes with the air.",
        "What is evaporation?",
    ),
    (
        "School Library",
        "The library opens at eight in the morning. Pupils may borrow three books for two weeks. Lost books must be paid for.",
        "How many books may pupils borrow?",
    ),
]
SAMPLE_QUESTIONS = [
    "How do I add 1/2 and 1/3?",
    "I think 7 x 8 is 54. Is that right?",
    "Tom has 12 apples. He gives 5 to Mia and buys 3 more. How many apples does he have?",
    "I do not understand negative numbers.",
    "What is photosynthesis?",
    "Can you just tell me the answer?",
]
SAMPLE_STARTS = [
    "The acceleration of an object is",
    "In 1776, the colonists",
    "To solve an equation, first",
    "Prince Andrew looked at",
    "A fraction is",
    "The water cycle",
]


@dataclass
class Unit:
    """One document or conversation, never cut between training and held-out text."""

    source: str
    weight: float
    text: str = ""
    messages: list[Message] = field(default_factory=list)
    held_out: bool = False
    paragraphs: list[tuple[str, str]] = field(default_factory=list)  # (title, paragraph), for the exchanges


@dataclass
class Item:
    """One unit in tokens."""

    source: str
    weight: float
    ids: np.ndarray
    talk: bool
    text_bytes: int
    held_out: bool


@dataclass(frozen=True)
class Source:
    name: str
    weight: float
    licence: str
    attribution: str


SOURCES = {
    s.name: s
    for s in [
        Source("physics", 1, "CC BY 4.0", "Physics, OpenStax / Texas Education Agency"),
        Source("us-history", 1, "CC BY 4.0", "U.S. History, OpenStax (at a revision under CC BY 4.0)"),
        Source("elementary-algebra", 1, "CC BY 4.0", "Elementary Algebra 2e, OpenStax (at a revision under CC BY 4.0)"),
        Source("intermediate-algebra", 1, "CC BY 4.0", "Intermediate Algebra 2e, OpenStax (at a revision under CC BY 4.0)"),
        Source(
            "prealgebra",
            1,
            "CC BY 4.0",
            "Prealgebra 2e, chapters 1-6, by Lynn Marecek, MaryAnne Anthony-Smith and Andrea Honeycutt Mathis, "
            "OpenStax (at a revision under CC BY 4.0)",
        ),
        Source("war-and-peace", 0.35, "public domain", "Leo Tolstoy, War and Peace, in a public-domain translation"),
        Source("gsm8k", 1, "MIT", "Cobbe et al. 2021, GSM8K, train split, (c) 2021 OpenAI"),
        Source("bridge", 3, "MIT", "Wang et al., Bridging the Novice-Expert Gap (NAACL 2024), (c) 2023 Rose E. Wang"),
        Source("uptake", 2, "MIT", "Demszky et al., Measuring Conversational Uptake (ACL 2021), (c) 2021 ddemszky"),
        Source("cima", 0.3, "CC BY 2.5", "Stasaski, Kao, Hearst: CIMA (BEA 2020)"),
        Source("lessons", 8, "Apache-2.0", "this project's own sample lessons"),
        Source("grounded", 0, "as the books above", "made by rule from the textbooks and lessons above (see Recipe)"),
    ]
}
BOOKS = {
    "physics": ("openstax-physics.txt", "Physics"),
    "us-history": ("openstax-us-history.txt", "U.S. History"),
    "elementary-algebra": ("openstax-elementary-algebra-2e.txt", "Elementary Algebra"),
    "intermediate-algebra": ("openstax-intermediate-algebra-2e.txt", "Intermediate Algebra"),
    "war-and-peace": ("war-and-peace.txt", "War and Peace"),
}
# Publishers' notices: the credit stands in the model card, and their names are not ours to imitate.
NOTICE = re.compile(r"openstax|creative ?commons|rice university|siyavula|Texas Education Agency|\[Picture:", re.I)


def digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_held_out(key: str) -> bool:
    return digest("held-out:" + key) % 100 < HELD_OUT_PERCENT


def unwrap(text: str) -> list[str]:
    """Paragraphs between blank lines, each on one line."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]


def tidy(paragraph: str) -> str:
    """Take off what the conversion left: Markdown marks and references to pictures that are gone."""
    paragraph = re.sub(r"\\([\[\]#*_.()$<>~|-])", r"\1", paragraph)
    paragraph = re.sub(r"\*+([^*]+)\*+", r"\1", paragraph)
    return re.sub(r"\s*\(\s*\)", "", paragraph).strip()


class PageText(html.parser.HTMLParser):
    """The paragraphs of a page, without its head."""

    BREAKS = frozenset({"p", "li", "h1", "h2", "h3", "h4", "div", "td", "figcaption"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skip = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.skip += tag in ("head", "style", "script")
        if tag in self.BREAKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self.skip -= tag in ("head", "style", "script")
        if tag in self.BREAKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.skip:
            self.parts.append(data)


def page_paragraphs(page: str) -> list[str]:
    parser = PageText()
    parser.feed(page)
    return unwrap("".join(parser.parts))


def prealgebra_paragraphs(folder: Path) -> list[str]:
    """The chapters that come as EPUB, Markdown, text and HTML (the PDF ones would need a reader)."""
    found: list[str] = []
    epub = folder / "prealgebra-ch01-03.epub"
    if epub.exists():
        with zipfile.ZipFile(epub) as book:
            for name in sorted(book.namelist()):
                if name.endswith((".xhtml", ".html")) and not re.search(r"nav|toc|title", name):
                    found += page_paragraphs(book.read(name).decode("utf-8", "replace"))
    for name in ("prealgebra-ch04.md", "prealgebra-ch05.txt", "prealgebra-ch06.html"):
        text = (folder / name).read_text("utf-8")
        found += page_paragraphs(text) if name.endswith("html") else unwrap(text)
    return found


def headed(paragraphs: list[str], title: str) -> Iterator[tuple[str, str]]:
    """Each paragraph with the book's title and the last heading, where there was one."""
    heading = ""
    for paragraph in paragraphs:
        if 4 < len(paragraph) < 60 and re.fullmatch(r"(?:\d+\.\d+ )?[A-Z][A-Za-z\u2019,' -]+[a-zA-Z]", paragraph):
            heading = re.sub(r"^\d+\.\d+ ", "", paragraph)
        yield (f"{title}: {heading}" if heading else title), paragraph


def book_units(source: str, title: str, paragraphs: list[str]) -> Iterator[Unit]:
    weight = SOURCES[source].weight
    kept = [tidy(p) for p in paragraphs if p.strip() and not NOTICE.search(p)]
    block: list[tuple[str, str]] = []
    size = number = 0

    def close() -> Unit:
        text = "\n".join(p for _, p in block)
        return Unit(source, weight, text, held_out=is_held_out(f"{source}/{number}"), paragraphs=list(block))

    for pair in headed([p for p in kept if p], title):
        if size > BLOCK_CHARS:
            yield close()
            block, size, number = [], 0, number + 1
        block.append(pair)
        size += len(pair[1])
    if block:
        yield close()


def lesson_units(folder: Path) -> Iterator[Unit]:
    """The project's lessons, one unit per section; headings kept, other Markdown marks taken off."""
    for path in sorted(folder.glob("*.md")):
        text = path.read_text("utf-8")
        title = text.lstrip("# ").split("\n", 1)[0].strip()
        for section in re.split(r"\n(?=## )", text):
            lines = [tidy(part) for part in re.split(r"\n\s*\n", section) if part.strip()]
            body = "\n\n".join(lines)
            if len(body) < 60:
                continue
            pairs = [(title, " ".join(line.split())) for line in lines if not line.startswith(("#", "1."))]
            yield Unit(
                "lessons",
                SOURCES["lessons"].weight,
                body,
                paragraphs=pairs,
                held_out=is_held_out(f"lessons/{path.name}/{lines[0]}"),
            )


def conversation_group(row: dict[str, Any]) -> str:
    """Rows cut from one conversation share their first turns, so they stand or fall together.

    CIMA gives every turn of a conversation its own number: there the opening tells.
    """
    identifier = str(row["id"])
    if identifier.startswith("cima-"):
        return "cima-" + "|".join(m["content"] for m in row["messages"][:4])
    if identifier.startswith("bridge-"):
        return "bridge-" + identifier.rsplit("-", 1)[1].split("_")[0]
    return identifier


def conversation_units(folder: Path) -> Iterator[Unit]:
    with (folder / "feedback_sources.csv").open(newline="", encoding="utf-8") as handle:
        judged = {row["derived_from"] for row in csv.DictReader(handle)}
    for source in ("gsm8k", "bridge", "uptake", "cima"):
        lines = (folder / f"{source}.jsonl").read_text("utf-8").split("\n")  # some texts hold other line ends
        rows = [json.loads(line) for line in lines if line]
        barred = {conversation_group(row) for row in rows if row["id"] in judged}
        for row in rows:
            group = conversation_group(row)
            if group in barred:
                continue
            messages = [{"role": m["role"], "content": m["content"].strip()} for m in row["messages"]]
            # The box always sends an instruction; half of the sets without one get one.
            if messages[0]["role"] != "system" and digest(row["id"]) % 2:
                instruction = TUTORING[digest(group) % len(TUTORING)]
                messages.insert(0, {"role": "system", "content": instruction})
            yield Unit(source, SOURCES[source].weight, messages=messages, held_out=is_held_out(group))


STOP_WORDS = """
a about above after again all also an and another any are around as at be because been before being below
between both but by called can could did different do does during each example first following for from had
has have he her here his how however if in into is it its just like made make many may might more most much
must no not now of often on one only or other our out over same second several she should since so some such
than that the their them then there these they this those three through thus to two under until up use used
using very was we were what when where which while who whose why will with within without would you your
"""
STOP = frozenset(STOP_WORDS.split())
WORD = re.compile(r"[A-Za-z][A-Za-z\u2019'-]*")


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[a-z0-9)”][.!?])\s+(?=[A-Z“])", paragraph)


def usable(sentence: str) -> bool:
    """A sentence that can stand alone as an answer."""
    return (
        35 <= len(sentence) <= 280
        and sentence[0].isupper()
        and sentence.endswith(".")
        and len(WORD.findall(sentence)) >= 6
        and not re.match(r"(It|This|That|They|These|Those|He|She|His|Her|Their|Here|There|But|And|So|Then|In this)\b", sentence)
        and not re.search(r"\b(in|see|by) ?[.,]", sentence)
        and not re.search(r"\b(Press|Pp?|vol|Figure|Example|Table|Chapter|Section|Try It|Exercise|Appendix)\b|[ⓐⓑⓒ=]", sentence)
    )


def lower_first(text: str, common: Counter[str]) -> str:
    """Small first letter unless the first word is a name (never seen in small letters)."""
    first = text.split(" ", 1)[0]
    return text[0].lower() + text[1:] if common[first.lower()] > 1 and first != "I" else text


def questions(sentence: str, common: Counter[str]) -> list[str]:
    """Questions, made by rule, that this sentence answers; the surest first."""
    found: list[str] = []
    term = re.match(
        r"((?:An? |The )?[A-Za-z][A-Za-z\u2019' -]{2,40}?) (is|are|was|were) (?:an?|the|any|one|how|called)\b", sentence
    )
    if term and len(term[1].split()) <= 5 and not re.search(r"\b(that|which|who|of the following)\b", term[1]):
        found.append(f"What {term[2]} {lower_first(term[1], common)}?")
    named = re.search(r"\b(?:is|are|was|were) (?:called|known as) (?:an? |the )?([a-z][a-z -]{3,30}?)(?=[.,;]| and )", sentence)
    if named:
        found.append(f"What does {named[1]} mean?")
    reason = re.match(
        r"((?:[\w\u2019'-]+ ){1,5}?)(is|are|was|were|can|could|must|will|would|did|had) (.{8,110}?),? because ", sentence
    )
    if reason and not re.search(r"\b(that|which|who|when|if|and)\b", reason[1]):
        found.append(f"Why {reason[2]} {lower_first(reason[1], common).strip()} {reason[3]}?")
    year = re.match(r"(?:In|By|On \w+ \d+,) (1\d{3}|20\d\d)\b", sentence)
    if year:
        found.append(f"What happened in {year[1]}?")
    phrase = key_phrase(sentence, common)
    if phrase:
        asks = [
            "What does the text say about {}?",
            "What do the sources say about {}?",
            "Tell me about {}.",
            "Can you explain {}?",
            "What should I know about {}?",
            "I do not understand {}. Can you help?",
            "{}?",
            "Explain {}.",
        ]
        ask = asks[digest(sentence) % len(asks)].format(phrase)
        found.append(ask[0].upper() + ask[1:])
    return found


def key_phrase(sentence: str, common: Counter[str]) -> str:
    """A name of several words, or else the rarest content word with the content word beside it."""
    name = re.search(r"(?<=[a-z,] )[A-Z][a-z]+(?: (?:of |the )?[A-Z][a-z]+){1,3}", sentence)
    if name:
        return str(name[0])
    words = WORD.findall(sentence)
    content = [(i, w) for i, w in enumerate(words) if len(w) > 4 and w.islower() and w not in STOP]
    if not content:
        return ""
    place, word = min(content, key=lambda pair: max(common[pair[1]], 4))
    before = words[place - 1] if place else ""
    if len(before) > 3 and before.islower() and before not in STOP and f"{before} {word}" in sentence:
        return f"{before} {word}"
    return str(word)


def shorten(paragraph: str, keep: str, limit: int) -> str:
    """Whole sentences up to the limit, with the one that must stay."""
    chosen = ""
    parts = sentences(paragraph)
    start = max(0, next((i for i, s in enumerate(parts) if s == keep), 0) - 1) if len(paragraph) > limit else 0
    for part in parts[start:]:
        if chosen and len(chosen) + len(part) > limit and (not keep or keep in chosen):
            break
        chosen = f"{chosen} {part}" if chosen else part
    return chosen


def grounded_units(units: list[Unit], count: int, seed: int) -> list[Unit]:
    """Questions with numbered sources, answered by a sentence of one source and its number.

    They teach the shape that the box sends and the copying of a sentence with its citation. Text
    held out stays held out: such an exchange takes all its sources from one side of the split.
    """
    rng = random.Random(seed)
    common: Counter[str] = Counter()
    for unit in units:
        common.update(w for _, p in unit.paragraphs for w in set(WORD.findall(p)))
    made: list[Unit] = []
    for held_out, wanted in ((False, count), (True, max(40, count * HELD_OUT_PERCENT // 100))):
        pool: list[tuple[str, str]] = []
        for unit in units:
            if unit.held_out == held_out and unit.source != "war-and-peace":
                # A paragraph with a question in it is mostly an exercise, and answers nothing.
                good = [
                    (title, p)
                    for title, p in unit.paragraphs
                    if len(p) > 90 and "?" not in p and any(map(usable, sentences(p)))
                ]
                pool += good * (6 if unit.source == "lessons" else 1)
        tries = (one_exchange(pool, rng, common) for _ in range(wanted * 4 if pool else 0))
        kept = itertools.islice((messages for messages in tries if messages), wanted)
        made += [Unit("grounded", 1, messages=messages, held_out=held_out) for messages in kept]
    return made


def one_exchange(pool: list[tuple[str, str]], rng: random.Random, common: Counter[str]) -> list[Message] | None:
    place = rng.randrange(len(pool))
    title, paragraph = pool[place]
    answer = rng.choice([s for s in sentences(paragraph) if usable(s)])
    asked = questions(answer, common)
    if not asked:
        return None
    question = asked[0] if rng.random() < 0.6 else asked[-1]
    near = rng.random() < 0.5  # a neighbour is the harder distraction: the same subject, not the answer
    others = [
        pool[(place + rng.randint(1, 20)) % len(pool)] if near else rng.choice(pool) for _ in range(rng.choice([0, 1, 1, 2, 2]))
    ]
    phrase = key_phrase(answer, common).lower()
    absent = rng.random() < 0.06 and len(others) > 0
    if any(other[1] == paragraph or (phrase and phrase in other[1].lower()) for other in others):
        return None
    if absent:
        shown = others
    else:
        shown = others[:]
        shown.insert(rng.randint(0, len(others)), (title, paragraph))
    blocks = []
    number = 0
    for index, (name, body) in enumerate(shown, 1):
        mine = body == paragraph
        number = index if mine else number
        short_title = name.split(": ")[0] if rng.random() < 0.4 else name
        blocks.append(f"[{index}] {short_title}\n{shorten(body, answer if mine else '', rng.choice([250, 400, 600]))}")
    reply = rng.choice(NOT_THERE) if absent else f"{answer} [{number}]"
    if not absent and rng.random() < 0.12:
        reply += " " + rng.choice(["Can you say that in your own words?", "What do you think that means?"])
    return [
        {"role": "system", "content": rng.choice(INSTRUCTIONS)},
        {"role": "user", "content": "Sources:\n" + "\n\n".join(blocks) + f"\n\nQuestion: {question}"},
        {"role": "assistant", "content": reply},
    ]


def load_units(data: Path, lessons: Path, say: Callable[[str], None], seed: int = 7) -> list[Unit]:
    """Every unit, training and held out."""
    units: list[Unit] = []
    for source, (name, title) in BOOKS.items():
        text = (data / "text" / name).read_text("utf-8")
        units += book_units(source, title, unwrap(text) if source == "war-and-peace" else text.splitlines())
    units += book_units("prealgebra", "Prealgebra", prealgebra_paragraphs(data / "books"))
    units += lesson_units(lessons)
    # The algebra books share passages: a held-out paragraph that also stands in training text is dropped.
    seen = {" ".join(p.lower().split()) for u in units if not u.held_out for _, p in u.paragraphs}
    dropped = 0
    for unit in units:
        if unit.held_out and unit.source != "lessons":
            kept = [pair for pair in unit.paragraphs if " ".join(pair[1].lower().split()) not in seen]
            dropped += len(unit.paragraphs) - len(kept)
            unit.paragraphs, unit.text = kept, "\n".join(p for _, p in kept)
    units += conversation_units(data / "examples")
    units = [u for u in units if u.messages or u.text.strip()]
    units += grounded_units(units, 9000, seed)
    say(f"{len(units)} units, {sum(u.held_out for u in units)} held out, {dropped} repeated paragraphs left out")
    return units
