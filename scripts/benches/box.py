"""The installed box, measured. Prints a table and writes appliance.md beside it.

box: a bundle is made of what is committed, installed on a freshly booted Debian 12 without a network (as root, where
debootstrap and systemd-nspawn are), started cold, upgraded; what its units hold in memory while nobody asks.

backup: a home of one gigabyte - documents, a model and a database of which nothing can be compressed and nothing is there
twice, the worst case - is backed up, backed up again after a school day's changes, proven, and restored onto a blank home, by
the commands that a school would type.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from main import appliance, machine

MEGABYTE = 1_000_000
Row = tuple[str, str, str, str]
# Kilobytes of every process of the box's users, what several share counted once.
PSS = (
    "for at in /proc/[0-9]*; do case $(stat -c %U $at 2>/dev/null) in appliance|caddy|avahi) "
    "sed -n 's/^Pss: *\\([0-9]*\\) kB/\\1/p' $at/smaps_rollup;; esac; done"
)


def backup(scratch: Path) -> list[Row]:
    home, disk, blank = scratch / "home", scratch / "disk", scratch / "blank"
    _fill(home)
    disk.mkdir()
    where = ("--to", str(disk), "--same-disk")
    first = appliance(home, "backup", "create", *where)
    _a_day(home)
    second = appliance(home, "backup", "create", *where)
    began = time.monotonic()
    proof = appliance(home, "backup", "verify", "latest", "--from", str(disk))
    proven = time.monotonic() - began
    began = time.monotonic()
    key = home / "backup.key"
    appliance(blank, "backup", "restore", "latest", "--from", str(disk), "--key-file", str(key))
    restored = time.monotonic() - began
    size = f"{first['bytes'] / 1e9:.2f} GB"
    return [
        (
            "first backup of 1 GB",
            f"{first['seconds']:.0f} s",
            "under 60 s",
            f"{size} that cannot be compressed, to the same disk",
        ),
        ("the next one", f"{second['seconds']:.0f} s", "", "after 10 MB of new documents and 2,000 changed rows"),
        ("proving it", f"{proven:.0f} s", "", f"restored aside: {proof['files']} files and {proof['rows']} rows compared"),
        ("restoring it onto a blank home", f"{restored:.0f} s", "", "proven on the way; until it answers"),
    ]


def box(scratch: Path) -> list[Row]:
    from tests.machine import booted, bundles

    booted.require()
    stick = scratch / "stick"
    stick.mkdir()
    began = time.monotonic()
    bundle = bundles.made(stick, scratch / "key.pem")
    made = time.monotonic() - began
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    newer = bundles.renumbered(bundle, stick / "newer", "99.0", scratch / "key.pem")
    machine_ = booted.Box(scratch / "box", stick)
    machine_.boot()
    try:
        began = time.monotonic()
        machine_.run(f"/mnt/stick/{bundle.name}/install --yes")
        installed = time.monotonic() - began
        key = _lesson(machine_)
        machine_.power_off()
        began = time.monotonic()
        machine_.boot()
        _first_token(key)
        cold = time.monotonic() - began
        time.sleep(20)
        memory = sum(int(number) for number in machine_.run(PSS).split())
        said = machine_.run(f"/mnt/stick/{newer.name}/install --yes")
        waited = re.search(r"The pages waited (\d+) s", said)
        assert waited, said
    finally:
        machine_.cut_power()
    return [
        ("bundle for a PC, with the starter", f"{size / 1e6:.0f} MB", "under 900 MB", f"made in {made:.0f} s from pip's cache"),
        ("installation from it", f"{installed:.0f} s", "under 360 s", "no compiler, no network; Python included"),
        ("cold boot to first token", f"{cold:.0f} s", "under 20 s", "the starter model, through the proxy and /v1"),
        ("an upgrade keeps the pages waiting", f"{waited[1]} s", "under 15 s", "requests wait in the socket"),
        ("idle memory of all units", f"{memory / 1e3:.0f} MB", "under 1200 MB", "starter and embedder loaded"),
    ]  # fmt: skip


def _lesson(machine_: Any) -> str:
    """A model that serves, a document, and a key for /v1."""
    machine_.run("printf '# Leaves\\n\\nLeaves are green because of chlorophyll.\\n' > /var/lib/appliance/leaves.md")
    machine_.run("chown appliance: /var/lib/appliance/leaves.md && appliance docs add /var/lib/appliance/leaves.md")
    models = json.loads(machine_.run("appliance models list --json 2>/dev/null"))["models"]
    machine_.run(f"appliance models promote {models[0]['id']} --accept bench")
    return str(json.loads(machine_.run("appliance keys create bench --json 2>/dev/null"))["key"])


def _first_token(key: str) -> None:
    """Ask through the encrypted door until words come; the machine's own certificate is not what is measured here."""
    import httpx

    from tests.machine.booted import BOX

    body = {"model": "default", "stream": True, "messages": [{"role": "user", "content": "Why are leaves green?"}]}
    for _ in range(600):
        try:
            with (
                httpx.Client(verify=False, trust_env=False, timeout=30) as client,
                client.stream(
                    "POST", f"https://{BOX}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
                ) as answer,
            ):
                lines = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {"))
                if answer.status_code == 200 and any(_words_of_a_model(line) for line in lines):
                    return
        except (httpx.HTTPError, ValueError):
            pass
        time.sleep(0.2)
    raise SystemExit("Error: the box gave no answer within two minutes.")


def _words_of_a_model(line: dict[str, Any]) -> bool:
    """Not the quotes that stand in while the engine still loads."""
    said = (line.get("choices") or [{}])[0].get("delta") or {}
    return bool(said.get("content")) and "quotes" not in str(line.get("model"))


def _fill(home: Path) -> None:
    """200 documents of 2 MB, a model of 450 MB, a database of 150 MB."""
    from appliance.app import Appliance
    from appliance.settings import Settings

    box = Appliance.open(Settings(home=home))
    folder = home.parent / "model"
    folder.mkdir()
    _random(folder / "model.gguf", 450 * MEGABYTE)
    box.registry.add(folder, id="bench", kind="base", title="Bench", licence="MIT", context=1024)
    for number in range(200):
        _random(box.settings.documents / f"{number:03}.bin", 2 * MEGABYTE)
    _rows(box.database, 0, 30_000)
    box.database.close()


def _a_day(home: Path) -> None:
    from appliance.app import Appliance
    from appliance.settings import Settings

    box = Appliance.open(Settings(home=home))
    for number in range(5):
        _random(box.settings.documents / f"new-{number}.bin", 2 * MEGABYTE)
    _rows(box.database, 30_000, 32_000)
    box.database.close()


def _rows(database: object, start: int, end: int) -> None:
    """5 kB each, in the table of jobs."""
    from appliance.db import Database
    from appliance.tables import jobs

    assert isinstance(database, Database)
    for first in range(start, end, 1000):
        rows = [
            {"id": f"bench{n}", "kind": "bench", "lane": "light", "payload": {"x": os.urandom(2500).hex()}, "state": "done",
             "created": float(n), "finished": float(n)}
            for n in range(first, first + 1000)
        ]  # fmt: skip
        with database.begin() as connection:
            connection.execute(jobs.insert(), rows)


def _random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(0, size, MEGABYTE):
            file.write(os.urandom(MEGABYTE))


PARTS: dict[str, Callable[[Path], list[Row]]] = {"box": box, "backup": backup}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--part", choices=sorted(PARTS), action="append", help="only this one; else all")
    options = parser.parse_args()
    load = os.getloadavg()[1]
    rows = []
    for name in options.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            rows += PARTS[name](Path(folder))
    about = f"{date.today().isoformat()}, {machine()}, load average {load:.1f} over the five minutes before."
    head = ["# scripts/bench appliance", "", about, "", "| what | measured | to reach | how |", "|---|---|---|---|"]
    lines = [*head, *(f"| {' | '.join(row)} |" for row in rows), ""]
    text = "\n".join(lines)
    if options.part is None or set(options.part) == set(PARTS):
        Path(__file__).with_name("appliance.md").write_text(text)
    print(json.dumps(rows, indent=1) if options.json else text)


if __name__ == "__main__":
    main()
