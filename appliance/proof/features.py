"""What a school does with the box, from the first document to the promoted model: each done once, under the counter's eye.

Each feature is a function of the trial. It raises ApplianceError where the feature does not work: a proof that nothing leaves a
box that does nothing would prove nothing. Adding a feature to the box means adding it here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from appliance.errors import ApplianceError
from appliance.proof.box import Box
from appliance.proof.client import Client
from appliance.proof.wire import INTERNET, LAN
from appliance.settings import PACKAGE

QUESTION = "Why are leaves green?"
ROWS = "100"  # enough that the gate has something to judge
SCENE = "calling-out-on-the-carpet"
SIGNED_IN = ("/chat", "/library", "/me", "/me/password", "/me/second-step", "/keys", "/classes", "/about")
ADMINISTRATORS = (
    "/admin", "/admin/health", "/admin/settings", "/admin/audit", "/admin/jobs", "/admin/models", "/admin/retrain",
    "/admin/people", "/admin/people/import", "/admin/people/export", "/chats?find=leaves", "/classes/archive", "/counts",
    "/library/add", "/library/checks", "/practice", "/practice/mentors", "/practice/progress", "/practice/write", "/quotas",
    "/review", "/standards", "/standards/file",
)  # fmt: skip


@dataclass
class Trial:
    """One box, the person who uses it, and what one feature leaves for the next."""

    box: Box
    client: Client
    port: int
    quick: bool = False
    code: str = ""
    key: str = ""
    starter: str = ""
    tuned: str = ""


@dataclass(frozen=True)
class Feature:
    """work: does it; its answer is what is said of it, "" for done. long: left out by --quick."""

    name: str
    work: Callable[[Trial], str]
    long: bool = False


def start(trial: Trial) -> str:
    trial.code = trial.box.serve(trial.port)
    _until(lambda: trial.client.send("GET", "/health").status == 200, "the pages")
    return "engine, pages, worker"


def ingest(trial: Trial) -> str:
    folder = PACKAGE / "content" / "documents"
    files = [folder / "science-photosynthesis.md"] if trial.quick else sorted(folder.glob("*.md"))
    trial.box.run("docs", "add", *map(str, files), "--collection", "samples")
    return f"{len(files)} of them"


def search(trial: Trial) -> str:
    found = trial.box.run("docs", "search", QUESTION)
    if "hlorophyll" not in json.dumps(found):
        raise ApplianceError("The search did not find the lesson on photosynthesis.", "")
    return ""


def promote(trial: Trial) -> str:
    trial.starter = trial.box.run("models", "list")["models"][0]["id"]
    trial.box.run("models", "promote", trial.starter, "--accept", "the proof that nothing leaves")
    return "the starter model serves"


def ask(trial: Trial) -> str:
    answer = trial.box.run("ask", QUESTION)
    if not answer["covered"]:
        raise ApplianceError("The question was not answered from the documents.", "")
    return str(answer["handler"])


def sign_in(trial: Trial) -> str:
    trial.client.page("/")
    trial.client.form("/setup", {"code": trial.code, "name": "Head of IT", "password": "four plain words here"})
    for path in SIGNED_IN:
        trial.client.page(path)
    return f"{1 + len(SIGNED_IN)} pages"


def chat(trial: Trial) -> str:
    trial.client.page("/chat")
    told = trial.client.form("/chat/ask", {"question": QUESTION, "conversation": ""}, accept="application/json").json()
    streamed = trial.client.send("GET", f"/chat/stream/{told['turn']}").body
    if "event: done" not in streamed:
        raise ApplianceError("The answer did not come to its end.", "")
    return f"streamed, {streamed.count('event:')} events"


def upload(trial: Trial) -> str:
    trial.client.page("/library/add")
    told = trial.client.form(
        "/library/add",
        {"collection": "", "new": "Volcanoes", "readers": "everyone", "subject": "", "grade": ""},
        accept="application/json",
        file=("volcanoes.txt", b"A volcano is an opening in the crust of the Earth through which molten rock rises.\n" * 5),
    ).json()
    _until(lambda: 'http-equiv="refresh"' not in trial.client.page(told["url"]), "the reading of an uploaded file")
    trial.client.page("/library")
    return "read by the worker"


def practise(trial: Trial) -> str:
    trial.client.page(f"/practice/scenes/{SCENE}")
    where = trial.client.form(f"/practice/scenes/{SCENE}/begin", {"version": "1"}).where
    trial.client.page(where)
    trial.client.form(f"{where}/say", {"words": "Thank you for waiting. Who can tell me what we do first?", "shown": ""})
    trial.client.page(where)
    trial.client.form(f"{where}/finish", {})
    trial.client.page(f"{where}/feedback")
    return "a rehearsal with feedback"


def administer(trial: Trial) -> str:
    missing = [path for path in ADMINISTRATORS if trial.client.send("GET", path).status != 200]
    if missing:
        raise ApplianceError(f"No page at {', '.join(missing)}.", "")
    return f"{len(ADMINISTRATORS)} pages"


def programs(trial: Trial) -> str:
    trial.key = trial.box.run("keys", "create", "proof", "--scope", "admin")["key"]
    trial.client.api("/v1/models", trial.key)
    if trial.client.send("GET", "/metrics", headers={"Authorization": f"Bearer {trial.key}"}).status != 200:
        raise ApplianceError("/metrics gave no figures.", "")
    question = [{"role": "user", "content": QUESTION}]
    body = {"model": "default", "messages": question, "max_tokens": 24}
    answer = trial.client.api("/v1/chat/completions", trial.key, body)
    vectors = trial.client.api("/v1/embeddings", trial.key, {"model": "default", "input": "a leaf"})["data"]
    if not answer["choices"] or len(vectors[0]["embedding"]) < 100:
        raise ApplianceError("/v1 gave no answer or no vectors.", "")
    return "models, chat, embeddings, metrics"


def examples(trial: Trial) -> str:
    rows = PACKAGE / "content" / "examples"
    trial.box.run("examples", "convert", str(rows), str(trial.box.work / "rows.jsonl"), "--to", "openai")
    if not trial.quick:
        trial.box.run("examples", "stats", str(rows))
        trial.box.run("examples", "validate", str(trial.box.work / "rows.jsonl"))
    return "into OpenAI's form"


def keep_house(trial: Trial) -> str:
    """The commands that only read, or change one thing."""
    commands: tuple[tuple[str, ...], ...] = (
        ("users", "list"), ("classes", "list"), ("quotas", "list"), ("standards", "list"), ("practice", "scenarios", "list"),
        ("modules", "list"), ("models", "list", "--fit"), ("jobs", "list"), ("settings", "--all"), ("status",),
        ("audit", "verify"), ("network", "status"), ("docs", "check", "--history"),
    )  # fmt: skip
    for words in commands:
        trial.box.run(*words)
    return f"{len(commands)} commands"


def tune(trial: Trial, name: str = "proven", rows: str = ROWS) -> str:
    words = ("--examples", str(PACKAGE / "content" / "examples"), "--limit", rows, "--no-promote", "--name", name)
    done = trial.box.run("tune", "huggingface", *words)
    trial.tuned = done["id"]
    return "trained, exported, compared, judged"


def manage_models(trial: Trial) -> str:
    box, name = trial.box, trial.tuned
    box.run("models", "evaluate", name, codes=(0, 4))
    box.run("models", "compare", name, trial.starter, codes=(0, 4))
    box.run("models", "verify")
    box.run("models", "export", name, str(box.work / "out"))
    box.run("models", "promote", name, "--accept", "the proof that nothing leaves")
    ask(trial)
    box.run("models", "rollback")
    return "judged, compared, exported, promoted, rolled back"


def retrain(trial: Trial) -> str:
    box, rows = trial.box, str(PACKAGE / "content" / "examples" / "science.toml")
    box.run("examples", "import", rows, "--licence", "CC BY 4.0", "--author", "the school's teachers")
    box.run("examples", "review", "--approve", "--all")
    box.run("retrain", "--plan")
    done = box.try_out("retrain", "--yes")
    if done.returncode not in (0, 4):
        raise ApplianceError(f"`appliance retrain` ended with {done.returncode}.", "")
    return "promoted" if done.returncode == 0 else "judged, and not better"


def backup(trial: Trial) -> str:
    """Made, proven, and restored beside the box."""
    box, blank = trial.box, trial.box.work / "blank"
    made = box.run("backup", "create", "--same-disk")
    proof = box.run("backup", "verify", "latest")
    box.run("backup", "restore", "latest", "--to", str(blank))
    if proof["id"] != made["id"] or not (blank / "appliance.sqlite3").is_file():
        raise ApplianceError("The backup that was made is not the one that was restored.", "")
    return f"made, proven ({proof['files']} files, {proof['rows']} rows), restored beside the box"


def look_after(trial: Trial) -> str:
    """The doctor, the self-test and the file for a helper; the doctor finds the pages alive and the box shut."""
    box = trial.box
    found = {check["name"]: check for check in box.run("doctor", codes=(0, 1))["checks"]}
    wrong = [name for name in ("Pages", "Engine", "Worker", "Database", "Air gap", "Audit record") if not found[name]["ok"]]
    if wrong:
        raise ApplianceError(f"The doctor is not content: {found[wrong[0]]['detail']}", "")
    box.run("selftest", "--seconds", "2")
    box.run("support-bundle", str(box.work / "helper.tar.gz"))
    return f"{len(found)} checks, a self-test, a support bundle"


def tune_elsewhere(trial: Trial) -> str:
    """The two methods that need a line are refused by policy."""
    rows = str(trial.box.work / "rows.jsonl")
    said = []
    for method, words in (("openai", ("--examples", rows, "--confirm", "Head Of-IT")), ("dspy", ("--examples", rows))):
        done = trial.box.try_out("tune", method, *words)
        if done.returncode != 3 or "is off while the box is air-gapped" not in done.stderr:
            raise ApplianceError(f"`appliance tune {method}` ended with {done.returncode}, and not refused by policy.", "")
        said.append(f"{method}: refused")
    done = trial.box.try_out("tune", "huggingface", "--examples", rows, "--base", "meta-llama/Llama-3.2-1B")
    if done.returncode != 1 or "There is no model called" not in done.stderr:
        raise ApplianceError(f"A base model that is not here: `appliance tune huggingface` ended with {done.returncode}.", "")
    return "; ".join([*said, "huggingface: a base from the hub is not fetched"])


def libraries(trial: Trial) -> str:
    """Each library imported, and an object of it made."""
    done = trial.box.python([sys.executable, "-m", "appliance.proof.libraries"])
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    (trial.box.work / "libraries.json").write_text(json.dumps(lines), "utf-8")
    if done.returncode or len(lines) < 40:
        raise ApplianceError(f"Only {len(lines)} libraries could be tried.", "")
    broken = [f"{line['library']} ({line['fault']})" for line in lines if line["fault"]]
    reaching = [f"{line['library']} ({', '.join(line['reached'])})" for line in lines if line["reached"]]
    if broken or reaching:
        raise ApplianceError(f"Broken: {', '.join(broken) or 'none'}. Reached out: {', '.join(reaching) or 'none'}.", "")
    return f"{sum(line['here'] for line in lines)} libraries reached out for nothing"


def from_inside(trial: Trial) -> str:
    """Every process of the box tries to get out while it serves; all is refused, at once, and it goes on serving."""
    targets = {
        "the internet": ("tcp", INTERNET, 443),
        "a computer in the school": ("tcp", LAN, 445),
        "this machine": ("tcp", "127.0.0.1", trial.port),
        "a name": ("name", "huggingface.co", 443),
        "a name server": ("udp", "127.0.0.53", 53),
        "the resolver": ("unix", "/run/systemd/resolve/io.systemd.Resolve"),
        "the bus": ("unix", "/run/dbus/system_bus_socket"),
    }
    found = trial.box.from_inside(("web", "engine", "worker"), targets)
    for name, tries in found.items():
        for what, told in tries.items():
            if not told["said"].startswith("Refused:"):
                raise ApplianceError(f"The {name} process tried to reach {what}: {told['said']}.", "")
            if told["seconds"] > 5:
                raise ApplianceError(f"The {name} process waited {told['seconds']:.0f} s for {what}.", "")
    if trial.client.send("GET", "/health").status != 200:
        raise ApplianceError("The pages were not served any more.", "")
    ask(trial)
    return f"{len(targets)} ways tried by each of {len(found)} processes, each refused; they went on serving"


JOURNEY = (
    Feature("start the box", start),
    Feature("add documents", ingest),
    Feature("search", search),
    Feature("promote a model", promote),
    Feature("ask on the command line", ask),
    Feature("sign in and look at the pages", sign_in),
    Feature("chat in the pages", chat),
    Feature("upload a document", upload),
    Feature("practise a lesson", practise),
    Feature("administer", administer),
    Feature("/v1 for programs", programs),
    Feature("check and convert examples", examples),
    Feature("tune a model on this machine", tune, long=True),
    Feature("evaluate, compare, export, promote", manage_models, long=True),
    Feature("retrain on reviewed rows", retrain, long=True),
    Feature("house-keeping commands", keep_house, long=True),
    Feature("back up, prove it, restore it", backup, long=True),
    Feature("doctor, self-test, support bundle", look_after, long=True),
    Feature("tune openai, dspy, huggingface, air-gapped", tune_elsewhere),
    Feature("import and make every library", libraries),
    Feature("try to get out from inside", from_inside),
)


def _until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except OSError:
            pass
        if time.monotonic() > ends:
            raise ApplianceError(f"{what[:1].upper()}{what[1:]} did not come about in {seconds:.0f} s.", "")
        time.sleep(0.1)
