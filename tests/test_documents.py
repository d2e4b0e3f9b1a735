"""What the README and the guides say is true: every command and option they name exists, every file they list is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from appliance.cli import COMMANDS, group

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


GUIDES = sorted((ROOT / "appliance" / "content" / "guides").glob("*.md"))


def commands(text: str) -> list[list[str]]:
    """Every `appliance ...` of a text, in its blocks and between back quotes, word by word."""
    found = re.findall(r"^(?:\.venv/bin/)?appliance ([a-z].*)$", "\n".join(re.findall(r"```\n(.*?)```", text, re.S)), re.M)
    found += re.findall(r"`appliance ([a-z][^`]*)`", re.sub(r"```\n.*?```", "", text, flags=re.S))
    return [shlex.split(line, comments=True) for line in found if line.split()[0] in COMMANDS]


def test_the_two_commands_stand_within_the_first_fifteen_lines() -> None:
    head = "\n".join(README.splitlines()[:15])
    assert "./scripts/quickstart" in head and "./scripts/test" in head


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDES], ids=lambda path: path.name)
def test_every_command_and_option_of_a_document_exists(path: Path) -> None:
    checked = 0
    for words in commands(path.read_text("utf-8")):
        command: click.Command = group
        context = click.Context(group)
        for word in list(words):
            if not isinstance(command, click.Group):
                break
            found = command.get_command(context, word)
            assert found is not None, f"appliance {' '.join(words)}"
            command = found
        options = {name for parameter in command.params for name in parameter.opts}
        assert not [word for word in words if word.startswith("--") and word not in options], words
        checked += 1
    assert checked >= 5


def test_recipes_that_the_guides_name_are_there() -> None:
    recipes = {file.stem for file in (ROOT / "appliance" / "content" / "recipes").glob("*.toml")}
    named = {name for path in GUIDES for name in re.findall(r"--recipe ([a-z][\w-]*)", path.read_text("utf-8"))}
    named |= {"laptop-cpu", "small-gpu", "large-gpu", "several-gpus"}
    assert named <= recipes and len(named) >= 5


def test_guides_are_printed_and_short() -> None:
    assert {path.stem for path in GUIDES} == {"tuning", "good-practice", "troubleshooting"}
    for path in GUIDES:
        assert len(path.read_text("utf-8").split()) < 700, "a guide that is long is not read"
        done = CliRunner().invoke(group, ["guide", path.stem])
        assert done.exit_code == 0 and path.read_text("utf-8").splitlines()[0] in done.output


def test_every_file_of_the_tree_is_there() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    checked = 0
    for line in tree.splitlines():
        inside = line.startswith("  ")
        for name in re.findall(r"[\w./-]+\.(?:py|txt)|[\w./-]+/", line[:25]):
            assert (ROOT / "appliance" / name if inside else ROOT / name).exists(), name
            checked += 1
    assert checked >= 20


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    waiting = [group.get_command(click.Context(group), name)]
    while waiting:
        command = waiting.pop()
        assert command is not None and command.help
        if isinstance(command, click.Group):
            waiting += command.commands.values()
        else:
            assert any(parameter.name == "as_json" for parameter in command.params), command.name


def test_settings_named_in_the_pages_of_help_exist() -> None:
    from appliance.settings import Settings

    assert {"home", "port", "school"} <= set(Settings.model_fields)


def test_pinned_versions_cover_every_dependency() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = {
        line.split("==")[0].lower().replace("_", "-"): line.split("==")[1]
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    }
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    wanted = [need for need in map(Requirement, texts) if need.name != project["name"]]  # an extra may take in another
    assert not [need.name for need in wanted if need.name.lower().replace("_", "-") not in pins]
    assert not [need.name for need in wanted if not need.specifier.contains(pins[need.name.lower().replace("_", "-")])]


def test_every_command_that_an_error_or_a_page_names_exists() -> None:
    texts = [path for pattern in ("*.py", "*.html") for path in (ROOT / "appliance").rglob(pattern)]
    named = {line for path in texts for line in re.findall(r"`appliance ([a-z][^`{]*)", path.read_text("utf-8"))}
    missing = []
    for words in sorted(named):
        first, *rest = words.split()
        command = group.get_command(click.Context(group), first)
        if isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            command = command.get_command(click.Context(command), rest[0])
        if command is None:
            missing.append(words)
    assert not missing
    assert len(named) >= 8
