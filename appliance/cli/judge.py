"""`appliance models evaluate` and `compare`: one model against another, by the sets or by people's eyes.

What is asked is `judging.py`'s and `blind.py`'s; here it is printed, and a person is asked which answer is better.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from appliance.cli import connecting
from appliance.cli.output import Output, command

if TYPE_CHECKING:
    from appliance.registry import Manifest
    from appliance.tuning.blind import Comparison, Pair, Question

CHOICES = {"1": "the first", "2": "the second", "t": "a tie", "b": "both bad", "q": "stop for now"}
WIDEST, NARROWEST = 140, 90  # columns of a terminal in which two answers stand beside each other


@click.command()
@click.argument("name", metavar="ID")
@click.option("--against", metavar="ID", help="Left out: what serves on the same base, else the base.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the page here as well.")
@command
async def evaluate(out: Output, name: str, against: str | None, html: Path | None) -> int:
    """Judge a model, or a prompt program, again: a table here, and a page for people. Exit code 4 where it would not pass."""
    from appliance.app import Appliance
    from appliance.files import write_atomically
    from appliance.jobs import Jobs
    from appliance.tuning.judging import judge
    from appliance.tuning.report_page import verdict
    from appliance.tuning.verdicts import shown

    appliance = Appliance.open(out.settings)
    try:
        if (found_program := connecting.program(appliance, name)) is not None:
            with Jobs(appliance.database, out.settings).hold("heavy"):
                return await connecting.judge_program(out, appliance, found_program)
        with Jobs(appliance.database, out.settings).hold("heavy"):
            found = await judge(
                out.settings,
                name,
                against,
                outside=appliance.hosting.use,
                on_item=lambda done, total: out.progress(f"{done} of {total} questions"),
            )
    finally:
        await appliance.close()
    report = found.report
    if not found.own:
        out.note("Its own held-out conversations are not on this box: it was judged by the project's.")
    rows = [(one.title, shown(one.before.value, one.unit), shown(one.after.value, one.unit), one.verdict, one.n)
            for one in report.sets.values()]  # fmt: skip
    out.table(("asked", report.baseline, report.candidate, "verdict", "n"), rows)
    out.say()
    out.table(("", "without tuning", "with tuning"), [(line.title, line.without, line.tuned) for line in report.table])
    out.say()
    out.say(verdict(report))
    for reason in report.regressions:
        out.say(f"  {reason}")
    if html is not None:
        write_atomically(html, found.html.read_bytes(), private=False)
    out.say(f"The report: {html or found.html}")
    out.result({"id": report.candidate, "report": report.to_json(), "json": found.json, "html": html or found.html})
    return 0 if report.passed else 4


@click.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.option("--blind", is_flag=True, help="Choose the better answer without knowing whose it is.")
@click.option("--questions", type=click.Path(path_type=Path), help="One question a line, or examples; left out, the project's.")
@click.option("-n", "count", type=click.IntRange(1, 500), default=10, show_default=True, help="Ask this many of them.")
@click.option("--judge", "person", default=None, metavar="NAME", help="Who chooses; left out, whoever is signed in here.")
@command
async def compare(
    out: Output, one: str, other: str, blind: bool, questions: Path | None, count: int, person: str | None
) -> int:
    """Ask models A and B the same questions: both answers side by side, or blind."""
    from appliance.app import Appliance
    from appliance.audit import unix_name
    from appliance.registry import Registry
    from appliance.tuning import blind as comparing

    appliance = Appliance.open(out.settings)
    try:
        if any(connecting.program(appliance, name) is not None for name in (one, other)):
            return connecting.compare_programs(out, appliance, (one, other))
    finally:
        await appliance.close()
    registry = Registry(out.settings.models)
    first, second = registry.get(one), registry.get(other)
    asked = comparing.questions(out.settings, questions, count)
    comparison = comparing.Comparison(out.settings, first, second)
    pairs = await _answered(out, comparison, asked)
    if blind:
        return _ask(out, comparison, pairs, person or unix_name(), (first.id, second.id))
    return _show(out, pairs, (first, second), comparison)


async def _answered(out: Output, comparison: Comparison, asked: Sequence[Question]) -> list[Pair]:
    """Every question with both answers; the models are loaded only where one was not answered before."""
    from appliance.plugins.hosting import Hosting
    from appliance.tuning.judging import serving

    known = comparison.pairs()
    if all(comparison.key(question) in known for question in asked):
        return [known[comparison.key(question)] for question in asked]
    out.note("Asking both models.")
    hosting = Hosting(out.settings)
    async with hosting, serving(out.settings, comparison.models, hosting.use) as handlers:
        return await comparison.answer(
            handlers, asked, tokens=out.settings.answer_tokens,
            on_item=lambda done, total: out.progress(f"{done} of {total} questions"),
        )  # fmt: skip


def _show(out: Output, pairs: Sequence[Pair], models: tuple[Manifest, Manifest], comparison: Comparison) -> int:
    """Both answers side by side, here and as a page."""
    from appliance.files import write_atomically
    from appliance.tuning import blind as comparing
    from appliance.tuning.report_page import side_by_side

    names = (models[0].id, models[1].id)
    pairs = comparison.ordered(pairs, names[0])
    for number, pair in enumerate(pairs, start=1):
        out.say(f"{number}. {clean(pair.question)}")
        beside(out, names, pair.answers)
    chosen = comparing.result(out.settings, *names)
    html = out.settings.reports / f"{names[0]}-beside-{names[1]}.html"
    write_atomically(html, side_by_side(out.settings, names, pairs, chosen))
    if chosen is not None:
        out.say(chosen.sentence)
    out.say(f"The same as a page: {html}")
    rows = [{"question": pair.question, "answers": dict(zip(names, pair.answers, strict=True))} for pair in pairs]
    out.result({"models": names, "pairs": rows, "html": html, "result": chosen.to_json() if chosen else None})
    return 0


def _ask(out: Output, comparison: Comparison, pairs: Sequence[Pair], person: str, names: tuple[str, str]) -> int:
    """Ask a person about every pair not yet judged; each choice is kept at once, and names are told after the last."""
    left = comparison.open(pairs, person)
    total = len(left)
    if left and total < len(pairs):
        out.say(f"Going on: {len(pairs) - total} of {len(pairs)} were judged before.")
    for number, pair in enumerate(left, start=1):
        out.say(f"\nQuestion {number} of {total}: {clean(pair.question)}")
        beside(out, ("Answer 1", "Answer 2"), comparison.shown(pair, person))
        choice = _choice(out)
        if choice == "q":
            break
        comparison.choose(pair, cast(Literal["1", "2", "t", "b"], choice), person)
    open_still = len(comparison.open(pairs, person))
    result = comparison.result(*names) if not open_still else None
    if result is not None:
        from appliance.tuning.report_page import people_chose

        people_chose(out.settings, *names)  # the same report carries what people prefer
        out.say(f"\n{result.sentence}")
    else:
        out.say(f"\nKept. {open_still} of {len(pairs)} are left: run the same command again to go on.")
    told = {"judged": len(pairs) - open_still, "left": open_still, "finished": not open_still, "file": comparison.path}
    out.result({"models": names, **told, "result": result.to_json() if result else None})
    return 0


def _choice(out: Output) -> str:
    """One of CHOICES; "q" where nobody answers any more."""
    told = ", ".join(f"{key} {what}" for key, what in CHOICES.items())
    try:
        choice: str = click.prompt(
            f"Which is better? ({told})",
            type=click.Choice(list(CHOICES), case_sensitive=False),
            show_choices=False,
            err=out.json,
        )
    except click.Abort:
        return "q"
    return choice


def beside(out: Output, names: tuple[str, str], answers: tuple[str, str]) -> None:
    """Two texts in two columns; below each other where the terminal is narrow."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    texts = [clean(answer) or "(no answer)" for answer in answers]
    if width < NARROWEST:
        for name, text in zip(names, texts, strict=True):
            out.say(f"  {name}:")
            out.say(textwrap.indent("\n".join(_wrapped(text, max(20, width - 4))), "    "))
        out.say()
        return
    half = width // 2 - 2
    columns = [[name, "-" * len(name), *_wrapped(text, half)] for name, text in zip(names, texts, strict=True)]
    for row in range(max(map(len, columns))):
        left, right = (column[row] if row < len(column) else "" for column in columns)
        out.say(f"{left.ljust(half)}    {right}".rstrip())
    out.say()


def _wrapped(text: str, width: int) -> list[str]:
    return [piece for line in text.splitlines() for piece in (textwrap.wrap(line, width) or [""])]


def clean(text: str) -> str:
    """Without control characters: what a model says must not steer the terminal, nor turn its lines about."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", text)
