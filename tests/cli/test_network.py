"""`appliance network` and `appliance egress`: nobody is reached unless it was allowed here, and the record says by whom."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from appliance.audit import Audit
from appliance.db import Database
from appliance.settings import Settings
from tests.cli.test_commands import APPLIANCE, run
from tests.outside import machine, way_out


def test_a_host_is_allowed_listed_and_taken_back_and_the_record_has_it(tmp_path: Path) -> None:
    shut = {"mode": "air-gapped", "allowed": [], "running": False, "missing": []}
    assert json.loads(run(tmp_path, "network", "status", "--json").stdout) == shut
    assert "Air-gapped" in run(tmp_path, "network", "status").stdout
    done = run(tmp_path, "network", "allow", "LDAP.school.example:636")
    assert done.returncode == 0 and "ldap.school.example:636 may be reached." in done.stdout
    assert "allowed already" in run(tmp_path, "network", "allow", "ldap.school.example:636").stdout
    assert run(tmp_path, "network", "allow", "ldap.school.example").returncode == 0
    done = run(tmp_path, "network", "status", "--json")
    ports = [(one["name"], one["port"]) for one in json.loads(done.stdout)["allowed"]]
    assert ports == [("ldap.school.example", 443), ("ldap.school.example", 636)]
    done = run(tmp_path, "network", "deny", "ldap.school.example:443", "--json")
    assert json.loads(done.stdout) == {"denied": ["ldap.school.example:443"], "mode": "allow"}
    assert "air-gapped again" in run(tmp_path, "network", "deny", "ldap.school.example").stdout
    database = Database(Settings(home=tmp_path).database)
    rows = [(row.verb, row.thing) for row in Audit(database).entries()]
    assert Audit(database).verify() == 4
    database.close()
    assert rows == [
        ("network allow", "ldap.school.example:636"), ("network allow", "ldap.school.example:443"),
        ("network deny", "ldap.school.example:443"), ("network deny", "ldap.school.example:636"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [["allow", "https://a.example"], ["allow", "*"], ["deny", "a.example"], ["allow", "a.example:0"]]
)
def test_what_is_no_host_or_was_not_allowed_is_said_in_one_sentence(tmp_path: Path, wrong: list[str]) -> None:
    done = run(tmp_path, "network", *wrong)
    assert done.returncode == 1 and done.stderr.count("Error: ") == 1 and done.stderr.count("Try: ") == 1
    assert json.loads(run(tmp_path, "network", "status", "--json").stdout)["mode"] == "air-gapped"


def test_egress_ends_with_a_sentence_while_the_box_is_air_gapped(tmp_path: Path) -> None:
    done = run(tmp_path, "egress")
    assert done.returncode == 3 and "Error: The box is air-gapped" in done.stderr and "appliance network allow" in done.stderr


def test_one_egress_a_home_and_status_says_that_it_runs(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with machine() as outside:
        assert run(tmp_path, "network", "allow", str(outside.host)).returncode == 0
        with way_out(settings) as process:
            assert oct(settings.egress_socket.stat().st_mode)[-3:] == "600"
            done = subprocess.run(
                [APPLIANCE, "--home", str(tmp_path), "egress"], capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 1 and "running already" in done.stderr
            assert json.loads(run(tmp_path, "network", "status", "--json").stdout)["running"]
            process.terminate()
            assert process.wait(30) == 0 and not settings.egress_socket.exists()
    assert "not running" in run(tmp_path, "network", "status").stdout
