"""The drawings of a report: one set's figures with their intervals, before and after, as SVG, and the same in words.

Everything from outside is cleaned and escaped. Hides the scales; it measures nothing.
"""

from __future__ import annotations

import math

from markupsafe import Markup

from appliance.tuning.report import Figure, SetResult
from appliance.tuning.verdicts import SHARE, shown

LONGEST = 1200  # characters of a text that is shown
VERDICTS = {"gained": "Better", "kept": "No sure difference", "lost": "Worse", "not informative": "Says nothing"}


def clean(value: object, longest: int = LONGEST) -> str:
    """A text from outside, not endless."""
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest].rstrip()} ..."


def legend() -> Markup:
    return Markup(
        '<p class="legend"><span><svg width="40" height="14" aria-hidden="true">{}</svg> without tuning</span> '
        '<span><svg width="40" height="14" aria-hidden="true">{}</svg> with tuning</span> '
        '<span class="quiet">The bar is where the true figure lies 19 times in 20.</span></p>'
    ).format(_bar("before", 0.0, 50.0, 100.0, 7), _bar("after", 0.0, 50.0, 100.0, 7))


def chart(one: SetResult) -> Markup:
    """One set: both figures with their intervals on one scale, and the same in words."""
    low, high = _scale(one)
    told = (
        f"without tuning {_said(one.before, one.unit)}, with tuning {_said(one.after, one.unit)}; "
        f"{one.n} {'question' if one.n == 1 else 'questions'}."
    )
    bars = [
        _bar(name, _place(figure.low, low, high), _place(figure.value, low, high), _place(figure.high, low, high), at)
        for name, figure, at in (("before", one.before, 12), ("after", one.after, 30))
    ]
    axis = Markup('<line class="axis" x1="0" x2="100%" y1="41.5" y2="41.5"/>')
    less = "← less loss is better" if one.unit.startswith("log per") else "← less is better"
    better = "more is better →" if one.better == "higher" else less
    return Markup(
        '<div class="set {state}">\n<p class="top"><strong>{title}</strong> <span class="state">{verdict}</span></p>\n'
        '<svg role="img" width="100%" height="42"><title>{title}: {told}</title>{bars}{axis}</svg>\n'
        '<p class="scale" aria-hidden="true"><span>{low}</span><span>{better}</span><span>{high}</span></p>\n'
        '<p class="words">{upper}{note}</p>\n</div>'
    ).format(
        state=one.verdict.replace(" ", "-"), title=clean(one.title), verdict=VERDICTS.get(one.verdict, clean(one.verdict)),
        told=told, bars=Markup("").join(bars), axis=axis, low=shown(low, one.unit), high=shown(high, one.unit), better=better,
        upper=told[:1].upper() + told[1:], note=f" {clean(one.note)}" if one.note else "",
    )  # fmt: skip


def _said(figure: Figure, unit: str) -> str:
    return f"{shown(figure.value, unit)} ({shown(figure.low, unit)} to {shown(figure.high, unit)})"


def _scale(one: SetResult) -> tuple[float, float]:
    """Shares on the whole scale, so that a small change looks small; the rest about what was measured."""
    if one.unit == SHARE:
        return 0.0, 1.0
    ends = [value for figure in (one.before, one.after) for value in (figure.low, figure.high) if math.isfinite(value)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = 0.25 * (high - low) or abs(high) * 0.1 or 1.0
    return (low - room if low < 0 else max(0.0, low - room)), high + room


def _place(value: float, low: float, high: float) -> float:
    """Per cent of the scale's width."""
    return min(100.0, max(0.0, 100 * (value - low) / (high - low))) if math.isfinite(value) else 0.0


def _bar(name: str, low: float, value: float, high: float, at: int) -> Markup:
    """An interval and its figure: a ring before, a filled square after, so that they differ without colour too."""
    mark = (
        Markup('<circle r="5" cx="0" cy="0"/>') if name == "before" else Markup('<rect x="-5" y="-5" width="10" height="10"/>')
    )
    return Markup(
        '<g class="{name}"><line x1="{low:.2f}%" x2="{high:.2f}%" y1="{at}" y2="{at}"/>'
        '<svg x="{value:.2f}%" y="{at}" overflow="visible">{mark}</svg></g>'
    ).format(name=name, low=low, high=high, value=value, at=at, mark=mark)
