"""The sample content that comes with the project: enough of it, over subjects and grades, in the hints-first manner."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from appliance.settings import Settings
from appliance.tuning.examples import read_examples

CONTENT = Settings(home=Path("/nonexistent")).content


def lessons() -> dict[str, str]:
    return {
        path.stem: path.read_text("utf-8") for path in (CONTENT / "documents").glob("*-*.md") if path.stem != "staff-handbook"
    }


def test_lessons_cover_four_subjects_and_three_grade_bands() -> None:
    found = lessons()
    subjects = Counter(name.split("-")[0] for name in found)
    bands = {match[1] for text in found.values() if (match := re.search(r"grades (\d+-\d+)", text))}
    assert len(found) >= 12 and len(subjects) >= 4 and min(subjects.values()) >= 3
    assert len(bands) >= 3
    for name, text in found.items():
        assert text.startswith("# ") and text.count("\n## ") >= 3 and len(text.split()) >= 300, name
    assert (CONTENT / "documents" / "staff-handbook.md").is_file()


def test_examples_are_enough_and_say_subject_grade_and_skill() -> None:
    examples = read_examples(CONTENT / "examples")
    assert len(examples) >= 200
    assert len({example.id for example in examples}) == len(examples)
    assert all(example.subject and example.grade and example.skill and example.licence for example in examples)
    assert min(Counter(example.subject for example in examples).values()) >= 40


def test_tutors_ask_or_hint_before_they_tell() -> None:
    """Most first replies ask something back; none is a lecture."""
    first = [example.messages[1].content for example in read_examples(CONTENT / "examples")]
    assert sum("?" in reply for reply in first) / len(first) > 0.8
    assert max(len(reply.split()) for reply in first) < 80
    assert not [reply for reply in first if re.search(r"\bI (think|feel|believe)\b", reply)]
