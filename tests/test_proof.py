"""`appliance network prove`, for real: the box in a network of its own, a counter that is shown to see, and then nothing."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Unsupported
from appliance.proof import features, libraries, space
from appliance.proof.driver import BARE, CONTROL, SHUT
from appliance.proof.page import Proof
from appliance.settings import CLONE
from tests.web.test_every_route import TABLE

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "CI"} | {"PYTHONPATH": str(CLONE)}


def own_space() -> list[str]:
    try:
        return space.words()
    except Unsupported as error:
        pytest.skip(f"no network of one's own here: {error.message}")


def inside(program: str, *arguments: str) -> Any:
    """The last JSON line of a program with a space of its own."""
    done = subprocess.run(
        [*own_space(), sys.executable, "-c", program, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


# --- the counter ---------------------------------------------------------------------------------------------------------
COUNTED = """
import json, socket
from appliance.proof.packets import Packets
from appliance.proof.wire import BOX, BOX6, INTERNET, INTERNET6, LAN, WIRE, Wire
wire = Wire()
wire.lay()
packets = Packets(8080)
begun = packets.seen()
four, six = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
four.sendto(b"x", (INTERNET, 53))
four.sendto(b"x", ("224.0.0.251", 5353))
four.sendto(b"x", (LAN, 445))
four.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
four.sendto(b"x", ("10.77.0.255", 137))
six.sendto(b"x", ("ff02::fb", 5353, 0, socket.if_nametoindex(WIRE)))
socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).sendto(b"\\x08" + bytes(15), (INTERNET, 0))
line = socket.socket(socket.AF_INET6)
line.settimeout(1)
refused = line.connect_ex((INTERNET6, 80))  # nobody listens there: two packets asked who has its gateway, one went to it
with socket.create_server(("", 8080)) as pages:
    asked = wire.outside(socket.create_connection, (BOX, 8080), 5)
    pages.accept()[0].sendall(b"an answer")
    asked.result().recv(9)
seen = packets.seen().since(begun)
print(json.dumps([seen.outside, seen.answers, seen.link]))
"""
LEAKING = """
import json, sys
from pathlib import Path
from appliance.errors import ApplianceError
from appliance.proof import driver
from appliance.proof.packets import Packets
trial = driver.Driver(Path(sys.argv[1]), lambda _told: None)
trial._wire.lay()
trial._packets = Packets(8080)
def broken():
    raise ApplianceError("It does not work.", "")
for name, work, some in (("leaks", driver._send_one, False), ("still", lambda: "", False), ("broken", broken, False),
                         ("control", driver._send_one, True), ("blind control", lambda: "", True)):
    trial._step("part", name, work, some=some)
print(json.dumps({step.name: step.ok for step in trial.steps}))
"""


@pytest.mark.optional
def test_the_counter_tells_answers_on_the_lan_from_everything_else() -> None:
    outside, answers, link = inside(COUNTED)
    assert outside == {
        "UDP 198.51.100.7:53": 1, "UDP 224.0.0.251:5353": 1, "UDP 10.77.0.2:445": 1, "UDP 10.77.0.255:137": 1,
        "UDP [ff02::fb]:5353": 1, "ICMP 198.51.100.7": 1, "TCP [2001:db8::7]:80": 1,
    }  # fmt: skip
    assert answers >= 2 and link <= 2


@pytest.mark.optional
def test_what_leaks_or_does_not_work_fails_and_so_does_a_blind_counter(tmp_path: Path) -> None:
    found = inside(LEAKING, str(tmp_path))
    assert found == {"leaks": False, "still": True, "broken": False, "control": True, "blind control": False}


# --- the whole ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory, starter_gguf: Path) -> dict[str, Any]:
    del starter_gguf  # its skip, where there is no starter
    own_space()
    folder = tmp_path_factory.mktemp("proof")
    command = [
        sys.executable,
        "-m",
        "appliance",
        "network",
        "prove",
        str(folder / "proof.md"),
        "--quick",
        "--idle",
        "3",
        "--json",
    ]
    done = subprocess.run(command, env=ENVIRONMENT | {"TMPDIR": str(folder)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not list(folder.glob("proof-*")), "nothing of the trial is left"
    document: dict[str, Any] = json.loads(done.stdout)
    return document | {"page": (folder / "proof.md").read_text("utf-8"), "told": done.stderr}


@pytest.mark.optional
@pytest.mark.llama
@pytest.mark.slow
def test_first_seen_then_nothing_leaves(proof: dict[str, Any]) -> None:
    steps = {(step["part"], step["name"]): step for step in proof["steps"]}
    assert proof["passed"] and proof["packets_outside"] == 0
    controls = [step for (part, _), step in steps.items() if part == CONTROL]
    assert [bool(step["outside"]) for step in controls] == [True, True, True, False]
    assert set(controls[1]["outside"]) == {"UDP 198.51.100.53:53"}, "a library without the walls looks its hub up"
    assert set(controls[2]["outside"]) == {"TCP 198.51.100.7:443"}, "what was allowed, and nothing else"
    done = {name for part, name in steps if part == SHUT}
    assert {feature.name for feature in features.JOURNEY if not feature.long} <= done
    assert all(step["outside"] == {} for (part, _), step in steps.items() if part != CONTROL)
    tried = {name for (part, name), step in steps.items() if part == SHUT and step["refused"]}
    assert tried == {"try to get out from inside"}, "with the switches set nothing else even tries"
    assert steps[SHUT, "stand idle"]["said"] == "3 s, and it serves" and steps[SHUT, "stand idle"]["seconds"] >= 3
    assert steps[SHUT, "chat in the pages"]["answers"] > 5, "a person on the LAN was answered meanwhile"


@pytest.mark.optional
@pytest.mark.llama
@pytest.mark.slow
def test_all_three_ways_of_tuning_and_every_library_were_tried(proof: dict[str, Any]) -> None:
    said = {step["name"]: step["said"] for step in proof["steps"] if step["part"] == SHUT}
    three = said["tune openai, dspy, huggingface, air-gapped"]
    assert "openai: " in three and "dspy: " in three and "not fetched" in three
    assert int(said["import and make every library"].split()[0]) > 40
    assert "3 processes, each refused" in said["try to get out from inside"]


@pytest.mark.optional
@pytest.mark.llama
@pytest.mark.slow
def test_without_any_switch_libraries_try_and_are_stopped_at_once(proof: dict[str, Any]) -> None:
    bare = [step for step in proof["steps"] if step["part"] == BARE]
    assert sum(sum(step["refused"].values()) for step in bare) > 0, "else this part proves nothing"
    assert all(step["ok"] and not step["outside"] for step in bare)
    assert {"HF_HUB_OFFLINE", "LITELLM_LOCAL_MODEL_COST_MAP", "DO_NOT_TRACK"} <= set(proof["variables"])
    assert "OMP_WAIT_POLICY" not in proof["variables"], "that one is about speed"


@pytest.mark.optional
@pytest.mark.llama
@pytest.mark.slow
def test_the_page_is_one_page_without_the_machines_name(proof: dict[str, Any]) -> None:
    page = proof["page"]
    assert "**Nothing left the box.**" in page and len(page.splitlines()) < 70
    assert platform.node() not in page or len(platform.node()) < 4
    assert proof["at"] in page and f"transformers {proof['versions']['transformers']}" in page
    assert "chat in the pages" in proof["told"], "it says how far it is"


def test_a_library_that_waits_is_told_from_one_that_works() -> None:
    """On a machine with other work importing takes long, and is no waiting for a name server."""

    def work() -> None:
        ends = time.thread_time() + 0.3
        while time.thread_time() < ends:
            pass

    assert libraries._make("idle", lambda: time.sleep(0.3))["waited"] > 0.25
    assert libraries._make("busy", work)["waited"] < 0.15


def test_every_page_of_the_box_is_looked_at_or_has_its_reason() -> None:
    """A page that is new has to be put into the proof, or here."""
    plain = {path for method, path in TABLE if method == "GET" and "{" not in path and not path.startswith("/v1/")}
    tried = {path.partition("?")[0] for path in (*features.SIGNED_IN, *features.ADMINISTRATORS)} | {"/", "/health", "/metrics"}
    assert plain - tried == {
        "/class", "/sign-in/code", "/sign-in/oidc", "/sign-in/oidc/again", "/sign-in/oidc/callback",  # other ways to sign in
        "/safeguarding", "/safeguarding/alarm",  # the lead's alone
        "/admin/compare", "/ready",  # need a comparison, and a probe
    }  # fmt: skip


def step(part: str, ok: bool = True, **outside: int) -> dict[str, Any]:
    return {"part": part, "name": "a | b", "ok": ok, "said": "", "seconds": 1.0, "outside": outside, "answers": 0, "link": 0,
            "refused": {}}  # fmt: skip


@pytest.mark.parametrize("steps", [[], [step(SHUT, ok=False)], [step(CONTROL, here=1), step(SHUT, ok=False, there=1)]])
def test_a_page_of_a_proof_that_failed_says_so_first(steps: list[dict[str, Any]]) -> None:
    proof = Proof(steps, ["CI"], "2027-01-01", quick=False)
    assert not proof.passed and "**This is no proof.**" in proof.text().splitlines()[2]


def test_a_machine_that_allows_no_network_of_ones_own_is_said_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "--home", str(tmp_path), "network", "prove"],
        env=ENVIRONMENT | {"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "nothing can be proved here" in done.stderr and "Try: Run it as root" in done.stderr
