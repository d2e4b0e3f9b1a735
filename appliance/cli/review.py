"""`appliance examples review`: a person decides, row by row, what a model may learn from.

Hides how a row looks in a terminal and how a correction is typed so that a cut line loses nothing. What a decision does is
`tuning/store.py`'s; who may be quoted is decided later, by `appliance retrain`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import Output, command

if TYPE_CHECKING:
    from appliance.tuning.store import ExampleStore, Row

KEYS = {"a": "approved", "r": "rejected", "c": "corrected", "s": "skipped", "q": ""}
ASKED = "[a]pprove  [r]eject  [c]orrect  [s]kip  [q]uit"
SPEAKERS = {"user": "Pupil", "assistant": "Tutor", "system": "Lesson"}
FIRST_WORDS = 48  # characters of the pupil's first turn in a list
NO_ROSTER = "No roster was given, so pupils' names are not found: `appliance examples roster FILE.csv`."

Mask = Callable[[str], Any]


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--approve", "action", flag_value="approve", help="Approve these rows without asking.")
@click.option("--reject", "action", flag_value="reject", help="Reject these rows without asking.")
@click.option("--correct", "action", flag_value="correct", help="Replace the last reply of one row by --text, and approve it.")
@click.option("--list", "action", flag_value="list", help="List what waits for review.")
@click.option("--text", default=None, help="What the tutor should have said.")
@click.option("--all", "everything", is_flag=True, help="All that waits, with --approve or --reject; narrow it by --source.")
@click.option("--source", default="", help="Only rows with this source.")
@command
async def review(out: Output, ids: tuple[str, ...], action: str | None, text: str | None, everything: bool, source: str) -> int:
    """Decide which examples a model may learn from: one at a time, or those named.

    Without options each row that waits is shown, with what would be taken out of it; stop when you like, and the next time goes
    on from there.
    """
    from appliance.app import Appliance
    from appliance.audit import unix_name
    from appliance.tuning.store import ExampleStore

    _check(ids, action, text, everything, source)
    appliance = Appliance.open(out.settings)
    try:
        store = ExampleStore(appliance.database)
        if action is None:
            names, mask = _mask(appliance.database)
            if not names:
                out.note(NO_ROSTER)
            rows = [store.get(id) for id in ids] or store.pending(source)
            return _one_by_one(out, store, rows, mask, unix_name())
        if action == "list":
            return _list(out, store.pending(source))
        chosen = [row.id for row in store.pending(source)] if everything else [*ids]
        if action == "correct":
            store.correct(chosen[0], text or "", unix_name())
        elif chosen:
            (store.approve if action == "approve" else store.reject)(chosen, unix_name())
        done = {"approve": "approved", "reject": "rejected", "correct": "corrected"}[action]
        left = len(store.pending())
    finally:
        await appliance.close()
    out.say(f"{len(chosen)} {done}; {left} still wait.")
    out.result({done: chosen, "pending": left})
    return 0


def _check(ids: Sequence[str], action: str | None, text: str | None, everything: bool, source: str) -> None:
    """Raise UsageError where the options contradict each other."""
    if everything and (ids or action not in ("approve", "reject")):
        raise click.UsageError("--all goes with --approve or --reject, and without ids.")
    if action in ("approve", "reject") and not (ids or everything):
        raise click.UsageError(f"Name the rows: --{action} ID..., or --all.")
    if (action == "correct") != (text is not None) or (action == "correct" and len(ids) != 1):
        raise click.UsageError('A correction is written like this: --correct ID --text "..."')
    if (ids and action == "list") or (source and ids):
        raise click.UsageError("Give ids or --source or --list, not both.")


def _mask(database: Any) -> tuple[bool, Mask]:
    """Whether the box knows its pupils' names, and what takes personal data out of a text."""
    from appliance.redact import Redactor, Roster

    names = Roster(database).names()
    return bool(names), Redactor(names).redact


def _list(out: Output, rows: Sequence[Row]) -> int:
    if rows:
        head = ("id", "said", "class", "rating", "correction", "the pupil's first words")
        out.table(head, [(_clean(row.id), _day(row), row.class_name or "-", row.rating or "-",
                          "yes" if row.correction else "-", _first(row)) for row in rows])  # fmt: skip
    else:
        out.say("Nothing waits for review.")
    out.result({"pending": [document(row) for row in rows]})
    return 0


def document(row: Row) -> dict[str, Any]:
    """A row as JSON has it."""
    said = [{"role": message.role, "content": message.content} for message in row.messages]
    kept = ("id", "correction", "rating", "subject", "grade", "source", "licence", "user_role", "class_name", "consent",
            "reviewed", "origin")  # fmt: skip
    return {"messages": said, **{name: getattr(row, name) for name in kept}}


# --- one at a time ------------------------------------------------------------------------------------------------------------


def _one_by_one(out: Output, store: ExampleStore, rows: Sequence[Row], mask: Mask, reviewer: str) -> int:
    done: dict[str, list[str]] = {"approved": [], "rejected": [], "corrected": [], "skipped": []}
    try:
        for number, row in enumerate(rows, start=1):
            _show(out, row, mask, f"{number} of {len(rows)}")
            key = _decide(out, store, row, reviewer)
            if key == "q":
                break
            done[KEYS[key]].append(row.id)
    except (click.Abort, KeyboardInterrupt):
        out.say()  # every decision so far is kept, and so is a correction that was begun
    left = len(store.pending())
    made = ", ".join(f"{len(ids)} {name}" for name, ids in done.items() if ids) or "nothing decided"
    out.say(
        f"{made[0].upper()}{made[1:]}; {left} still wait{'' if left else ': `appliance retrain` can use what was approved'}."
    )
    out.result({**done, "pending": left})
    return 0


def _decide(out: Output, store: ExampleStore, row: Row, reviewer: str) -> str:
    """Ask until there is a decision, and write it down at once."""
    while True:
        key = click.prompt(ASKED, prompt_suffix=": ", err=out.json, show_default=False).strip().lower()[:1]
        if key not in KEYS:
            continue
        if key == "a":
            store.approve([row.id], reviewer)
        elif key == "r":
            store.reject([row.id], reviewer)
        elif key == "c":
            text = _typed(out, store, row)
            if not text:
                continue
            store.correct(row.id, text, reviewer)
        return str(key)


def _typed(out: Output, store: ExampleStore, row: Row) -> str:
    """What is typed up to a dot alone on its line; each line is kept as it comes. Empty where it was thrown away."""
    draft = str(store.get(row.id).extra.get("draft", ""))
    out.say("What should the tutor have said? End with a line that holds only a dot; a line with only a minus throws it away.")
    for line in draft.splitlines():
        out.say(f"> {_clean(line)}")
    lines = draft.splitlines()
    while True:
        line = click.prompt("", default="", prompt_suffix="> ", show_default=False, err=out.json)
        if line.strip() == ".":
            return "\n".join(lines).strip()
        if line.strip() == "-":
            store.draft(row.id, "")
            return ""
        lines.append(line)
        store.draft(row.id, "\n".join(lines))


def _show(out: Output, row: Row, mask: Mask, place: str) -> None:
    facts = [
        row.subject, row.grade and f"grade {row.grade}", row.class_name and f"class {row.class_name}", row.user_role,
        row.rating and f"rated {row.rating}", {True: "consent given", False: "consent refused", None: ""}[row.consent],
        row.licence, row.origin,
    ]  # fmt: skip
    out.say()
    out.say(f"{_clean(row.id)}  ({place})  " + ", ".join(_clean(fact) for fact in facts if fact))
    taken: dict[str, int] = {}
    turns = [(SPEAKERS[message.role], message.content) for message in row.messages]
    turns += [("Correction", row.correction)] if row.correction else []
    for speaker, text in turns:
        out.say(_indented(f"{speaker}: ", text))
        hidden = mask(text)
        for kind, count in hidden.counts.items():
            taken[kind] = taken.get(kind, 0) + count
        if hidden.text != text:
            out.say(_indented("  used as: ", hidden.text))
    if taken:
        out.say("  Taken out before training: " + ", ".join(f"{count} x {kind}" for kind, count in taken.items()))


def _indented(head: str, text: str) -> str:
    lines = text.splitlines() or [""]
    return "\n".join(f"  {head if place == 0 else ' ' * len(head)}{_clean(line)}" for place, line in enumerate(lines))


def _first(row: Row) -> str:
    said = next((message.content for message in row.messages if message.role == "user"), "")
    line = _clean(" ".join(said.split()))
    return line if len(line) <= FIRST_WORDS else line[: FIRST_WORDS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _day(row: Row) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(row.created)) if row.created else "-"


def _clean(text: str) -> str:
    """As it may stand in a terminal: what a pupil typed must not move the cursor."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "?" for letter in text)
