"""What is special about a class: so far, whether it is answered from documents only.

Rules are kept by the class's name, which is compared without regard to case and spaces: a rule that is not found because
somebody typed "7 b" would let answers through that the school meant to hold back. A class without a rule is not strict. Who
belongs to a class is for `accounts` to say, by whom nobody does yet; what strict means is known to `chat`. Work is blocking;
async callers use a thread.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from appliance.errors import BadInput
from appliance.tables import class_rules

if TYPE_CHECKING:
    from appliance.db import Database

LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class ClassRule:
    """`strict`: from the documents or not at all."""

    name: str
    strict: bool


class Classes:
    def __init__(self, database: Database) -> None:
        self._database = database

    def strict(self, names: Iterable[str]) -> bool:
        """Whether any of these classes is: who is in several is answered as the strictest of them asks."""
        wanted = {_key(name) for name in names}
        return bool(wanted) and any(rule.strict and _key(rule.name) in wanted for rule in self.rules())

    def rules(self) -> list[ClassRule]:
        """By name."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(class_rules).order_by(class_rules.c.class_name))
            return [ClassRule(row.class_name, bool(row.strict)) for row in rows]

    def set_strict(self, name: str, on: bool) -> ClassRule:
        """Raises BadInput for what cannot be the name of a class."""
        name = " ".join(unicodedata.normalize("NFC", name).split())
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise BadInput(f"{name[:LONGEST_NAME]!r} cannot be the name of a class.", "Use 1 to 80 letters, digits or signs.")
        with self._database.begin() as connection:
            same = [row.class_name for row in connection.execute(sa.select(class_rules)) if _key(row.class_name) == _key(name)]
            connection.execute(sa.delete(class_rules).where(class_rules.c.class_name.in_(same)))
            connection.execute(sa.insert(class_rules).values(class_name=name, strict=on))
        return ClassRule(name, on)


def _key(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
