"""`appliance docs`: the school's documents."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from appliance.cli import adding, shelves
from appliance.cli.output import Output, command, size
from appliance.errors import BadInput
from appliance.knowledge.charts import by_collection, text_chart
from appliance.knowledge.measure import RATES
from appliance.knowledge.shelves import EVERYTHING


@click.group()
def docs() -> None:
    """Add, list, search, check and remove documents; watch folders for new ones."""


for _one in shelves.COMMANDS:
    docs.add_command(_one)


@docs.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--collection", default="school", show_default=True, help="Where they belong.")
@click.option("--subject", default="", help="What they are about; the collection's where left out.")
@click.option("--grade", default="", help="Whom they are for; the collection's where left out.")
@click.option("--later", is_flag=True, help="Leave it to the worker; it must be able to read the files.")
@command
async def add(out: Output, paths: tuple[Path, ...], collection: str, subject: str, grade: str, later: bool) -> int:
    """Add files and folders: PDF, DOCX, PPTX, XLSX, CSV, EPUB, ODT, HTML, Markdown, JSON, text.

    Files that are there already are left alone. Killed, the same command goes on where it was.
    """
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        if later:
            job = adding.leave(out, appliance, paths, collection, subject=subject, grade=grade)
            out.result({"collection": collection, "job": job.id, "state": job.state})
            return 0
        async with appliance.running_engine(out.note, required=False):
            reports = await adding.add_all(out, appliance, paths, collection, subject=subject, grade=grade)
    finally:
        await appliance.close()
    out.say(adding.summary(reports, collection))
    out.result({"collection": collection, "files": [adding.record(report) for report in reports]})
    return 1 if any(report.error for report in reports) else 0


@docs.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--collection", default="school", show_default=True, help="Where its files belong.")
@command
async def watch(out: Output, folder: Path, collection: str) -> int:
    """Have the worker add what is put into FOLDER, now and from now on.

    A file is taken once nothing writes to it any more. One that vanishes from the folder stays in the library. The worker must
    be able to read the folder: on an installed box it sees no one's home.
    """
    with _watching(out) as (watching, queue):
        tied = watching.add(folder, collection)
        out.say(f"{tied.folder} is watched for the collection {tied.collection!r}.")
        adding.warn_without_worker(out, queue)
        out.result(tied)
    return 0


@docs.command()
@click.argument("folder", metavar="FOLDER|ID")
@command
async def unwatch(out: Output, folder: str) -> int:
    """Stop watching a folder; what was added from it stays."""
    with _watching(out) as (watching, _queue):
        ended = watching.remove(folder)
        out.say(f"{ended.folder} is watched no more. What was added from it is kept.")
        out.result(ended)
    return 0


@docs.command()
@command
async def watches(out: Output) -> int:
    """List the folders that are watched, and what has vanished from them."""
    with _watching(out) as (watching, queue):
        found = watching.all()
        if not found:
            out.say("No folder is watched. Watch one with `appliance docs watch FOLDER`.")
        else:
            head = ("id", "folder", "collection", "there", "waiting", "failed", "vanished", "looked at")
            out.table(head, [_watch_row(one) for one in found])
            adding.warn_without_worker(out, queue)
        for one in found:
            if one.trouble:
                out.note(f"{one.folder}: {one.trouble}")
            for name in one.gone[:20]:
                out.note(f"{one.folder}: {name} has vanished; it is still in the library.")
            if len(one.gone) > 20:
                out.note(f"{one.folder}: {len(one.gone) - 20} more have vanished.")
        out.result({"watches": found})
    return 0


def _watch_row(watch: Any) -> tuple[object, ...]:
    count = watch.states.get
    looked = time.strftime("%Y-%m-%d %H:%M", time.localtime(watch.looked)) if watch.looked else "not yet"
    waiting = count("new", 0) + count("taken", 0)
    return watch.id, watch.folder, watch.collection, count("there", 0), waiting, count("failed", 0), count("gone", 0), looked


@contextmanager
def _watching(out: Output) -> Iterator[tuple[Any, Any]]:
    """The watched folders and the queue of this home while a command needs them."""
    from appliance.app import Appliance
    from appliance.jobs import Jobs
    from appliance.knowledge.watching import Watching

    appliance = Appliance.open(out.settings)
    try:
        yield Watching(appliance.database, out.settings), Jobs(appliance.database, out.settings)
    finally:
        appliance.library.close()
        appliance.database.close()


@docs.command("list")
@click.option("--collection", default=None)
@command
async def list_documents(out: Output, collection: str | None) -> int:
    """List what is in the library."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    within = await appliance.library.named(collection and [collection], EVERYTHING)
    documents = await appliance.library.documents(within)
    await appliance.close()
    rows = [(d.id, d.collection, d.title, d.file, d.pages or "-", d.passages, size(d.bytes)) for d in documents]
    if rows:
        out.table(("id", "collection", "title", "file", "pages", "passages", "size"), rows)
    else:
        out.say("There are no documents yet. Add some with `appliance docs add PATH`.")
    out.result({"documents": documents})
    return 0


@docs.command()
@click.argument("text", required=False)
@click.option("--from", "source", type=click.Path(path_type=Path), help="One JSON object with `question` a line.")
@click.option("-k", "count", default=5, show_default=True, help="Passages for each question.")
@click.option("--collection", default=None)
@command
async def search(out: Output, text: str | None, source: Path | None, count: int, collection: str | None) -> int:
    """Find the passages that answer TEXT."""
    from appliance.app import Appliance

    if (text is None) == (source is None):
        raise click.UsageError("Give a text, or --from FILE.")
    questions = [text] if text is not None else read_questions(source)  # type: ignore[arg-type]
    appliance = Appliance.open(out.settings)
    try:
        within = await appliance.library.named(collection and [collection], EVERYTHING)
        async with appliance.running_engine(out.note, required=False):
            found = await appliance.library.search_many([str(q) for q in questions], k=count, within=within)
    finally:
        await appliance.close()
    results = [
        {
            "covered": one.covered, "best": one.best, "threshold": one.threshold, "lexical_only": one.lexical_only,
            "passages": [asdict(p) for p in one.passages],
        }
        for one in found
    ]  # fmt: skip
    if source is not None and out.json:
        for result in results:
            click.echo(json.dumps(result, ensure_ascii=False))
        return 0
    for question, one in zip(questions, found, strict=True):
        _show(out, str(question), one, many=source is not None)
    if source is None:
        out.result(results[0])
    return 0


def _show(out: Output, question: str, found: Any, *, many: bool) -> None:
    if many:
        out.say(f"# {question}")
    if found.lexical_only:
        out.note("The engine is down: this search went by words alone.")
    if not found.covered:
        out.say("The documents do not seem to answer this. The nearest passages:")
    for number, passage in enumerate(found.passages, 1):
        place = f", {passage.place}" if passage.place else ""
        out.say(f"{number}. {passage.title}{place} ({passage.score:.2f})")
        out.say(f"   {' '.join(passage.text.split())[:300]}")


def read_questions(path: Path) -> list[str]:
    """The `question` of each line. Raises BadInput naming the line at fault."""
    questions = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            question = str(json.loads(line.decode("utf-8"))["question"])
            question.encode("utf-8")  # a lone surrogate is not text
            questions.append(question)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadInput(
                f"{path}, line {number}: this is not a JSON object with a `question` in UTF-8.", "Correct that line."
            ) from None
    return questions


@docs.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--collection", default=None)
@click.option("--history", is_flag=True, help="What earlier checks found, the newest last.")
@click.option("--calibrate", is_flag=True, help="Fit to FILE from when on an answer from --collection counts as one.")
@command
async def check(out: Output, file: Path | None, collection: str | None, history: bool, calibrate: bool) -> int:
    """Ask the library the questions in FILE and count how often it finds the right page."""
    from appliance.app import Appliance

    if (file is None) != history:
        raise click.UsageError("Give a file of questions, or --history.")
    if calibrate and (file is None or collection is None):
        raise click.UsageError("--calibrate takes a file of questions and one --collection.")
    appliance = Appliance.open(out.settings)
    try:
        if file is None:
            return _show_history(out, await appliance.library.checks(collection))
        async with appliance.running_engine(out.note, required=calibrate):
            if calibrate and collection is not None:
                fitted = await appliance.library.calibrate(file, EVERYTHING, collection)
                appliance.audit.note("calibrate search", collection)
                return _show_fitted(out, collection, fitted)
            report = await appliance.library.check(file, EVERYTHING, collection)
    finally:
        await appliance.close()
    for name in RATES:
        between = report["intervals"][name]
        out.say(
            f"{name.replace('_', ' ')}: {_share(report[name])}"
            + (f" ({between[0]:.2f} to {between[1]:.2f})" if between else "")
        )
    if len(report["collections"]) > 1:
        rows = [(name, one["asked"], *(_share(one[rate]) for rate in RATES)) for name, one in report["collections"].items()]
        out.table(("collection", "questions", *(name.replace("_", " ") for name in RATES)), rows)
    if report["kept"]:
        out.note(f"These figures are not kept: {report['kept']}")
    out.result(report)
    return 0


def _show_fitted(out: Output, collection: str, fitted: dict[str, Any]) -> int:
    out.say(f"In {collection}, an answer needs evidence of {fitted['threshold']:.2f} from now on.")
    for name, what in (("refused_answerable", "it answers"), ("refused_unanswerable", "it does not answer")):
        low, high = fitted["intervals"][name]
        out.say(f"Of questions that {what}, expect {fitted[name]:.2f} to be refused ({low:.2f} to {high:.2f}).")
    out.result({"collection": collection, **fitted})
    return 0


def _show_history(out: Output, checks: list[dict[str, Any]]) -> int:
    if not checks:
        out.say("No check has been made yet. Make one with `appliance docs check FILE`.")
    else:
        head = ("when", "collection", "questions", "file", *(name.replace("_", " ") for name in RATES), "found")
        rows = [
            (
                time.strftime("%Y-%m-%d %H:%M", time.localtime(one["at"])), one["collection"] or "all", one["asked"],
                one["questions"][:8], *(_share(one[name]) for name in RATES), "by words" if one["lexical_only"] else "",
            )
            for one in checks
        ]  # fmt: skip
        out.table(head, rows)
        for name, held in by_collection(checks).items():
            if drawn := text_chart(held):
                out.say("\n".join(["", name or "all collections", *drawn]))
    out.result({"checks": checks})
    return 0


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


@docs.command()
@click.argument("document")
@command
async def remove(out: Output, document: str) -> int:
    """Remove a document, its text and its vectors, and quotes of it in chats. Old links say that it was removed, and when."""
    from appliance.app import Appliance
    from appliance.cli.erasing import copies_told

    appliance = Appliance.open(out.settings)
    try:
        erased = await appliance.library.remove(document, EVERYTHING)
        appliance.audit.note("remove document", document)
        out.say("Removed.")
        if not erased:
            out.note("Somebody is reading the database, whose log still holds the text; the next removal empties it.")
        copies = await asyncio.to_thread(copies_told, out, appliance)
    finally:
        await appliance.close()
    out.result({"removed": document, "erased": erased} | copies)
    return 0
