"""Who was erased stays so: no restore, no undo and no kept state has them back, and it is said when the last copy is gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from appliance.accounts import ADMINISTRATOR, PUPIL, People
from appliance.app import Appliance
from appliance.audit import Audit
from appliance.backup import Backups, switch, undo
from appliance.backup.repository import Repository
from appliance.backup.switching import working
from appliance.cli import group
from appliance.db import Database
from appliance.erasures import NAME, Erasures, mark
from appliance.errors import ApplianceError, UnderWay
from appliance.feedback import Given
from appliance.knowledge.shelves import EVERYTHING
from appliance.settings import Settings
from appliance.tables import (
    collection_readers,
    collections,
    conversations,
    documents,
    examples,
    feedback,
    passages,
    turns,
    users,
)
from tests.backup.school import QUIET, needs_restic

CANARY = "heron-quartz-7741"  # in whatever Mia wrote
LEAF, FERN = "Leaves hold chlorophyll, thimble-omega-5510.", "Ferns have spores, and no seeds at all."
pytestmark = needs_restic


@dataclass
class School:
    """A home with Mia in it, who is erased, and Ben, who stays; two backups from before, and what they were asked for since."""

    settings: Settings
    disk: Path
    ids: list[str]
    mia: str
    leaf: str
    erased: Result

    def restored(self, home: Settings, **more: tuple[str, ...]) -> None:
        Backups(home, self.disk, same_disk=True, key=Backups(self.settings).key()).prepare(self.ids[0], QUIET, **more)

    def apart(self, folder: Path) -> School:
        """With a disk of its own: what is erased is written down beside the backups, for every other box."""
        shutil.copytree(self.disk, folder / "disk")
        return replace(self, disk=folder / "disk")


def run(settings: Settings, *words: str) -> Result:
    place = {"APPLIANCE_BACKUP_TO": str(settings.backup_to or settings.backups), "APPLIANCE_BACKUP_SAME_DISK": "true"}
    return CliRunner().invoke(group, ["--home", str(settings.home), *words], env=place, catch_exceptions=False)


def holds(folder: Path, words: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and words.encode() in path.read_bytes()]


def row(id: str, author: str) -> dict[str, object]:
    messages = [["user", f"{CANARY} of {author}" if author != "ben" else "Ben's words"], ["assistant", "Yes."]]
    return {
        "id": id, "messages": messages, "author": author, "created": 1.0, "imported": 1.0, "extra": {}, "reviewed": "approved",
    }  # fmt: skip


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    """Two backups; then Mia is erased, and the document about leaves is removed."""
    import asyncio

    root = tmp_path_factory.mktemp("erased")
    settings = Settings(home=root / "home", backup_to=root / "disk", backup_same_disk=True)
    (root / "disk").mkdir()
    box = Appliance.open(settings)
    people = People(box.database)
    people.add("head", ADMINISTRATOR)
    mia, _ = people.add("mia", PUPIL, full_name="Mia Berg")
    ben, _ = people.add("ben", PUPIL)
    with box.database.begin() as connection:
        for number, person in enumerate((mia, ben)):
            words = CANARY if person is mia else "what Ben wrote"
            talk = {"id": f"t{number}", "user": person.id, "title": words, "created": 1.0, "updated": 1.0}
            connection.execute(sa.insert(conversations).values(**talk))
            turn = {"id": f"r{number}", "conversation": f"t{number}", "ordinal": 1, "role": "user", "text": words}
            connection.execute(sa.insert(turns).values(**turn, state="done", created=1.0))
        for id, author in (("e1", "mia"), ("e2", "Mia Berg"), ("e3", "ben"), ("e5", "mia")):
            connection.execute(sa.insert(examples).values(**row(id, author)))
        connection.execute(sa.insert(collections).values(id="c1", name="shelf", created=1.0))
        connection.execute(sa.insert(collection_readers).values(collection="c1", kind="user", name=mia.id))
    for name, text in (("leaf.txt", LEAF), ("fern.txt", FERN)):
        (root / name).write_text(text)
    reports = asyncio.run(box.library.add([root / "leaf.txt", root / "fern.txt"]))
    run_folder = settings.runs / "r1" / "data"
    run_folder.mkdir(parents=True)
    (run_folder / "train.jsonl").write_text(json.dumps({"id": "e1", "messages": CANARY}) + "\n")
    backups = Backups(settings)
    ids = [backups.create(QUIET).id, backups.create(QUIET).id]
    # By now Mia is called otherwise, and one of her examples is known to the backups alone.
    people.change(mia.id, name="mia-2", full_name="Mia Holm")
    with box.database.begin() as connection:
        connection.execute(sa.delete(examples).where(examples.c.id == "e5"))
        connection.execute(sa.update(examples).where(examples.c.id != "e3").values(author="mia-2"))
        connection.execute(sa.insert(examples).values(**row("e4", "Mia Holm")))
    asyncio.run(box.library.remove(str(reports[0].document), EVERYTHING))
    asyncio.run(box.close())
    done = run(settings, "users", "erase", "mia-2", "--yes")
    yield School(settings, root / "disk", ids, mia.id, str(reports[0].document), done)


def nothing_of_hers(home: Path) -> None:
    database = Database(home / "appliance.sqlite3")
    try:
        with database.read() as connection:
            assert sorted(connection.scalars(sa.select(users.c.name))) == ["ben", "head"]
            assert list(connection.scalars(sa.select(conversations.c.id))) == ["t1"]
            assert list(connection.scalars(sa.select(turns.c.id))) == ["r1"]
            assert list(connection.scalars(sa.select(examples.c.id).where(examples.c.withdrawn.is_(None)))) == ["e3"]
            assert connection.execute(sa.select(collection_readers).where(collection_readers.c.kind == "user")).all() == []
    finally:
        database.close()
    assert holds(home, CANARY) == [] and holds(home, "Mia Berg") == []


def test_whoever_erases_is_told_when_the_last_backup_is_gone(before: School) -> None:
    assert before.erased.exit_code == 0, before.erased.output
    assert "2 backups from before hold a copy until" in before.erased.output
    assert "backup_keep" in before.erased.output
    listed = (before.settings.backups / NAME).read_text()
    assert mark("person", before.mia) in listed and before.mia not in listed and "e1" not in listed.replace('"', " ").split()
    assert (before.disk / "appliance-backups" / NAME).read_text().count("\n") == listed.count("\n"), "beside the backups too"


def test_an_older_backup_comes_back_without_who_was_erased(before: School, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    Repository(before.disk / "appliance-backups", Backups(before.settings).key()).restore(before.ids[0], tree)
    assert holds(tree, CANARY) and holds(tree, "thimble-omega"), "else there would be nothing to find"
    shutil.copytree(before.settings.home, tmp_path / "home")
    settings = before.settings.model_copy(update={"home": tmp_path / "home"})
    told = run(settings, "backup", "restore", before.ids[0])
    assert told.exit_code == 0, told.output
    assert (
        "erased from it again: people: 1, examples: 3, documents: 1" in told.output and "The state before is in" in told.output
    )
    nothing_of_hers(settings.home)
    assert holds(settings.home, "thimble-omega") == [] and holds(settings.home / "documents", "spores")
    database = Database(settings.database)
    with database.read() as connection:
        assert list(connection.scalars(sa.select(documents.c.title).where(documents.c.id == before.leaf))) == []
        assert connection.scalar(sa.select(sa.func.count()).select_from(passages)) == 1
    assert Audit(database).verify() and Audit(database).entries(thing="restored state")[-1].facts["people"] == 1
    database.close()
    undo(settings)
    nothing_of_hers(settings.home)


def test_a_new_box_learns_from_beside_the_backups_and_documents_can_come_back(before: School, tmp_path: Path) -> None:
    before = before.apart(tmp_path)
    settings = Settings(home=tmp_path / "blank")
    before.restored(settings, spare=("document",))
    switch(settings)
    nothing_of_hers(settings.home)
    assert holds(settings.home, "thimble-omega"), "its document came back: it was asked for"
    Backups(settings, before.disk, same_disk=True, key=Backups(before.settings).key()).create(QUIET)
    another = Settings(home=tmp_path / "another")
    before.restored(another)
    switch(another)
    nothing_of_hers(another.home)
    assert holds(another.home / "documents", "thimble-omega"), "and stays, on the next box too"


def test_a_state_that_waits_or_is_kept_is_swept(before: School, tmp_path: Path) -> None:
    """Of who is erased after the restore: Ben."""
    before = before.apart(tmp_path)
    settings = Settings(home=tmp_path / "home", backup_to=before.disk, backup_same_disk=True)
    before.restored(settings)
    switch(settings)
    before.restored(settings)
    kept = switch(settings)
    before.restored(settings)  # and one waits
    assert kept is not None and holds(kept, "what Ben wrote")
    (settings.backups / "before-0.9.sqlite3").write_bytes(b"what Ben wrote")
    with working(settings), pytest.raises(UnderWay):
        run(settings, "users", "erase", "ben", "--yes")
    assert run(settings, "users", "erase", "ben", "--yes").exit_code == 0
    assert holds(settings.home, "what Ben wrote") == []
    switch(settings)
    undo(settings)
    assert holds(settings.home, "what Ben wrote") == []


def test_a_document_and_examples_that_are_taken_out_leave_kept_states_at_once(before: School, tmp_path: Path) -> None:
    before = before.apart(tmp_path)
    settings = Settings(home=tmp_path / "home", backup_to=before.disk, backup_same_disk=True)
    before.restored(settings)
    switch(settings)
    before.restored(settings)
    kept = switch(settings)
    assert kept is not None and holds(kept, "no seeds at all") and holds(kept, "Ben's words")
    database = Database(settings.database)
    with database.read() as connection:
        fern = connection.scalar(sa.select(documents.c.id))
    database.close()
    with working(settings):
        done = run(settings, "docs", "remove", str(fern))
    assert done.exit_code == 0 and "hold a copy until the next backup" in done.output
    done = run(settings, "examples", "withdraw", "ben", "--yes")
    assert done.exit_code == 0 and "1 rows are erased" in done.output and holds(kept, "Ben's words") == []
    assert holds(kept, "no seeds at all") == [], "and what an earlier removal had to leave there"
    database = Database(kept / settings.database.name)
    assert Audit(database).entries(thing="restored state")[-1].facts == {"people": 0, "examples": 1, "documents": 1}
    database.close()
    (settings.backups / "known.json").write_text(json.dumps({"last": {"id": "1"}, "kept": [1.0, 2.0]}))
    assert "2 backups from before hold a copy until" in run(settings, "examples", "withdraw", "ben", "--yes").output


def test_an_example_that_is_taken_back_on_a_page_leaves_kept_states_at_once(before: School, tmp_path: Path) -> None:
    before = before.apart(tmp_path)
    settings = Settings(home=tmp_path / "home", backup_to=before.disk, backup_same_disk=True)
    before.restored(settings)
    switch(settings)
    before.restored(settings)
    kept = switch(settings)
    box = Appliance.open(settings)
    ben = box.accounts.named("ben")
    answer = {"id": "a1", "conversation": "t1", "parent": "r1", "ordinal": 2, "role": "assistant", "text": "Yes."}
    said = {"turn": "a1", "user": ben.id, "rating": "up", "consent": True, "example": "e3", "created": 1.0}
    with box.database.begin() as connection:
        connection.execute(sa.insert(turns).values(**answer, state="done", created=1.0))
        connection.execute(sa.insert(feedback).values(**said))
    assert kept is not None and holds(kept, "Ben's words")
    box.feedback.give(ben, "a1", Given(rating="up"))
    assert holds(kept, "Ben's words") == holds(settings.home, "Ben's words") == []
    assert mark("row", "e3") in (before.disk / "appliance-backups" / NAME).read_text(), "and no other box has it back"
    box.database.close()


def test_a_damaged_state_is_not_had_back_with_who_was_erased_since(before: School, tmp_path: Path) -> None:
    before = before.apart(tmp_path)
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    settings.database.write_bytes(b"damaged" * 1000)
    before.restored(settings)
    kept = switch(settings)
    assert kept is not None
    done = run(settings, "users", "erase", "ben", "--yes")
    assert done.exit_code == 0 and f"{kept} is damaged, and keeps a copy until" in done.output
    with pytest.raises(ApplianceError, match="damaged"):
        undo(settings)
    assert not (settings.home / "backups" / "switching.json").exists() and settings.database.read_bytes()[:6] == b"SQLite"


def test_a_list_that_cannot_be_read_stops_a_restore(before: School, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    (settings.backups / NAME).mkdir(parents=True)
    with pytest.raises(ApplianceError, match="list of what was erased"):
        before.restored(settings)


def test_a_torn_line_costs_no_other(settings: Settings) -> None:
    Erasures(settings).note("person", ["one", "two"])
    path = settings.backups / NAME
    path.write_bytes(path.read_bytes()[:-20])
    Erasures(settings).note("person", ["two", "three"])
    assert {mark("person", id) for id in ("one", "two", "three")} == {its for _, its in Erasures(settings).read()}
