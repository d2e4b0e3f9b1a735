"""What the redactor takes out, and what it wrongly takes, measured. Prints tables and writes privacy.md beside it.

Recall and precision by kind on the synthetic texts of presidio-research and on a week of feedback with planted personal data;
false alarms on rows that hold none; speed and the cost of importing. All of it is read from `../shared/data`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from main import machine  # beside this file

from appliance.redact import KINDS, Name, Redacted, Redactor, read_roster

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CLEAN = ["oatutor", "gsm8k", "bridge", "cima", "uptake"]
MARK = re.compile("|".join(re.escape(f"[{kind.replace('_', ' ')}]") for kind in KINDS))
# What each label of the synthetic set is to us; places, organisations, titles and plain dates are not personal data here.
LABELS = {
    "PERSON": "name", "PHONE_NUMBER": "phone", "ADDRESS": "address", "CREDIT_CARD": "card", "IP_ADDRESS": "ip",
    "EMAIL_ADDRESS": "email", "US_SSN": "id", "US_DRIVER_LICENSE": "id",
}  # fmt: skip
# The planted data is of few forms, which are written down here, apart from the rules that are to find it.
PLANTED = {
    "email": r"[\w.]+@(?:mail\.)?example\.\w+",
    "phone": r"\+44 7700 \d{6}|07700 \d{6}|\(202\) 555-\d{4}|(?<!\d)20255501\d\d|(?<!\d)555-01\d\d",
    "address": r"\d+ (?:Fynbos Avenue|Old Mill Road|Mulberry Lane|Marula Crescent|Aloe Street|Harbour View)"
    r"(?:, [A-Z]\w+(?: \d{4})?)?",
    "birth_date": r"(?<=birth )\d{4}-\d\d-\d\d|(?<=birthday is )(?:[\d/]+|\w+ \d+, \d{4}|\d+ \w+ \d{4})"
    r"|(?<=born on )(?:[\d-]+|\d+ \w+ \d{4})",
}  # fmt: skip
Place = tuple[int, int, str]


def taken(text: str, result: Redacted) -> list[Place]:
    """Where in the text each mark of the result stands: what lies between the marks was copied, in order."""
    kept = MARK.split(result.text)
    kinds = [mark[0][1:-1].replace(" ", "_") for mark in MARK.finditer(result.text)]
    aligned = re.fullmatch("(.+?)".join(map(re.escape, kept)), text, re.DOTALL)
    if aligned is None:
        raise SystemExit(f"the result is not the text with marks: {result.text!r}")
    return [(*aligned.span(number + 1), kind) for number, kind in enumerate(kinds)]


def texts(name: str) -> Iterator[str]:
    """One text a row: its turns and its correction."""
    for line in (SHARED / "examples" / f"{name}.jsonl").read_text("utf-8").split("\n"):
        if line:
            row = json.loads(line)
            yield "\n".join([*(message["content"] for message in row["messages"]), row.get("correction") or ""])


def scores(rows: list[tuple[str, list[Place]]], redactor: Redactor) -> Iterator[list[str]]:
    """A line for each kind: found whole, touched, and what was taken beside it."""
    there, whole, touched, right, all_taken = Counter[str](), Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for text, truth in rows:
        found = taken(text, redactor.redact(text))
        gone = {at for start, end, _ in found for at in range(start, end)}
        real = {at for start, end, _ in truth for at in range(start, end)}
        for start, end, kind in truth:
            letters = [at for at in range(start, end) if text[at].isalnum()]
            there[kind] += 1
            whole[kind] += all(at in gone for at in letters)
            touched[kind] += any(at in gone for at in letters)
        for start, end, kind in found:
            all_taken[kind] += 1
            right[kind] += any(at in real for at in range(start, end))
    for kind in KINDS:
        if there[kind] or all_taken[kind]:
            share = f"{100 * whole[kind] / there[kind]:.0f} %" if there[kind] else "-"
            part = f"{100 * touched[kind] / there[kind]:.0f} %" if there[kind] else "-"
            precision = f"{100 * right[kind] / all_taken[kind]:.0f} %" if all_taken[kind] else "-"
            yield [kind, str(there[kind]), share, part, str(all_taken[kind]), precision]


def synthetic() -> Iterator[list[str]]:
    """The set's own persons are the roster; a span that is none of our kinds counts as right where it is taken."""
    texts = json.loads((SHARED / "pii" / "generated_small.json").read_text("utf-8"))
    rows, people = [], []
    for row in texts:
        spans = [(span["start_position"], span["end_position"], LABELS.get(span["entity_type"], "")) for span in row["spans"]]
        people += [span["entity_value"].split() for span in row["spans"] if span["entity_type"] == "PERSON"]
        rows.append((row["full_text"], spans))
    yield from scores(rows, Redactor([Name(words[0], " ".join(words[1:])) for words in people]))


def planted(redactor: Redactor, names: list[Name]) -> Iterator[list[str]]:
    words = sorted(
        {f"{name.first} {name.last}" for name in names} | {part for name in names for part in (name.first, name.last)}
    )
    name = "|".join(rf"\b{re.escape(word)}\b" for word in sorted(words, key=len, reverse=True))
    rows = []
    for text in texts("feedback"):
        truth = [(*match.span(), kind) for kind, form in PLANTED.items() for match in re.finditer(form, text)]
        hidden = {at for start, end, _ in truth for at in range(start, end)}
        named = [match.span() for match in re.finditer(name, text, re.IGNORECASE)]
        rows.append((text, truth + [(start, end, "name") for start, end in named if start not in hidden]))
    yield from scores(rows, redactor)


def false_alarms(redactor: Redactor, limit: int) -> Iterator[list[str]]:
    """Rows with something taken, of rows that hold nothing personal. A roster name there is a person in a word problem."""
    for name in CLEAN:
        rows = list(texts(name))[: limit or None]
        shapes = names = 0
        for text in rows:
            counts = redactor.redact(text).counts
            shapes += bool(set(counts) - {"name"})
            names += "name" in counts
        yield [name, str(len(rows)), f"{1000 * shapes / len(rows):.2f}", f"{1000 * names / len(rows):.2f}"]


def speed(redactor: Redactor) -> Iterator[list[str]]:
    text = "\n".join([*texts("feedback"), *texts("oatutor")])[:1_000_000]
    started = time.process_time()
    redactor.redact(text)
    yield ["1 MB of tutoring text in one piece", f"{time.process_time() - started:.2f} s of processor time"]
    rows = list(texts("feedback"))
    started = time.process_time()
    for row in rows:
        redactor.redact(row)
    yield ["a row of feedback", f"{1000 * (time.process_time() - started) / len(rows):.2f} ms"]
    script = (
        "import time\nimport appliance.audit\nstarted = time.process_time()\nimport appliance.redact\n"
        "import phonenumbers\nprint(time.process_time() - started)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    yield ["importing it, phonenumbers included", f"{1000 * float(done.stdout):.0f} ms"]


def table(title: str, head: list[str], rows: Iterator[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=0, help="rows of each clean set; 0 is all")
    options = parser.parse_args()
    if not (SHARED / "pii").is_dir():
        raise SystemExit("../shared/data is not here: nothing to measure on")
    names = [Name(pupil.first, pupil.last, pupil.id) for pupil in read_roster(SHARED / "examples" / "roster.csv")]
    redactor = Redactor(names)
    head = ["kind", "there", "found whole", "found in part or whole", "taken", "of these right"]
    parts = [
        f"# scripts/bench privacy\n\n{date.today().isoformat()}, {machine()}\n\n"
        "The rules were written with all of these sets at hand; what a school's own texts hold, a person reviews.\n",
        table("Planted in a week of feedback (400 rows)", head, planted(redactor, names)),
        table("Synthetic texts of presidio-research (100), its persons as the roster", head, synthetic()),
        table(
            "False alarms per 1,000 rows of public sets",
            ["set", "rows", "rows with anything but a name taken", "rows with a name of the roster taken"],
            false_alarms(redactor, options.limit),
        ),
        table("Cost", ["what", "measured"], speed(redactor)),
    ]
    text = "\n".join(parts)
    Path(__file__).with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
