"""Headers that every answer carries. A view that sets one of them itself keeps what it set."""

from __future__ import annotations

from flask import Flask, Response, request

# No script, style, picture or connection from anywhere else, and none written into a page. ``blob:`` is for pictures
# and workers that our own scripts make.
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "worker-src": "'self' blob:",
    "frame-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
_YEAR = 365 * 24 * 3600


def policy(**changes: str) -> str:
    """The Content-Security-Policy, with some directives changed: ``policy(script_src="'self' 'wasm-unsafe-eval'")``."""
    table = POLICY | {name.replace("_", "-"): value for name, value in changes.items()}
    return "; ".join(f"{name} {value}" for name, value in table.items())


def protect(app: Flask, *, secure: bool) -> None:
    """Put the headers on every answer.

    Args:
        app: the application.
        secure: whether browsers come over https; then they are told never to come otherwise.
    """
    fixed = {
        "Content-Security-Policy": policy(),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    }
    if secure:
        fixed["Strict-Transport-Security"] = f"max-age={_YEAR}; includeSubDomains"

    @app.after_request
    def _headers(response: Response) -> Response:
        for name, value in fixed.items():
            response.headers.setdefault(name, value)
        if request.endpoint != "static":
            # Pages and pictures of patients stay out of caches, also when the next person presses "back".
            response.headers.setdefault("Cache-Control", "no-store")
        return response
