"""`appliance ask`: one question, one answer with its sources."""

from __future__ import annotations

import re
from typing import Any

import click

from appliance.cli.output import Output, command


@click.command()
@click.argument("question")
@click.option("--collection", default=None, help="Answer from this collection only.")
@click.option("--module", default="teacher_responder", help="Prompt program.")
@click.option("--model", default="default", help="A model's id or alias, or `quotes`.")
@click.option("--subject", default=None)
@click.option("--grade", default=None)
@command
async def ask(
    out: Output, question: str, collection: str | None, module: str, model: str, subject: str | None, grade: str | None
) -> int:
    """Ask QUESTION; the answer cites the school's documents."""
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        async with appliance.running_engine(out.note, required=False):
            answer = await answer_to(
                appliance, question, collection=collection, model=model, module=module, subject=subject, grade=grade
            )
    finally:
        await appliance.close()
    show(out, answer)
    out.result(answer)
    return 3 if answer["handler"] == "support" else 0  # refused by policy: what was shown is a fixed text


async def answer_to(appliance: Any, question: str, *, collection: str | None = None, **options: Any) -> dict[str, Any]:
    """The answer as interface.md's `ask --json`. `appliance` is app.Appliance."""
    user = appliance.accounts.local_administrator()
    collections = [collection] if collection else None
    answer: dict[str, Any] = await appliance.chat.ask(user, question, collections=collections, **options)
    return answer


def show(out: Output, answer: dict[str, Any]) -> None:
    """Print an answer for people."""
    out.say(answer["answer"].strip())
    cited = {int(number) for number in re.findall(r"\[(\d+)\]", answer["answer"])}
    out.say()
    for number, passage in enumerate(answer["passages"], 1):
        if number in cited:
            out.say(f"[{number}] {passage['title']}" + (f", {passage['place']}" if passage["place"] else ""))
    out.say(f"(answered by {answer['model']} in {answer['seconds']:.1f} s)")
