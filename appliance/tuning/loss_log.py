"""The record of a training run: one JSON line for each step, and a picture of it.

Hides the file format and the drawing. A resumed run first cuts back what the killed one wrote beyond its checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from appliance.files import write_atomically

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 320, 60, 40, 20, 15


class LossLog:
    """`loss.jsonl` of a run: {"step", "loss", "rate", "gradient", "epoch"}, with "held_out" where the run was judged."""

    def __init__(self, path: Path, up_to_step: int = 0) -> None:
        self.path = path
        self.rows = [row for row in _read(path) if row["step"] <= up_to_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def draw(self, path: Path) -> None:
        """Write the loss curve as SVG."""
        judged = [(row["step"], row["held_out"]) for row in self.rows if "held_out" in row]
        write_atomically(path, curve([(row["step"], row["loss"]) for row in self.rows], judged))


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    if path.is_file():
        for line in path.read_text("utf-8", "replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a killed run
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def curve(points: list[tuple[int, float]], judged: list[tuple[int, float]] | None = None) -> str:
    """The training loss over the steps, and the held-out loss where it was `judged`, as an SVG that needs no script."""
    if not points:
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><title>No steps yet</title></svg>\n'
    steps = [step for step, _ in points]
    judged = judged or []
    losses = [loss for _, loss in [*points, *judged]]
    low, high = min(0.0, *losses), max(*losses, 0.1)
    last = max(steps[-1], 1)

    def place(step: float, loss: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (loss - low) / (high - low)
        return f"{x:.1f},{y:.1f}"

    smooth, mean = [], points[0][1]
    for step, loss in points:
        mean = 0.9 * mean + 0.1 * loss
        smooth.append((step, mean))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif"'
        f' font-size="12">',
        f"<title>Training loss: {points[0][1]:.3f} at step {steps[0]}, {points[-1][1]:.3f} at step {steps[-1]}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for part in range(5):
        value = low + (high - low) * part / 4
        at = float(place(0, value).split(",")[1])
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{value:.2f}</text>')
    lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">step {steps[-1]}</text>')
    lines.append(f'<text x="{LEFT}" y="{HEIGHT - 12}">loss per token of the tutor\'s turns (natural log)</text>')
    for series, style in ((points, 'stroke="#9bb8d3" stroke-width="1"'), (smooth, 'stroke="#1f4e79" stroke-width="2"')):
        path = " ".join(place(step, loss) for step, loss in series)
        lines.append(f'<polyline fill="none" {style} points="{path}"/>')
    for step, loss in judged:
        x, y = place(step, loss).split(",")
        lines.append(f'<circle cx="{x}" cy="{y}" r="4" fill="#b3541e"/>')
    if judged:
        lines.append(
            f'<text x="{WIDTH - RIGHT}" y="{TOP - 6}" text-anchor="end" fill="#b3541e">dots: held-out conversations</text>'
        )
    return "\n".join([*lines, "</svg>", ""])
