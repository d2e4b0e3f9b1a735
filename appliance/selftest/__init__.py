"""What this machine can do: measured for a minute, worked out for the models of the catalogue, and written down with its date.

`measure` runs llama.cpp, `advise` is the arithmetic; here is what is kept of both.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.engine import sizing
from appliance.errors import from_os_error
from appliance.files import write_atomically
from appliance.selftest import yardstick
from appliance.selftest.advise import Advice, Speed, advise, best, summary
from appliance.selftest.measure import Measured, measure
from appliance.settings import Settings
from appliance.tuning import catalog

MATTERS = 0.05  # of memory: a kernel keeps a little more or less for itself
SMALL = 50_000_000  # weights: of a smaller model most of the time goes elsewhere


@dataclass(frozen=True, slots=True)
class Result:
    """at: UTC seconds. model: the one that serves here, or the starter; reading, writing: its tokens a second, the latter for
    one pupil; foretold: what the arithmetic says of that from what was `measured`, on that model or the yardstick `by`."""

    at: float
    model: str
    reading: float
    writing: float
    foretold: float
    by: str
    measured: Measured
    summary: str
    models: Sequence[Advice]


def judge(settings: Settings, model: str, own: Measured, measured: Measured | None = None, now: float | None = None) -> Result:
    """Work out for each model of the catalogue what was measured, and keep it. Raises BadInput for a bad catalogue.

    own: of the model that serves here. measured: of the yardstick, where that one is too small to conclude from.
    """
    by, measured = ("yardstick", measured) if measured else (model, own)
    found = [advise(one, measured) for one in catalog.load(settings.catalog)]
    said = summary(best(found), measured)
    at = time.time() if now is None else now
    foretold = 1 / Speed.of(measured).step(own.bytes, own.layers, own.parameters, 1)
    result = Result(at, model, own.reading, own.writing, foretold, by, measured, said, found)
    write_atomically(settings.selftest, json.dumps(asdict(result), indent=1) + "\n")
    return result


def run(settings: Settings, model: str, file: Path, seconds: float, tell: Callable[[str], None]) -> Result:
    """Measure a model that is here, for so many seconds, and the yardstick where it is small; keep the result. Blocking.

    Raises ModelUnavailable, StorageFull.
    """
    if sizing.inspected(file, "model").parameters >= SMALL:
        return judge(settings, model, measure(file, seconds, tell))
    own = measure(file, seconds / 4, tell)
    with tempfile.TemporaryDirectory(dir=settings.run, prefix="selftest-") as folder:
        made = Path(folder) / "yardstick.gguf"
        try:
            weights, layers = yardstick.write(made)
        except OSError as error:
            raise from_os_error(error, "writing the yardstick") from None
        return judge(settings, model, own, measure(made, seconds * 3 / 4, tell, weights=weights, layers=layers))


def last(settings: Settings) -> Result | None:
    """The newest result of this home; None where there is none that can be read."""
    try:
        raw = json.loads(settings.selftest.read_text("utf-8"))
        models = [Advice(**one) for one in raw["models"]]
        return Result(**{**raw, "measured": Measured(**raw["measured"]), "models": models})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def changed(result: Result, machine: catalog.Machine) -> str:
    """What is different since in the machine that was measured, in words; "" where nothing is that matters."""
    was, told = result.measured, []
    if was.cores != machine.cores:
        told.append(f"{machine.cores} cores instead of {was.cores}")
    if abs(was.memory - machine.memory) > MATTERS * was.memory:
        told.append(f"{machine.memory / 1e9:.0f} GB of memory instead of {was.memory / 1e9:.0f}")
    if was.card and machine.card and was.card != machine.card:
        told.append(f"{machine.card} instead of {was.card}")
    elif bool(was.gpu) != bool(machine.gpu):
        told.append(f"a graphics card more ({machine.card})" if machine.gpu else "no graphics card any more")
    return ", ".join(told)


__all__ = ["Advice", "Measured", "Result", "changed", "judge", "last", "run"]
