"""How commands speak: results on stdout (or one JSON document there), progress and warnings on stderr.

Hides the terminal: a progress line that rewrites itself on a screen and stays quiet in a log, and plain tables.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json as jsonlib
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from appliance.settings import Settings, load

Result = TypeVar("Result")


class Output:
    """What one command prints. `json`: everything for people goes to stderr, and one document to stdout."""

    def __init__(self, *, json: bool, settings: Settings) -> None:
        self.json = json
        self.settings = settings
        self._live = sys.stderr.isatty()
        self._open = False
        self._last = 0.0

    def say(self, text: str = "") -> None:
        """A line for people: stdout, or stderr under --json."""
        self._end_line()
        click.echo(text, err=self.json)

    def note(self, text: str) -> None:
        """A line about progress or a warning: stderr."""
        self._end_line()
        click.echo(text, err=True)

    def progress(self, text: str) -> None:
        """A line that replaces the one before it; in a log, one every ten seconds."""
        now = time.monotonic()
        if self._live:
            click.echo(f"\r\x1b[2K  {text[:110]}", err=True, nl=False)
            self._open = True
        elif now - self._last > 10:
            self._last = now
            click.echo(f"  {text}", err=True)

    def result(self, document: Any) -> None:
        """The JSON document, under --json only."""
        self._end_line()
        if self.json:
            click.echo(jsonlib.dumps(plain(document), ensure_ascii=False, indent=1, allow_nan=False))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        cells = [[str(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
        for row in [list(head), *cells]:
            self.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def _end_line(self) -> None:
        if self._open:
            click.echo("\r\x1b[2K", err=True, nl=False)
            self._open = False


def plain(value: Any) -> Any:
    """Dataclasses, paths, tuples and figures as JSON can hold them; a figure that is no finite number is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def command(work: Callable[..., Awaitable[Result]]) -> Callable[..., Result]:
    """Turn an async function of (out, ...) into a command body with --json and --home; its return is the exit code."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
    @click.option("--home", type=click.Path(path_type=Path), default=None, help="Folder that holds everything.")
    @click.pass_context
    @functools.wraps(work)
    def run(context: click.Context, /, as_json: bool, home: Path | None, **values: Any) -> Result:
        about = context.find_root().ensure_object(dict)
        settings = load(home=home or about.get("home"))
        about["log_format"] = settings.log_format
        if os.path.exists(settings.switching):
            from appliance.backup import finish

            finish(settings)
        body: Coroutine[Any, Any, Result] = work(Output(json=as_json, settings=settings), **values)  # type: ignore[assignment]
        return asyncio.run(body)

    return run


def seconds(value: float) -> str:
    """A duration as people say it: 48 s, 3 min 05 s."""
    return f"{value:.0f} s" if value < 90 else f"{int(value // 60)} min {int(value % 60):02d} s"


def size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
