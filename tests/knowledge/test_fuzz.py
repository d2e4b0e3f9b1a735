"""Documents spoiled at random: each is read within its limits or refused with a sentence; nothing kills or hangs the caller."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from appliance.db import Database
from appliance.errors import ApplianceError, BadInput
from appliance.knowledge import ocr, readers
from appliance.knowledge.extract import extract
from appliance.knowledge.library import EVERYTHING, Library
from appliance.settings import Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, RIVERS, docx, embed, epub, odt, pdf, pptx, shape, xlsx

CASES = 25  # of every kind; many more with --long
TABLE = "<table><tr><td>a</td><td>b</td></tr></table>"
PAGE = f"<html><head><title>t</title></head><body><h1>Plants</h1><p>{PLANTS}</p>{TABLE}</body></html>"
FORMULA = "<math><mfrac><mi>a</mi><msqrt><mn>2</mn></msqrt></mfrac></math>"


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


SEEDS: dict[str, Callable[[Path], Path]] = {
    "a.pdf": lambda path: pdf(path, [PLANTS, MAGNETS, "", RIVERS], title="Science"),
    "a.docx": lambda path: docx(path, [(1, "Plants"), (0, PLANTS), (2, "Magnets"), (0, MAGNETS)]),
    "a.pptx": lambda path: pptx(path, [shape("Plants", "title") + shape(PLANTS), shape(MAGNETS)], notes={1: RIVERS}),
    "a.xlsx": lambda path: xlsx(path, {"S": [["Name", "Marks"], ["Ada", 5], ["Ben", 6.5]], "T": [[PLANTS]]}),
    "a.epub": lambda path: epub(path, {"a.xhtml": PAGE, "b.xhtml": PAGE.replace("Plants", "More") + FORMULA}),
    "a.odt": lambda path: odt(path, f"<text:h text:outline-level='1'>P</text:h><text:p>{PLANTS}<text:s/></text:p>"),
    "a.html": lambda path: _text(path, PAGE + FORMULA),
    "a.md": lambda path: _text(path, f"# Plants\n\n{PLANTS}\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"),
    "a.csv": lambda path: _text(path, "Name,Marks\n" + 'Ada,"5, or 6"\n' * 30),
    "a.json": lambda path: _text(path, '{"a": [{"b": 1, "c": "x\\u00e9"}, {"b": [1, 2]}], "d": {"e": null, "f": "words"}}'),
    "a.txt": lambda path: _text(path, f"{PLANTS}\n\n{MAGNETS}\n"),
}


def _spoil(data: bytes, chance: random.Random) -> bytes:
    """Bits flipped, a piece lost, doubled or moved, the end lost, or numbers made enormous."""
    spoiled = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 60))):
        if not spoiled:
            break
        at = chance.randrange(len(spoiled))
        end = min(len(spoiled), at + chance.choice((1, 4, 40, 400)))
        match chance.randrange(6):
            case 0 | 1:
                spoiled[at] ^= 1 << chance.randrange(8)
            case 2:
                del spoiled[at:end]
            case 3:
                spoiled[at:at] = spoiled[at:end] * chance.choice((1, 2, 50))
            case 4:
                spoiled[at:at] = chance.choice((b"<", b"&", b"\0", b"99999999999", b"]]>", b"<!DOCTYPE a>", b"\xff\xfe", b'"'))
            case _:
                digits = [place for place in range(at, end) if chr(spoiled[place]).isdigit()]
                for place in digits:
                    spoiled[place] = ord("9")
    return bytes(spoiled[: chance.randrange(len(spoiled) + 1)]) if chance.random() < 0.15 else bytes(spoiled)


def _spoiled(path: Path, chance: random.Random) -> bytes:
    """The file with bad bytes; of an archive mostly with one bad part, so that what reads the parts is met as well."""
    data = path.read_bytes()
    if not data.startswith(b"PK") or chance.random() < 0.25:
        return _spoil(data, chance)
    held = BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        victim, other, kind = chance.choice(names), chance.choice(names), chance.randrange(10)
        for name in names:
            content = old.read(name)
            if name == victim and kind == 0:
                continue
            if name == victim:
                content = old.read(other) if kind == 1 else _spoil(content, chance)
            new.writestr(name, content)
    return held.getvalue()


def _refusal(error: ApplianceError, path: Path) -> str:
    """What is wrong with how a file was refused, or ''."""
    if not (isinstance(error, BadInput) and error.message.startswith(path.name) and error.message.isprintable() and error.hint):
        return f"a bad sentence: {error.message}"
    if "still being read" in error.message:  # its own limit of the processor's time did not end it
        return f"a reader hung: {error.message}"
    # pdfium may die of a bad file, which is why it has a process of its own. Our own readers are to say what is wrong.
    dumb = "it is damaged, or it needs more" in error.message and path.suffix != ".pdf"
    return f"a reader died: {error.message}" if dumb else ""


def _outcome(path: Path, settings: Settings) -> str:
    """What is wrong with how reading this file ended, or ''."""
    try:
        found = extract(path, path.name, settings)
    except ApplianceError as error:
        return _refusal(error, path)
    except Exception as error:  # noqa: BLE001 - any other exception is what this test looks for
        return f"a foreign exception: {error!r}"
    size = sum(len(section.text) for section in found.sections)
    return "" if found.sections and 0 < size <= settings.document_characters else f"{size} characters in {len(found.sections)}"


def _try(folder: Path, settings: Settings, name: str, cases: range) -> list[str]:
    seed = SEEDS[name](folder / f"seed-{name}")

    def one(case: int) -> str:
        path = folder / f"{case}{seed.suffix}"
        path.write_bytes(_spoiled(seed, random.Random(f"{name}{case}")))
        wrong = _outcome(path, settings)
        path.unlink()
        return wrong and f"{name}, case {case}: {wrong}"

    with ThreadPoolExecutor(2) as pool:
        return [wrong for wrong in pool.map(one, cases) if wrong]


@pytest.mark.parametrize("name", SEEDS)
async def test_spoiled_documents_of_every_kind_are_added_or_refused_each_by_itself(
    tmp_path: Path, settings: Settings, database: Database, name: str
) -> None:
    """All the way into the library, with a sound one behind them that has to be found."""
    folder = tmp_path / "spoiled"
    folder.mkdir()
    seed = SEEDS[name](tmp_path / name)
    extract(seed, name, settings)
    for case in range(CASES):
        (folder / f"{case:02}{seed.suffix}").write_bytes(_spoiled(seed, random.Random(f"{name}{case}")))
    (folder / "sound.txt").write_text("The lighthouse keeper counts seventeen ships before breakfast.")
    bounded = settings.model_copy(update={"ocr_languages": ""})  # drawing pages has its own test
    library = Library(bounded, database, embed)
    reports = await library.add([folder])
    assert len(reports) == CASES + 1
    wrong = []
    for report in reports:
        said = ""
        if report.error is not None:
            said = _refusal(report.error, Path(report.path))
        elif report.status == "added" and not report.passages:
            said = "nothing of it was kept"
        if said:
            wrong.append(f"{name}, {report.file}: {said}")
    assert not wrong
    found = await library.search("How many ships does the lighthouse keeper count?", within=EVERYTHING)
    assert found.passages[0].file == "sound.txt"
    assert {document.file for document in await library.documents(EVERYTHING)} == {
        report.file for report in reports if report.status == "added"
    }
    library.close()


@pytest.mark.long
@pytest.mark.parametrize("name", SEEDS)
def test_many_spoiled_documents_of_every_kind(tmp_path: Path, settings: Settings, name: str) -> None:
    assert not _try(tmp_path, settings, name, range(1000, 1200))


@pytest.mark.parametrize("cases", [range(3), pytest.param(range(1000, 1200), marks=pytest.mark.long)], ids=["few", "many"])
def test_pages_of_spoiled_documents_are_drawn_whole_or_not_at_all(tmp_path: Path, settings: Settings, cases: range) -> None:
    seed = pdf(tmp_path / "seed.pdf", ["", PLANTS], title="Science")
    drawn = 0
    for case in cases:
        (tmp_path / "a.pdf").write_bytes(_spoil(seed.read_bytes(), random.Random(case)))
        picture = ocr._drawn(tmp_path / "a.pdf", 1, settings)
        assert not picture or picture.startswith(b"P5 ")
        drawn += bool(picture)
    assert drawn, "some were"


SCRAPS = st.text(alphabet='ab1.,;|\t\n\r"{}[]:<>&/#*\\ \0é\ud800\u2028', max_size=200)


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.txt", "a.md", "a.html"])
@given(text=SCRAPS)
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_scraps_of_text_are_read_or_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, errors="surrogatepass")
    try:
        found = readers.read(path, name, 1000)
    except ApplianceError as error:
        assert name in error.message
    else:
        assert sum(len(text) for text, _, _, _ in found.sections) <= 1000


def test_what_was_spoiled_is_really_different(tmp_path: Path) -> None:
    for name, make in SEEDS.items():
        seed = make(tmp_path / name)
        spoiled = {_spoiled(seed, random.Random(case)) for case in range(30)}
        assert len(spoiled - {seed.read_bytes()}) > 20, name
