"""What every template can use: strings, moments, sizes, who is logged in, and the places to go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from flask import Flask, current_app, request, url_for
from markupsafe import Markup
from werkzeug.middleware.proxy_fix import ProxyFix

from cspine import __version__
from cspine.reports.words import percent
from cspine.web.access import has_role, signed_in
from cspine.web.settings import WebSettings
from cspine.web.strings import many, part, t


@dataclass(frozen=True, slots=True)
class Place:
    """One entry of the bar on top.

    Attributes:
        endpoint: of the view.
        key: of its string.
        roles: who sees it; nobody in particular when empty.
    """

    endpoint: str
    key: str
    roles: tuple[str, ...] = ()


PLACES = (
    Place("worklist.index", "nav.worklist", ("reader", "uploader")),
    Place("uploads.page", "nav.upload", ("uploader",)),
    Place("dashboard.index", "nav.dashboard", ("reader",)),
    Place("sharing.index", "nav.groups", ("administrator",)),
    Place("admin.people", "nav.people", ("administrator",)),
    Place("trail.index", "nav.trail", ("auditor",)),
)


def set_up(app: Flask, settings: WebSettings) -> None:
    """Teach templates the helpers, and believe as many proxies as the settings say."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.globals.update(
        t=t, many=many, strings=script_strings, places=places, has_role=has_role, signed_in=signed_in,
        version=__version__,
    )  # fmt: skip
    app.jinja_env.filters.update(moment=moment, size=size, percent=percent)
    app.config["MAX_CONTENT_LENGTH"] = settings.limits.chunk_bytes + 64 * 1024
    if settings.proxies:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=settings.proxies, x_proto=settings.proxies, x_host=0, x_port=0, x_prefix=0
        )


def places() -> list[tuple[str, str, bool]]:
    """Address, text and whether one is there, of the places that the person may go to."""
    shown = (place for place in PLACES if place.endpoint in current_app.view_functions and has_role(*place.roles))
    return [(url_for(place.endpoint), t(place.key), request.endpoint == place.endpoint) for place in shown]


def moment(value: datetime | None) -> Markup:
    """A ``<time>``; scripts put it into the reader's own zone."""
    if value is None:
        return Markup("")
    return Markup('<time datetime="{}">{}</time>').format(
        value.isoformat(timespec="seconds"), value.strftime("%Y-%m-%d %H:%M UTC")
    )


def size(count: float) -> str:
    """Bytes for people: ``1.4 GB`` (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def script_strings(*prefixes: str) -> Markup:
    """Strings for scripts as a data block ``<script type="application/json" id="strings">``; full dotted keys."""
    from json import dumps

    table = {f"{prefix}.{key}": text for prefix in prefixes for key, text in part(prefix).items()}
    # Nothing in JSON may end the element.
    safe = dumps(table, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup('<script type="application/json" id="strings">{}</script>').format(Markup(safe))
