"""Every sentence that pages say, for whoever translates them: from the templates, and those that stand in code or content.

It runs where catalogues are made and tested, never while pages are served.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from appliance import doctor, openings, standards, teaching
from appliance.practice import criteria, feedback, lesson, mentors, portfolio, rehearsals, scenes
from appliance.practice.exchange import MOVES
from appliance.practice.scenario import CATEGORIES, PHASES, SUBJECTS
from appliance.web.show import ROOMS

TEMPLATES = Path(__file__).parent / "templates"
# Parts whose faults are said on pages of their own, word for word.
SPEAK = (lesson, mentors, rehearsals, scenes, standards)
FAULTS = frozenset({"BadInput", "Conflict", "Forbidden", "NotFound", "TooLarge"})


def sentences() -> set[tuple[str, str]]:
    """(sentence, its plural or "")."""
    from babel.messages.extract import extract
    from jinja2.ext import babel_extract

    found: set[tuple[str, str]] = {(name, "") for _, name, _, _ in ROOMS}
    # The names and short descriptions of teaching methods and help levels, which a class's page offers.
    ways = [*teaching.methods().values(), *teaching.help_levels().values()]
    found |= {(text, "") for way in ways for text in (way.name, way.about)}
    # What stands before an answer's own words.
    opens = (*(text for texts in openings.SENTENCES.values() for text in texts), openings.NEAREST, openings.STARTER_HEADING)
    found |= {(text, "") for text in opens}
    # What a rehearsal counts, and by what scenes are chosen.
    found |= {(text, "") for text in (*MOVES.values(), *CATEGORIES, *PHASES, *SUBJECTS)}
    # What the health page looks at.
    found |= {(text, "") for text in doctor.NAMES}
    # What is told of a rehearsal, and the rubric of a generated scene.
    found |= {(text, "") for part in (feedback, criteria, portfolio) for text in part.SENTENCES}
    found |= {(text, "") for part in SPEAK for text in faults_of(Path(str(part.__file__)))} | {
        (text, "") for text in lesson.GONE
    }
    for path in sorted(TEMPLATES.parent.glob("*.py")):
        with path.open("rb") as source:
            for _line, said, _comments, _context in extract(
                "python", source, {"say": None, "gettext": None, "ngettext": (1, 2)}
            ):
                pair = [part for part in (said if isinstance(said, tuple) else (said,)) if part]
                found.add((pair[0], pair[1] if len(pair) > 1 else ""))
    options = {"trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}
    for path in sorted(TEMPLATES.glob("*.html")):
        with path.open("rb") as source:
            for _line, _function, message, _comments in babel_extract(source, ("_", "gettext", "ngettext"), [], options):
                parts = message if isinstance(message, tuple) else (message,)
                words = [part for part in parts if isinstance(part, str)]
                if words:
                    found.add((words[0], words[1] if len(words) > 1 else ""))
    return found


def faults_of(path: Path) -> Iterator[str]:
    """The fixed sentences of the faults that a module raises; those with a figure or a name in them are said in English."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FAULTS:
            for given in node.args:
                either = [given.body, given.orelse] if isinstance(given, ast.IfExp) else [given]
                yield from (one.value for one in either if isinstance(one, ast.Constant) and isinstance(one.value, str))
