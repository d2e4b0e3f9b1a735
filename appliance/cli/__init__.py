"""The `appliance` command: one thin file per noun - parse, call, print.

Subcommands are imported when they are called, so that `appliance --help` answers at once. Every fault leaves through `main`:
an `Error:` sentence and a `Try:` line on stderr, and the exit code of `interface`: 0 done, 1 failed, 2 wrong usage, 3 refused
by policy, 4 gate not passed, 75 busy. A service whose logs are JSON says the same in one line of them.
"""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import click

from appliance import __version__, guard
from appliance.errors import ApplianceError, from_os_error
from appliance.network import stay_offline  # not the module, whose name the command's own file takes

# Command -> the file it stands in, and its line in the overview.
COMMANDS = {
    "demo": ("demo", "See the whole loop: documents in, a model tuned, exported, judged, promoted, asked."),
    "serve": ("serve", "Run the box on a desk: engine and pages, restarted when they die."),
    "web": ("serve", "The web process alone."),
    "engine": ("serve", "The engine process alone."),
    "worker": ("worker", "The worker process alone: long work, one heavy and one light job at a time."),
    "egress": ("serve", "The one process with a network, while a host outside is allowed."),
    "ask": ("ask", "Ask one question; the answer cites the school's documents."),
    "docs": ("docs", "Add, list, search, check and remove documents."),
    "users": ("users", "Add, import, export, list and erase people, and make passwords for them."),
    "classes": ("classes", "Make, open, close, lock and archive classes; begin the next school year."),
    "practice": ("practice", "List, show, import, export and approve the scenes that teachers rehearse."),
    "standards": ("standards", "Import curriculum standards, tag with them, and count what there is for each."),
    "quotas": ("quotas", "Say how many questions a role, a class or a person may ask."),
    "examples": ("examples", "Check, import, review, count and withdraw tutoring examples."),
    "tune": ("tune", "Tune a model on tutoring examples, on this machine."),
    "retrain": ("retrain", "From reviewed classroom feedback to a promoted model, or an honest refusal."),
    "jobs": ("jobs", "List, show and cancel the box's long work."),
    "models": ("models", "List, judge, promote, roll back and remove models."),
    "modules": ("modules", "Show how the model is told to answer; promote and roll back optimised programs."),
    "guide": ("guide", "Print a short guide: tuning, good practice, troubleshooting."),
    "network": ("network", "Say which hosts outside may be reached, none by default; prove that nothing leaves."),
    "audit": ("audit", "Show and check the record of who did what."),
    "keys": ("keys", "Make and revoke keys for /v1."),
    "backup": ("backup", "Make backups, prove them, list them, restore one."),
    "settings": ("settings", "Show every setting, its value and what it does."),
    "status": ("settings", "Say what serves now and whether everything is fine."),
    "doctor": ("doctor", "Look at everything that could be wrong, and say what to do about it."),
    "selftest": ("selftest", "Measure this machine for a minute, and say which model it can serve to how many pupils."),
    "support-bundle": ("support", "Write what a helper needs to see into one file, without personal data."),
}


# Those that run until they are stopped: what they say on stderr, somebody's log collector reads.
SERVICES = ("serve", "web", "engine", "worker", "egress")


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"appliance.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_file, line) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--home", type=click.Path(path_type=Path), envvar="APPLIANCE_HOME", help="Folder that holds everything.")
@click.version_option(__version__, prog_name="appliance")
@click.pass_context
def group(context: click.Context, home: Path | None) -> None:
    """A school's own teaching assistant: offline, on this machine, answering from the school's documents."""
    context.ensure_object(dict).update(home=home, command=context.invoked_subcommand)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script."""
    stay_offline()
    guard.install()
    about: dict[str, Any] = {}  # what becomes known of the command: its name, its home, its settings
    try:
        code = _run(arguments, about)
    except click.ClickException as error:
        code = error.exit_code
        if not _logged(about, error.format_message(), {"code": "usage", "exit": code}):
            error.show()
    except (KeyboardInterrupt, click.Abort):
        code = 130
        if not _logged(about, "Stopped.", {"exit": code}):
            click.echo("Stopped.", err=True)
    except BrokenPipeError:
        code = 0
    except ApplianceError as error:
        code = _report(error, about)
    except OSError as error:
        code = _report(from_os_error(error, "working on that command"), about)
    except Exception as error:  # noqa: BLE001 - whatever it was, a person reads a sentence and finds the rest in a file
        code = _report(ApplianceError(f"A fault in the appliance: {type(error).__name__}.", _kept_trace()), about)
    sys.exit(code)


def _kept_trace() -> str:
    """Write the trace of the exception being handled to a file of this user's; the sentence that says where."""
    handle, path = tempfile.mkstemp(prefix="appliance-fault-", suffix=".txt")
    with open(handle, "w") as file:
        traceback.print_exc(file=file)
    return f"Run the same command again; if it fails again, report it with {path}."


def _run(arguments: list[str] | None, about: dict[str, Any]) -> int:
    result: Any = group.main(args=arguments, standalone_mode=False, obj=about)
    return result if isinstance(result, int) else 0


def _report(error: ApplianceError, about: dict[str, Any]) -> int:
    if _logged(about, error.message, {"code": error.code, "hint": error.hint, "exit": error.exit_code}):
        return error.exit_code
    click.echo(f"Error: {error.message}", err=True)
    if error.hint:
        click.echo(f"Try: {error.hint}", err=True)
    return error.exit_code


def _logged(about: dict[str, Any], message: str, facts: dict[str, Any]) -> bool:
    """Say why a service ends as a line of its log, where its log is JSON; else say nothing, and False."""
    if about.get("command") not in SERVICES:
        return False
    from appliance import logs, settings

    if (about.get("log_format") or settings.log_format()) != "json":
        return False
    logs.begin(about["command"], "json")
    logging.getLogger("appliance.cli").critical("%s", message, extra={"facts": facts})
    return True
