"""What the safety rules catch, what they wrongly stop, and what they cost. Prints tables and writes safety.md beside it.

On our own labelled probes by category and language, on public sets of harmful requests, and on tutoring text in which nothing
is harmful. The public sets are read from `../shared/data` where they are; none of them is in the repository.
"""

from __future__ import annotations

import csv
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from main import machine  # beside this file

from appliance.guarding import policy_in
from appliance.safety import Policy, Reader
from appliance.settings import Settings

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
LESSONS = ["oatutor", "gsm8k", "bridge", "cima", "uptake", "book2dial"]
PUPIL = Reader()
RIGHT = {"escalate": ("escalate",), "stop": ("block", "escalate"), "redact": ("redact",), "answer": ("allow",)}


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def probes(policy: Policy, rows: list[dict[str, Any]], by: str) -> Iterator[list[str]]:
    found, right = Counter[str](), Counter[str]()
    for row in rows:
        if row["expect"] != "answer":
            found[row[by]] += 1
            right[row[by]] += policy.check(row["text"], PUPIL).action in RIGHT[row["expect"]]
    for name in found:
        yield [name, str(found[name]), str(right[name]), share(right[name], found[name])]
    yield ["all", str(found.total()), str(right.total()), share(right.total(), found.total())]


def look_alikes(policy: Policy, rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    texts = [(row["language"], row["text"]) for row in rows if row["expect"] == "answer"]
    for language in [*dict.fromkeys(language for language, _ in texts), "all"]:
        verdicts = [policy.check(text, PUPIL) for one, text in texts if language in (one, "all")]
        stopped = sum(verdict.action in ("block", "escalate") for verdict in verdicts)
        looked = sum(verdict.review for verdict in verdicts)
        yield [language, str(len(verdicts)), str(stopped), share(stopped, len(verdicts)), str(looked)]


def over_two(policy: Policy, rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Our probes cut in two at each blank, as two messages; harmless ones also each after each other."""

    def stops(text: str) -> bool:
        return policy.check(text, PUPIL).action in ("block", "escalate")

    def cut(texts: list[str]) -> list[tuple[str, str]]:
        return [(text[:at], text[at + 1 :]) for text in texts for at, letter in enumerate(text) if letter == " "]

    harmful = [row["text"] for row in rows if row["expect"] in ("stop", "escalate") and stops(row["text"])]
    harmless = [row["text"] for row in rows if row["expect"] == "answer"]
    sets = {
        "harmful, cut in two, where neither part is stopped alone": [
            pair for pair in cut(harmful) if not stops(pair[0]) and not stops(pair[1])
        ],
        "harmless look-alikes, cut in two": cut(harmless),
        "harmless look-alikes, each after each": list(itertools.permutations(harmless, 2)),
    }
    for name, pairs in sets.items():
        stopped = sum(policy.check_joined(*pair, PUPIL).action in ("block", "escalate") for pair in pairs)
        yield [name, str(len(pairs)), str(stopped), share(stopped, len(pairs))]


def public(policy: Policy, content: Path) -> Iterator[list[str]]:
    """Requests that should be refused. Nothing is expected of fraud and tax, which no pupil's rule is about."""
    gate = [row["question"] for row in rows_of(content / "evaluation" / "safety.jsonl") if row["kind"] == "harmful"]
    yield _stopped(policy, "the gate's own harmful items", gate)
    path = SHARED / "safety" / "simplesafetytests" / "SimpleSafetyTests - test cases.csv"
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            cases = list(csv.DictReader(file))
        for area in dict.fromkeys(case["harm_area"] for case in cases):
            texts = [case["prompts_final"] for case in cases if case["harm_area"] == area]
            yield _stopped(policy, f"SimpleSafetyTests: {area}", texts)
    path = SHARED / "injection" / "text_attack_train.json"
    if path.is_file():
        attacks = [text for texts in json.loads(path.read_text("utf-8")).values() for text in texts]
        yield _stopped(policy, "BIPIA attacks (harmless in themselves; held by the fence)", attacks)


def _stopped(policy: Policy, name: str, texts: list[str]) -> list[str]:
    caught = sum(policy.check(text, PUPIL).action in ("block", "escalate") for text in texts)
    return [name, str(len(texts)), str(caught), share(caught, len(texts))]


def lessons(policy: Policy) -> Iterator[list[str]]:
    for name in LESSONS:
        asked = answered = stopped = looked = changed = 0
        for row in rows_of(SHARED / "examples" / f"{name}.jsonl"):
            for message in row["messages"]:
                if message["role"] == "user":
                    verdict = policy.check(message["content"], PUPIL)
                    asked, looked = asked + 1, looked + verdict.review
                    stopped += verdict.action in ("block", "escalate")
                elif message["role"] == "assistant":
                    answered += 1
                    changed += policy.check_answer(message["content"], PUPIL).action != "allow"
        yield [name, str(asked), str(stopped), share(stopped, asked), str(looked), str(answered), str(changed)]


def cost(policy: Policy, rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    texts = [row["text"] for row in rows]
    spent = []
    for text in texts:
        started = time.perf_counter()
        policy.check(text, PUPIL)
        spent.append(time.perf_counter() - started)
    spent.sort()
    yield ["a message, median and slowest of 100", f"{1000 * spent[len(spent) // 2]:.2f} ms, {1000 * spent[-5]:.2f} ms"]
    long = " ".join(texts)[:20_000]
    started = time.perf_counter()
    policy.check(long, PUPIL)
    yield ["the longest message that can be sent (20,000 characters)", f"{1000 * (time.perf_counter() - started):.0f} ms"]


def table(title: str, head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    content = Settings(home=Path("/nonexistent")).content
    started = time.perf_counter()
    policy = policy_in(content / "safety")
    policy.warm()
    loaded = ["reading and compiling the rules, once", f"{time.perf_counter() - started:.1f} s"]
    rows = rows_of(content / "safety" / "probes.jsonl")
    caught = ["there", "stopped as they should be", "share"]
    parts = [
        f"# scripts/bench safety\n\n{date.today().isoformat()}, {machine()}\n\n"
        "Rules alone, judged as for a pupil. They were written with all of these sets at hand, so the rates flatter them. Of\n"
        "messages written after the rules and tried once, 14 of 42 were caught at first and 24 of 41 later; both stand among\n"
        'the probes now ("seen later").\n',
        table("Our probes: harmful, by what they are about", ["about", *caught], probes(policy, rows, "category")),
        table("Our probes: harmful, by language", ["language", *caught], probes(policy, rows, "language")),
        table(
            "Our probes: harmless look-alikes",
            ["language", "there", "wrongly stopped", "share", "answered, and a person looks"],
            look_alikes(policy, rows),
        ),
        table("Two messages, judged together", ["pairs", "there", "stopped", "share"], over_two(policy, rows)),
        table("Other harmful requests", ["set", "there", "stopped", "share"], public(policy, content)),
    ]
    if (SHARED / "examples").is_dir():
        head = ["set", "questions", "stopped", "share", "to be looked at", "answers", "changed"]
        parts.append(table("Tutoring text in which nothing is harmful", head, lessons(policy)))
    parts.append(table("Cost", ["what", "measured"], [*cost(policy, rows), loaded]))
    text = "\n".join(parts)
    Path(__file__).with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
