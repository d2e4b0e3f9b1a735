"""Every sentence that pages say, for whoever translates them: read from the templates, and the few that stand in code.

It runs where catalogues are made and tested, never while pages are served.
"""

from __future__ import annotations

from pathlib import Path

from appliance.web.show import ROOMS

TEMPLATES = Path(__file__).parent / "templates"


def sentences() -> set[tuple[str, str]]:
    """(sentence, its plural or "")."""
    from jinja2.ext import babel_extract

    found: set[tuple[str, str]] = {(name, "") for _, name, _, _ in ROOMS}
    options = {"trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}
    for path in sorted(TEMPLATES.glob("*.html")):
        with path.open("rb") as source:
            for _line, _function, message, _comments in babel_extract(source, ("_", "gettext", "ngettext"), [], options):
                parts = message if isinstance(message, tuple) else (message,)
                words = [part for part in parts if isinstance(part, str)]
                if words:
                    found.add((words[0], words[1] if len(words) > 1 else ""))
    return found
