"""Everybody and their classes as a CSV file that changes nothing when it is read again."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.accounts import People, Person
from appliance.enrolment.cells import join_list, write
from appliance.enrolment.reading import COLUMNS


def export(people: People) -> str:
    """The text of the file, without passwords; disabled people are in it."""
    return write([COLUMNS, *(_line(one) for one in people.list())])


def password_rows(made: Iterable[tuple[Person, str]]) -> str:
    """A sheet of passwords that were just made."""
    lines = [(one.name, one.full_name, join_list(one.classes), password) for one, password in made]
    return write([("name", "full_name", "classes", "password"), *lines])


def _line(one: Person) -> tuple[str, ...]:
    return (one.name, one.full_name, one.role, join_list(one.classes), one.language, one.external)
