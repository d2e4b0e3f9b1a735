"""The language of a page: which one a person reads, and the catalogue of its words.

Catalogues are `locale/LANGUAGE.po`, which a translator can edit; they are read when first needed. What no catalogue has is
shown in English. It knows nothing of templates.
"""

from __future__ import annotations

import gettext
import io
from functools import cache
from pathlib import Path

LANGUAGES = {"en": "English", "es": "Español", "fr": "Français", "ar": "العربية"}
FROM_THE_RIGHT = frozenset({"ar"})
LOCALE = Path(__file__).parent / "locale"


def choose(preferred: str, accepted: str) -> str:
    """What the person chose, else the first language of the browser's Accept-Language that we have, else English."""
    if preferred in LANGUAGES:
        return preferred
    wishes: list[tuple[float, str]] = []
    for part in accepted[:500].split(","):
        name, _, rest = part.partition(";")
        weight = rest.strip().removeprefix("q=")
        try:
            wishes.append((float(weight) if weight else 1.0, name.strip().lower().split("-")[0]))
        except ValueError:
            continue
    return next((name for _, name in sorted(wishes, key=lambda wish: -wish[0]) if name in LANGUAGES), "en")


@cache
def catalogue(language: str) -> gettext.NullTranslations:
    """The words of one of LANGUAGES."""
    path = LOCALE / f"{language}.po"
    if language not in LANGUAGES or not path.is_file():
        return gettext.NullTranslations()
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    compiled = io.BytesIO()
    with path.open("rb") as source:
        write_mo(compiled, read_po(source, locale=language))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)
