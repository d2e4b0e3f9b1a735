"""`appliance docs collections` and its neighbours, as a person at the box types them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from appliance.accounts import Accounts
from appliance.app import Appliance
from appliance.audit import Audit
from appliance.cli import group
from appliance.db import Database
from appliance.engine.openai_compatible import OpenAICompatible
from appliance.errors import ApplianceError, BadInput, Conflict, ModelUnavailable, NotFound
from appliance.knowledge.library import EVERYTHING, Gone, Library
from appliance.settings import Settings
from tests.knowledge.helpers import PLANTS, RIVERS, embed

Run = Callable[..., Result]


@pytest.fixture
def run(settings: Settings) -> Run:
    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(group, ["--home", str(settings.home), "docs", *arguments], standalone_mode=False)
        if isinstance(result.exception, (ApplianceError, click.ClickException)):
            raise result.exception
        assert result.exception is None, result.exception
        return result

    return run


@pytest.fixture
def told(run: Run) -> Callable[..., Any]:
    return lambda *arguments: json.loads(run(*arguments, "--json").stdout)


@pytest.fixture
def plants(settings: Settings, database: Database, tmp_path: Path) -> str:
    """A document in the collection "school", with vectors of an embedder that is no longer there."""
    (tmp_path / "plants.txt").write_text(PLANTS)
    library = Library(settings, database, embed, "older-1")
    (report,) = asyncio.run(library.add([tmp_path / "plants.txt"]))
    library.close()
    return str(report.document)


def test_a_collection_is_made_opened_and_closed(
    run: Run, told: Callable[..., Any], database: Database, settings: Settings
) -> None:
    accounts = Accounts(database, settings)
    ann = accounts.create_first_administrator(accounts.ensure_setup_code() or "", "Ann Green", "correct horse battery")
    assert "There are no collections yet" in run("collections").stdout
    made = told(
        "create", "Physics", "--owner", "ann green", "--subject", "physics", "--reader", "class:7B", "--reader", "role:lead"
    )
    assert (made["owner"], made["subject"], made["documents"]) == ("Ann Green", "physics", 0)
    assert made["readers"] == [{"kind": "class", "name": "7B"}, {"kind": "role", "name": "lead"}]
    changed = told("readers", "Physics", "--add", "user:Ann Green", "--add", "everyone", "--remove", "class:7B")
    assert [(one["kind"], one["name"]) for one in changed["readers"]] == [
        ("everyone", ""), ("role", "lead"), ("user", "Ann Green"),
    ]  # fmt: skip
    listed = run("collections").stdout
    assert "everyone, role:lead, user:Ann Green" in listed and "Ann Green" in listed
    assert told("collections") == {"collections": [changed]}
    assert "Physics is read by: everyone" in run("readers", "Physics").stdout
    noted = [(entry.verb, entry.facts) for entry in Audit(database).entries(thing=made["id"])]
    assert [verb for verb, _ in noted] == ["create collection", "close collection", "open collection", "open collection"]
    assert noted[2][1] == {"kind": "user", "name": ann.id}


def test_who_names_a_class_is_told_that_nobody_belongs_to_one_yet(run: Run) -> None:
    sentence = "There is no class 7B yet; whoever joins it later may read this."
    assert sentence in run("create", "Physics", "--reader", "role:lead", "--reader", "class:7B").stderr
    assert sentence in run("readers", "Physics").stderr
    assert "There is no class" not in run("readers", "Physics", "--remove", "class:7B").output


def test_a_new_name_and_a_subject(run: Run, told: Callable[..., Any], plants: str) -> None:
    assert told("rename", "school", "The  whole school")["name"] == "The whole school"
    assert told("describe", "The whole school", "--subject", "science", "--grade", "7")["grade"] == "7"
    assert "subject science, grade -" in run("describe", "The whole school", "--grade", "").stdout
    (document,) = told("list")["documents"]
    assert (document["id"], document["collection"]) == (plants, "The whole school")
    assert (document["subject"], document["grade"], document["version"]) == ("science", "", 1)


def test_a_document_is_moved_and_removed(
    run: Run, told: Callable[..., Any], plants: str, settings: Settings, database: Database
) -> None:
    run("create", "Staff")
    assert told("move", plants, "Staff") == {"document": plants, "collection": "Staff"}
    assert [one["id"] for one in told("list", "--collection", "Staff")["documents"]] == [plants]
    assert told("list", "--collection", "school")["documents"] == []
    assert told("remove", plants) == {"removed": plants, "erased": True, "backups": 0, "backups_until": 0.0}
    assert told("discard", "school") == {"discarded": "school"}
    assert [one["name"] for one in told("collections")["collections"]] == ["Staff"]
    gone = asyncio.run(Library(settings, database, embed).document(plants, EVERYTHING))
    assert isinstance(gone, Gone) and gone.why == "removed"
    assert [entry.verb for entry in Audit(database).entries(thing=plants)] == ["move document", "remove document"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["create", "school"], Conflict, "school is taken"),
        (["create", " "], BadInput, "cannot be the name"),
        (["create", "New", "--owner", "Nobody"], NotFound, "no person named Nobody"),
        (["create", "New", "--reader", "planet:Mars"], BadInput, "is no reader"),
        (["create", "New", "--reader", "class:"], BadInput, "is no reader"),
        (["create", "New", "--reader", "everyone:teachers"], BadInput, "is no reader"),
        (["readers", "school", "--add", "user:Nobody"], NotFound, "no person named Nobody"),
        (["readers", "school", "--remove", "class:7B"], NotFound, "not open to that reader"),
        (["readers", "Nothing"], NotFound, "no collection named Nothing"),
        (["rename", "Nothing", "New"], NotFound, "no collection named Nothing"),
        (["describe", "Nothing"], NotFound, "no collection named Nothing"),
        (["discard", "Nothing"], NotFound, "no collection named Nothing"),
        (["discard", "school"], Conflict, "holds 1 documents"),
        (["move", "0" * 16, "school"], NotFound, "no such document"),
        (["move", "../../etc/passwd", "school"], NotFound, "no such document"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    run: Run, told: Callable[..., Any], plants: str, arguments: list[str], error: type[ApplianceError], words: str
) -> None:
    before = told("collections"), told("list")
    with pytest.raises(error, match=words) as caught:
        run(*arguments)
    assert caught.value.hint
    assert (told("collections"), told("list")) == before and before[1]["documents"][0]["id"] == plants


@pytest.mark.usefixtures("plants")
def test_documents_are_embedded_again_after_another_embedder_came(
    told: Callable[..., Any], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def running(*_arguments: Any, **_more: Any) -> AsyncIterator[None]:
        yield

    async def away(_self: Any, texts: list[str]) -> Any:
        raise ModelUnavailable(f"{len(texts)} texts wait.", "Start the engine.")

    async def toy(_self: Any, texts: list[str]) -> Any:
        return await embed(texts)

    monkeypatch.setattr(Appliance, "running_engine", running)
    monkeypatch.setattr(OpenAICompatible, "embed", toy)
    assert told("search", RIVERS + PLANTS)["lexical_only"]
    assert (
        "1 passages are found by their words only" in CliRunner().invoke(group, ["--home", str(settings.home), "status"]).stdout
    )
    monkeypatch.setattr(OpenAICompatible, "embed", away)
    assert told("reindex") == {"left": 1}
    monkeypatch.setattr(OpenAICompatible, "embed", toy)
    assert told("reindex") == {"left": 0}
    assert not told("search", RIVERS + PLANTS)["lexical_only"]
    assert "words only" not in CliRunner().invoke(group, ["--home", str(settings.home), "status"]).stdout
