"""The proof as one page: what was tried, what left, and how one can tell that the counter would have seen it.

Hides the form, Markdown that reads well in a terminal. The machine's name is nowhere in it; versions and the date are.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from appliance import __version__
from appliance.proof.driver import BARE, CONTROL, SHUT

LIBRARIES = (
    "torch", "transformers", "trl", "peft", "datasets", "sentence-transformers", "llama-cpp-python", "huggingface-hub",
    "openai", "litellm", "dspy",
)  # fmt: skip
_ABOUT = {
    CONTROL: "First, that the counter sees what leaves",
    SHUT: "Air-gapped: every feature, and what left",
    BARE: "Air-gapped, with every offline variable of the libraries taken away",
}


@dataclass(frozen=True)
class Proof:
    """steps: as `driver.Step` has them, in order. at: UTC, as it is printed."""

    steps: Sequence[dict[str, Any]]
    variables: Sequence[str]
    at: str
    quick: bool

    @property
    def passed(self) -> bool:
        return bool(self.steps) and all(step["ok"] for step in self.steps)

    def packets(self, *parts: str) -> int:
        """To anything but the client on the LAN."""
        return sum(sum(step["outside"].values()) for step in self.steps if step["part"] in parts)

    @property
    def refused(self) -> int:
        return sum(sum(step["refused"].values()) for step in self.steps)

    def document(self) -> dict[str, Any]:
        return {
            "passed": self.passed, "at": self.at, "quick": self.quick, "versions": versions(),
            "variables": list(self.variables),
            "packets_outside": self.packets(SHUT, BARE), "packets_of_controls": self.packets(CONTROL), "refused": self.refused,
            "steps": list(self.steps),
        }  # fmt: skip

    def text(self) -> str:
        tried = sum(step["part"] != CONTROL for step in self.steps)
        left = self.packets(SHUT, BARE)
        good = (
            f"**Nothing left the box.** {tried} things were done with it while it was air-gapped; {left} packets went to "
            f"anything but the computer in the school that used it. {self.refused} attempts to get out, on purpose or by "
            "libraries, were refused before they became a packet."
        )
        bad = f"**This is no proof.** {left} packets left while the box was air-gapped, or a step did not work: see below."
        verdict = good if self.passed else bad
        lines = ["# What left this box", "", verdict, ""]
        for part, about in _ABOUT.items():
            steps = [step for step in self.steps if step["part"] == part]
            if steps:
                lines += [f"## {about}", "", *_table(steps), ""]
        return "\n".join([*lines, *self._how()]) + "\n"

    def _how(self) -> list[str]:
        said = ", ".join(f"{name} {version}" for name, version in versions().items())
        return [
            "## How it was measured", "",
            "The box ran in a network of its own, with an address, a default route and a name server that never answers: what "
            "wants to leave does leave, into a counter at the end of the only wire. The counter's sum was compared with the "
            "kernel's own after every step. The pages and /v1 were used from a computer at the other end of that wire; the "
            "answers it got are counted apart, and so is the kernel's asking who has an address. The last part was done "
            f"without these: {', '.join(self.variables)}.", "",
            "It shows what this version does on this machine. What else may run on it is for the walls outside the box's own "
            "processes: the units of systemd, and `appliance network rules`.", "",
            f"{self.at}{', without training (--quick)' if self.quick else ''}. {said}.",
        ]  # fmt: skip


def versions() -> dict[str, str]:
    found = {"appliance": __version__, "Python": platform.python_version(), "Linux": platform.release()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _table(steps: Sequence[dict[str, Any]]) -> list[str]:
    rows = [("What was done", "Packets out", "Refused", "Answers", "Result")]
    for step in steps:
        where = ", ".join(f"{count} {to}" for to, count in step["outside"].items())
        count = sum(step["outside"].values())
        result = ("" if step["ok"] else "FAILED: ") + (step["said"] or "done")
        rows.append(
            (
                step["name"],
                f"{count} ({where})" if count else "0",
                str(sum(step["refused"].values())),
                str(step["answers"]),
                result.replace("|", "/"),
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = [
        "| " + " | ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in [*widths, len(rows[0][4])]) + "|", *lines[1:]]
