"""`appliance docs`: the school's documents."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from appliance.cli.output import Output, command, seconds, size
from appliance.errors import BadInput
from appliance.knowledge.measure import RATES


@click.group()
def docs() -> None:
    """Add, list, search, check and remove documents."""


@docs.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--collection", default="school", show_default=True, help="Where they belong.")
@command
async def add(out: Output, paths: tuple[Path, ...], collection: str) -> int:
    """Add files and folders: PDF, DOCX, PPTX, XLSX, CSV, EPUB, ODT, HTML, Markdown, JSON, text.

    Files that are there already are left alone.
    """
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        async with appliance.running_engine(out.note, required=False):
            reports = await add_all(out, appliance, paths, collection)
    finally:
        await appliance.close()
    failed = [report for report in reports if report.error]
    out.say(f"{len(reports) - len(failed)} of {len(reports)} files are in the collection {collection!r}.")
    out.result({"collection": collection, "files": [_report(report) for report in reports]})
    return 1 if failed else 0


async def add_all(out: Output, appliance: Any, paths: tuple[Path, ...], collection: str) -> list[Any]:
    """Add with a line for each file; reports come back whether or not files failed."""

    def on_file(report: Any) -> None:
        if report.error:
            out.note(f"  {report.file}: {report.error.message}\n    Try: {report.error.hint}")
        elif report.status == "unchanged":
            out.say(f"  {report.file}: there already")
        else:
            pages = f"{report.pages} pages, " if report.pages else ""
            out.say(f"  {report.file}: {pages}{report.passages} passages, {seconds(report.seconds)}")
            if report.note:
                out.note(f"    {report.note}")

    reports: list[Any] = await appliance.library.add(
        paths,
        collection,
        on_file=on_file,
        on_progress=lambda what, done, total: out.progress(f"{what}: {done} of {total}"),
    )
    return reports


def _report(report: Any) -> dict[str, Any]:
    record = {name: getattr(report, name) for name in ("file", "status", "document", "pages", "passages", "seconds", "note")}
    if report.error:
        record |= {"error": report.error.message, "hint": report.error.hint}
    return record


@docs.command("list")
@click.option("--collection", default=None)
@command
async def list_documents(out: Output, collection: str | None) -> int:
    """List what is in the library."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    documents = await appliance.library.documents(collection)
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
    collections = [collection] if collection else None
    try:
        async with appliance.running_engine(out.note, required=False):
            found = await appliance.library.search_many([str(q) for q in questions], k=count, collections=collections)
    finally:
        await appliance.close()
    results = [
        {"covered": one.covered, "lexical_only": one.lexical_only, "passages": [asdict(p) for p in one.passages]}
        for one in found
    ]
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
@command
async def check(out: Output, file: Path | None, collection: str | None, history: bool) -> int:
    """Ask the library the questions in FILE and count how often it finds the right page."""
    from appliance.app import Appliance

    if (file is None) != history:
        raise click.UsageError("Give a file of questions, or --history.")
    appliance = Appliance.open(out.settings)
    try:
        if file is None:
            return _show_history(out, await appliance.library.checks(collection))
        async with appliance.running_engine(out.note, required=False):
            report = await appliance.library.check(file, collection)
    finally:
        await appliance.close()
    for name in RATES:
        between = report["intervals"][name]
        out.say(
            f"{name.replace('_', ' ')}: {_share(report[name])}"
            + (f" ({between[0]:.2f} to {between[1]:.2f})" if between else "")
        )
    if len(report["collections"]) > 1:
        rows = [
            (name, one["asked"], *(_share(one[rate]) for rate in ("hit_at_1", "hit_at_5", "refused_answerable")))
            for name, one in report["collections"].items()
        ]
        out.table(("collection", "questions", "hit at 1", "hit at 5", "refused"), rows)
    if report["kept"]:
        out.note(f"These figures are not kept: {report['kept']}")
    out.result(report)
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
    out.result({"checks": checks})
    return 0


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


@docs.command()
@click.argument("document")
@command
async def remove(out: Output, document: str) -> int:
    """Remove a document, its text and its vectors."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    await appliance.library.remove(document)
    await appliance.close()
    out.say("Removed.")
    out.result({"removed": document})
    return 0
