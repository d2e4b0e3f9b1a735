"""Many people at once: a file shown before anything is changed, then taken in as it was shown; and everybody as a file.

Between the two steps the file lies in a private folder for an hour at most. What a file means is decided in `enrolment`.
"""

from __future__ import annotations

import asyncio
import io
import re
import time
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import RedirectResponse, Response

from appliance.enrolment import Plan, Roll, apply, compare, export, read
from appliance.errors import ApplianceError, BadInput, NotFound, from_os_error
from appliance.files import write_atomically
from appliance.tables import new_id
from appliance.web import auth, show
from appliance.web.people import administrator, note

if TYPE_CHECKING:
    from appliance.accounts import User

router = APIRouter(prefix="/admin/people")

ADDRESS = "/admin/people/import"
AT_ONCE = 20 * 2**20  # bytes in one sending: the register of a school of several thousand, zipped or not
FILES_AT_ONCE = 8
KEPT_SECONDS = 3600.0
SHOWN = 200
_ID = re.compile(r"[0-9a-z]{16}")


@router.get("/import")
async def give(request: Request) -> Response:
    await administrator(request)
    return await _give(request)


async def _give(request: Request, error: ApplianceError | None = None) -> Response:
    return await show.page(request, "import.html", error.status if error else 200, error=error)


@router.post("/import", max_body_size=AT_ONCE)
async def look(request: Request) -> Response:
    """Keep the file for an hour and say what it would change."""
    user = await administrator(request)
    data = await auth.form(request, files=FILES_AT_ONCE)
    try:
        given = [one for one in data.getlist("file") if isinstance(one, UploadFile) and one.filename]
        if not given:
            return await _give(request, BadInput("No file was chosen.", "Choose a CSV file, or the files of OneRoster."))
        files = [(_plain(one.filename or ""), await one.read()) for one in given]
        name, content = files[0] if len(files) == 1 else ("OneRoster.zip", await asyncio.to_thread(_together, files))
    finally:
        await data.close()
    try:
        roll = await asyncio.to_thread(read, content, name)
    except ApplianceError as error:
        return await _give(request, error)
    id = new_id()
    await asyncio.to_thread(_keep, _folder(request), user, id, name, content)
    return await _plan(request, id, roll)


@router.post("/import/{id}")
async def take(request: Request, id: str) -> Response:
    user = await administrator(request)
    data = await auth.form(request)
    box = auth.box(request)
    path, name, content = await asyncio.to_thread(_kept, _folder(request), user, id)
    roll = await asyncio.to_thread(read, content, name)
    try:
        plan = await asyncio.to_thread(lambda: apply(box.database, roll, auth.text(data, "shown"), actor=user.id))
    except ApplianceError as error:
        return await _plan(request, id, roll, error)
    await asyncio.to_thread(path.unlink, True)
    return RedirectResponse(f"/admin/people?done=imported-{len(plan.added)}-{len(plan.changed)}", 303)


@router.get("/export")
async def everybody(request: Request) -> Response:
    user = await administrator(request, "read")
    box = auth.box(request)
    text = await asyncio.to_thread(export, box.people)
    await note(request, user, "export people", "people", {})
    headers = {"content-disposition": 'attachment; filename="people.csv"'}
    return Response(text.encode(), media_type="text/csv; charset=utf-8", headers=headers)


async def _plan(request: Request, id: str, roll: Roll, error: ApplianceError | None = None) -> Response:
    plan: Plan = await asyncio.to_thread(compare, auth.box(request).database, roll)
    status = error.status if error else 400 if plan.faults else 200
    return await show.page(request, "import_plan.html", status, error=error, id=id, plan=plan, file=roll.name, most=SHOWN)


def _together(files: list[tuple[str, bytes]]) -> bytes:
    """Files that were chosen one by one, as the archive that the register could have made of them."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)  # of two of one name: whoever reads it refuses them in words
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


def _plain(name: str) -> str:
    """A file's name as it may be shown: what a browser sends may be anything."""
    return "".join(letter for letter in name.replace("\\", "/").rsplit("/", 1)[-1] if letter.isprintable())[:80] or "file"


def _folder(request: Request) -> Path:
    folder: Path = auth.box(request).settings.run / "imports"
    return folder


def _keep(folder: Path, user: User, id: str, name: str, content: bytes) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in folder.iterdir():
            if _too_old(old):
                old.unlink(missing_ok=True)
        write_atomically(folder / f"{user.id}-{id}", name.encode() + b"\n" + content)
    except OSError as error:
        raise from_os_error(error, "keeping the file") from None


def _too_old(path: Path) -> bool:
    """Also where it is of a time to come: the clock was set back, and it would lie here until then. Raises OSError."""
    return abs(time.time() - path.stat().st_mtime) > KEPT_SECONDS


def _kept(folder: Path, user: User, id: str) -> tuple[Path, str, bytes]:
    """Raises NotFound: it is another's, was taken in already, or is too old."""
    path = folder / f"{user.id}-{id}"
    try:
        if not _ID.fullmatch(id) or _too_old(path):
            raise FileNotFoundError
        name, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        raise NotFound("This file is no longer here.", "Choose it once more.") from None
    return path, name.decode(), content
