"""Nothing is used that Debian 12's Python, 3.11.2, lacks or does wrongly: a newer one that runs the tests would not show it."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from re import _parser
from typing import Any

import pytest

import appliance
from appliance.settings import CLONE

# It goes back within them, or never matches, where a group stands in them.
MISREAD = {"POSSESSIVE_REPEAT", "ATOMIC_GROUP"}


def operations(parsed: Any) -> Iterator[Any]:
    if isinstance(parsed, _parser.SubPattern | list | tuple):
        for one in parsed:
            yield from operations(one)
    else:
        yield parsed


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Those that a module keeps, by themselves or in a table."""
    for found in pkgutil.walk_packages(appliance.__path__, "appliance."):
        if found.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(found.name)).items():
            kept = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            for one in kept:
                if isinstance(one, re.Pattern):
                    yield f"{found.name}.{name}", one


def misread(pattern: str | bytes, flags: int = 0) -> bool:
    return bool(MISREAD & {getattr(one, "name", "") for one in operations(_parser.parse(pattern, flags))})


def test_no_pattern_has_a_possessive_repeat_or_an_atomic_group() -> None:
    found = list(patterns())
    assert len(found) > 150, "the patterns of all modules were looked at"
    assert not [name for name, one in found if misread(one.pattern, one.flags)]


@pytest.mark.parametrize(("pattern", "expected"), [(r"(?:a|\\.){0,9}+b", True), (r"((?>a+)b)", True), (r"(a+|b*?)+\+", False)])
def test_the_rule_itself(pattern: str, expected: bool) -> None:
    assert misread(pattern) is expected


def test_archives_are_unpacked_without_the_argument_that_it_does_not_know() -> None:
    for folder in ("appliance", "installer", "scripts"):
        for path in (CLONE / folder).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
            unpacking = [
                one for one in calls if isinstance(one.func, ast.Attribute) and one.func.attr in ("extract", "extractall")
            ]
            assert "filter" not in [word.arg for one in unpacking for word in one.keywords], path
