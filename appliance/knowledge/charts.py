"""What the checks of the search found over time, drawn: a line of blocks for a terminal, an SVG without script for a page.

Only answers to the same questions can be compared: where the file of questions changed, the line is broken. Hides geometry and
colours. Knows a check as the mapping that `history` keeps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"
GAP = "·"  # nothing of that sort was asked
SHOWN = 60  # checks; the newest

# What is drawn, what it is called, and how: by dashes and names as well as by colour.
LINES = {
    "hit_at_5": ("right page among the first five", "#1b6e3c", ""),
    "hit_at_1": ("right page first", "#1f4e9c", "7 3"),
    "refused_unanswerable": ("questions without an answer refused", "#8a4b08", "2 3"),
    "refused_answerable": ("questions with an answer refused (less is better)", "#a3173b", "9 3 2 3"),
}
WIDTH, HEIGHT = 640, 240
LEFT, TOP, RIGHT, BOTTOM = 44, 12, 12, 28


def sparkline(rates: Sequence[float | None]) -> str:
    """A block a rate, 0 lowest and 1 highest; the newest SHOWN of them."""
    return "".join(GAP if rate is None else BLOCKS[min(7, int(max(0.0, rate) * 8))] for rate in rates[-SHOWN:])


def text_chart(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each rate: its name, its blocks, its last value. Nothing where there are fewer than two checks."""
    if len(checks) < 2:
        return []
    wide = max(len(what) for what, _, _ in LINES.values())
    lines = []
    for name, (what, _, _) in LINES.items():
        rates = [check.get(name) for check in checks]
        last = next((rate for rate in reversed(rates) if rate is not None), None)
        lines.append(f"{what:<{wide}}  {sparkline(rates)}  {'-' if last is None else f'{last:.2f}'}")
    return lines


def history_chart(checks: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of the checks, the oldest left; each point says what it is when it is pointed at. "" where there is none."""
    checks = checks[-SHOWN:]
    if not checks:
        return ""
    parts = [_frame(checks)]
    for name, (what, colour, dashes) in LINES.items():
        points = [
            (_across(number, len(checks)), _up(float(check[name])), check)
            for number, check in enumerate(checks)
            if check.get(name) is not None
        ]
        if not points:
            continue
        drawn = "".join(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
            for (x1, y1, one), (x2, y2, other) in pairwise(points)
            if one.get("questions") == other.get("questions")
        )
        dots = "".join(
            f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"><title>{escape(_says(check, name, what))}</title></circle>'
            for x, y, check in points
        )
        parts.append(f'<g class="{name}">{drawn}{dots}</g>')
    last = checks[-1]
    told = ", ".join(f"{what} {last[name]:.2f}" for name, (what, _, _) in LINES.items() if last.get(name) is not None)
    label = f"{len(checks)} checks of the search; the last: {told or 'nothing was asked'}."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {HEIGHT + 18 * len(LINES)}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}{_legend()}</svg>'
    )


def by_collection(checks: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The checks of each collection, of its own and as a part of all; what belongs to no collection under ""."""
    found: dict[str, list[dict[str, Any]]] = {}
    for check in checks:
        found.setdefault(check["collection"] or "", []).append(dict(check))
        if check["collection"] is None:
            for name, rates in (check.get("collections") or {}).items():
                part = {"refused_unanswerable": None, **rates, "collection": name}  # earlier checks had none of these
                found.setdefault(name, []).append({**check, **part, "collections": {}})
    return found


def _frame(checks: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(
        f'<line x1="{LEFT}" y1="{_up(rate)}" x2="{WIDTH - RIGHT}" y2="{_up(rate)}" stroke="currentColor" stroke-opacity="0.2"/>'
        f'<text x="{LEFT - 6}" y="{_up(rate) + 4}" text-anchor="end" font-size="12" fill="currentColor">{rate:.2f}</text>'
        for rate in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    ends = [(0, "start")] if len(checks) == 1 else [(0, "start"), (len(checks) - 1, "end")]
    days = "".join(
        f'<text x="{_across(number, len(checks))}" y="{HEIGHT - 8}" text-anchor="{side}" font-size="12" fill="currentColor">'
        f"{_day(checks[number])}</text>"
        for number, side in ends
    )
    return lines + days


def _legend() -> str:
    rows = []
    for number, (what, colour, dashes) in enumerate(LINES.values()):
        y = HEIGHT + 18 * number
        rows.append(
            f'<line x1="{LEFT}" y1="{y + 8}" x2="{LEFT + 40}" y2="{y + 8}" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dashes}"/>'
            f'<text x="{LEFT + 50}" y="{y + 12}" font-size="12" fill="currentColor">{escape(what)}</text>'
        )
    return "".join(rows)


def _says(check: Mapping[str, Any], name: str, what: str) -> str:
    return f"{_day(check)}: {what} {check[name]:.2f} of {check.get('asked', '?')} questions"


def _day(check: Mapping[str, Any]) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(float(check["at"])))


def _across(number: int, of: int) -> float:
    inside = WIDTH - LEFT - RIGHT
    return round(LEFT + (inside / 2 if of == 1 else inside * number / (of - 1)), 1)


def _up(rate: float) -> float:
    inside = HEIGHT - TOP - BOTTOM
    return round(TOP + inside * (1 - min(1.0, max(0.0, rate))), 1)
