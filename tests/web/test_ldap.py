"""The second step of staff whom a real directory vouches for, on the pages."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx
import pyotp
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from appliance import network
from appliance.accounts import Accounts
from appliance.accounts.directory import Directory
from appliance.network import Host
from appliance.settings import Settings
from appliance.tables import users
from tests.outside import allow, way_out
from tests.slapd import BASE as TREE
from tests.slapd import BOX, BOX_PASSWORD, GROUPS, SLAPD, slapd
from tests.web.conftest import csrf
from tests.web.test_me import browser, sign_in

GRACE = "compilers compile"


@pytest.mark.optional
@pytest.mark.skipif(SLAPD is None, reason="slapd is not installed (apt-get install slapd ldap-utils)")
async def test_staff_of_the_directory_turn_the_second_step_on_and_off(box: Any, app: FastAPI, tmp_path: Path) -> None:
    with slapd(tmp_path / "slapd") as server:
        (tmp_path / "password").touch(0o600)
        (tmp_path / "password").write_text(BOX_PASSWORD)
        settings: Settings = box.settings.model_copy(
            update={
                "ldap_url": f"ldaps://localhost:{server.tls}", "ldap_ca_file": server.ca, "ldap_base": TREE,
                "ldap_bind_dn": BOX, "ldap_bind_password_file": tmp_path / "password",
                "ldap_groups": {f"cn=teachers,{GROUPS}": "teacher"},
            }
        )  # fmt: skip
        allow(settings, Host("localhost", server.tls))
        box.people.add("Head", "administrator", password="correct horse battery")
        directory = Directory(settings, lambda host, port: network.dial(settings, host, port))
        box.accounts = Accounts(box.database, settings, directory, box.audit)
        with way_out(settings):
            async with browser(app) as grace, browser(app) as other:
                await on_and_off(box, grace, other)


async def on_and_off(box: Any, grace: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    assert (await sign_in(grace, "grace", GRACE)).headers["location"] == "/chat"
    assert 'href="/me/second-step"' in (await grace.get("/me")).text
    page = (await grace.get("/me/second-step")).text
    secret = re.findall(r'name="secret" value="([A-Z2-7]{32})"', page)[0]
    assert 'type="password"' in page
    form = {"csrf": await csrf(grace, "/me"), "secret": secret, "code": pyotp.TOTP(secret).now()}
    for wrong in ("", "photosynthesis 1", GRACE.upper()):
        reply = await grace.post("/me/second-step", data={**form, "password": wrong})
        assert reply.status_code == 401 and "not right" in reply.text
    reply = await grace.post("/me/second-step", data={**form, "code": pyotp.TOTP(secret).now(), "password": GRACE})
    codes = re.findall(r'<li class="code">([\w-]+)</li>', reply.text)
    assert len(codes) == 10

    reply = await sign_in(other, "grace", GRACE)
    assert reply.headers["location"] == "/sign-in/code" and "session" not in other.cookies
    for path in ("/chat", "/me", "/me/second-step"):
        assert (await other.get(path)).headers["location"] == "/", path
    with box.database.begin() as connection:  # half a minute passes
        connection.execute(sa.update(users).values(totp_step=users.c.totp_step - 3))
    form = {"csrf": await csrf(other, "/sign-in/code"), "code": pyotp.TOTP(secret).at(time.time())}
    assert (await other.post("/sign-in/code", data=form)).headers["location"] == "/chat"
    form = {"csrf": await csrf(other, "/me"), "password": "not mine"}
    for path in ("/me/second-step/off", "/me/second-step/codes"):
        assert (await other.post(path, data=form)).status_code == 401
    assert (await other.post("/me/second-step/codes", data={**form, "password": GRACE})).text.count('<li class="code">') == 10
    assert (await other.post("/me/second-step/off", data={**form, "password": GRACE})).headers["location"] == "/me?done=off"
    await grace.post("/sign-out")
    del grace.headers["x-csrf-token"]
    assert (await sign_in(grace, "grace", GRACE)).headers["location"] == "/chat"
    for number in range(20):
        reply = await grace.post("/me/second-step/off", data={"csrf": await csrf(grace, "/me"), "password": f"guess {number}"})
    assert reply.status_code == 503 and "too many" in reply.text, "guessing is slowed down here as well"
