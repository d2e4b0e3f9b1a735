"""Vectors of large segments, which are read in place from the disk: damage to their file ends nobody's process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.settings import CLONE

HARMLESS = ("removed", "replaced")  # what is mapped is not what has the name by now
DAMAGES = ("cut to a page", "emptied", "half of it", "zeros", "noise", "longer", "touched", *HARMLESS)


def _run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.knowledge.mapped", str(home), *arguments]
    return subprocess.run(command, cwd=CLONE, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize("kind", ["scan", "clusters"])
def test_the_danger_is_real(tmp_path: Path, kind: str) -> None:
    """Without the look at the file, a search in one that was cut short ends the process: these tests can fail."""
    assert _run(tmp_path / "home", kind, "emptied", "--unguarded").returncode == -signal.SIGBUS


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["scan", "clusters"])
def test_vectors_damaged_between_two_searches_are_noticed_and_built_anew(tmp_path: Path, kind: str, damage: str) -> None:
    run = _run(tmp_path / "home", kind, damage)
    assert run.returncode == 0, run.stderr[-2000:]
    before, after, noticed = json.loads(run.stdout)
    assert len(before) == 20 and after == before
    assert noticed == (damage not in HARMLESS)
