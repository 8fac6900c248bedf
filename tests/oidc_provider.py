"""A small OpenID Connect provider on loopback: enough for the authorisation code flow with PKCE, and for lying."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = "cspine"


class Provider:
    """Says of whoever comes what ``claims`` holds.

    Attributes:
        claims: beside issuer, audience, times and nonce; those are right unless they stand here too.
        key: that tokens are signed with.
        asked: parameters of the last request to log in.
    """

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self.asked: dict[str, str] = {}
        self.published = self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"provider": self}))

    @property
    def issuer(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def configuration(self) -> dict[str, Any]:
        """What the application reads first."""
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser is sent after the person has logged in there."""
        self.asked = asked
        return f"{asked['redirect_uri']}?{urlencode({'code': 'a-code', 'state': asked['state']})}"

    def token(self, form: dict[str, str]) -> dict[str, Any]:
        """What the code is changed for."""
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == self.asked["code_challenge"]
        moment = int(time.time())
        right = {"iss": self.issuer, "aud": CLIENT, "iat": moment, "exp": moment + 300, "nonce": self.asked["nonce"]}
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, {**right, **self.claims}, self.key)
        return {"access_token": "x", "token_type": "Bearer", "expires_in": 300, "id_token": signed}


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/authorize":
            self.send_response(302)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            self.send_header("Location", self.provider.authorize(asked))
            self.end_headers()
        elif parts.path == "/keys":
            self._json({"keys": [self.provider.published.as_dict(private=False)]})
        else:
            self._json(self.provider.configuration())

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._json(self.provider.token({name: values[0] for name, values in parse_qs(text).items()}))

    def _json(self, table: dict[str, Any]) -> None:
        body = json.dumps(table).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running() -> Iterator[Provider]:
    """A provider that listens."""
    made = Provider()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join(5)
