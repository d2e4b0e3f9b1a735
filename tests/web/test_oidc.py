"""Sign-in by a school's own service: a real one behind the real way out, right and wrong answers, and one that is down."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pyotp
import pytest
from fastapi import FastAPI
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from appliance import network
from appliance.accounts import oidc as module
from appliance.accounts.oidc import Oidc
from appliance.audit import Audit
from appliance.errors import BadInput
from appliance.network import Host, Policy
from appliance.settings import Settings, load
from tests.outside import allow, way_out
from tests.provider import CLIENT, SECRET, Provider, provider, question_of
from tests.web.conftest import BASE, csrf
from tests.web.test_me import browser

BACK = f"{BASE}/sign-in/oidc/callback"


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Provider, Settings]]:
    """A service, and the home of a box that may reach it, with its way out running."""
    folder = tmp_path_factory.mktemp("provider")
    (folder / "secret").touch(0o600)
    (folder / "secret").write_text(SECRET)
    with provider(folder / "provider") as service:
        settings = Settings(
            home=folder / "home", oidc_issuer=service.issuer, oidc_client_id=CLIENT, oidc_client_secret_file=folder / "secret",
            oidc_redirect=BACK, oidc_ca_file=service.ca, oidc_name="Hill School", oidc_role_claim="realm.roles",
            oidc_roles={"staff": "teacher", "head": "administrator"},
        )  # fmt: skip
        allow(settings, Host("localhost", service.port))
        with way_out(settings):
            yield service, settings


@pytest.fixture
def service(school: tuple[Provider, Settings], box: Any) -> Provider:
    """The service as it is by default, and the box set up for it. There is an administrator, so that people may sign in."""
    service, settings = school
    service.claims = {"sub": "person-1", "preferred_username": "ada", "name": "Ada Byron"}
    service.bend, service.about = lambda _claims: None, {}
    box.oidc = oidc_of(settings)
    box.people.add("Ms Green", "administrator", password="correct horse battery")
    return service


def oidc_of(settings: Settings, **changes: Any) -> Oidc:
    settings = settings.model_copy(update=changes)
    return Oidc(settings, partial(network.http_client, settings, ca_file=settings.oidc_ca_file))


async def there(visitor: httpx.AsyncClient) -> str:
    reply = await visitor.get("/sign-in/oidc")
    assert reply.status_code == 303, reply.text
    return reply.headers["location"]


async def sign_in(visitor: httpx.AsyncClient, service: Provider) -> httpx.Response:
    """As a browser goes: there, signed in at once, and back."""
    back = service.authorize(question_of(await there(visitor)))
    assert back.startswith(BACK)
    return await visitor.get(back.removeprefix(BASE))


async def test_there_and_back_and_signed_in(visitor: httpx.AsyncClient, service: Provider, box: Any) -> None:
    page = await visitor.get("/")
    assert '<a href="/sign-in/oidc">Sign in with Hill School</a>' in page.text
    url = await there(visitor)
    question = question_of(url)
    assert url.startswith(f"{service.issuer}/authorize?") and question["redirect_uri"] == BACK
    assert len(question["state"]) > 40 and len(question["nonce"]) > 40 and question["nonce"] != question["state"]
    reply = await sign_in(visitor, service)
    assert (reply.status_code, reply.headers["location"]) == (303, "/chat")
    assert (await visitor.get("/chat")).status_code == 200
    ada = next(one for one in box.people.list() if one.name == "ada")
    assert (ada.full_name, ada.role, ada.source, ada.external) == ("Ada Byron", "pupil", "oidc", f"{service.issuer} person-1")
    service.claims |= {"realm": {"roles": ["other", "staff"]}, "preferred_username": "ada.byron"}
    assert (await sign_in(visitor, service)).headers["location"] == "/chat"
    again = box.people.get(ada.id)
    assert (again.name, again.role) == ("ada.byron", "teacher"), "the same person, by the service's own number"
    assert [row.verb for row in Audit(box.database).entries(thing=f"person {ada.id}")] == ["admit", "admit"]


async def test_no_button_and_no_page_where_no_service_is_set(visitor: httpx.AsyncClient, box: Any) -> None:
    box.people.add("Ms Green", "administrator", password="correct horse battery")
    assert "/sign-in/oidc" not in (await visitor.get("/")).text
    for path in ("/sign-in/oidc", "/sign-in/oidc/callback?state=x&code=y"):
        assert (await visitor.get(path)).status_code == 404


def _signed(header: dict[str, Any], key: Any) -> Callable[[dict[str, Any]], str]:
    return lambda claims: jwt.encode(header, claims, key, algorithms=[header["alg"]])


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda claims: claims.pop(name, None) and None


def _with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda claims: claims.update(changes)


LIES: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "another nonce": _with(nonce="x" * 43),
    "no nonce": _without("nonce"),
    "for another box": _with(aud="moodle"),
    "for nobody": _without("aud"),
    "for two, the other one asked": lambda claims: claims.update(aud=[CLIENT, "moodle"], azp="moodle"),
    "of another service": _with(iss="https://elsewhere.example"),
    "of no service": _without("iss"),
    "too old": _with(exp=int(time.time()) - 3600, iat=int(time.time()) - 7200),
    "without an end": _without("exp"),
    "an end that is none": _with(exp=float("inf")),
    "from the future": _with(iat=int(time.time()) + 3600),
    "about nobody": _without("sub"),
    "about an empty name": _with(sub=""),
    "signed by somebody else": _signed({"alg": "RS256"}, RSAKey.generate_key(2048, private=True)),
    "signed with a secret": _signed({"alg": "HS256"}, OctKey.import_key("x" * 32)),
    "not signed": lambda claims: f"{_part({'alg': 'none'})}.{_part(claims)}.",
    "no token": lambda _claims: "not.a.token",
    "an access token of another": _with(at_hash="AAAAAAAAAAAAAAAAAAAAAA"),
    "no name": _without("preferred_username"),
    "a name that is none": _with(preferred_username=["ada"]),
}  # fmt: skip


@pytest.mark.parametrize("lie", sorted(LIES))
async def test_an_answer_that_cannot_be_trusted_signs_nobody_in(
    visitor: httpx.AsyncClient, service: Provider, box: Any, lie: str
) -> None:
    service.bend = LIES[lie]
    reply = await sign_in(visitor, service)
    assert reply.status_code == 403 and "Sign in once more from the first page" in reply.text, reply.text
    assert (await visitor.get("/chat")).status_code == 303
    assert [one.name for one in box.people.list()] == ["Ms Green"]
    service.bend = lambda _claims: None
    assert (await sign_in(visitor, service)).headers["location"] == "/chat", "the control: the truth does"


async def test_each_answer_works_once_and_only_in_the_browser_that_asked(
    app: Any, visitor: httpx.AsyncClient, service: Provider
) -> None:
    back = service.authorize(question_of(await there(visitor))).removeprefix(BASE)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE, headers={"accept": "text/html"}) as other:
        reply = await other.get(back)
        assert reply.status_code == 403 and "not begun in this browser" in reply.text
        own = await there(other)
        reply = await other.get(back)
        assert reply.status_code == 403, "nor with a sign-in of its own under way"
        cookie = dict(visitor.cookies)
        assert (await visitor.get(back)).headers["location"] == "/chat"
        visitor.cookies.set("oidc", cookie["oidc"])
        reply = await visitor.get(back)
        assert reply.status_code == 403 and "used already" in reply.text
        assert (await other.get(service.authorize(question_of(own)).removeprefix(BASE))).headers["location"] == "/chat"


@pytest.mark.parametrize(
    "given", ["", "?code=x", "?state=&code=x", "?state=%ff%00&code=x", "?error=access_denied", "?code=a&state=b"]
)
async def test_an_address_that_somebody_made_up_signs_nobody_in(
    visitor: httpx.AsyncClient, service: Provider, given: str
) -> None:
    before = list(service.calls)
    await there(visitor)
    reply = await visitor.get(f"/sign-in/oidc/callback{given}")
    assert reply.status_code == 403 and "access_denied" not in reply.text
    assert service.calls[len(before) :] in ([], ["about", "keys"]), "and nothing was asked for it"


@pytest.mark.usefixtures("service")
async def test_a_refusal_there_and_an_answer_of_another_service(visitor: httpx.AsyncClient) -> None:
    for more, said in (
        (("error", "access_denied"), "did not sign you in"),
        (("iss", "https://elsewhere.example"), "another service"),
    ):
        state = question_of(await there(visitor))["state"]
        query = {"state": state, "code": "code-0", more[0]: more[1]}
        reply = await visitor.get("/sign-in/oidc/callback", params=query)
        assert reply.status_code == 403 and said in reply.text


async def test_a_code_that_was_used_is_refused_there(visitor: httpx.AsyncClient, service: Provider) -> None:
    back = service.authorize(question_of(await there(visitor))).removeprefix(BASE)
    service.used.add(question_of(back)["code"])
    reply = await visitor.get(back)
    assert reply.status_code == 403 and "did not confirm" in reply.text


async def test_a_sign_in_that_takes_too_long(
    visitor: httpx.AsyncClient, service: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PENDING_SECONDS", -1.0)
    reply = await sign_in(visitor, service)
    assert reply.status_code == 403 and "took too long" in reply.text


async def test_new_keys_are_fetched_when_they_are_needed(visitor: httpx.AsyncClient, service: Provider) -> None:
    assert (await sign_in(visitor, service)).headers["location"] == "/chat"
    service.new_keys()
    before = service.calls.count("keys")
    assert (await sign_in(visitor, service)).headers["location"] == "/chat"
    assert service.calls.count("keys") == before + 1


async def test_who_has_no_place_here_is_told_so(
    visitor: httpx.AsyncClient, service: Provider, school: tuple[Provider, Settings], box: Any
) -> None:
    box.oidc = oidc_of(school[1], oidc_role="")
    reply = await sign_in(visitor, service)
    assert reply.status_code == 403 and "may not use this box" in reply.text
    service.claims["realm"] = {"roles": "staff"}
    assert (await sign_in(visitor, service)).headers["location"] == "/chat"
    ada = next(one for one in box.people.list() if one.name == "ada")
    box.people.change(ada.id, disabled=True)
    reply = await sign_in(visitor, service)
    assert reply.status_code == 403 and "cannot sign in here" in reply.text


async def test_a_name_that_is_taken_here_is_not_taken_over(visitor: httpx.AsyncClient, service: Provider, box: Any) -> None:
    service.claims["preferred_username"] = "MS GREEN"
    reply = await sign_in(visitor, service)
    assert reply.status_code == 409 and "somebody else named" in reply.text
    assert [one.source for one in box.people.list()] == ["local"]


async def test_a_second_step_of_the_box_is_asked_here_too(visitor: httpx.AsyncClient, service: Provider, box: Any) -> None:
    import sqlalchemy as sa

    from appliance.tables import users

    await sign_in(visitor, service)
    with box.database.begin() as connection:
        connection.execute(sa.update(users).where(users.c.name == "ada").values(totp="JBSWY3DPEHPK3PXP"))
    reply = await sign_in(visitor, service)
    assert reply.headers["location"] == "/sign-in/code" and (await visitor.get("/chat")).status_code == 303


# --- the second step of somebody whom the service vouches for ----------------------------------------------------------------
async def form_of(visitor: httpx.AsyncClient) -> dict[str, str]:
    """What the page about the second step would send, with the right code."""
    secret = re.findall(r'name="secret" value="([A-Z2-7]{32})"', (await visitor.get("/me/second-step")).text)[0]
    return {"secret": secret, "code": pyotp.TOTP(secret).now(), "csrf": await csrf(visitor, "/me")}


async def again(visitor: httpx.AsyncClient, service: Provider) -> httpx.Response:
    """Signed in there once more, as a browser goes."""
    url = (await visitor.get("/sign-in/oidc/again")).headers["location"]
    assert (question_of(url)["prompt"], question_of(url)["max_age"]) == ("login", "600")
    return await visitor.get(service.authorize(question_of(url)).removeprefix(BASE))


async def test_staff_of_the_service_turn_the_second_step_on_and_off(
    visitor: httpx.AsyncClient, service: Provider, box: Any, app: FastAPI
) -> None:
    service.claims["realm"] = {"roles": "staff"}
    await sign_in(visitor, service)
    assert "/me/second-step" in (await visitor.get("/me")).text
    page = (await visitor.get("/me/second-step")).text
    assert "Sign in again with Hill School" in page and 'name="secret"' not in page and 'type="password"' not in page
    secret = pyotp.random_base32()
    form = {"csrf": await csrf(visitor, "/me"), "secret": secret, "code": pyotp.TOTP(secret).now(), "password": "any"}
    reply = await visitor.post("/me/second-step", data=form)
    assert reply.status_code == 401 and "not certain" in reply.text, "having signed in some time ago is not enough"
    before = visitor.cookies["session"]
    assert (await again(visitor, service)).headers["location"] == "/me/second-step"
    assert visitor.cookies["session"] == before, "nobody became somebody else"
    form = await form_of(visitor)
    reply = await visitor.post("/me/second-step", data=form)
    codes = re.findall(r'<li class="code">([\w-]+)</li>', reply.text)
    assert len(codes) == 10

    async with browser(app) as other:
        assert (await sign_in(other, service)).headers["location"] == "/sign-in/code" and "session" not in other.cookies
        for path in ("/chat", "/me", "/me/second-step", "/sign-in/oidc/again"):
            assert (await other.get(path)).headers["location"] == "/", path
        reply = await other.post("/sign-in/code", data={"csrf": await csrf(other, "/sign-in/code"), "code": codes[0]})
        assert reply.headers["location"] == "/chat" and (await other.get("/chat")).status_code == 200
        for path in ("/me/second-step/off", "/me/second-step/codes"):
            reply = await other.post(path, data={"csrf": await csrf(other, "/me")})
            assert reply.status_code == 401, "it was another session that had shown it"
        assert (await again(other, service)).headers["location"] == "/me/second-step"
        assert "9 recovery codes are left" in (await other.get("/me/second-step")).text
        page = (await other.post("/me/second-step/codes", data={"csrf": await csrf(other, "/me")})).text
        assert page.count('<li class="code">') == 10
        reply = await other.post("/me/second-step/off", data={"csrf": await csrf(other, "/me")})
        assert reply.headers["location"] == "/me?done=off"
    assert (await sign_in(visitor, service)).headers["location"] == "/chat"
    assert [row.verb for row in box.audit.entries()] == ["admit", "second step on", "second step codes", "second step off"]


async def test_what_does_not_show_who_one_is(
    visitor: httpx.AsyncClient, service: Provider, box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.claims["realm"] = {"roles": "staff"}
    await sign_in(visitor, service)
    service.claims["auth_time"] = int(time.time()) - 3600
    reply = await again(visitor, service)
    assert reply.status_code == 403 and "did not ask for your password again" in reply.text
    del service.claims["auth_time"]
    mine = dict(service.claims)
    service.claims |= {"sub": "person-2", "preferred_username": "grace"}
    reply = await again(visitor, service)
    assert reply.status_code == 403 and "another account" in reply.text and len(box.people.list()) == 2
    service.claims = mine
    # An ordinary answer is no answer to that question, whoever began it.
    assert (await sign_in(visitor, service)).headers["location"] == "/chat"
    assert 'name="secret"' not in (await visitor.get("/me/second-step")).text
    service.claims["auth_time"] = int(time.time())
    await again(visitor, service)
    form = await form_of(visitor)
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 601)
    reply = await visitor.post("/me/second-step", data=form)
    assert reply.status_code == 401 and "not certain" in reply.text, "after ten minutes it counts no more"


async def test_only_who_signs_in_there_is_sent_there_again(visitor: httpx.AsyncClient, service: Provider, app: FastAPI) -> None:
    assert (await visitor.get("/sign-in/oidc/again")).headers["location"] == "/"
    form = {"csrf": await csrf(visitor), "name": "Ms Green", "password": "correct horse battery"}
    assert (await visitor.post("/sign-in", data=form)).headers["location"] == "/chat"
    assert (await visitor.get("/sign-in/oidc/again")).status_code == 404
    service.claims["realm"] = {"roles": "staff"}
    async with browser(app) as ada:
        await sign_in(ada, service)
        url = (await ada.get("/sign-in/oidc/again")).headers["location"]
        await ada.post("/sign-out", data={"csrf": await csrf(ada, "/me")})
        reply = await ada.get(service.authorize(question_of(url)).removeprefix(BASE))
        assert reply.headers["location"] == "/" and "session" not in ada.cookies, "signed out meanwhile"


# --- a service that is down, or not the one that was meant --------------------------------------------------------------------
async def test_first_allowed_and_seen_then_denied_and_nothing_is_asked(
    visitor: httpx.AsyncClient, service: Provider, school: tuple[Provider, Settings], box: Any
) -> None:
    policy, host = Policy(school[1].network), Host("localhost", service.port)
    assert (await sign_in(visitor, service)).headers["location"] == "/chat"
    asked = len(service.calls)
    assert asked, "the control"
    await visitor.get("/")
    policy.allow(Host("other.example", 443))  # so that the way out goes on running
    policy.deny("localhost")
    try:
        for changed in (box.oidc, oidc_of(school[1])):
            box.oidc = changed
            reply = await visitor.get("/sign-in/oidc")
            if reply.status_code == 303:  # what the service says of itself was known: the way back is where it ends
                reply = await visitor.get(service.authorize(question_of(reply.headers["location"])).removeprefix(BASE))
            assert reply.status_code == 503 and f"{host} may not be dialled" in reply.text
            assert "only accounts of this box can sign in" in reply.text
        assert len(service.calls) == asked
    finally:
        policy.allow(host)
        policy.deny("other.example")


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"issuer": "https://elsewhere.example"}, "calls itself"),
        ({"token_endpoint": "http://localhost:1/token"}, "token_endpoint is not an address that can be trusted"),
        ({"jwks_uri": None}, "jwks_uri"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "authorization_endpoint"),
        ({"padding": "x" * 2_000_000}, "more than can be right"),
    ],
)
async def test_a_service_that_says_odd_things_of_itself(
    visitor: httpx.AsyncClient, service: Provider, about: dict[str, Any], said: str
) -> None:
    service.about = about
    reply = await visitor.get("/sign-in/oidc")
    assert reply.status_code == 503 and said in reply.text


async def test_a_service_that_is_down_or_has_a_strange_certificate(
    visitor: httpx.AsyncClient, service: Provider, school: tuple[Provider, Settings], box: Any, tmp_path: Path
) -> None:
    _, settings = school
    strange = service.folder / "other.pem"
    box.oidc = oidc_of(settings, oidc_ca_file=strange)
    reply = await visitor.get("/sign-in/oidc")
    assert reply.status_code == 503 and "CERTIFICATE_VERIFY_FAILED" in reply.text
    with provider(tmp_path / "second") as second:
        allow(settings, Host("localhost", second.port))
        box.oidc = oidc_of(settings, oidc_issuer=second.issuer, oidc_ca_file=second.ca)
        url = await there(visitor)
        back = second.authorize(question_of(url)).removeprefix(BASE)
    reply = await visitor.get(back)
    assert reply.status_code == 503 and "does not answer" in reply.text, "it went down in the middle"
    box.oidc = oidc_of(settings, oidc_issuer=second.issuer, oidc_ca_file=second.ca)
    reply = await visitor.get("/sign-in/oidc")
    assert reply.status_code == 503 and "sign-in service cannot be asked" in reply.text
    page = await visitor.get("/")
    assert page.status_code == 200 and "Password" in page.text, "people of the box sign in as always"
    Policy(settings.network).deny("localhost", second.port)


async def test_a_secret_that_others_may_read(
    visitor: httpx.AsyncClient, service: Provider, school: tuple[Provider, Settings], box: Any, tmp_path: Path
) -> None:
    open_to_all = tmp_path / "secret"
    open_to_all.write_text(SECRET)
    open_to_all.chmod(0o644)
    box.oidc = oidc_of(school[1], oidc_client_secret_file=open_to_all)
    reply = await sign_in(visitor, service)
    assert reply.status_code == 503 and "Others than the appliance may read" in reply.text and SECRET not in reply.text


async def test_states_that_are_never_used_do_not_pile_up(
    visitor: httpx.AsyncClient, service: Provider, box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_PENDING", 3)
    for _ in range(5):
        await there(visitor)
    assert len(box.oidc._pending) == 3
    assert (await sign_in(visitor, service)).headers["location"] == "/chat"


# --- settings ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrong",
    [
        {"oidc_issuer": "http://login.school.example"}, {"oidc_issuer": "login.school.example"},
        {"oidc_issuer": "https://a@login.school.example"}, {"oidc_redirect": "http://appliance.local/sign-in/oidc/callback"},
        {"oidc_roles": {"staff": "king"}},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as caught:
        load(**wrong)
    assert next(iter(wrong)) in caught.value.message


def test_settings_that_are_missing_are_named(settings: Settings) -> None:
    with pytest.raises(BadInput, match="oidc_client_id"):
        oidc_of(settings, oidc_issuer="https://login.school.example")
    with pytest.raises(BadInput, match="oidc_redirect"):
        oidc_of(settings, oidc_issuer="https://login.school.example", oidc_client_id="box")
    assert urlsplit(BACK).path == "/sign-in/oidc/callback"
