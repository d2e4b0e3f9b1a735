"""What in a name cannot be seen, whatever it is a name of: so that no two that look the same are two.

It knows letters, and no people, classes or keys; how long a name may be, and what else it may hold, is for those to say.
"""

from __future__ import annotations

import unicodedata

# Letters by their kind, and yet nothing to see: fillers of Hangul, the empty Braille cell, joiners, selectors of a variant.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5") | {
    chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # controls, marks of direction, joiners, what is no letter yet
_PILED = 4  # marks on one letter; no language needs more


def odd(name: str) -> bool:
    """Whether something in it shows nothing, turns the line round, or covers its neighbours."""
    kinds = [unicodedata.category(letter) for letter in name]
    piled = any({*kinds[at : at + _PILED]} <= {"Mn", "Me"} for at in range(len(kinds) - _PILED + 1))
    return piled or not _UNSEEN.isdisjoint(kinds) or not _BLANK.isdisjoint(name)
