"""Scanned pages: read where tesseract is installed, each half behind its walls, and named with a next step where it is not."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, BadInput, TooLarge
from appliance.knowledge import ocr
from appliance.knowledge.extract import Extracted, extract
from appliance.settings import Settings
from tests.knowledge.helpers import MAGNETS, PLANTS, pdf

Install = Callable[[str], Path]
LISTS = 'if [ "$1" = --list-langs ]; then echo "List of languages:"; echo eng; echo fra; exit; fi\n'


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put an executable of that name where the system looks for tesseract; what it does with a page is a shell script."""

    def made(does: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "tesseract"
        program.write_text(f"#!/bin/sh\n{LISTS}{does}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return program

    return made


def _read(path: Path, settings: Settings, stopped: threading.Event | None = None) -> Extracted:
    return extract(path, path.name, settings, stopped)


def test_pictures_of_pages_are_read_in_their_places_and_the_note_says_so(
    tmp_path: Path, settings: Settings, install: Install
) -> None:
    # It says what it was given: the head of the picture and its own arguments.
    install('read -r head; cat > /dev/null; echo "Seen: $head"; echo "with $*"')
    found = _read(pdf(tmp_path / "a.pdf", [PLANTS, "", MAGNETS, ""], title="Science"), settings)
    assert [(section.page, section.place) for section in found.sections] == [(n, f"p. {n}") for n in (1, 2, 3, 4)]
    assert (found.title, found.pages) == ("Science", 4)
    assert found.sections[0].text == PLANTS
    # A5 at 200 dots an inch, grey; tesseract is given the languages of the settings and no file of ours.
    assert re.fullmatch(r"Seen: P5 116\d 165\d 255 with stdin stdout -l eng", found.sections[1].text)
    assert found.note == "Pages 2, 4 have text that was recognised in a picture: it may hold mistakes."


def test_the_picture_is_the_page(tmp_path: Path, settings: Settings) -> None:
    picture = ocr._drawn(pdf(tmp_path / "a.pdf", [PLANTS, ""]), 2, settings)
    head, _, dots = picture.partition(b" 255\n")
    width, height = map(int, head.split()[1:])
    black = [number for number, dot in enumerate(dots) if dot == 0]
    # The black square of `helpers.pdf`: 50 to 250 points from the left and from the bottom.
    assert len(dots) == width * height
    assert (min(n % width for n in black), max(n % width for n in black)) == pytest.approx((139, 694), abs=2)
    assert (height - max(black) // width, height - min(black) // width) == pytest.approx((139, 694), abs=2)


def test_a_page_as_large_as_a_wall_is_drawn_within_the_limits(tmp_path: Path, settings: Settings) -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "a.pdf"), pagesize=(14_400, 14_400))
    canvas.rect(0, 0, 7_200, 7_200, fill=1)
    canvas.showPage()
    canvas.save()
    assert 20_000_000 < len(ocr._drawn(tmp_path / "a.pdf", 1, settings)) < ocr.PICTURE
    assert ocr._drawn(tmp_path / "a.pdf", 2, settings) == b"", "there is no such page"


def test_tesseract_stands_behind_walls(tmp_path: Path, settings: Settings, install: Install) -> None:
    written = tmp_path / "written"
    install(f"cat > /dev/null; cat /proc/self/limits; ( echo x > {written} ) 2> /dev/null; echo size $(wc -c < {written}); env")
    os.environ["APPLIANCE_SECRET_OF_OURS"] = "chalk"
    try:
        said = _read(pdf(tmp_path / "a.pdf", [""]), settings).sections[0].text
    finally:
        del os.environ["APPLIANCE_SECRET_OF_OURS"]
    assert re.search(r"Max cpu time +30 ", said)
    assert re.search(r"Max address space +1073741824 ", said)
    assert re.search(r"Max file size +0 ", said) and "size 0" in said
    assert "OMP_THREAD_LIMIT=1" in said and "chalk" not in said


def test_the_box_without_tesseract_names_the_pages_and_what_to_install(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = _read(pdf(tmp_path / "a.pdf", [PLANTS, "", ""]), settings)
    assert found.note == (
        "Pages 2-3 have no text: they are pictures. Install tesseract-ocr on this machine, remove this document and add it "
        "again to have them read."
    )
    with pytest.raises(BadInput, match="only pictures of pages, no text") as caught:
        _read(pdf(tmp_path / "b.pdf", [""]), settings)
    assert "tesseract-ocr" in caught.value.hint


def test_switched_off_nothing_is_started(tmp_path: Path, settings: Settings, install: Install) -> None:
    install(f"touch {tmp_path}/started")
    off = settings.model_copy(update={"ocr_languages": ""})
    assert _read(pdf(tmp_path / "a.pdf", [PLANTS, ""]), off).note == "Page 2 has no text: it is a picture."
    assert not (tmp_path / "started").exists()


def test_a_language_that_is_not_there_is_named_with_its_package(tmp_path: Path, settings: Settings, install: Install) -> None:
    install("cat > /dev/null; echo Some text.")
    both = settings.model_copy(update={"ocr_languages": "eng+chi_sim"})
    with pytest.raises(BadInput) as caught:
        _read(pdf(tmp_path / "a.pdf", [""]), both)
    assert caught.value.hint == "Install tesseract-ocr-chi-sim on this machine, then add it again."
    assert _read(tmp_path / "a.pdf", settings.model_copy(update={"ocr_languages": "eng+fra"})).sections[0].text == "Some text."


@pytest.mark.parametrize("value", ["eng; rm", "--psm", "eng+", "../x", "eng fra"])
def test_languages_are_names_and_nothing_else(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"eng\+fra"):
        Settings(home=tmp_path, ocr_languages=value)


FAULTS = {
    "deaf": "sleep 600; touch $0.ended",
    "leaves another behind": "cat > /dev/null; (sleep 600; touch $0.ended) & wait",
    "never stops": "exec yes a page without end",
    "fails": "cat > /dev/null; echo half; exit 1",
    "dies": "kill -9 $$",
}


@pytest.mark.parametrize("does", FAULTS.values(), ids=FAULTS)
def test_a_page_on_which_tesseract_fails_is_named_and_the_others_are_read(
    tmp_path: Path, settings: Settings, install: Install, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    monkeypatch.setattr(ocr, "WAIT", 10.0)
    program = install(
        f"if [ -e {tmp_path}/once ]; then cat > /dev/null; echo The second page.; exit; fi\ntouch {tmp_path}/once\n{does}"
    )
    found = _read(pdf(tmp_path / "a.pdf", ["", ""]), settings)
    assert [(section.text, section.page) for section in found.sections] == [("The second page.", 2)]
    assert found.note == (
        "Page 2 has text that was recognised in a picture: it may hold mistakes. Page 1 has no text: it is a picture."
    )
    assert not program.with_name("tesseract.ended").exists(), "nothing is waited for without end"


def test_pictures_in_which_nothing_is_recognised(tmp_path: Path, settings: Settings, install: Install) -> None:
    install("cat > /dev/null; printf ' .\\n\\f'")
    with pytest.raises(BadInput, match="no text was recognised in them") as caught:
        _read(pdf(tmp_path / "a.pdf", [""]), settings)
    assert caught.value.hint


def test_what_is_recognised_counts_as_text_and_holds_no_control_characters(
    tmp_path: Path, settings: Settings, install: Install
) -> None:
    install("cat > /dev/null; printf 'one\\000two\\033[31m thr\\377ee\\n\\f'")
    (section,) = _read(pdf(tmp_path / "a.pdf", [""]), settings).sections
    assert section.text.isprintable() and "one two" in section.text
    with pytest.raises(TooLarge, match="1,000 characters"):
        little = settings.model_copy(update={"document_characters": 1000})
        install("cat > /dev/null; for i in 1 2 3 4 5 6 7 8 9; do echo Some hundred letters: " + "x" * 80 + "; done")
        _read(pdf(tmp_path / "b.pdf", ["", ""]), little)


def test_only_so_many_pages_are_looked_at(
    tmp_path: Path, settings: Settings, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocr, "PAGES", 1)
    install("cat > /dev/null; echo Some text.")
    found = _read(pdf(tmp_path / "a.pdf", ["", "", ""]), settings)
    assert [section.page for section in found.sections] == [1]
    assert found.note.endswith("Pages 2-3 have no text: they are pictures. Only the first 1 of its pictures were looked at.")


def test_reading_pictures_ends_when_it_is_told_to(tmp_path: Path, settings: Settings, install: Install) -> None:
    install("cat > /dev/null; echo Some text.")
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(ApplianceError, match="was stopped"):
        _read(pdf(tmp_path / "a.pdf", [""]), settings, stopped)


def test_the_real_one_reads_a_scanned_page(shared_data: Path, settings: Settings) -> None:
    if ocr.tesseract() is None:
        pytest.skip("tesseract is not installed (Debian: tesseract-ocr)")
    found = _read(shared_data / "books" / "scan-prealgebra-ch05-pages4-5.pdf", settings)
    assert [section.page for section in found.sections] == [1, 2]
    assert "One hundred fifty two and 65 over 100 dollars" in found.sections[0].text
    assert "Name the number to the right of the" in found.sections[1].text
