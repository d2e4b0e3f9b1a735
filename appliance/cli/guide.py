"""`appliance guide`: the short guides, readable on a box without internet."""

from __future__ import annotations

import click

from appliance.cli.output import Output, command
from appliance.errors import NotFound


@click.command()
@click.argument("name", required=False)
@command
async def guide(out: Output, name: str | None) -> int:
    """Print a short guide: tuning, good-practice, troubleshooting."""
    folder = out.settings.content / "guides"
    names = sorted(path.stem for path in folder.glob("*.md"))
    if name is None:
        for each in names:
            title = (folder / f"{each}.md").read_text("utf-8").splitlines()[0].lstrip("# ")
            out.say(f"{each:16} {title}")
        out.result({"guides": names})
        return 0
    if name not in names:
        raise NotFound(f"There is no guide called {name!r}.", f"The guides are {', '.join(names)}.")
    text = (folder / f"{name}.md").read_text("utf-8")
    out.say(text.rstrip())
    out.result({"guide": name, "text": text})
    return 0
