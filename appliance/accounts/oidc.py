"""Sign-in by OpenID Connect: a school's own sign-in service says who somebody is (authorization code flow, RFC 6749 and 7636).

Hides discovery, the keys that its answers are signed with, and the checks of an answer: it must be to the question of this very
browser, asked here a moment ago and answered once, signed by that service, for this box, and not too old. Every call goes
through the client that it is given. What becomes of who was named is for `vouched`.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from appliance.accounts.confirming import GOOD_SECONDS
from appliance.accounts.secret_file import secret_in
from appliance.accounts.vouched import Vouched
from appliance.errors import ApplianceError, BadInput, Forbidden, Unreachable

if TYPE_CHECKING:
    import httpx

    from appliance.settings import Settings

PENDING_SECONDS = 600.0
MOST_PENDING = 5000
KEEP_SECONDS = 3600.0  # what the service says about itself, and its keys
CALL_SECONDS = 15.0
LEEWAY = 60  # seconds that two clocks may differ
LARGEST = 1024 * 1024
# Signed with the service's private key; never "none", and never with a secret that the box would hold as well.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]


class NotVouched(Forbidden):
    """The service did not say who that is, or said so in a way that cannot be trusted."""

    code = "not_vouched"


@dataclass(frozen=True, slots=True)
class _Pending:
    """`again`: the service's number for somebody who is signed in and shows once more who they are."""

    nonce: str
    verifier: str
    ends: float
    again: str = ""


class Oidc:
    """client: an HTTP client that reaches the service, and only what the administrator allowed."""

    def __init__(self, settings: Settings, client: Callable[[], httpx.AsyncClient]) -> None:
        """Raises BadInput where a setting is missing."""
        for name in ("oidc_client_id", "oidc_redirect"):
            if not getattr(settings, name):
                raise BadInput(f"The setting oidc_issuer is there and {name} is not.", "See `appliance settings --all`.")
        self._settings, self._client = settings, client
        self._pending: dict[str, _Pending] = {}
        self._told: tuple[float, dict[str, Any], Any] | None = None  # until when; about itself; its keys

    @property
    def name(self) -> str:
        return self._settings.oidc_name or urlsplit(self._settings.oidc_issuer).hostname or ""

    # --- there ----------------------------------------------------------------------------------------------------------
    async def start(self, again: str = "") -> tuple[str, str]:
        """Where to send the browser, and the state that it has to bring back. Raises Unreachable.

        again: the service's number for somebody who is signed in here: it is asked to have them type their password anew.
        """
        from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        about, _ = await self._about()
        state, pending = secrets.token_urlsafe(32), _Pending(
            secrets.token_urlsafe(32), secrets.token_urlsafe(48), time.monotonic() + PENDING_SECONDS, again
        )  # fmt: skip
        self._sweep()
        self._pending[state] = pending
        url = prepare_grant_uri(
            about["authorization_endpoint"], self._settings.oidc_client_id, "code", self._settings.oidc_redirect,
            self._settings.oidc_scopes, state, nonce=pending.nonce, code_challenge_method="S256",
            code_challenge=create_s256_code_challenge(pending.verifier),
            **({"prompt": "login", "max_age": str(int(GOOD_SECONDS))} if again else {}),
        )  # fmt: skip
        return str(url), state

    def _sweep(self) -> None:
        now = time.monotonic()
        for state in [state for state, one in self._pending.items() if one.ends < now]:
            del self._pending[state]
        while len(self._pending) >= MOST_PENDING:
            del self._pending[next(iter(self._pending))]  # the oldest: somebody is only playing

    # --- and back -------------------------------------------------------------------------------------------------------
    async def finish(self, kept: str, given: Mapping[str, str]) -> tuple[Vouched, bool]:
        """Who that is, and whether they are signed in already and have only shown it once more.

        kept: the state that the browser kept. given: what it was sent back with.

        Raises NotVouched, Unreachable, Forbidden for somebody who has no place here.
        """
        state = given.get("state", "")
        if not kept or not hmac.compare_digest(kept.encode(), state.encode()):
            raise _again("This sign-in was not begun in this browser, or it took too long.")
        pending = self._pending.pop(state, None)  # each works once, whatever comes of it
        if pending is None or pending.ends < time.monotonic():
            raise _again("This sign-in was used already, or it took too long.")
        if given.get("iss", self._settings.oidc_issuer) != self._settings.oidc_issuer:
            raise _again("The answer comes from another service than the one that was asked.")
        if given.get("error") or not given.get("code"):
            raise _again("The school's sign-in service did not sign you in.")
        about, keys = await self._about()
        answer = await self._token(about, given["code"], pending.verifier)
        try:
            claims = self._claims(answer, keys, pending.nonce)
        except _UnknownKey:
            about, keys = await self._about(anew=True)  # it may have changed its keys meanwhile
            claims = self._claims(answer, keys, pending.nonce)
        vouched = self._vouched(claims)
        if pending.again:
            _require_anew(claims, vouched, pending.again)
        return vouched, bool(pending.again)

    async def _token(self, about: dict[str, Any], code: str, verifier: str) -> dict[str, Any]:
        from authlib.oauth2.auth import ClientAuth
        from authlib.oauth2.rfc6749.parameters import prepare_token_request

        settings, method, secret = self._settings, "none", ""
        if settings.oidc_client_secret_file is not None:
            known = about.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
            method = "client_secret_basic" if "client_secret_basic" in known else "client_secret_post"
            try:
                secret = secret_in(settings.oidc_client_secret_file)
            except BadInput as error:
                raise self._cannot_ask(error.message) from None
        body = prepare_token_request(
            "authorization_code", code=code, redirect_uri=settings.oidc_redirect, code_verifier=verifier
        )
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        auth = ClientAuth(settings.oidc_client_id, secret, method)
        url, headers, body = auth.prepare("POST", about["token_endpoint"], headers, body)
        return await self._call("POST", url, headers=headers, content=body)

    def _claims(self, answer: dict[str, Any], keys: Any, nonce: str) -> Mapping[str, Any]:
        """What the service says of who signed in. Raises NotVouched, _UnknownKey."""
        from authlib.oidc.core import CodeIDToken
        from joserfc import jwt
        from joserfc.errors import BadSignatureError, ExpiredTokenError, InvalidKeyIdError, JoseError

        settings = self._settings
        try:
            token = jwt.decode(str(answer.get("id_token", "")), keys, algorithms=ALGORITHMS)
            wanted = {
                "iss": {"essential": True, "value": settings.oidc_issuer},
                "aud": {"essential": True, "value": settings.oidc_client_id},
            }
            asked = {"nonce": nonce, "client_id": settings.oidc_client_id, "access_token": answer.get("access_token")}
            claims: Mapping[str, Any] = CodeIDToken(token.claims, token.header, wanted, asked)
            claims.validate(leeway=LEEWAY)  # type: ignore[attr-defined]
        except ExpiredTokenError:
            raise _again("The answer of the sign-in service is too old.", "The clock of the box may be wrong.") from None
        except (BadSignatureError, InvalidKeyIdError):
            raise _UnknownKey(
                "The answer of the sign-in service is not signed by it.", "Sign in once more from the first page."
            ) from None
        except JoseError as error:
            raise _again(f"The answer of the sign-in service cannot be trusted ({error.error}).") from None
        except (ValueError, TypeError, KeyError):
            raise _again("The answer of the sign-in service cannot be read.") from None
        if not claims.get("sub"):
            raise _again("The answer of the sign-in service names nobody.")
        return claims

    def _vouched(self, claims: Mapping[str, Any]) -> Vouched:
        settings = self._settings
        name, full_name = claims.get(settings.oidc_name_claim), claims.get("name")
        if not isinstance(name, str) or not name:
            raise _again(
                "The school's sign-in service does not say the name of your account.",
                f"It is looked for as {settings.oidc_name_claim}.",
            )
        values = _values(claims, settings.oidc_role_claim)
        role = next((role for value, role in settings.oidc_roles.items() if value in values), settings.oidc_role)
        if not role:
            raise Forbidden("Your account is known, but it may not use this box.", "Ask the administrator to add it.")
        return Vouched(
            "oidc", f"{settings.oidc_issuer} {claims['sub']}", name, full_name if isinstance(full_name, str) else "", role,
            bool(settings.oidc_role_claim and settings.oidc_roles),
        )  # fmt: skip

    # --- the service ----------------------------------------------------------------------------------------------------
    async def _about(self, *, anew: bool = False) -> tuple[dict[str, Any], Any]:
        """What it says about itself, and its keys. Raises Unreachable."""
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        if self._told is not None and not anew and time.monotonic() < self._told[0]:
            return self._told[1], self._told[2]
        issuer = self._settings.oidc_issuer
        about = await self._call("GET", issuer.rstrip("/") + "/.well-known/openid-configuration")
        if about.get("issuer") != issuer:
            raise self._cannot_ask(f"it calls itself {str(about.get('issuer'))[:200]!r} and not {issuer!r}")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            url = about.get(name)
            # Nothing less safe than the address that the administrator wrote down.
            if not isinstance(url, str) or urlsplit(url).scheme not in ("https", urlsplit(issuer).scheme):
                raise self._cannot_ask(f"its {name} is not an address that can be trusted")
        try:
            keys = KeySet.import_key_set(await self._call("GET", about["jwks_uri"]))  # type: ignore[arg-type]
        except (JoseError, ValueError, TypeError, KeyError):
            raise self._cannot_ask("its keys cannot be read") from None
        self._told = (time.monotonic() + KEEP_SECONDS, about, keys)
        return about, keys

    async def _call(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        """The JSON object that it answers with. Raises Unreachable, and NotVouched where it refuses what was sent."""
        import json

        import httpx

        try:
            async with asyncio.timeout(CALL_SECONDS), self._client() as client, client.stream(method, url, **more) as reply:
                body = b""
                async for piece in reply.aiter_bytes():
                    body += piece
                    if len(body) > LARGEST:
                        raise self._cannot_ask("it answers with more than can be right")
            if reply.status_code != 200 and method == "POST" and reply.status_code < 500:
                raise _again("The school's sign-in service did not confirm this.")
            if reply.status_code != 200:
                raise self._cannot_ask(f"it answers with status {reply.status_code}")
            found = json.loads(body)
            if isinstance(found, dict):
                return found
            raise self._cannot_ask("it answers with something else than was asked for")
        except (_CannotAsk, NotVouched):
            raise
        except ApplianceError as error:  # the network policy's, or the way out's
            raise self._cannot_ask(error.message) from None
        except TimeoutError:
            raise self._cannot_ask("it does not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            raise self._cannot_ask(f"{type(error).__name__}: {error}") from None

    def _cannot_ask(self, why: str) -> _CannotAsk:
        return _CannotAsk(
            "The school's sign-in service cannot be asked just now, so only accounts of this box can sign in.",
            f"Try again later, or tell the administrator: {why.rstrip('.')}.",
        )


class _CannotAsk(Unreachable):
    pass


class _UnknownKey(NotVouched):
    pass


def _again(message: str, hint: str = "") -> NotVouched:
    return NotVouched(message, f"{hint} Sign in once more from the first page.".strip())


def _require_anew(claims: Mapping[str, Any], vouched: Vouched, again: str) -> None:
    """Raise NotVouched for another account, or where the service says that the password was typed longer ago.

    Some services never say when it was; that they were asked for a new sign-in has to do then.
    """
    if not hmac.compare_digest(vouched.external.encode(), again.encode()):
        raise NotVouched("That is another account than the one you are signed in with here.", "Sign in there with this one.")
    typed = claims.get("auth_time")
    if isinstance(typed, (int, float)) and typed < time.time() - GOOD_SECONDS - LEEWAY:
        raise _again("The school's sign-in service did not ask for your password again.", "Sign out there first.")


def _values(claims: Mapping[str, Any], path: str) -> list[str]:
    """The texts of a claim; of one within another, such as realm_access.roles."""
    found: Any = claims
    for part in [path] if path in claims else path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    listed = found if isinstance(found, list) else [found]
    return [one for one in listed if isinstance(one, str)]
