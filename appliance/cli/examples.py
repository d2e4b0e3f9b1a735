"""`appliance examples`: tutoring examples, checked before anything is tuned on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from appliance.cli.output import Output, command


@click.group()
def examples() -> None:
    """Check tutoring examples before tuning on them."""


@examples.command()
@click.argument("file", type=click.Path(path_type=Path))
@command
async def validate(out: Output, file: Path) -> int:
    """Read FILE (JSONL or TOML, or a folder of them); every fault is named with its line, all at once."""
    from appliance.tuning.examples import read_examples

    found = read_examples(file)
    subjects = Counter(example.subject or "no subject" for example in found)
    out.say(f"{len(found)} examples, all usable: " + ", ".join(f"{name} {count}" for name, count in subjects.most_common()))
    out.result({"examples": len(found), "subjects": dict(subjects)})
    return 0
