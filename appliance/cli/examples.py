"""`appliance examples`: tutoring examples, checked, imported, reviewed, counted and withdrawn before anything is tuned on them.

Hides what the counts look like as a table and as a picture. Reading, formats and faults are `appliance.tuning`'s; the review
has a file of its own.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import tune_openai
from appliance.cli.output import Output, command
from appliance.cli.review import review

if TYPE_CHECKING:
    from appliance.app import Appliance
    from appliance.tuning.examples import Example
    from appliance.tuning.store import ExampleStore, Exposed, Trace

FORMATS = ("openai", "dspy", "huggingface", "alpaca", "sharegpt")
COUNTED = ("subject", "grade", "source", "licence")
ROWS_SHOWN = 12  # of one table; the JSON document has all
BAR = 30  # characters
# Upper ends of the classes: each doubles, so that short drills and long talks both show; the last class is open.
WORD_CLASSES = (24, 49, 99, 199, 399, 799)
TURN_CLASSES = (2, 4, 8, 16, 32)
WIDTH, NAME, PANEL_HEAD, STEP = 640, 210, 34, 18  # of the picture, in its own units


@click.group()
def examples() -> None:
    """Check, import, review, count and withdraw tutoring examples."""


examples.add_command(review)


@examples.command()
@click.argument("file", type=click.Path(path_type=Path))
@command
async def validate(out: Output, file: Path) -> int:
    """Read FILE (JSONL, JSON or TOML, or a folder of them); every fault is named with its line, all at once."""
    from appliance.tuning.examples import read_examples

    found = read_examples(file)
    subjects = Counter(example.subject or "no subject" for example in found)
    out.say(f"{len(found)} examples, all usable: " + ", ".join(f"{name} {count}" for name, count in subjects.most_common()))
    out.result({"examples": len(found), "subjects": dict(subjects)})
    return 0


@examples.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(FORMATS), required=True, help="The format to write.")
@command
async def convert(out: Output, source: Path, target: Path, to: str) -> int:
    """Write the examples of IN to OUT in another format; nothing is lost, or nothing is written.

    IN is in any of these formats, which is seen by its keys. OUT is x.jsonl (one object a line) or x.json (one list).
    """
    from appliance.tuning.examples import convert as write

    count = write(source, target, to)
    out.say(f"{count} examples written to {target} in the format {to}.")
    out.result({"examples": count, "format": to, "file": target})
    return 0


@examples.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--licence", default="", help="The licence of rows that state none.")
@click.option("--author", default="", help="Who gave the rows that name nobody.")
@click.option("--trust-review", is_flag=True, help="Take over the marks of review in the file; else every row waits for one.")
@click.option(
    "--roster", "pupils", type=click.Path(path_type=Path), default=None, help="CSV of the pupils' names, replaced first."
)
@command
async def import_(out: Output, file: Path, licence: str, author: str, trust_review: bool, pupils: Path | None) -> int:
    """Take over the examples of FILE into the store, all or none; rows that are there already are left alone."""
    from appliance.app import Appliance
    from appliance.audit import unix_name
    from appliance.redact import read_roster
    from appliance.tuning.store import ExampleStore

    appliance = Appliance.open(out.settings)
    try:
        store = ExampleStore(appliance.database)
        names = read_roster(pupils) if pupils is not None else None
        done = store.import_rows(
            file, licence=licence, author=author, trust_review=trust_review, reviewer=unix_name(), pupils=names
        )
        if names is not None:
            out.say(_taken_out(len(names)))
        if done.emptied:
            out.note(f"{len(done.emptied)} rows that were here are of somebody who has withdrawn, and are erased.")
        waiting_for_run = bool(done.emptied) and erase_withdrawn(out, appliance, store)[1]
        waiting = len(store.pending())
        bare = sum(not row.licence and row.consent is None and row.reviewed != "rejected" for row in store.list())
    finally:
        await appliance.close()
    counts = {"added": done.added, "updated": done.updated, "there already": done.unchanged, "withdrawn before": done.withdrawn}
    out.say(f"{file.name}: " + (", ".join(f"{number} {name}" for name, number in counts.items() if number) or "no rows") + ".")
    if waiting:
        out.say(f"{waiting} rows wait for review: `appliance examples review`.")
    if bare:
        out.note(
            f"{bare} rows state neither consent nor a licence and cannot be used: import their file again with --licence NAME."
        )
    out.result(done)
    return 75 if waiting_for_run else 0


@examples.command()
@click.argument("file", type=click.Path(path_type=Path))
@command
async def roster(out: Output, file: Path) -> int:
    """Replace the list of pupils whose names are taken out of texts by FILE (CSV: pupil_id, first_name, last_name, class)."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        known, said = _replace_roster(appliance, file)
    finally:
        await appliance.close()
    out.say(said)
    out.result({"pupils": known})
    return 0


def _replace_roster(appliance: Appliance, file: Path) -> tuple[int, str]:
    from appliance.audit import unix_name
    from appliance.redact import Roster, read_roster

    pupils = read_roster(file)
    Roster(appliance.database).replace(pupils, actor=unix_name())
    return len(pupils), _taken_out(len(pupils))


def _taken_out(pupils: int) -> str:
    return f"{pupils} pupils' names will be taken out of every text that a model is tuned on."


@examples.command()
@click.argument("person")
@click.option("--mentions", is_flag=True, help="Also withdraw rows of others in which the person's full name stands.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@command
async def withdraw(out: Output, person: str, mentions: bool, yes: bool) -> int:
    """Erase the examples of PERSON (an author, or a pupil's id or full name), and say which models had them."""
    from appliance.app import Appliance
    from appliance.audit import unix_name
    from appliance.cli.erasing import copies_told
    from appliance.tuning.blind import forget
    from appliance.tuning.store import ExampleStore

    appliance = Appliance.open(out.settings)
    try:
        store = ExampleStore(appliance.database)
        trace = store.trace(person)
        _announce(out, trace, mentions)
        if not yes:
            click.confirm(
                "Erase them?" if trace.rows or trace.mentions else "Withdraw this name all the same?", abort=True, err=True
            )
        # While their words can still be read: a comparison may have asked them under another id.
        forget(out.settings, (), store.asked((*trace.rows, *(trace.mentions if mentions else ()))))
        ids = store.withdraw(person, by=unix_name(), mentions=mentions)
        runs, waiting = erase_withdrawn(out, appliance, store)
        forget_programs(out, appliance, {*ids, *trace.earlier})
        models = store.models_with({*ids, *trace.earlier}, appliance.registry)
        out.say(f"{len(ids)} rows are erased, and nothing of theirs comes back with an import.")
        copies = copies_told(out, appliance)
        sent = tune_openai.say_what_was_sent(out, store)
    finally:
        await appliance.close()
    if runs:
        out.say(f"The data of {len(runs)} tuning runs is erased; their reports stay: {', '.join(runs)}.")
    show_models(out, models)
    told = {"rows": ids, "mentions": len(trace.mentions), "runs": runs, "models": models, "waiting": waiting, "sent": sent}
    out.result(told | copies)
    return 75 if waiting else 0


def _announce(out: Output, trace: Trace, mentions: bool) -> None:
    if not trace.known:
        out.note(
            "Nobody of that name is known here." + (f" Did you mean {' or '.join(trace.similar)}?" if trace.similar else "")
        )
    if trace.rows:
        out.say(
            f"{len(trace.rows)} rows are this person's own. Their text is erased, and so is the data of runs that used them."
        )
    else:
        out.say("No row stands under this name.")
    if trace.mentions:
        what = "They go too." if mentions else "Names are taken out before training; --mentions erases these rows as well."
        out.say(f"{len(trace.mentions)} rows of others hold the full name. {what}")


def erase_withdrawn(out: Output, appliance: Appliance, store: ExampleStore) -> tuple[tuple[str, ...], bool]:
    """Take all withdrawn rows out of what was made of them; the runs, and whether the same command is needed once more."""
    from appliance.erasing import erase_from_made
    from appliance.errors import UnderWay
    from appliance.tuning.blind import forget
    from appliance.tuning.run_folder import only_run

    gone = store.withdrawn()
    runs: tuple[str, ...] = ()
    waiting = False
    forget(out.settings, gone, ())
    try:
        with only_run(out.settings.run / "tune.lock"):
            runs = erase_from_made(out.settings, appliance.database, gone, store)
    except UnderWay:
        waiting = True
        out.note(
            "A tuning run is under way and may hold these rows: cancel it, then run the same command again to erase them there."
        )
    if not appliance.database.fold_log():
        waiting = True
        out.note("Somebody is reading the database, whose log still holds the old texts: run the same command again.")
    return runs, waiting


def forget_programs(out: Output, appliance: Appliance, ids: Collection[str]) -> None:
    """Retire the prompt programs that have words of these rows: a demonstration is shown to every model that answers."""
    from appliance.audit import unix_name

    for one in appliance.chat.programs.forget(ids, unix_name()):
        served = ", and the module's file serves in its place" if one.state == "active" else ""
        out.say(f"The program {one.id} for {one.module} had words of theirs: they are erased{served}.")


def show_models(out: Output, models: Sequence[Exposed]) -> None:
    if not models:
        out.say("No model on this box learned from them.")
        return
    out.say("\nThese models had them:")
    rows = [(one.id, one.rows or f"through {one.through}", ", ".join(one.aliases) or "-") for one in models]
    out.table(("model", "rows", "serves as"), rows)
    out.say("`appliance retrain` makes a model without them; `appliance models remove ID` then takes these off the box.")


@examples.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--svg", type=click.Path(path_type=Path), default=None, help="Also draw the counts into this file.")
@command
async def stats(out: Output, file: Path | None, svg: Path | None) -> int:
    """Count examples by subject, grade, source, licence and length: those of FILE, or those in the store and their review."""
    from appliance.errors import BadInput
    from appliance.files import write_atomically
    from appliance.tuning.examples import read_examples

    if svg and svg.suffix != ".svg":  # so that no slip of the keys ever replaces the examples
        raise BadInput(f"{svg.name} is not the name of a picture.", "Give a name that ends in .svg.")
    counts = await _count_store(out) if file is None else count(read_examples(file))
    out.say(f"{counts['examples']} examples in {file.name if file else 'the store'}")
    for title, rows in panels(counts) if counts["examples"] else ():
        out.say()
        _bars(out, title, rows, counts["examples"])
    if svg:
        write_atomically(svg, picture(counts), private=False)
        out.say(f"\nDrawn into {svg}.")
    out.result({**counts, "svg": svg})
    return 0


async def _count_store(out: Output) -> dict[str, Any]:
    from appliance.app import Appliance
    from appliance.tuning.store import ExampleStore

    appliance = Appliance.open(out.settings)
    try:
        rows = ExampleStore(appliance.database).list()
    finally:
        await appliance.close()
    return count([row.example() for row in rows]) | {"review": dict(Counter(row.reviewed for row in rows).most_common())}


def count(found: Sequence[Example]) -> dict[str, Any]:
    """Counts by field, and the distributions of words and turns (of pupil and tutor) of a conversation."""
    talks = [[message.content for message in example.messages if message.role != "system"] for example in found]
    return {
        "examples": len(found),
        **{key: dict(Counter(getattr(example, key) or "not stated" for example in found).most_common()) for key in COUNTED},
        "words": _spread([sum(len(said.split()) for said in talk) for talk in talks], 0, WORD_CLASSES),
        "turns": _spread([len(talk) for talk in talks], 2, TURN_CLASSES),
    }


def _spread(values: list[int], start: int, ends: tuple[int, ...]) -> dict[str, Any]:
    """Least, median, 90th percentile, most, and how many values lie in each class (`to` is None in the open one)."""
    ordered = sorted(values) or [0]
    classes = [
        {"from": low + 1, "to": high, "examples": sum(low < value and (high is None or value <= high) for value in values)}
        for low, high in zip((start - 1, *ends), (*ends, None), strict=True)
    ]
    last = len(ordered) - 1
    return {
        "least": ordered[0],
        "median": ordered[last // 2],
        "percentile_90": ordered[last * 9 // 10],
        "most": ordered[-1],
        "classes": classes,
    }


def panels(counts: dict[str, Any]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What both the table and the picture show: a title and (name, count) rows for each."""
    shown = []
    for key in (*COUNTED, "review"):
        if not counts.get(key):
            continue
        rows = [(_plain(name), number) for name, number in counts[key].items()]
        if len(rows) > ROWS_SHOWN:
            rest = rows[ROWS_SHOWN - 1 :]
            rows = [*rows[: ROWS_SHOWN - 1], (f"({len(rest)} others)", sum(number for _, number in rest))]
        shown.append((key, rows))
    for key in ("words", "turns"):
        spread = counts[key]
        classes = spread["classes"]
        while len(classes) > 1 and not classes[-1]["examples"]:
            classes = classes[:-1]
        rows = [(_range(part["from"], part["to"]), part["examples"]) for part in classes]
        shown.append((f"{key} (median {spread['median']}, 90% up to {spread['percentile_90']}, most {spread['most']})", rows))
    return shown


def _range(low: int, high: int | None) -> str:
    return f"{low}+" if high is None else f"{low}" if low == high else f"{low}-{high}"


def _plain(name: str) -> str:
    """A name from a file as it may stand in a terminal and in XML: no control characters, not endless."""
    clean = "".join(character if character.isprintable() else "?" for character in name)
    return clean if len(clean) <= 32 else clean[:31] + "\N{HORIZONTAL ELLIPSIS}"


def _bars(out: Output, title: str, rows: list[tuple[str, int]], total: int) -> None:
    digits = max(len(str(total)), 5)
    most = max(number for _, number in rows) or 1
    wide = max(len(name) for name, _ in rows)
    out.say(title)
    for name, number in rows:
        bar = "#" * max(round(BAR * number / most), number > 0)
        out.say(f"  {name.ljust(wide)}  {number:>{digits}}  {number / max(total, 1):>4.0%}  {bar}".rstrip())


def picture(counts: dict[str, Any]) -> str:
    """The same counts as a standalone SVG of bars, which a browser shows without any script."""
    lines: list[str] = []
    top = 8
    for title, rows in panels(counts):
        lines.append(f'<text x="12" y="{top + 20}" font-weight="bold">{html.escape(title)}</text>')
        most = max(number for _, number in rows) or 1
        for place, (name, number) in enumerate(rows):
            y = top + PANEL_HEAD + place * STEP
            long = (WIDTH - NAME - 70) * number / most
            lines.append(f'<text x="{NAME - 8}" y="{y + 11}" text-anchor="end">{html.escape(name)}</text>')
            lines.append(f'<rect x="{NAME}" y="{y}" width="{long:.1f}" height="{STEP - 4}" fill="#1f4e79"/>')
            lines.append(f'<text x="{NAME + long + 6:.1f}" y="{y + 11}">{number}</text>')
        top += PANEL_HEAD + len(rows) * STEP + 6
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 8}" role="img" font-family="sans-serif"'
        f' font-size="12">',
        f"<title>{counts['examples']} examples by subject, grade, source, licence and length</title>",
        f'<rect width="{WIDTH}" height="{top + 8}" fill="#fff"/>',
    ]
    return "\n".join([*head, *lines, "</svg>", ""])
