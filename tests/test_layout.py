"""Imports point one way: from a lower row to a higher one, leftwards along `<`, or within a folder.

doors: web, cli (never each other); wiring: app; work: chat < practice, tuning < plugins, ...; nouns do not import each other;
ground: errors < naming < files < settings < notify < tables < logs < db < audit < erasures < redact < guard < tunnel <
network < firewall < egress.
"""

from __future__ import annotations

import ast
import gc
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "appliance"

GROUND = [
    "errors",
    "naming",
    "files",
    "settings",
    "notify",
    "tables",
    "logs",
    "db",
    "audit",
    "erasures",
    "redact",
    "guard",
    "tunnel",
    "tunnel_http",
    "network",
    "firewall",
    "egress",
]
NOUNS = ["accounts", "classes", "safety", "fence", "teaching", "forms", "prompts", "engine", "knowledge", "registry", "jobs"]
WORK = [
    "enrolment",
    "branches",
    "conversations",
    "citations",
    "openings",
    "coverage",
    "fitting",
    "running",
    "lessons",
    "hints",
    "reading",
    "programs",
    "quotas",
    "tuned",
    "year_end",
    "answering",
    "feedback",
    "finding",
    "chat",
    "asking",
    "standards",
    "practice",
    "tuning",
    "plugins",
    "safeguarding",
    "guarding",
    "erasing",
    "backup",
    "checkup",
    "doctor",
    "proof",
    "figures",
    "selftest",
    "support",
]
WIRING = ["supervisor", "app"]
DOORS = ["web", "cli"]
# Within a row, the pairs that may import each other in this direction.
WITHIN = {
    ("prompts", "fence"),
    ("prompts", "forms"),
    ("conversations", "branches"),
    ("chat", "conversations"),
    ("chat", "answering"),
    ("answering", "conversations"),
    ("answering", "running"),
    ("feedback", "conversations"),
    ("finding", "conversations"),
    ("chat", "citations"),
    ("chat", "coverage"),
    ("chat", "fitting"),
    ("fitting", "openings"),
    ("chat", "running"),
    ("chat", "lessons"),
    ("chat", "hints"),
    ("chat", "reading"),
    ("chat", "programs"),
    ("chat", "quotas"),
    ("coverage", "openings"),
    ("coverage", "running"),
    ("conversations", "openings"),
    ("chat", "openings"),
    ("safeguarding", "openings"),
    ("running", "conversations"),
    ("chat", "guarding"),
    ("chat", "safeguarding"),
    ("guarding", "running"),
    ("guarding", "safeguarding"),
    ("practice", "chat"),
    ("asking", "chat"),
    ("standards", "enrolment"),
    ("standards", "practice"),
    ("asking", "lessons"),
    ("practice", "asking"),
    ("practice", "branches"),
    ("practice", "lessons"),
    ("plugins", "tuning"),
    ("plugins", "practice"),  # the moves that a rubric counts
    ("plugins", "programs"),
    ("plugins", "reading"),
    ("tuned", "programs"),
    ("erasing", "tuning"),
    ("erasing", "programs"),
    ("backup", "erasing"),
    ("checkup", "backup"),
    ("checkup", "selftest"),
    ("checkup", "tuning"),
    ("doctor", "checkup"),
    ("selftest", "tuning"),
    ("support", "checkup"),
    ("support", "figures"),
    ("support", "selftest"),
    ("app", "supervisor"),
}
# Value types of the one interface that everything shares: `engine.handler` may be read by any noun.
SHARED = {"appliance.engine.handler"}
ROWS = {name: row for row, names in enumerate([GROUND, NOUNS, WORK, WIRING, DOORS]) for name in names}


def parsed(path: Path) -> ast.Module:
    """Without the collector: CPython 3.11 raises SystemError where it runs Python code while a tree is being built."""
    gc.disable()
    try:
        return ast.parse(path.read_text("utf-8"))
    finally:
        gc.enable()


def imports() -> list[tuple[str, str, str]]:
    """(file, importing part, imported module) of every import of our own code, wherever in the file it stands."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).with_suffix("").parts
        if part[0] in ("migrations", "__main__", "__init__"):
            continue
        for node in ast.walk(parsed(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [f"{node.module}.{alias.name}" if node.module == "appliance" else node.module for alias in node.names]
            found += [(str(path), part[0], name) for name in names if name.startswith("appliance.")]
    return found


def allowed(part: str, module: str) -> bool:
    target = module.split(".")[1]
    if target == part or target == "__version__":
        return True
    if part not in ROWS or target not in ROWS:
        return False
    if ROWS[part] != ROWS[target]:
        return ROWS[part] > ROWS[target]
    if part in GROUND:
        return GROUND.index(target) < GROUND.index(part)
    return (part, target) in WITHIN or module in SHARED


def test_imports_point_one_way() -> None:
    found = imports()
    wrong = sorted({f"{file}: {part} imports {module}" for file, part, module in found if not allowed(part, module)})
    assert not wrong, "\n".join(wrong)
    assert len(found) > 50, "the test must have read the package"


@pytest.mark.parametrize(
    ("part", "module", "expected"),
    [
        ("web", "appliance.chat", True),
        ("web", "appliance.cli.output", False),
        ("knowledge", "appliance.engine.pool", False),
        ("knowledge", "appliance.engine.handler", True),
        ("errors", "appliance.settings", False),
        ("engine", "appliance.tuning.gguf", False),
    ],
)
def test_the_rule_itself(part: str, module: str, expected: bool) -> None:
    assert allowed(part, module) is expected


def test_no_module_is_longer_than_500_lines() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {str(path): length for path, length in lengths.items() if length > 500}


# Who opens connections, and how: the door, the way out, the doctor's look at the box's own pages, and the proof's outside.
OPENING = {
    "network.py": {"AsyncClient"}, "egress.py": {"open_connection"}, "proof/client.py": {"HTTPConnection"},
    "checkup/border.py": {"HTTPConnection", "create_connection"},
}  # fmt: skip
OPENERS = {
    "AsyncClient", "Client", "ClientSession", "FTP", "HTTPConnection", "HTTPSConnection", "IMAP4_SSL", "SMTP", "SMTP_SSL",
    "create_connection", "open_connection", "urlopen", "urlretrieve",
}  # fmt: skip
WAYS_ROUND = {
    "aiohttp",
    "ftplib",
    "imaplib",
    "poplib",
    "requests",
    "smtplib",
    "telnetlib",
    "urllib.request",
    "urllib3",
    "websockets",
}


def test_only_the_door_and_the_way_out_open_connections() -> None:
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(parsed(path)):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
            owner = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
            if name in OPENERS and not (name == "Client" and owner != "httpx"):
                found.setdefault(path.relative_to(PACKAGE).as_posix(), set()).add(name)
            imported = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            imported |= {node.module or ""} if isinstance(node, ast.ImportFrom) and not node.level else set()
            assert not {one for one in imported if one in WAYS_ROUND or one.partition(".")[0] in WAYS_ROUND}, path
    assert found == OPENING


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path) for path in PACKAGE.rglob("*.py") if path.read_text("utf-8").strip() and not ast.get_docstring(parsed(path))
    ]
    assert not silent
