"""Small drawings of the last weeks for the health page: a bar for each day, in figures that a template can draw as SVG.

Hides scales and how a figure is written. It measures nothing and says no word: titles are the template's, in the reader's
language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

from appliance.figures import Day, Figures

DAYS = 28
WIDTH, HEIGHT = 280, 72  # of a drawing, in its own units
GAP = 2


@dataclass(frozen=True, slots=True)
class Bar:
    """One day. shown: its figure as it is written, "" where nothing was seen. x, y, height: in the drawing's units."""

    day: date
    shown: str
    x: int
    y: int
    height: int


@dataclass(frozen=True, slots=True)
class Chart:
    """name: questions, first_words, answer, waiting, memory or disk. newest, most: as written, "" where there is nothing."""

    name: str
    bars: Sequence[Bar]
    newest: str
    most: str
    width: int = WIDTH // DAYS - GAP


def charts(figures: Figures) -> Sequence[Chart]:
    """Of every figure that the box keeps, over the last DAYS. Blocking."""
    return [
        _chart("questions", figures.questions(DAYS), _mean, lambda value: f"{value:.0f}"),
        _chart("first_words", figures.days("first_words", DAYS), _mean, _seconds),
        _chart("answer", figures.days("answer", DAYS), _mean, _seconds),
        _chart("waiting", figures.days("waiting", DAYS), _most, lambda value: f"{value:.0f}"),
        _chart("memory", figures.days("memory", DAYS), _most, _share, 1.0),
        _chart("disk", figures.days("disk", DAYS), _most, _share, 1.0),
    ]


def _mean(day: Day) -> float | None:
    return day.mean


def _most(day: Day) -> float | None:
    return day.most


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _chart(
    name: str, days: Sequence[Day], pick: Callable[[Day], float | None], write: Callable[[float], str], top: float = 0.0
) -> Chart:
    """top: what the full height stands for; 0: the highest of them."""
    values = [pick(day) for day in days]
    seen = [value for value in values if value is not None]
    scale = top or max(seen, default=0.0) or 1.0
    bars = []
    for number, (day, value) in enumerate(zip(days, values, strict=True)):
        height = 0 if not value else max(1, min(HEIGHT, round(HEIGHT * value / scale)))
        shown = "" if value is None else write(value)
        bars.append(Bar(day.day, shown, number * WIDTH // len(days), HEIGHT - height, height))
    newest = bars[-1].shown if bars else ""
    return Chart(name, bars, newest, write(max(seen)) if seen and max(seen) > 0 else "")
