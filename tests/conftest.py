"""Fixtures every folder shares: a home of its own for each test, and a database in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from appliance import guard, network
from appliance.db import Database
from appliance.settings import Settings

network.stay_offline()
# Continuous integration tries the same made-up cases each time: what it says is about the change. Who runs the tests by hand
# tries new ones.
hypothesis.settings.register_profile("same", derandomize=True)
if os.environ.get("APPLIANCE_REQUIRE"):
    hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def outside_the_box() -> Iterator[None]:
    """This process is the world outside too: browsers, servers, directories. Nothing takes the guard off again once a command
    that is called here has put it on; tests of it start processes of their own.
    """
    patch = pytest.MonkeyPatch()
    patch.setattr(guard, "install", lambda: None)
    yield
    patch.undo()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database)
    database.migrate()
    yield database
    database.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real books and examples, where the machine has them."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def starter_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter model as llama.cpp serves it."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from appliance.tuning.gguf import export_base

    folder = Settings().starter
    if not (folder / "model.safetensors").is_file():
        pytest.skip("models/starter holds no weights")
    out = tmp_path_factory.mktemp("starter") / "model.gguf"
    export_base(folder, out)
    return out


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """APPLIANCE_REQUIRE=llama,browser turns a skip of such a test into a failure: continuous integration must not go blind."""
    required = {name for name in os.environ.get("APPLIANCE_REQUIRE", "").split(",") if name}
    skipped = call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception)
    if not skipped or item.get_closest_marker("optional"):
        return
    for name in sorted(required):
        if item.get_closest_marker(name):
            try:
                raise AssertionError(f"required, but skipped: {call.excinfo.value}")
            except AssertionError as error:
                call.excinfo = pytest.ExceptionInfo.from_exception(error)
            return


def pytest_unconfigure() -> None:
    """llama-cpp-python opens /dev/null twice as it is imported and never closes it, which Python would say at its end."""
    module = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if module is not None:
            getattr(module, name).close()
