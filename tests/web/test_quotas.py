"""The administrator's page of quotas."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from appliance.quotas import Quota


async def test_quotas_are_set_and_removed(person: httpx.AsyncClient, box: Any) -> None:
    made = box.classes.add("7B")
    ann = box.people.add("ann", "pupil")[0].id
    assert "There are none" in (await person.get("/quotas")).text
    for who, name, most in (
        (f"class:{made.id}", "", "30"),
        ("user:", "Ann", "40"),
        ("role:pupil", "", "20"),
        ("user:", "ann", "50"),
    ):
        data = {"who": who, "person": name, "window": "day", "most": most}
        assert (await person.post("/quotas", data=data)).status_code == 303
    assert box.chat.quotas.list() == [
        Quota("user", ann, "day", 50, "ann"), Quota("class", made.id, "day", 30, "7B"),
        Quota("role", "pupil", "day", 20, "pupil"),
    ]  # fmt: skip
    page = (await person.get("/quotas")).text
    assert "Every pupil</th>" in page and ">7B</th>" in page and ">ann</th>" in page
    gone = {"who": f"user:{ann}", "window": "day"}
    assert (await person.post("/quotas/remove", data=gone)).status_code == 303
    assert (await person.post("/quotas/remove", data=gone)).status_code == 404
    noted = [(row.verb, row.thing) for row in box.audit.entries()]
    assert noted[-1] == ("remove quota", f"user:{ann}") and len(noted) == 5


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [("most", "many", 400), ("most", "", 400), ("most", "9999999", 400), ("who", "role:king", 404), ("window", "year", 400),
     ("who", "user:", 404), ("who", "", 400)],
)  # fmt: skip
async def test_a_faulty_quota_comes_back_filled_in(
    person: httpx.AsyncClient, box: Any, field: str, value: str, status: int
) -> None:
    data = {"who": "role:pupil", "person": "nobody here", "window": "day", "most": "20", field: value}
    reply = await person.post("/quotas", data=data)
    assert reply.status_code == status and 'role="alert"' in reply.text and 'value="nobody here"' in reply.text
    assert box.chat.quotas.list() == []
