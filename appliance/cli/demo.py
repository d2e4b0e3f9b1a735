"""`appliance demo`: the whole promise on one screen, with real figures.

Documents in, a model tuned on tutoring examples, judged on held-out ones through the file that will be served, exported,
promoted, and asked a question. On the sample content, or on the school's own. A second run finds what is done and is quick.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from appliance.cli.adding import add_all
from appliance.cli.ask import answer_to
from appliance.cli.ask import show as show_answer
from appliance.cli.output import Output, command, seconds
from appliance.cli.tune import run
from appliance.errors import NotFound
from appliance.knowledge.shelves import EVERYTHING

SAMPLE_QUESTION = "Why are leaves green?"
# "A factor is ...": a sentence that defines something tells a question which the document answers.
DEFINITION = re.compile(r"\b(?:An?|The) ((?:[a-z]+ ){0,2}[a-z]{4,}) is (?:an?|the|called)\b")


@click.command()
@click.option("--documents", type=click.Path(path_type=Path), default=None, help="Your documents instead of the samples.")
@click.option(
    "--examples", type=click.Path(path_type=Path), default=None, help="Your tutoring examples instead of the samples."
)
@click.option("--limit", type=click.IntRange(min=20), default=400, show_default=True, help="Examples to use at most.")
@click.option("--question", default=None, help="What to ask at the end.")
@click.option("--no-serve", is_flag=True, help="Accepted for scripts: this command never serves.", hidden=True)
@command
async def demo(
    out: Output,
    documents: Path | None,
    examples: Path | None,
    limit: int,
    question: str | None,
    no_serve: bool,  # noqa: ARG001 - quickstart hands its options on
) -> int:
    """See the whole loop on this machine: add, tune, judge, export, promote, ask."""
    from appliance.app import Appliance

    began = time.monotonic()
    appliance = Appliance.open(out.settings)
    try:
        async with appliance.running_engine(out.note):
            out.say("1. The school's documents")
            paths = (documents or out.settings.content / "documents",)
            reports = await add_all(out, appliance, paths, "school" if documents else "samples")
            added = [report for report in reports if not report.error]
            if not added:
                raise NotFound(
                    "No document could be read, so there is nothing to answer from.", "Give others: --documents PATH."
                )
            out.say("\n2. A model, tuned on tutoring examples")
            chosen = examples or out.settings.content / "examples"
            result = await run(out, appliance, examples=chosen, limit=limit, promote=True)
            for sample in result.report.samples[:1]:
                _sample(out, sample)
            out.say("\n3. A question")
            question = question or (await _question(appliance, added) if documents else SAMPLE_QUESTION)
            out.say(f"{question}\n")
            answer = await answer_to(appliance, question)
            show_answer(out, answer)
    finally:
        await appliance.close()
    out.say(f"\nDone in {seconds(time.monotonic() - began)}, and nothing left this machine.")
    out.result(result.to_json() | {"documents": len(added), "ask": answer, "seconds_total": time.monotonic() - began})
    if not answer["covered"]:
        out.note("The documents do not answer that question: ask one that they do, with --question.")
        return 1
    return 0 if result.promoted else 4


def _sample(out: Output, sample: Any) -> None:
    out.say("\nThe same pupil, before and after (a starter model babbles; what counts above is the measured loss):")
    for label in ("question", "before", "after"):
        text = " ".join(getattr(sample, label).split())
        out.say(f"  {label:9} {text[:150]}{'...' if len(text) > 150 else ''}")


async def _question(appliance: Any, added: list[Any]) -> str:
    """Something that the documents answer: about what one of their sentences defines, else about a title."""
    terms: list[str] = []
    title = ""
    for report in added[:5]:
        about, passages = await appliance.library.document(report.document, EVERYTHING)
        title = title or about.title
        terms += [found[1] for passage in passages if (found := DEFINITION.search(passage.text))]
    for term in dict.fromkeys(terms[:20]):
        question = f"What is a {term}?"
        if (await appliance.library.search(question, k=1, within=EVERYTHING)).covered:
            return question
    return f"What is {title} about?"
