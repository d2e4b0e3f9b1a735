"""Recipe: every knob of a tuning run, in one short TOML file that reads like a lab note.

Hides defaults and validation; all faults of a file are listed at once. What a knob does to the trainer is `trainer.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from appliance.errors import BadInput, from_os_error

Method = Literal["auto", "lora", "qlora", "lora8"]
Objective = Literal["imitate", "dpo", "kto"]
CHOICES: dict[str, tuple[str, ...]] = {"method": get_args(Method), "objective": get_args(Objective)}

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
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run is made with. The defaults suit the starter model on two cores.

    base: id of the model to tune, "" for the champion's base. length: tokens. rate: peak, falls linearly to zero after warmup
    (a share of all steps). batch: conversations a step, times `accumulate`. packing: several short conversations share a row of
    `length` tokens without seeing each other. checkpoint_every: steps, 0 chooses. patience: judgings on held-out loss without a
    gain after which training stops early, 0 never. method: lora8 is LoRA over an 8-bit base. objective: imitate the tutor, or
    learn from corrections and thumbs (dpo, kto) with `beta`.
    """

    base: str = ""
    method: Method = "auto"
    objective: Objective = "imitate"
    rank: int = 32
    alpha: float = 64.0
    dropout: float = 0.1
    rslora: bool = False
    dora: bool = False
    rate: float = 2e-3
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
    seed: int = 7

    def __post_init__(self) -> None:
        faults = _faults(asdict(self))
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
        if faults:
            raise BadInput(f"{path.name} has {_count(faults)}: {' '.join(faults)}", f"Known names are {', '.join(known)}.")
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def digest(self) -> str:
        """SHA-256 over every knob, in hex."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


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
