"""The pages about models: what answers now, what could, how each was judged; serving another one, and going back.

A report is a page of its own, made when a model was judged; it is shown as it is, without a right to anything. Serving a model
is `app.promote`, which asks the gate; a retraining is a job. Rights are decided in `accounts`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from appliance.errors import ApplianceError, BadInput, GateNotPassed, NotFound
from appliance.plugins import states
from appliance.tuned import listed
from appliance.tuning import blind, report_page
from appliance.tuning.evaluate import Report
from appliance.web import auth, show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.accounts import User

router = APIRouter()

CHOICES: dict[str, Literal["1", "2", "t", "b"]] = {"1": "1", "2": "2", "t": "t", "b": "b"}  # first, second, tie, both bad
# A report holds what pupils asked and models said; it may style itself and do nothing else.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"


async def _enter(request: Request, verb: str) -> User:
    user = await auth.person(request)
    auth.box(request).accounts.require(user, verb, "model")
    return user


@router.get("/admin/models")
async def models(request: Request) -> Response:
    return await _models(request)


async def _models(request: Request, error: ApplianceError | None = None, refused: str = "", reason: str = "") -> Response:
    user = await _enter(request, "read")
    box = auth.box(request)
    found = (await asyncio.to_thread(box.registry.list))[::-1]
    rows = [await asyncio.to_thread(_row, one) for one in found]
    tuned = await asyncio.to_thread(listed, box.registry, box.chat.programs, box.database)
    return await show.page(
        request, "models.html", error.status if error else 200, error=error, refused=refused, reason=reason, rows=rows,
        tuned=tuned[::-1], plugins=await asyncio.to_thread(states, box.settings),
        serving=await box.pool.serving(), may_change=box.accounts.can(user, "change", "model"),
        running=[one for one in await asyncio.to_thread(box.jobs.list) if not one.ended and one.kind == "retrain"],
    )  # fmt: skip


def _row(manifest: Any) -> dict[str, Any]:
    report = _report(manifest)
    return {
        "model": manifest,
        "verdict": report_page.verdict(report) if report else "",
        "passed": bool(report and report.passed),
    }


def _report(manifest: Any) -> Report | None:
    try:
        return Report.from_json(dict(manifest.report)) if manifest.report else None
    except (TypeError, KeyError, ValueError, AttributeError):
        return None  # of another release, or damaged: the model's card says what is known


@router.get("/admin/models/{id}/report")
async def report(request: Request, id: str) -> Response:
    user = await _enter(request, "read")
    box = auth.box(request)
    found = _report(await asyncio.to_thread(box.registry.get, id))
    if found is None:
        raise NotFound("This model has no report.", "It was not judged on this box.")
    facts = await asyncio.to_thread(report_page.gather, box.settings, id)
    facts = replace(facts, dataset=await asyncio.to_thread(_with_standards, box, user, facts.dataset))
    html = await asyncio.to_thread(lambda: report_page.page(found, facts=facts))
    return HTMLResponse(html, headers={"content-security-policy": REPORT_POLICY})


def _with_standards(box: Any, user: User, card: Mapping[str, Any]) -> Mapping[str, Any]:
    """A dataset's card, and how many of its rows are about each of the curriculum's standards."""
    rows = card.get("rows")
    ids = [str(id) for part in rows.values() if isinstance(part, list) for id in part] if isinstance(rows, dict) else []
    counted = box.standards.among(user, ids)
    return {**card, "standard": dict(counted)} if counted else card


@router.post("/admin/models/{id}/promote")
async def promote(request: Request, id: str) -> Response:
    """Serve a model. Where the gate refused it, only with a reason, which the record keeps."""
    user = await _enter(request, "change")
    data = await auth.form(request)
    reason = auth.text(data, "reason").strip()[:500]
    box = auth.box(request)
    try:
        if await asyncio.to_thread(_is_program, box, id):
            await asyncio.to_thread(box.chat.programs.promote, user, id, accept=reason)
        else:
            await box.promote(id, accept=reason, actor=user.id)
    except GateNotPassed as error:
        return await _models(request, error, id, reason)
    except ApplianceError as error:
        return await _models(request, error)
    return RedirectResponse("/admin/models", 303)


def _is_program(box: Any, id: str) -> bool:
    if id in box.registry.ids():
        return False
    try:
        box.chat.programs.get(id)
    except NotFound:
        return False
    return True


@router.post("/admin/models/rollback")
async def rollback(request: Request) -> Response:
    user = await _enter(request, "change")
    await auth.form(request)
    try:
        await auth.box(request).rollback(actor=user.id)
    except ApplianceError as error:
        return await _models(request, error)
    return RedirectResponse("/admin/models", 303)


# --- making the next one ---------------------------------------------------------------------------------------------------
@router.get("/admin/retrain")
async def plan(request: Request) -> Response:
    """What would be learned from, and why the rest is not."""
    await _enter(request, "change")
    box = auth.box(request)
    lines: list[str] = []
    fault = None
    try:
        lines = await asyncio.to_thread(box.retraining_plan)
    except ApplianceError as error:
        fault = error
    return await show.page(request, "retrain.html", fault.status if fault else 200, error=fault, lines=lines)


@router.post("/admin/retrain")
async def retrain(request: Request) -> Response:
    user = await _enter(request, "change")
    await auth.form(request)
    box = auth.box(request)
    asked = {"recipe": None, "base": None, "promote": True}
    job = await asyncio.to_thread(lambda: box.jobs.enqueue("retrain", asked, owner=user.id))
    await asyncio.to_thread(lambda: box.audit.note("retrain", job.id, {}, actor=user.id))
    return RedirectResponse(f"/admin/jobs/{job.id}", 303)


# --- compared by people ------------------------------------------------------------------------------------------------------
@router.get("/admin/compare")
async def compare(request: Request) -> Response:
    """Two answers to one question, by lot; who wrote which is not told until all are judged."""
    user = await _enter(request, "read")
    one, other = (request.query_params.get(name, "")[:80] for name in ("a", "b"))
    if not one or not other:
        return RedirectResponse("/admin/models", 303)  # where two are chosen
    comparison, open_pairs = await asyncio.to_thread(_comparison, request, user, one, other)
    if not comparison.pairs():
        raise NotFound(
            "These two models have not answered the questions yet.",
            f"At the box: `appliance models compare {one} {other} --blind` has them answer.",
        )
    pair = open_pairs[0] if open_pairs else None
    return await show.page(
        request, "compare.html", a=one, b=other, pair=pair, left=len(open_pairs),
        answers=comparison.shown(pair, user.id) if pair else (), result=comparison.result(one, other),
    )  # fmt: skip


@router.post("/admin/compare")
async def choose(request: Request) -> Response:
    user = await _enter(request, "read")
    data = await auth.form(request)
    one, other, key, choice = (auth.text(data, name)[:80] for name in ("a", "b", "key", "choice"))
    comparison, _ = await asyncio.to_thread(_comparison, request, user, one, other)
    pair = comparison.pairs().get(key)
    chosen = CHOICES.get(choice)
    if pair is None or chosen is None:
        raise BadInput("That is not one of the answers.", "Load the page again.")
    await asyncio.to_thread(comparison.choose, pair, chosen, user.id)
    await asyncio.to_thread(report_page.people_chose, auth.box(request).settings, comparison.a, comparison.b)
    return RedirectResponse(f"/admin/compare?a={one}&b={other}", 303)


def _comparison(request: Request, user: User, one: str, other: str) -> tuple[blind.Comparison, list[blind.Pair]]:
    box = auth.box(request)
    comparison = blind.Comparison(box.settings, box.registry.get(one), box.registry.get(other))
    return comparison, comparison.open(list(comparison.pairs().values()), user.id)
