"""The books and upload tests that others made: each one is read with its places, or refused with the right sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import BadInput
from appliance.knowledge.extract import Extracted, extract
from appliance.settings import Settings


def _read(path: Path, settings: Settings) -> Extracted:
    return extract(path, path.name, settings.model_copy(update={"ocr_languages": ""}))  # alike on every machine


def _text(path: Path, settings: Settings) -> str:
    return "\n".join(section.text for section in _read(path, settings).sections)


# File: kind, pages, the end of a place in its middle, and words that stand there; or words of the sentence that refuses it.
EXPECTED: dict[str, tuple[str, int | None, str, str] | str] = {
    "books/LICENSE.md": (
        "markdown",
        None,
        "science10-* (CC BY 3.0)",
        "Source files: https://github.com/Siyavula/siyavula-books,",
    ),
    "books/prealgebra-ch01-03.epub": (
        "epub",
        None,
        "> 2.3 Solving Equations Using the Subtraction and Addition Properties of Equality > Key Concepts > Self Check",
        "(a) After completing the exercises, use this checklist to",
    ),
    "books/prealgebra-ch01.docx": (
        "docx",
        None,
        "1.3 Subtract Whole Numbers > Key Concepts > Everyday Math",
        "221. Road trip Noah was driving from Philadelphia to",
    ),
    "books/prealgebra-ch01.pdf": ("pdf", 116, "p. 59", "When we multiply by a number with two or more digits, we"),
    "books/prealgebra-ch02-slides.pptx": (
        "pptx",
        10,
        "slide 6",
        "A solution of an equation is a value of a variable that makes",
    ),
    "books/prealgebra-ch02.pdf": ("pdf", 98, "p. 50", "[Picture: The image is divided in half vertically. On the"),
    "books/prealgebra-ch03.pdf": ("pdf", 114, "p. 58", "scuba watch is guaranteed to be"),
    "books/prealgebra-ch04.md": (
        "markdown",
        None,
        "4.5 Add and Subtract Fractions with Different Denominators",
        "Find two fractions equivalent to 5/6. If you missed this",
    ),
    "books/prealgebra-ch04.pdf": ("pdf", 139, "p. 70", "Once we have converted two fractions to equivalent forms with"),
    "books/prealgebra-ch05.pdf": ("pdf", 133, "p. 67", "2. Find the sum of all the values in the set. Write the sum"),
    "books/prealgebra-ch05.txt": ("text", None, "line 4031", "385. 18, 22, 17, 20, 19, 20, 22, 19, 29, 18, 23, 25, 22, 24,"),
    "books/prealgebra-ch06.html": (
        "html",
        None,
        "Discount Applications > Key Concepts > Writing Exercises",
        "199. Priam bought a jacket that was on sale for 40% off. The",
    ),
    "books/prealgebra-ch06.pdf": ("pdf", 87, "p. 44", "Find the simple interest earned after 2 years on $700 at an"),
    "books/prealgebra-ch07.pdf": ("pdf", 86, "p. 44", "Multiply; the product of reciprocals is 1. 1(6x + 12)"),
    "books/prealgebra-ch08-truncated.pdf": "is cut off: the end of the PDF is missing.",
    "books/prealgebra-ch08.pdf": ("pdf", 58, "p. 30", "Simplify each side of the equation as much as possible by"),
    "books/prealgebra-ch09.pdf": ("pdf", 134, "p. 68", "continue working with geometry"),
    "books/prealgebra-ch10.pdf": ("pdf", 115, "p. 58", "271. ((3y^2 · y^5)/(y^15 · y^8))^0 272. ((15z^4 ·"),
    "books/prealgebra-ch11.pdf": ("pdf", 98, "p. 50", "Graph a Line Using the Intercepts In the following exercises,"),
    "books/scan-prealgebra-ch05-pages4-5.pdf": "contains only pictures of pages, no text.",
    "books/science10-magnetism.pdf": ("pdf", 8, "p. 5", "Compasses are mainly used in navigation to find direction on"),
    "books/science10-mechanical-energy.pdf": (
        "pdf",
        18,
        "p. 10",
        "Compared to your first attempt, was the marble moving faster",
    ),
    "books/science10-states-of-matter-locked.pdf": "is locked with a password.",
    "books/science10-states-of-matter.pdf": ("pdf", 6, "p. 4", "Taking copper as an example we find that in the solid phase"),
    "documents/LICENSE.txt": ("text", None, "line 94", "(a) You must give any other recipients of the Work or"),
    "documents/SOURCE.txt": ("text", None, "line 1", "github:zylon-ai/private-gpt"),
    "documents/another_file_no_utf8.html": (
        "html",
        None,
        "Reinsurer of a Reinsurer May Maintain a Legal Malpractice Claim Against Attorney Representing An Insured",
        "On February 15, 2024, an appeals court covering a New York",
    ),
    "documents/another_file_no_utf8.md": (
        "markdown",
        None,
        "> Recent Posts > Inattentive Pedestrian Struck By Bus Awarded $4.9M by Brooklyn Jury For Brain Trauma",
        "Last month, a Kings County jury awarded $1,250,000 for past",
    ),
    "documents/file.csv": ("csv", None, "rows 7-11", "Column1: 0.15634896910398005; Column2: 1.2302906807277207;"),
    "documents/file.docx": ("docx", None, "beginning", "Trust your team, but do so with discernment. Consider"),
    "documents/file.html": (
        "html",
        None,
        "Hobbies and Creative Pursuits > Competitive Gaming",
        "Strategy Games: Enjoys games like Civilization and Stellaris",
    ),
    "documents/file.md": (
        "markdown",
        None,
        "Hobbies and Creative Pursuits > Competitive Gaming",
        "Strategy Games: Enjoys games like Civilization and Stellaris",
    ),
    "documents/file.txt": ("text", None, "line 5", "By convention, testdata files with a .p extension use legacy"),
    "documents/file.xls": "is in the old Office format (before 2007), which cannot be read.",
    "documents/file.xlsx": ("xlsx", None, "Plan1, rows 170-176", "Total Horas: 4"),
    "documents/file_comma.csv": ("csv", None, "rows 2-4", "Name: Bob; Age: 25; City: Los Angeles"),
    "documents/file_emoji.html": ("html", None, "beginning", "(smile) (blue star) (smile) (blue star) (blue star) (smile)"),
    "documents/file_emoji.md": ("markdown", None, "beginning", "(smile) (blue star) (smile) (blue star) (blue star) (smile)"),
    "documents/file_failing.docx": ("docx", None, "beginning", "Considera dimitir | Debido a la campaña de desprestigio"),
    "documents/file_failing.ppt": "is in the old Office format (before 2007), which cannot be read.",
    "documents/file_general_elements.pdf": ("pdf", 1, "p. 1", "Each declaration specifies the variable"),
    "documents/file_image.pdf": "contains only pictures of pages, no text.",
    "documents/file_multicolumn.pdf": ("pdf", 3, "p. 2", "Quisque libero justo, consectetuer a, feugiat vitae,"),
    "documents/file_no_utf8.html": ("html", None, "Article (2)", "b. Upon repetition of the same administrative violation"),
    "documents/file_pipe.psv": ("csv", None, "rows 2-4", "Name: Bob; Age: 25; City: Los Angeles"),
    "documents/file_quote.csv": ("csv", None, "row 2", "item: 1; description: this is a description with a , in the"),
    "documents/file_scanned.pdf": "contains only pictures of pages, no text.",
    "documents/file_semicolon.csv": ("csv", None, "rows 2-4", "Name: Bob; Age: 25; City: Los Angeles"),
    "documents/file_tab.tsv": ("csv", None, "rows 2-4", "Name: Bob; Age: 25; City: Los Angeles"),
    "documents/file_unknown.txt": ("text", None, "line 3536", "“You come to supper with me,” said the lady enthusiastically."),
    "documents/file_window.html": ("html", None, "Article (5)", "6. evaluate and review performance and outcomes; and submit"),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_files_that_others_made(shared_data: Path, settings: Settings, name: str) -> None:
    expected = EXPECTED[name]
    if isinstance(expected, str):
        with pytest.raises(BadInput) as caught:
            _read(shared_data / name, settings)
        assert expected in caught.value.message and caught.value.hint
        return
    found = _read(shared_data / name, settings)
    kind, pages, place, words = expected
    assert (found.kind, found.pages) == (kind, pages)
    assert any(words in section.text for section in found.sections if section.place.endswith(place)), (
        "the words stand at the place"
    )


def test_every_file_of_the_two_folders_is_in_the_table(shared_data: Path) -> None:
    there = {
        f"{path.parent.name}/{path.name}" for folder in ("books", "documents") for path in (shared_data / folder).iterdir()
    }
    assert there == set(EXPECTED)


def test_every_answer_of_the_forty_questions_stands_on_the_page_that_is_said(shared_data: Path, settings: Settings) -> None:
    lines = (shared_data / "examples" / "retrieval_questions.jsonl").read_text("utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    books = {name: _read(shared_data / "books" / name, settings) for name in sorted({row["book_file"] for row in questions})}
    missing = [
        row["question"]
        for row in questions
        if not any(
            "".join(row["answer_span"].split()) in "".join(section.text.split())  # a raised sign stands a little apart
            for section in books[row["book_file"]].sections
            if section.page == row["page"]
        )
    ]
    assert len(questions) == 40 and not missing


def test_the_same_chapter_in_another_kind_says_the_same(shared_data: Path, settings: Settings) -> None:
    """A chapter read as PDF, word processor file, book and web page: nearly all of its words are the same."""
    for number, other in (("01", "ch01.docx"), ("04", "ch04.md"), ("05", "ch05.txt"), ("06", "ch06.html")):
        one = set(_text(shared_data / "books" / f"prealgebra-ch{number}.pdf", settings).split())
        two = set(_text(shared_data / "books" / f"prealgebra-{other}", settings).split())
        assert len(one & two) > 0.9 * len(one | two), other
