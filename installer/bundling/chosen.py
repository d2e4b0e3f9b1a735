"""Models that the school chose, put beside the starter: looked at before they are taken, signed with everything else.

They lie in the bundle's `chosen/` and are imported on the box from there (`appliance models import`), which judges them
once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import licences
from said import Fault


@dataclass(frozen=True)
class Model:
    """files: name in the bundle, and where it is now."""

    name: str
    licence: str
    files: tuple[tuple[str, Path], ...]

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for _name, path in self.files)


def look(path: Path, licence: str) -> Model:
    """A GGUF file, or a folder in Hugging Face's form. licence: where its files name none. Raises Fault."""
    try:
        from appliance.engine.inspect import check_hf_folder, read_gguf
        from appliance.errors import ApplianceError
    except ImportError:
        raise Fault("A model can be looked at only where the program is installed.", "Run ./scripts/install first.") from None

    if not path.exists():
        raise Fault(f"There is no model {path}.", "Give a GGUF file, or a folder with config.json and safetensors files.")
    try:
        if path.is_dir():
            check_hf_folder(path)
            stated, files = licences.of_model(path), tuple((one.name, one) for one in sorted(path.iterdir()))
        else:
            stated, files = read_gguf(path).licence, ((path.name, path),)
    except ApplianceError as error:
        raise Fault(error.message, error.hint or "Choose another model.") from None
    if not (stated or licence):
        raise Fault(f"The model {path.name} does not say under which licence it stands.", "Name it: --licence LICENCE.")
    return Model(path.resolve().name.removesuffix(".gguf"), stated or licence, files)


def put(model: Model, folder: Path, link: Callable[[Path, Path], None]) -> None:
    """Its files below `folder`, and a card that names its licence where it has none."""
    target = folder / model.name
    target.mkdir(parents=True)
    for name, path in model.files:
        link(path, target / name)
    if not licences.of_model(target):
        (target / "card.json").write_text(json.dumps({"name": model.name, "licence": model.licence}) + "\n", "utf-8")
