"""`appliance practice`, as the person at the box types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from appliance.accounts import Accounts, People, User
from appliance.audit import Audit
from appliance.cli import group
from appliance.db import Database
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, TooLarge
from appliance.practice.scenario import written
from appliance.practice.scene_file import LARGEST
from appliance.practice.scenes import Scenes
from appliance.settings import Settings
from tests.cli.test_commands import run

Told = Callable[..., Any]
WRITTEN = "seasons-and-distance"


@pytest.fixture
def told(settings: Settings, database: Database) -> Told:  # noqa: ARG001 - the commands open it
    def told(*arguments: str) -> Any:
        command = ["--home", str(settings.home), "practice", "scenarios", *arguments, "--json"]
        result = CliRunner().invoke(group, command, standalone_mode=False)
        if isinstance(result.exception, (ApplianceError, click.ClickException)):
            raise result.exception
        assert result.exception is None, result.exception
        return json.loads(result.stdout)

    return told


def test_the_scenes_are_listed_and_shown_to_people(tmp_path: Path) -> None:
    done = run(tmp_path, "practice", "scenarios", "list", "--category", "parents")
    assert done.returncode == 0 and "homework-all-evening" in done.stdout and WRITTEN not in done.stdout
    done = run(tmp_path, "practice", "scenarios", "show", WRITTEN)
    assert done.returncode == 0 and "Closer to the fire, warmer (written, version 1)" in done.stdout
    assert "- Catalina (pupil): " in done.stdout and "Rubric: " in done.stdout
    done = run(tmp_path, "practice", "scenarios", "show", "nothing")
    assert done.returncode == 1 and done.stderr.count("Error: ") == done.stderr.count("Try: ") == 1


def test_a_scene_goes_out_and_comes_in_as_a_draft_until_it_is_approved(
    told: Told, settings: Settings, database: Database, tmp_path: Path
) -> None:
    assert len(told("list")["scenarios"]) == len(written())
    file = tmp_path / "scene.toml"
    assert told("export", WRITTEN, "--output", str(file))["text"] == file.read_text("utf-8")
    made = told("import", str(file))
    assert (made["state"], made["approved_by"]) == ("draft", "") and made["title"] == written()[WRITTEN].title
    assert told("export", made["id"])["text"].splitlines()[3:10] == file.read_text("utf-8").splitlines()[3:10]
    done = told("approve", made["id"], "--version", "1")
    assert done["state"] == "approved" and done["approved_by"].endswith("at the command line")
    assert told("show", made["id"])["state"] == "approved"
    assert [one["id"] for one in told("list", "--subject", "science")["scenarios"]].count(made["id"]) == 1
    assert told("list", "--archived") == {"scenarios": []}
    teacher = People(database).add("ann", "teacher")[0]
    scenes = Scenes(database, Accounts(database, settings), Audit(database))
    assert scenes.find(User(teacher.id, "ann", "teacher"), made["id"]).state == "approved"
    assert [one.verb for one in Audit(database).entries(thing=made["id"])] == ["create scenario", "approve scenario"]


def test_what_is_wrong_is_refused(told: Told, tmp_path: Path) -> None:
    large, poor = tmp_path / "large.toml", tmp_path / "poor.toml"
    large.write_bytes(b"#" * (LARGEST + 1))
    poor.write_text("title = 'x'")
    wrong: list[tuple[tuple[str, ...], type[Exception]]] = [
        (("import", str(large)), TooLarge),
        (("import", str(poor)), BadInput),
        (("import", str(tmp_path)), ApplianceError),
        (("import", str(tmp_path / "none.toml")), ApplianceError),
        (("export", "nothing"), NotFound),
        (("show", WRITTEN, "--version", "9"), NotFound),
        (("approve", WRITTEN), Conflict),
        (("approve", "nothing"), NotFound),
        (("list", "--category", "weather"), click.BadParameter),
    ]
    for arguments, kind in wrong:
        with pytest.raises(kind):
            told(*arguments)
