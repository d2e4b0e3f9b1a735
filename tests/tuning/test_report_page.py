"""The report's page: its order, what it says of good and bad candidates, and that nothing from outside becomes markup."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import AsyncGenerator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from appliance.engine.handler import Chunk, Health, Message, Request
from appliance.registry import FileFact, Manifest, Registry
from appliance.settings import Settings
from appliance.tuning import report_page
from appliance.tuning.blind import Comparison, Question, Result
from appliance.tuning.report import Figure, Line, Report, Sample, SetResult
from appliance.tuning.report_page import PROMISED, Facts, page, verdict
from appliance.tuning.run_folder import read_json, write_json
from appliance.tuning.verdicts import CUT_SHORT

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)> & "quotes" \x00\x1b \ud800 ثم'
VOID = {"meta", "line", "circle", "rect", "br", "path"}


class Reader(HTMLParser):
    """Tags in order, attributes, visible text; fails on what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


def one_set(name: str, title: str, verdict: Any, **changes: Any) -> SetResult:
    values: dict[str, Any] = {
        "role": "guard", "unit": "share", "better": "higher", "n": 60, "before": Figure(0.41, 0.35, 0.47),
        "after": Figure(0.48, 0.42, 0.54), "difference": Figure(0.07, 0.02, 0.12), "margin": 0.05, "note": "",
    }  # fmt: skip
    return SetResult(name=name, title=title, verdict=verdict, **(values | changes))


def report(*, passed: bool = True, lost: bool = False, evil: str = "") -> Report:
    loss = (Figure(2.912, 2.80, 3.02), Figure(2.431, 2.33, 2.54), Figure(-0.481, -0.55, -0.41))
    losses: dict[str, Any] = {
        "role": "primary", "unit": "log per token", "better": "lower", "n": 64,
        "before": loss[0], "after": loss[1], "difference": loss[2], "margin": 0.0,
    }  # fmt: skip
    sets = [
        one_set("new", f"The new conversations that were held back{evil}", "gained", **losses),
        one_set("knowledge", "Knows the right one of four answers", "lost" if lost else "kept", n=287, note=evil),
        one_set("hints", "Final answer given away before the last hint", "gained", better="lower"),
        one_set("reading", "Distance of the reading level from the pupil's grade", "kept", unit="grades", better="lower",
                before=Figure(2.1, 1.7, 2.5), after=Figure(1.8, 1.4, 2.2), difference=Figure(-0.3, -0.8, 0.2), n=24),
        one_set("consistency", "Same answer however the question is worded", "not informative", n=34),
        one_set("prompt", "One line of instructions against all of them", "gained", role="information", unit="log per token"),
    ]  # fmt: skip
    table = [
        Line("knowledge", "Domain knowledge: right one of four answers", "41 %", "48 %", "No sure difference."),
        Line("hints", "Pedagogy: final answer kept back until the last hint", "59 %", "88 %", "Surely better."),
        Line("prompt", PROMISED["prompt"], "187", "7", f"All instructions are 187 tokens, one line is 7.{evil}"),
        Line("bytes", PROMISED["bytes"], "0", "0", "By policy: every library on this machine is told to stay offline."),
        Line("new", "Loss per token on the new conversations", "2.912", "2.431"),
    ]
    talks = [
        Sample(f"s{number}", f"How do I add 1/2 and 1/{number}?{evil}", "What do the pieces have to share?",
               f"The answer is it.\nThe answer is it.{evil}", f"Which denominator would fit both?{evil}")
        for number in (3, 4, 5, 6)
    ]  # fmt: skip
    reasons = [f"Loss per token on 64 held-out conversations went from 2.912 to 2.431 (-16.5 %).{evil}"]
    regressions = ["Knows the right one of four answers: 48 % before, 41 % after."] if lost else []
    return Report(
        f"starter-1a2b3c4d{evil}", f"starter{evil}", 64, 5120, *loss, passed, reasons + regressions, 2, talks,
        {one.name: one for one in sets}, regressions, table,
    )  # fmt: skip


def facts(evil: str = "", aliases: tuple[str, ...] = ("champion",)) -> Facts:
    manifest = Manifest(
        "starter-1a2b3c4d", "adapter", f"Starter, tuned{evil}", f"Apache-2.0{evil}", 512,
        {"adapter.gguf": FileFact("a" * 64, 9)},
        base="starter", dataset="d" * 64, recipe="c" * 64, created=1.7e9, starter=True, aliases=aliases,
    )  # fmt: skip
    return Facts(
        school=f"Hill School{evil}",
        manifest=manifest,
        dataset={
            "train": 320,
            "held_out": 64,
            "subject": {f"mathematics{evil}": 200, "history": 184},
            "licence": {"CC BY 4.0": 384},
            "redactions": {"e_mail": 3},
        },
        recipe={"method": "lora", "rank": 32, "epochs": 2.0, "base": "", "dora": False},
        plan={
            "refused": [{"id": "r1", "code": "no_consent", "reason": "x"}, {"id": "r2", "code": "no_consent", "reason": "x"}],
            "warnings": [f"The phrase looks like a backdoor.{evil}"],
        },
        training={"seconds": 93.0},
        comparisons=[Result(f"starter{evil}", "starter-1a2b3c4d", 12, (2, 8), 1, 1, 3, (0.8, 0.44, 0.97))],
    )


def test_the_page_answers_in_the_order_in_which_a_head_teacher_asks() -> None:
    read = Reader(page(report(), facts=facts()))
    wanted = [
        "Passed:", "Without tuning", "Domain knowledge", "Pedagogy", "Consistency", "Reading level", "Tokens of instructions",
        "Bytes that left", "Cost of an answer", "Before and after", "What was refused", "The same question, answered by both",
        "What people preferred", "Where it comes from", "How to go back",
    ]  # fmt: skip
    places = [read.text.index(words) for words in wanted]
    assert places == sorted(places)
    assert read.text.count("not measured") == 2 * 3  # consistency, reading level and cost of this report
    for words in ("59 %", "88 %", "187", "320 to learn from, 64 held back", "3 x e mail", "No consent", "d" * 64, "1.6 minutes",
                  "80 % (44 to 97 %)", "appliance models rollback", "It answers in this school now."):  # fmt: skip
        assert words in read.text, words


def test_the_page_is_one_file_without_scripts_and_can_be_read_aloud() -> None:
    text = page(report(), facts=facts())
    read = Reader(text)
    assert not {"script", "iframe", "object", "embed", "link", "img", "form"} & set(read.tags)
    assert not [name for _, name, value in read.attributes if name in ("src", "href", "style") or name.startswith("on")]
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    assert read.tags.count("h1") == 1 and ("html", "lang", "en-GB") in read.attributes
    assert ("meta", "name", "viewport") in read.attributes
    assert read.tags.count("th") == sum(name == "scope" for tag, name, _ in read.attributes if tag == "th")
    assert read.tags.count("caption") == read.tags.count("table") >= 3
    drawings = [value for tag, name, value in read.attributes if tag == "svg" and (name, value) == ("role", "img")]
    assert len(drawings) == len(report().sets) == read.tags.count("title") - 1


def test_nothing_from_outside_becomes_markup() -> None:
    plain, hostile = Reader(page(report(), facts=facts())), Reader(page(report(evil=EVIL), facts=facts(EVIL)))
    assert hostile.tags == plain.tags
    assert [(tag, name) for tag, name, _ in hostile.attributes] == [(tag, name) for tag, name, _ in plain.attributes]
    assert '<script>alert("x")</script>' in hostile.text and "\x00" not in hostile.text and "\x1b" not in hostile.text
    page(report(evil=EVIL), facts=facts(EVIL)).encode()  # half a character would not be writable


def test_the_verdict_is_one_sentence_that_names_what_was_lost() -> None:
    assert verdict(report()).startswith("Passed: starter-1a2b3c4d is surely better than starter")
    refused = verdict(report(passed=False, lost=True))
    assert refused.startswith("Refused") and "Knows the right one of four answers" in refused and refused.count(". ") == 0
    assert "not certain" in verdict(report(passed=False))
    assert "only 3" in verdict(dataclasses.replace(report(passed=False), n=3))
    cut = one_set("knowledge", "Knowledge", "not informative", note=f"{CUT_SHORT}: 6 items were asked.")
    assert "too little time" in verdict(dataclasses.replace(report(passed=False), sets={"knowledge": cut}))
    read = Reader(page(report(passed=False, lost=True), facts=facts(aliases=())))
    assert "It does not serve" in read.text and "--accept REASON" in read.text and "Worse" in read.text


def test_reports_of_older_runs_are_shown_as_far_as_they_go() -> None:
    row = report().to_json()
    old = {
        key: row[key] for key in ("candidate", "baseline", "n", "tokens", "before", "after", "difference", "passed", "reasons")
    }
    for facts_known in (None, Facts()):
        read = Reader(page(old, facts=facts_known))
        assert "2.912" in read.text and "2.431" in read.text and "nothing else was checked" in read.text
        assert read.tags.count("circle") == 2  # the legend's and the one chart's
    assert Reader(page(row)).text.count("Knows the right one of four answers") >= 1


def bars(text: str) -> list[tuple[float, float, float]]:
    found = re.findall(r'<line x1="([\d.]+)%" x2="([\d.]+)%"[^>]*/><svg x="([\d.]+)%"', text)
    return [(float(low), float(value), float(high)) for low, high, value in found][2:]  # the first two are the legend's


def test_the_bars_stand_where_the_figures_are() -> None:
    drawn = bars(page(report()))
    assert len(drawn) == 2 * len(report().sets)
    assert all(0 <= low <= value <= high <= 100 for low, value, high in drawn)
    assert drawn[2] == (35.0, 41.0, 47.0) and drawn[3] == (42.0, 48.0, 54.0)  # shares on the whole scale
    assert drawn[0][0] > drawn[1][2]  # losses that do not overlap do not overlap on the page


def test_a_figure_that_is_no_number_breaks_nothing() -> None:
    nan = Figure(float("nan"), float("nan"), float("nan"))
    broken = {"x": one_set("x", "Broken", "lost", before=nan, after=nan, difference=nan, unit="log per token")}
    read = Reader(page(dataclasses.replace(report(passed=False), sets=broken)))
    assert "not a number" in read.text and "nan" not in read.text


class Silent:
    """A handler that has nothing to say, or always the same."""

    def __init__(self, words: str = "") -> None:
        self.words = words

    name, slots, context = "silent", 1, 100

    async def start(self) -> None: ...

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:  # noqa: ARG002
        yield Chunk(self.words, finish="stop")

    async def count(self, messages: Sequence[Message]) -> int:
        return len(messages)

    async def score(self, messages: Sequence[Message]) -> list[float]:
        return [0.0] * len(messages)

    async def health(self) -> Health:
        return Health(True)

    async def close(self) -> None: ...


async def test_what_people_chose_stands_in_the_next_report(settings: Settings, tmp_path: Path) -> None:
    registry, models = Registry(settings.models), []
    for id in ("old", "new"):
        (tmp_path / id).mkdir()
        (tmp_path / id / "model.gguf").write_text(id)
        models.append(registry.add(tmp_path / id, id=id, kind="base", title=id, licence="MIT", context=8))
    mine = dataclasses.replace(report(), candidate="new", baseline="old")
    assert "Nobody has compared" in page(mine, facts=report_page.gather(settings, "new"))
    comparison = Comparison(settings, *models)
    await comparison.answer((Silent(), Silent()), [Question("1", "Why?")], tokens=5)
    for pair in comparison.pairs().values():
        comparison.choose(pair, "t", "ann")
    read = Reader(page(mine, facts=report_page.gather(settings, "new")))
    assert "Nobody has preferred either of old and new yet." in read.text and "Nobody has compared" not in read.text


async def test_what_people_chose_is_part_of_the_same_report_also_afterwards(settings: Settings, tmp_path: Path) -> None:
    registry, models = Registry(settings.models), []
    for id in ("new", "old"):
        (tmp_path / id).mkdir()
        (tmp_path / id / "model.gguf").write_text(id)
        models.append(registry.add(tmp_path / id, id=id, kind="base", title=id, licence="MIT", context=8))
    mine = dataclasses.replace(report(), candidate="new", baseline="old")
    assert report_page.with_people(settings, mine) is mine and mine.to_json()["people"] == {}
    paths = [settings.runs / "r1" / "report.json", settings.runs / "r1" / "named" / "n" / "report.json"]
    paths.append(settings.reports / "new-against-old.json")
    for path in paths:
        write_json(path, mine.to_json() | {"parity": 1})
        report_page.save(settings, mine, path.with_suffix(".html"))
    other = settings.runs / "r2" / "report.json"
    write_json(other, report().to_json())
    write_json(settings.runs / "r3" / "report.json", {"candidate": "new", "baseline": "old"})
    comparison = Comparison(settings, *models)
    await comparison.answer((Silent("new"), Silent("old")), [Question(str(n), f"Why {n}?") for n in range(9)], tokens=5)
    for pair in comparison.pairs().values():
        comparison.choose(pair, "1" if comparison.shown(pair, "ann")[0] == "new" else "2", "ann")
    report_page.people_chose(settings, "old", "new")
    for path in paths:
        row = read_json(path)
        assert row["people"]["b"] == "new" and row["people"]["wins"] == [0, 9] and row["people"]["certain"], path
        assert row["parity"] == 1 and Report.from_json(row).people == row["people"]
        assert "new was preferred 9 times" in Reader(path.with_suffix(".html").read_text("utf-8")).text, path
    assert read_json(other)["people"] == {}
    carried = report_page.with_people(settings, mine)
    assert "new was preferred 9 times and old never" in Reader(page(carried)).text, "also where only the report is there"
    assert Reader(page(carried, facts=report_page.gather(settings, "new"))).text.count("new was preferred") == 1
    assert "Nobody has compared" in page(dataclasses.replace(mine, people={"a": "old", "wins": 3}))


def test_what_is_on_disk_is_gathered(settings: Settings, tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "adapter.gguf").write_bytes(b"x")
    write_json(incoming / "dataset.json", {"train": 7, "held_out": 3})
    Registry(settings.models).add(
        incoming, id="m1", kind="adapter", title="One", licence="MIT", context=8, dataset="e" * 64,
        report={"training": {"seconds": 60}},
    )  # fmt: skip
    run = tmp_path / "run"
    write_json(run / "recipe.json", {"rank": 5})
    write_json(run / "plan.json", {"refused": [{"id": "a", "code": "pending", "reason": "x"}]})
    path = report_page.save(settings, dataclasses.replace(report(), candidate="m1"), tmp_path / "out" / "report.html", run)
    read = Reader(path.read_text("utf-8"))
    for words in ("7 to learn from, 3 held back", "rank 5", "e" * 64, "Waiting for review", "1.0 minutes", settings.school):
        assert words in read.text, words


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 360, 1280])
def test_nothing_is_wider_than_the_screen_and_no_script_runs(width: int, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    file = tmp_path / "report.html"
    file.write_text(page(report(evil=EVIL), facts=facts(EVIL)), "utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": width, "height": 800})
        shown.on("dialog", lambda _: pytest.fail("a script ran"))
        trouble: list[str] = []
        shown.on("console", lambda line: trouble.append(line.text))
        shown.goto(file.as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert not trouble
