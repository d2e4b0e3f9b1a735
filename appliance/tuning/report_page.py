"""The report as one page that a head teacher reads: what tuning changed, how sure that is, why it was refused, how to go back.

One file of HTML with its own styles and drawings, no script and nothing fetched, so that it can be printed, mailed or put on a
stick. Everything from outside is escaped by `Markup.format`; a content policy in the page is the second wall. Measures and
judges nothing: the figures are `evaluate.py`'s, people's choices `blind.py`'s. Earlier reports are shown as far as they go.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from appliance.errors import ApplianceError
from appliance.files import write_atomically
from appliance.registry import Manifest, Registry
from appliance.settings import Settings
from appliance.tuning import blind
from appliance.tuning.report import Line, Report, SetResult
from appliance.tuning.report_chart import chart, clean, legend
from appliance.tuning.run_folder import read_json, write_json
from appliance.tuning.verdicts import FEWEST, hurried

ROWS_SHOWN = 12
# What the first table always answers; a line that a run did not measure says so.
PROMISED = {
    "knowledge": "Domain knowledge: right one of four answers",
    "hints": "Pedagogy: final answer kept back until the last hint",
    "consistency": "Consistency: same answer to every wording",
    "reading": "Reading level: distance from the pupil's grade",
    "prompt": "Tokens of instructions needed for the same quality",
    "bytes": "Bytes that left the building",
    "cost": "Cost of an answer",
}
UNMEASURED = "not measured"
ROLES = {
    "primary": ("What decides", "Tuning must surely gain on the new conversations, and must not lose on the old ones."),
    "guard": ("What must not get worse", "A sure loss, or one larger than the limit, refuses the model."),
    "information": ("For information", "Measured, but it decides nothing."),
}
STYLES = Path(__file__).resolve().parents[1] / "content" / "report.css"
# Control characters and half characters, which no page can hold: the whole page is rid of them at the end.
NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Facts:
    """What is known beside the report; whatever is missing is left out of the page.

    dataset: the card of the data it was tuned on. plan: which rows were used and why others were not. comparisons: what people
    chose, the model as `b`.
    """

    school: str = ""
    manifest: Manifest | None = None
    dataset: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    comparisons: Sequence[blind.Result] = ()


def page(report: Report | Mapping[str, Any], *, facts: Facts | None = None) -> str:
    """The whole page. `report`: the gate's, or its JSON as any version wrote it."""
    found = report if isinstance(report, Report) else Report.from_json(dict(report))
    known = facts or Facts()
    parts = [
        _verdict(found, known),
        _first_table(found, known),
        _charts(found),
        _refused(found, known),
        _samples(found),
        _people(found, known.comparisons),
        _lineage(found, known),
        _going_back(found, known),
        _words(),
    ]
    return document(f"{found.candidate}: without and with tuning", known.school, parts)


def save(settings: Settings, report: Report, path: Path, run: Path | None = None) -> Path:
    """Write the page for a report to `path`, with all that is known of its candidate. Raises StorageFull."""
    write_atomically(path, page(report, facts=gather(settings, report.candidate, run)))
    return path


def with_people(settings: Settings, report: Report) -> Report:
    """The report with what people chose between its two models' answers until now (`people`); as it is where nobody chose."""
    found = blind.result(settings, report.baseline, report.candidate)
    return report if found is None else replace(report, people=found.to_json())


def people_chose(settings: Settings, a: str, b: str) -> None:
    """Bring up to date every report of this box about these two models, whichever is the candidate. Raises StorageFull."""
    runs = [*settings.runs.glob("*/report.json"), *settings.runs.glob("*/named/*/report.json")]
    for path in [*runs, *settings.reports.glob("*.json")]:
        row = _object(path)
        if {row.get("candidate"), row.get("baseline")} != {a, b}:
            continue
        try:
            before = Report.from_json(row)
        except (TypeError, KeyError, ValueError, AttributeError):
            continue  # damaged: whoever needs it makes it again
        after = with_people(settings, before)
        if after.people != before.people:
            write_json(path, row | {"people": after.people})
            if path.with_suffix(".html").exists():
                within = settings.runs / path.relative_to(settings.runs).parts[0] if path in runs else None
                save(settings, after, path.with_suffix(".html"), within)


def gather(settings: Settings, id: str, run: Path | None = None) -> Facts:
    """What this box knows of a model. `run`: the folder of the run that made it, where it is still there."""
    registry = Registry(settings.models)
    try:
        manifest: Manifest | None = registry.get(id)
    except ApplianceError:
        manifest = None
    places = [registry.root / manifest.id / "dataset.json"] if manifest else []
    card = next((card for path in [*places, *([run / "data" / "card.json"] if run else [])] if (card := _object(path))), {})
    judged = manifest.report if manifest and manifest.report else {}
    training = judged.get("training") or (_object(run / "done" / "train.json") if run else {})
    return Facts(
        school=settings.school,
        manifest=manifest,
        dataset=card,
        recipe=_object(run / "recipe.json") if run else {},
        plan=_object(run / "plan.json") if run else {},
        training=training if isinstance(training, dict) else {},
        comparisons=blind.results(settings, id),
    )


def document(title: str, school: str, parts: Iterable[Markup]) -> str:
    """A page of this house: head, styles, one heading, the parts."""
    made = time.strftime("%-d %B %Y, %H:%M")
    html = Markup(
        '<!doctype html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        "<title>{title}</title>\n<style>\n{styles}</style>\n</head>\n<body>\n"
        '<header><p class="school">{school}</p><h1>{title}</h1><p class="quiet">Written on {made}, on the school\'s own '
        "machine.</p></header>\n<main>\n{parts}</main>\n</body>\n</html>\n"
    ).format(
        policy=Markup(POLICY), title=clean(title), styles=Markup(STYLES.read_text("utf-8")),
        school=clean(school), made=made, parts=Markup("\n").join(parts),
    )  # fmt: skip
    return NO_TEXT.sub("\ufffd", str(html))


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _section(title: str, *parts: Markup) -> Markup:
    return Markup("<section>\n<h2>{}</h2>\n{}\n</section>\n").format(title, Markup("\n").join(parts))


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], style: str = "") -> Markup:
    """A table whose first column heads its rows. Cells may be Markup."""
    top = Markup("").join(Markup('<th scope="col">{}</th>').format(cell) for cell in head)
    body = []
    for first, *others in rows:
        cells = Markup("").join(
            Markup('<td data-head="{}">{}</td>').format(name, cell) for name, cell in zip(head[1:], others, strict=True)
        )
        body.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(first, cells))
    return Markup(
        '<table class="{}">\n<caption><span>{}</span></caption>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>'
    ).format(style, caption, top, Markup("\n").join(body))


def _list(items: Iterable[object]) -> Markup:
    return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(item) for item in items))


# --- the verdict and the first table ----------------------------------------------------------------------------------


def verdict(report: Report) -> str:
    """The gate's decision in one sentence without figures."""
    name, rival = clean(report.candidate), clean(report.baseline)
    lost = [one.title for one in report.sets.values() if one.role != "information" and one.verdict == "lost"]
    if report.passed and report.unmeasured:
        return f"Passed, by its answers alone: {name} is surely better than {rival} in something, and lost nothing measured."
    if report.passed:
        rest = "and lost nothing that is checked" if report.sets else "; nothing else was checked in this run"
        return f"Passed: {name} is surely better than {rival} on lessons that neither had seen{_joined(rest)}."
    if report.n < FEWEST:
        return f"Refused: only {report.n} conversations were held back, too few to judge {name} by."
    if lost or report.regressions:
        what = " and ".join(f"“{title}”" for title in lost[:3]) or "what is checked"
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        return f"Refused: {name} became worse than {rival} at {what}{more}."
    if hurried(report.sets):
        return f"Refused: there was too little time to compare {name} with {rival} in everything that is checked."
    return f"Refused: it is not certain that {name} is better than {rival}."


def _joined(rest: str) -> str:
    return rest if rest.startswith(";") else f", {rest}"


def _verdict(report: Report, facts: Facts) -> Markup:
    html = '<section class="verdict {}">\n<h2 class="hidden">Verdict</h2>\n<p class="lead">{}</p>\n<p>{}</p>\n</section>\n'
    return Markup(html).format("passed" if report.passed else "refused", verdict(report), _state(report, facts))


def _state(report: Report, facts: Facts) -> str:
    aliases = facts.manifest.aliases if facts.manifest else ()
    if "champion" in aliases:
        return "It answers in this school now." if report.passed else "It answers in this school now; to go back, see below."
    if "previous" in aliases:
        return "It served before the present model, and can be gone back to."
    return "It does not serve." if report.passed else "It does not serve; the model before goes on answering."


def _first_table(report: Report, facts: Facts) -> Markup:
    """Without tuning, with tuning: what was measured, and of the promised lines also those that were not."""
    lines = list(report.table) or [
        Line("new", "Loss per token on the new conversations", f"{report.before.value:.3f}", f"{report.after.value:.3f}")
    ]
    there = {line.name for line in lines}
    lines += [Line(name, title, UNMEASURED, UNMEASURED) for name, title in PROMISED.items() if name not in there]
    rows = []
    for line in sorted(lines, key=lambda line: list(PROMISED).index(line.name) if line.name in PROMISED else len(PROMISED)):
        title = (
            Markup('{}<span class="note">{}</span>').format(clean(line.title), clean(line.note))
            if line.note
            else clean(line.title)
        )
        rows.append((title, _value(line.without), _value(line.tuned)))
    told = Markup('<p class="quiet">“Without tuning” is {}, “with tuning” is {}. Both answered the same questions.{}</p>')
    table = _table("The same questions, without and with tuning", ("", "Without tuning", "With tuning"), rows, "figures stack")
    base = facts.manifest.base if facts.manifest else None
    tuned = " The first was itself tuned earlier." if base and base != report.baseline else ""
    return _section("Without and with tuning", table, told.format(clean(report.baseline), clean(report.candidate), tuned))


def _value(text: str) -> Markup:
    return Markup('<span class="{}">{}</span>').format("none" if text == UNMEASURED else "value", clean(text))


# --- the charts -------------------------------------------------------------------------------------------------------


def _charts(report: Report) -> Markup:
    if not report.sets:
        only = SetResult(
            "new", "The new conversations that were held back", "primary", "log per token", "lower", report.n,
            report.before, report.after, report.difference, 0.0, "gained" if report.difference.high < 0 else "kept",
        )  # fmt: skip
        return _section("Before and after, with what is uncertain", legend(), chart(only))
    parts = [legend()]
    for role, (title, told) in ROLES.items():
        rows = [one for one in report.sets.values() if one.role == role]
        if rows:
            parts.append(Markup('<h3>{}</h3>\n<p class="quiet">{}</p>').format(title, told))
            parts += [chart(one) for one in rows]
    return _section("Before and after, with what is uncertain", *parts)


# --- what was refused, answers, people --------------------------------------------------------------------------------


def _refused(report: Report, facts: Facts) -> Markup:
    parts = [Markup("<p>{}</p>").format("The gate's reasons, in figures:"), _list(clean(reason) for reason in report.reasons)]
    if not report.reasons:
        parts = [Markup("<p>The gate gave no reason.</p>")]
    silent = [one.title for one in report.sets.values() if one.verdict == "not informative"]
    if silent:
        parts.append(Markup("<p>{}</p>").format("Nothing could be learned from these sets, so they count neither way:"))
        parts.append(_list(clean(title) for title in silent))
    if report.skipped:
        parts.append(Markup("<p>{}</p>").format(f"{report.skipped} held-back conversations were too long and were left out."))
    rows = _left_out(facts)
    if rows:
        parts.append(_table("Rows that were not learned from, by reason", ("Reason", "Rows"), rows, "counts"))
    warnings = facts.plan.get("warnings")
    if isinstance(warnings, list) and warnings:
        parts.append(_list(clean(warning) for warning in warnings[:ROWS_SHOWN]))
    return _section("What was refused, and why" if rows or not report.passed else "Why it passed", *parts)


def _left_out(facts: Facts) -> list[tuple[str, str]]:
    """Reason and number of rows: of the plan where rows were chosen, of the dataset's card otherwise."""
    from appliance.tuning.selection import REASONS

    refused = facts.plan.get("refused")
    if isinstance(refused, list):
        counts = Counter(str(row.get("code", "")) for row in refused if isinstance(row, dict))
        return [(clean(REASONS.get(code, code)).capitalize(), str(count)) for code, count in counts.most_common()]
    dropped = facts.dataset.get("dropped")
    names = dropped.items() if isinstance(dropped, dict) else ()
    return [(clean(name).replace("_", " ").capitalize(), str(count)) for name, count in names if count]


def _samples(report: Report) -> Markup:
    if not report.samples:
        return Markup("")
    parts = [
        _answers(one.question, ("Without tuning", one.before), ("With tuning", one.after), ("What the tutor said", one.wanted))
        for one in report.samples
    ]
    return _section("The same question, answered by both", *parts)


def _answers(question: str, *said: tuple[str, str]) -> Markup:
    boxes = Markup("").join(
        Markup('<div><h4>{}</h4><p class="said" dir="auto">{}</p></div>').format(clean(who), clean(text) or "(no answer)")
        for who, text in said
    )
    return Markup('<article>\n<h3 dir="auto">{}</h3>\n<div class="sides">{}</div>\n</article>').format(clean(question), boxes)


def _people(report: Report, comparisons: Sequence[blind.Result]) -> Markup:
    """What is known now; the report's own record stands in for a comparison that is gone."""
    if report.people and not any({one.a, one.b} == {report.baseline, report.candidate} for one in comparisons):
        comparisons = [*_recorded(report.people), *comparisons]
    if not comparisons:
        command = f"appliance models compare {clean(report.baseline)} {clean(report.candidate)} --blind"
        told = Markup("<p>Nobody has compared the answers blind yet. To do so: <code>{}</code></p>").format(command)
        return _section("What people preferred", told)
    rows = []
    for one in comparisons:
        span = "-" if one.share is None else "{:.0f} % ({:.0f} to {:.0f} %)".format(*(100 * value for value in one.share))
        rows.append((clean(one.a), str(one.wins[1]), str(one.wins[0]), str(one.ties), str(one.bad), str(one.judges), span))
    head = ("Compared with", "Preferred", "Not preferred", "Ties", "Neither", "People", "Share of its wins")
    table = _table("Choices between two answers whose models were hidden", head, rows, "stack")
    return _section("What people preferred", table, *(Markup("<p>{}</p>").format(one.sentence) for one in comparisons[:3]))


def _recorded(people: Mapping[str, Any]) -> list[blind.Result]:
    """A result from its JSON; none where somebody else wrote something there."""
    try:
        values = {name.name: people[name.name] for name in fields(blind.Result)}
        share = values["share"]
        low_high = None if share is None else (float(share[0]), float(share[1]), float(share[2]))
        wins = (int(values["wins"][0]), int(values["wins"][1]))
        counts = {name: int(values[name]) for name in ("n", "ties", "bad", "judges")}
        return [blind.Result(str(values["a"]), str(values["b"]), wins=wins, share=low_high, **counts)]
    except (KeyError, TypeError, ValueError, IndexError):
        return []


# --- where it comes from, how to go back ------------------------------------------------------------------------------


def _lineage(report: Report, facts: Facts) -> Markup:
    manifest, card, recipe = facts.manifest, facts.dataset, facts.recipe
    rows: list[tuple[str, object]] = [("Model", report.candidate), ("Compared with", report.baseline)]
    if manifest:
        rows += [("Base", manifest.base or "-"), ("Licence", manifest.licence), ("Registered", _day(manifest.created))]
    if card:
        rows.append(
            ("Conversations", f"{card.get('train', '?')} to learn from, {card.get('held_out', '?')} held back to judge")
        )
    origins = {"subject": "Subjects", "standard": "Standards", "source": "Sources", "licence": "Licences of the data"}
    for key, title in origins.items():
        if isinstance(card.get(key), dict):
            rows.append((title, ", ".join(f"{name} ({count})" for name, count in list(card[key].items())[:ROWS_SHOWN])))
    if isinstance(card.get("redactions"), dict) and card["redactions"]:
        taken = ", ".join(f"{count} x {str(kind).replace('_', ' ')}" for kind, count in card["redactions"].items())
        rows.append(("Personal data taken out", taken))
    if recipe:
        rows.append(("Recipe", ", ".join(f"{name} {value}" for name, value in recipe.items() if value not in ("", 0, False))))
    if isinstance(facts.training.get("seconds"), (int, float)):
        rows.append(("Time of training", f"{facts.training['seconds'] / 60:.1f} minutes"))
    data = (manifest.dataset if manifest else None) or card.get("digest")
    for title, digest in (("Data (sha256)", data), ("Recipe (sha256)", manifest.recipe if manifest else None)):
        if digest:
            rows.append((title, Markup("<code>{}</code>").format(clean(digest))))
    shown_rows = [(name, value if isinstance(value, Markup) else clean(value)) for name, value in rows]
    return _section("Where it comes from", _table("Origin of this model", ("", ""), shown_rows, "facts"))


def _day(stamp: float) -> str:
    return time.strftime("%-d %B %Y, %H:%M", time.localtime(stamp)) if stamp else "-"


def _going_back(report: Report, facts: Facts) -> Markup:
    serves = facts.manifest is not None and "champion" in facts.manifest.aliases
    command = Markup("<code>{}</code>")
    steps = [
        Markup("Go back to the model before: {} The next answer is the old model's; nothing is deleted.").format(
            command.format("appliance models rollback")
        ),
        Markup("Take one person's words out of the next model: {}").format(
            command.format("appliance examples withdraw PERSON")
        ),
    ]
    if not serves:
        name = clean(report.candidate)
        accept = "" if report.passed else " --accept REASON"
        told = (
            "Let it serve:" if report.passed else "Let it serve in spite of this report, with a reason that is kept on record:"
        )
        steps.insert(0, Markup("{} {}").format(told, command.format(f"appliance models promote {name}{accept}")))
    return _section("How to go back", _list(steps))


def _words() -> Markup:
    return _section(
        "Words on this page",
        _list(
            [
                "Uncertain: a set is a sample of all questions. The bar shows where the true figure lies 19 times in 20; "
                "where the bar of the change reaches zero, nothing is claimed.",
                "Loss: how much the model is surprised by what the tutor really said. Less is better.",
                "Held back: conversations that were kept from the training, so that the model could not learn them by heart.",
            ]
        ),
    )


def side_by_side(settings: Settings, names: tuple[str, str], pairs: Sequence[blind.Pair], found: blind.Result | None) -> str:
    """A page with both models' answers to the same questions, and what people chose, if they did."""
    parts = [_section("Answers", *(_answers(one.question, *zip(names, one.answers, strict=True)) for one in pairs))]
    if found is not None:
        parts.append(_section("What people preferred", Markup("<p>{}</p>").format(found.sentence)))
    return document(f"{names[0]} and {names[1]}, side by side", settings.school, parts)
