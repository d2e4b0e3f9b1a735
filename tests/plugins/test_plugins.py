"""Plugins: found by their entry points, whoever wrote them, and what one needs is one sentence and one next step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import plugins
from appliance.errors import ApplianceError, Forbidden, NotFound, Unsupported
from appliance.network import Host, Policy
from appliance.settings import Settings
from tests.outside import allow

ROOT = Path(__file__).resolve().parents[2]
# What strangers may bring: one that works, one that breaks as it is imported, one that is no plugin, one that lacks a package.
BROUGHT = {
    "helpful": "from appliance.plugins import Plugin\nPLUGIN = Plugin('helpful', 'A helpful stranger', network=False)",
    "broken": "import a_package_that_nobody_has",
    "odd": "PLUGIN = 'a text'",
    "misnamed": "from appliance.plugins import Plugin\nPLUGIN = Plugin('other', 'Another name')",
    "lacking": "from appliance.plugins import Plugin\n"
    "PLUGIN = Plugin('lacking', 'One that lacks', package='a_package.that_nobody_has', network=False)",
    "failing": "from appliance.plugins import Plugin\n"
    "PLUGIN = Plugin('failing', 'A failing one', network=False, check=lambda settings: settings.nothing)",
    "choosy": "from appliance.network import Host\nfrom appliance.plugins import Plugin\n"
    "PLUGIN = Plugin('choosy', 'A choosy one', hosts=lambda settings: [Host('api.choosy.example', 443)])",
}
NEEDS = {
    "broken": ("The plugin broken cannot be loaded (ModuleNotFoundError).", "pip uninstall strangers"),
    "odd": ("What strangers calls the plugin odd is none.", "Install strangers again"),
    "misnamed": ("What strangers calls the plugin misnamed is none.", "Install strangers again"),
    "lacking": ("One that lacks needs the package a_package.that_nobody_has, which is not installed.", "pip install"),
    "choosy": ("A choosy one is off while the box is air-gapped.", "appliance network allow api.choosy.example:443"),
}


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    """A folder as pip leaves it, with a distribution of strangers' plugins."""
    folder = tmp_path / "site"
    about = folder / "strangers-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    lines = [f"{name} = strangers_{name}:PLUGIN" for name in BROUGHT]
    (about / "entry_points.txt").write_text("[appliance.plugins]\n" + "\n".join(lines) + "\n")
    for name, code in BROUGHT.items():
        (folder / f"strangers_{name}.py").write_text(code + "\n")
    return folder


@pytest.fixture
def here(brought: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same in this process."""
    monkeypatch.syspath_prepend(brought)
    plugins._read.cache_clear()
    yield
    plugins._read.cache_clear()
    for name in BROUGHT:
        sys.modules.pop(f"strangers_{name}", None)


def test_the_built_in_ones_enter_by_the_same_hook_and_need_a_line() -> None:
    found = plugins.installed()
    assert {"openai", "dspy", "remote"} <= set(found)
    assert all(found[name].network for name in ("openai", "remote"))


@pytest.mark.usefixtures("here")
def test_a_strangers_plugin_is_found_and_a_broken_one_takes_nothing_with_it(settings: Settings) -> None:
    assert plugins.require(settings, "helpful").title == "A helpful stranger"
    assert {"openai", "dspy", "remote", "helpful"} <= set(plugins.installed())
    listed = {one.name: one for one in plugins.states(settings)}
    assert listed["helpful"].ready and not listed["remote"].ready
    assert not listed["failing"].ready and "cannot say what it needs (AttributeError)" in listed["failing"].message
    for name, (message, hint) in NEEDS.items():
        assert listed[name].message == message and hint in listed[name].hint, name
        with pytest.raises(ApplianceError) as caught:
            plugins.require(settings, name)
        assert (caught.value.message, caught.value.hint) == (message, listed[name].hint)


@pytest.mark.usefixtures("here")
def test_a_host_that_is_not_allowed_is_named(settings: Settings) -> None:
    allow(settings, Host("other.example", 443))
    with pytest.raises(Forbidden, match=r"api\.choosy\.example:443 may not be reached") as caught:
        plugins.require(settings, "choosy")
    assert "appliance network allow api.choosy.example:443" in caught.value.hint
    allow(settings, Host("api.choosy.example", 443))
    assert plugins.require(settings, "choosy").name == "choosy"
    Policy(settings.network).deny("api.choosy.example")
    with pytest.raises(Forbidden):
        plugins.require(settings, "choosy")


def test_a_package_that_is_missing_is_no_import_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(settings, Host("api.openai.com", 443))
    monkeypatch.setattr(plugins.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(Unsupported, match="needs the package openai") as caught:
        plugins.require(settings, "openai")
    assert ".[openai]" in caught.value.hint
    with pytest.raises(NotFound, match="no plugin called 'gone'"):
        plugins.require(settings, "gone")


def test_on_the_command_line_each_says_what_it_needs(brought: Path, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "appliance", "--home", str(tmp_path / "home"), *words]
        path = os.pathsep.join(filter(None, (str(brought), str(ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT
        )

    told = json.loads(run("models", "plugins", "--json").stdout)["plugins"]
    listed: dict[str, Any] = {one["name"]: one for one in told}
    assert listed["helpful"]["ready"] is True
    for name, (message, hint) in NEEDS.items():
        assert listed[name]["message"] == message and hint in listed[name]["hint"], name
    refused = run("models", "connect", "district", "--url", "https://llm.district.example/v1")
    assert refused.returncode == 3 and "Traceback" not in refused.stderr
    lines = refused.stderr.strip().splitlines()
    assert lines[-2] == "Error: Another model server is off while the box is air-gapped."
    assert lines[-1].startswith("Try: ") and "appliance network allow" in lines[-1]
