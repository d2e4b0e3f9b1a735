"""Recipe: every knob of a tuning run, in one short TOML file that reads like a lab note.

Hides defaults, validation, and where the recipes lie that come with the box; all faults of a file are listed at once. What a
knob does to the trainer is `trainer.py`'s and `preference.py`'s, and whether a run fits into this machine is `memory.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from appliance.errors import BadInput, NotFound, from_os_error
from appliance.settings import PACKAGE

Method = Literal["auto", "lora", "qlora", "lora8"]
Objective = Literal["imitate", "dpo", "kto"]
CHOICES: dict[str, tuple[str, ...]] = {"method": get_args(Method), "objective": get_args(Objective)}

BUILT_IN = PACKAGE / "content" / "recipes"

# Smallest and largest value that can make sense; outside it is a slip of the pen, not a choice.
RANGES: dict[str, tuple[float, float]] = {
    "rank": (1, 256),
    "alpha": (0.1, 1024),
    "dropout": (0, 0.9),
    "rate": (1e-7, 1.0),
    "warmup": (0, 0.9),
    "epochs": (0.01, 100),
    "batch": (1, 1024),
    "accumulate": (1, 1024),
    "length": (16, 131072),
    "clip": (0.001, 1000),
    "checkpoint_every": (0, 100_000),
    "patience": (0, 1000),
    "beta": (0.001, 10),
    "gpus": (0, 64),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run is made with. The defaults suit the starter model on two cores.

    base: id of the model to tune, "" for the champion's base. length: tokens. rate: peak, falls linearly to zero after warmup
    (a share of all steps). batch: conversations a step, times `accumulate`. packing: several short conversations share a row of
    `length` tokens without seeing each other. checkpoint_every: steps, 0 chooses. patience: judgings on held-out loss without a
    gain after which training stops early, 0 never. method: lora8 is LoRA over an 8-bit base. objective: imitate the tutor, or
    learn from corrections (dpo) or thumbs (kto), where a larger `beta` keeps it nearer to the base. gpus: how many share a
    step, each with `batch` conversations; 0 takes every GPU there is.
    """

    base: str = ""
    method: Method = "auto"
    objective: Objective = "imitate"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1
    rslora: bool = False
    dora: bool = False
    rate: float = 1e-3
    warmup: float = 0.05
    epochs: float = 2.0
    batch: int = 4
    accumulate: int = 1
    length: int = 1024
    packing: bool = True
    clip: float = 1.0
    checkpoint_every: int = 0
    patience: int = 0
    beta: float = 0.1
    gpus: int = 1
    seed: int = 7

    def __post_init__(self) -> None:
        faults = _faults(asdict(self)) + _contradictions(asdict(self), set())
        if faults:
            raise BadInput(f"The recipe has {_count(faults)}: {' '.join(faults)}", "Correct these values.")
        for field in fields(self):  # 32 and 32.0 are one recipe, so they must have one digest
            if str(field.type) == "float":
                object.__setattr__(self, field.name, float(getattr(self, field.name)))

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """A recipe from TOML. Raises BadInput listing every unknown name and every bad value, NotFound."""
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise from_os_error(error, f"reading the recipe {path.name}") from None
        except UnicodeDecodeError:
            raise BadInput(f"{path.name} is not valid UTF-8.", "Save the recipe with the encoding UTF-8.") from None
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"{path.name} is not valid TOML: {error}.", "Correct that line.") from None
        known = [field.name for field in fields(cls)]
        faults = [f'unknown name "{name}".' for name in values if name not in known]
        given = {name: value for name, value in values.items() if name in known}
        faults += _faults(given)
        faults += _contradictions({field.name: field.default for field in fields(cls)} | given, set(given))
        if faults:
            raise BadInput(f"{path.name} has {_count(faults)}: {' '.join(faults)}", f"Known names are {', '.join(known)}.")
        return cls(**given)

    @property
    def merged_only(self) -> bool:
        """Whether its adapter can be served only as part of its base: a GGUF adapter has no place for DoRA's magnitudes."""
        return self.dora

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def digest(self) -> str:
        """SHA-256 over every knob, in hex."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def built_in_names() -> list[str]:
    """The recipes that come with the box."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def built_in(name: str) -> Recipe:
    """The recipe of that name that comes with the box. Raises NotFound naming those there are."""
    if name not in built_in_names():
        raise NotFound(f"There is no recipe called {name!r}.", f"The recipes are {', '.join(built_in_names())}.")
    return Recipe.load(BUILT_IN / f"{name}.toml")


def find(text: str) -> Recipe:
    """What a person means by --recipe: a built-in name first, else a TOML file. Raises NotFound, BadInput."""
    if text in built_in_names():
        return built_in(text)
    path = Path(text).expanduser()
    if path.is_file():
        return Recipe.load(path)
    raise NotFound(
        f"There is no recipe called {text!r}, and no such file.",
        f"Give a TOML file, or one of {', '.join(built_in_names())}.",
    )


def _count(faults: list[str]) -> str:
    return f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"


def _faults(values: dict[str, Any]) -> list[str]:
    """One sentence for each value that cannot be."""
    kinds: dict[str, str] = {field.name: str(field.type) for field in fields(Recipe)}
    faults = []
    for name, value in values.items():
        if name in CHOICES:
            if value not in CHOICES[name]:
                faults.append(f"{name} is {value!r}, not one of {', '.join(CHOICES[name])}.")
        elif kinds[name] == "bool":
            if not isinstance(value, bool):
                faults.append(f"{name} is {value!r}, not true or false.")
        elif kinds[name] == "str":
            if not isinstance(value, str):
                faults.append(f"{name} is {value!r}, not a text.")
        else:
            wanted = (int,) if kinds[name] == "int" else (int, float)
            low, high = RANGES[name]
            if isinstance(value, bool) or not isinstance(value, wanted):
                faults.append(f"{name} is {value!r}, not {'a whole number' if wanted == (int,) else 'a number'}.")
            elif not low <= value <= high:
                faults.append(f"{name} is {value!r}, outside {low:g} to {high:g}.")
    return faults


def _contradictions(values: dict[str, Any], written: set[str]) -> list[str]:
    """One sentence for each pair of values that cannot both be meant. `written`: the names that a file spells out, because a
    default that does not apply is nobody's mistake, and a line that would be ignored is."""
    objective = values["objective"]
    faults = []
    if objective == "kto" and isinstance(values["batch"], int) and values["batch"] < 2:
        faults.append("batch is 1, and objective kto compares the conversations of a batch with each other: 2 at least.")
    if objective in ("dpo", "kto"):
        if "packing" in written and values["packing"] is True:
            faults.append(f"packing is true, and objective {objective} cannot pack: leave it out.")
        if "dropout" in written and values["dropout"] != 0:
            faults.append(f"dropout is {values['dropout']}, and objective {objective} trains without: leave it out, or 0.")
        if "patience" in written and values["patience"] != 0:
            faults.append(
                f"patience is {values['patience']}, and objective {objective} has no held-out loss to watch: leave it out."
            )
    if objective == "imitate" and "beta" in written:
        faults.append("beta is given, and objective imitate has no use for it: leave it out, or choose dpo or kto.")
    return faults
