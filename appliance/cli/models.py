"""`appliance models`: what this box can serve, and what it serves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import click

from appliance.cli.output import Output, command, size
from appliance.registry import Manifest, Registry


@click.group()
def models() -> None:
    """List, import, export, verify, promote, roll back and remove models."""


def _record(manifest: Manifest) -> dict[str, Any]:
    report = manifest.report or {}
    scores = {name: report[name] for name in ("before", "after", "difference") if name in report}
    return {
        "id": manifest.id,
        "kind": manifest.kind,
        "base": manifest.base,
        "format": "gguf",
        "bytes": manifest.bytes,
        "aliases": list(manifest.aliases),
        "created": manifest.created,
        "scores": scores,
    }


@models.command("list")
@command
async def list_models(out: Output) -> int:
    """List the models, and which of them serves."""
    found = Registry(out.settings.models).list()
    rows = [
        (
            m.id,
            m.kind,
            m.base or "-",
            size(m.bytes),
            ", ".join(m.aliases) or "-",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(m.created)),
        )
        for m in found
    ]
    if rows:
        out.table(("id", "kind", "base", "size", "serves as", "made"), rows)
    else:
        out.say("There are no models yet. Make one with `appliance demo` or `appliance tune huggingface --examples FILE`.")
    out.result({"models": [_record(manifest) for manifest in found]})
    return 0


@models.command()
@click.argument("name")
@command
async def show(out: Output, name: str) -> int:
    """Show everything known of a model."""
    manifest = Registry(out.settings.models).get(name)
    for label, value in (
        ("id", manifest.id), ("title", manifest.title), ("kind", manifest.kind), ("base", manifest.base or "-"),
        ("licence", manifest.licence), ("context", f"{manifest.context} tokens"), ("size", size(manifest.bytes)),
        ("parents", ", ".join(manifest.parents) or "-"), ("dataset", manifest.dataset or "-"),
        ("recipe", manifest.recipe or "-"), ("serves as", ", ".join(manifest.aliases) or "-"),
    ):  # fmt: skip
        out.say(f"{label:10} {value}")
    if manifest.starter:
        out.say("This is the small starter or was tuned from it: for trying the box, not for pupils.")
    out.result(manifest)
    return 0


@models.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--licence", help="Licence of the model, where its files name none.")
@click.option("--name", help="Its id on this box; left out, one is made from its own name.")
@command
async def import_models(out: Output, path: Path, licence: str | None, name: str | None) -> int:
    """Take in PATH: a GGUF file, or a Hugging Face folder with safetensors. Nothing in it is run."""
    from appliance.tuning.importing import import_model

    out.note(f"Checking and copying {path.name}.")
    registry = Registry(out.settings.models)
    manifest = import_model(registry, path, licence=licence, id=name, starter=out.settings.starter)
    out.say(f"{manifest.id} is here. Serve it with `appliance models promote {manifest.id}`.")
    out.result({"id": manifest.id, "kind": manifest.kind, "sha256": manifest.files["model.gguf"].sha256})
    return 0


@models.command()
@click.argument("name", metavar="ID")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["gguf", "adapter"]), help="Left out: what the model is.")
@command
async def export(out: Output, name: str, path: Path, form: Literal["gguf", "adapter"] | None) -> int:
    """Copy a model's verified file to PATH, a new file or a folder."""
    from appliance.tuning.importing import export_model

    target, digest = export_model(Registry(out.settings.models), name, path, form)
    out.say(f"Written to {target} (sha256 {digest}).")
    out.result({"id": name, "file": target, "sha256": digest})
    return 0


@models.command()
@click.argument("name", required=False)
@command
async def verify(out: Output, name: str | None) -> int:
    """Compare every file of a model (or of all) with what was registered."""
    registry = Registry(out.settings.models)
    names = [name] if name else [manifest.id for manifest in registry.list()]
    for each in names:
        registry.verify(each)
        out.say(f"{each}: every file is as registered.")
    out.result({"verified": names})
    return 0


async def _serve(out: Output, name: str | None) -> int:
    from appliance.app import Appliance

    appliance = Appliance.open(out.settings)
    try:
        manifest = await (appliance.promote(name) if name else appliance.rollback())
    finally:
        await appliance.close()
    out.say(f"{manifest.id} serves now.")
    out.result({"id": manifest.id, "promoted": True})
    return 0


@models.command()
@click.argument("name")
@command
async def promote(out: Output, name: str) -> int:
    """Serve NAME from now on, once it has loaded and answered; no restart is needed."""
    return await _serve(out, name)


@models.command()
@command
async def rollback(out: Output) -> int:
    """Go back to the model that served before."""
    return await _serve(out, None)


@models.command()
@click.argument("name")
@command
async def remove(out: Output, name: str) -> int:
    """Delete a model that nothing needs."""
    Registry(out.settings.models).remove(name)
    out.say("Removed.")
    out.result({"removed": name})
    return 0
