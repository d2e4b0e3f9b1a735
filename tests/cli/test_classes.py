"""`appliance classes`: a class is made strict and is one for the chat as well; what was done stands in the record."""

from __future__ import annotations

import json
from pathlib import Path

from appliance.audit import Audit
from appliance.classes import Classes
from appliance.db import Database
from appliance.settings import Settings
from tests.cli.test_commands import run


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
