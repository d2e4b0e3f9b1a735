"""A small sign-in service for tests: OpenID Connect over TLS on a loopback port, which can be made to lie in every way."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import uvicorn
from fastapi import FastAPI, Request
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from starlette.responses import JSONResponse, RedirectResponse, Response

from tests.outside import until
from tests.slapd import free_port, write_certificates

CLIENT, SECRET = "box", "the box's secret there"


class Provider:
    """claims: what it says of everybody. bend: changes the claims, or returns another id_token. calls: what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.issuer = f"https://localhost:{self.port}"
        self.claims: dict[str, Any] = {"sub": "person-1", "preferred_username": "ada", "name": "Ada Byron"}
        self.bend: Callable[[dict[str, Any]], str | None] = lambda _claims: None
        self.about: dict[str, Any] = {}
        self.calls: list[str] = []
        self.asked: dict[str, dict[str, str]] = {}  # code -> the question
        self.used: set[str] = set()
        self.new_keys()
        write_certificates(folder)

    def new_keys(self) -> None:
        self.key = RSAKey.generate_key(2048, {"use": "sig", "kid": f"key-{time.monotonic()}"}, private=True)

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.get("/.well-known/openid-configuration")
        async def about() -> Response:
            self.calls.append("about")
            names = {name: f"{self.issuer}/{name}" for name in ("authorize", "token", "keys")}
            told = {
                "issuer": self.issuer, "authorization_endpoint": names["authorize"], "token_endpoint": names["token"],
                "jwks_uri": names["keys"],
            }  # fmt: skip
            return JSONResponse(told | self.about)

        @app.get("/keys")
        async def keys() -> Response:
            self.calls.append("keys")
            return JSONResponse(KeySet([self.key]).as_dict(private=False))

        @app.get("/authorize")
        async def authorize(request: Request) -> Response:
            return RedirectResponse(self.authorize(dict(request.query_params)), 303)

        @app.post("/token")
        async def token(request: Request) -> Response:
            self.calls.append("token")
            form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
            return self.token(form, request.headers.get("authorization", ""))

        return app

    def authorize(self, question: dict[str, str]) -> str:
        """Where the browser is sent back to: somebody has typed their password here, or had done so before."""
        assert question["client_id"] == CLIENT and question["response_type"] == "code"
        assert "openid" in question["scope"].split() and question["code_challenge_method"] == "S256"
        code = f"code-{len(self.asked)}"
        self.asked[code] = question
        return f"{question['redirect_uri']}?{urlencode({'code': code, 'state': question['state'], 'iss': self.issuer})}"

    def token(self, form: dict[str, str], authorization: str) -> Response:
        wanted = "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        question = self.asked.get(form.get("code", ""))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest()).rstrip(b"=")
        if authorization != wanted or question is None or form["code"] in self.used:
            return JSONResponse({"error": "invalid_client"}, 401)
        if challenge.decode() != question["code_challenge"] or form["redirect_uri"] != question["redirect_uri"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        self.used.add(form["code"])
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": question["nonce"], **self.claims}
        bent = self.bend(claims)
        signed = bent or jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": signed})


@contextlib.contextmanager
def provider(folder: Path) -> Iterator[Provider]:
    made = Provider(folder)
    config = uvicorn.Config(
        made.app(), host="127.0.0.1", port=made.port, ssl_certfile=folder / "server.pem", ssl_keyfile=folder / "server.key",
        log_level="warning", ws="none", lifespan="off",
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started, "the start of the sign-in service")
        yield made
    finally:
        server.should_exit = True
        thread.join(30)


def question_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
