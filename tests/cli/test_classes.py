"""`appliance classes` and `appliance quotas`, as the person at the box types them; what was done stands in the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from appliance.accounts import People
from appliance.audit import Audit
from appliance.classes import Classes
from appliance.cli import group
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound
from appliance.settings import Settings
from tests.cli.test_commands import run

Told = Callable[..., Any]


@pytest.fixture
def told(settings: Settings, database: Database) -> Told:
    people = People(database)
    for name, role in (("ann", "pupil"), ("ben", "pupil"), ("brown", "teacher")):
        people.add(name, role)

    def told(*arguments: str) -> Any:
        result = CliRunner().invoke(group, ["--home", str(settings.home), *arguments, "--json"], standalone_mode=False)
        if isinstance(result.exception, (ApplianceError, click.ClickException)):
            raise result.exception
        assert result.exception is None, result.exception
        return json.loads(result.stdout)

    return told


def test_a_class_is_made_strict_and_listed(tmp_path: Path) -> None:
    assert json.loads(run(tmp_path, "classes", "list", "--json").stdout) == {"classes": []}
    done = run(tmp_path, "classes", "strict", "7 B", "on")
    assert done.returncode == 0 and "7 B is to be answered from documents only." in done.stdout
    done = run(tmp_path, "classes", "strict", "7b", "off", "--json")
    assert json.loads(done.stdout) == {"name": "7 B", "strict": False}, "however it is written"
    run(tmp_path, "classes", "strict", "9 C", "on")
    listed = run(tmp_path, "classes", "list", "--json")
    found = [(one["name"], one["strict"]) for one in json.loads(listed.stdout)["classes"]]
    assert found == [("7 B", False), ("9 C", True)]
    for wrong, code in ((["x\ny" * 50, "on"], 1), (["7 B", "perhaps"], 2), (["7 B"], 2)):
        done = run(tmp_path, "classes", "strict", *wrong)
        assert done.returncode == code and "Traceback" not in done.stderr
    database = Database(Settings(home=tmp_path).database)
    assert Classes(database).strict(["9C"]) and not Classes(database).strict(["7B"])
    noted = [(row.verb, row.thing) for row in Audit(database).entries()]
    database.close()
    assert noted == [("class strict", "7 B"), ("class strict", "7 B"), ("class strict", "9 C")]


def test_the_life_of_a_class(told: Told, database: Database) -> None:
    made = told("classes", "add", "7B", "--teacher", "brown", "--lesson", "Leaves", "--method", "socratic", "--year", "2026")
    assert (made["teachers"], made["help_level"], made["open"], made["pupils"]) == (["brown"], "hints", True, 0)
    assert told("classes", "assign", "7b", "ann", "ben")["pupils"] == 2
    assert told("classes", "assign", "7b", "ben", "--remove")["pupils"] == 1
    assert told("classes", "close", "7B")["open"] is False
    opened = told("classes", "open", "7B", "--minutes", "45")
    assert opened["open"] is True and isinstance(opened["until"], float) and made["until"] is None
    locked = told("classes", "exam", "7B", "on")
    assert (locked["exam"], locked["open"]) == (True, False)
    assert told("classes", "exam", "7B", "off")["open"] is True
    assert told("classes", "archive", "7B")["archived"] and told("classes", "list") == {"classes": []}
    assert [one["name"] for one in told("classes", "list", "--archived")["classes"]] == ["7B"]
    assert told("classes", "archive", "7B", "--undo")["archived"] is None
    noted = [row.verb for row in Audit(database).entries(thing=made["id"])]
    assert noted == [
        "create class", "assign to class", "remove from class", "close class", "open class", "class exam", "class exam",
        "archive class", "restore class",
    ]  # fmt: skip


def test_a_year_ends(told: Told) -> None:
    told("classes", "add", "7B", "--teacher", "brown", "--year", "2026")
    told("classes", "assign", "7B", "ann")
    before = told("classes", "list", "--archived")
    planned = told("classes", "rollover", "--year", "2027", "--move-up", "--dry-run")
    assert planned["dry_run"] and [(one["name"], one["becomes"]) for one in planned["classes"]] == [("7B", "8B")]
    assert told("classes", "list", "--archived") == before
    assert told("classes", "rollover", "--year", "2027")["classes"][0]["becomes"] == "7B (2026)"
    (now,) = told("classes", "list")["classes"]
    assert (now["name"], now["year"], now["pupils"], now["teachers"]) == ("7B", "2027", 0, ["brown"])
    assert told("classes", "rollover", "--year", "2027")["classes"] == []


def test_quotas_are_set_listed_and_removed(told: Told, database: Database) -> None:
    assert told("quotas", "list") == {"quotas": []}
    told("classes", "add", "7B")
    for who, most in (("role:pupil", "20"), ("class:7 b", "30"), ("user:Ann", "40"), ("user:ann", "50")):
        told("quotas", "set", who, "hour", most)
    listed = told("quotas", "list")["quotas"]
    assert [(one["for"], one["window"], one["most"]) for one in listed] == [
        ("user:ann", "hour", 50), ("class:7B", "hour", 30), ("role:pupil", "hour", 20),
    ]  # fmt: skip
    told("quotas", "remove", "class:7B", "hour")
    assert len(told("quotas", "list")["quotas"]) == 2
    assert [row.verb for row in Audit(database).entries(newest=1)] == ["remove quota"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["classes", "add", "7b"], Conflict, "a class '7B' already"),
        (["classes", "add", "8C", "--method", "dancing"], BadInput, "no method 'dancing'"),
        (["classes", "add", "8C", "--teacher", "ann"], BadInput, "ann is a pupil"),
        (["classes", "assign", "7B", "ann", "--teacher"], BadInput, "ann is a pupil"),
        (["classes", "assign", "7B", "nobody"], NotFound, "no person named nobody"),
        (["classes", "open", "8C"], NotFound, "no class '8C'"),
        (["classes", "open", "7B", "--minutes", "0"], click.BadParameter, "range"),
        (["classes", "rollover", "--year", "soon"], BadInput, "is no year"),
        (["quotas", "set", "class:8C", "hour", "3"], NotFound, "no class '8C'"),
        (["quotas", "set", "role:king", "hour", "3"], NotFound, "no role 'king'"),
        (["quotas", "set", "king", "hour", "3"], BadInput, "is nobody"),
        (["quotas", "set", "role:pupil", "hour", "-3"], click.NoSuchOption, "-3"),
        (["quotas", "remove", "role:pupil", "hour"], NotFound, "no such quota"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    told: Told, arguments: list[str], error: type[Exception], words: str
) -> None:
    told("classes", "add", "7B")
    before = told("classes", "list"), told("quotas", "list")
    with pytest.raises(error, match=words):
        told(*arguments)
    assert (told("classes", "list"), told("quotas", "list")) == before
