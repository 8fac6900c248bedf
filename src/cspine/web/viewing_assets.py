"""Scripts that npm built: their addresses, and how they are sent.

Their names hold a digest of their content, so browsers may keep them for ever.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from flask import Response, abort, request, send_file, url_for

BUILT = Path(__file__).parent / "static" / "built"
MANIFEST = "manifest.json"
_YEAR = 365 * 24 * 3600


@lru_cache(maxsize=4)
def _manifest(path: Path, _changed: int) -> dict[str, str]:
    """Files by the names of the pages they are for; read anew when the file has changed."""
    table = json.loads(path.read_text(encoding="utf-8"))
    return {str(name): str(file) for name, file in table.items()}


def built(name: str) -> str | None:
    """Address of a built script such as ``reading.js``; None when it was not built.

    Pages work without: a template asks ``{% if built("reading.js") %}``.
    """
    path = BUILT / MANIFEST
    try:
        table = _manifest(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    file = table.get(name)
    return None if file is None else url_for("viewing.asset", name=file)


def send_asset(name: str) -> Response:
    """A built file, packed when the browser takes that. Names with a digest never change what they mean.

    Raises:
        HTTPException: 404, there is no such file.
    """
    path = BUILT / name
    if path.parent != BUILT or not path.is_file() or name == MANIFEST:
        abort(404)
    packed = path.with_name(f"{name}.gz")
    gzipped = packed.is_file() and request.accept_encodings["gzip"] > 0
    kind = "text/javascript" if name.endswith(".js") else "text/css" if name.endswith(".css") else "text/plain"
    response = send_file(packed if gzipped else path, mimetype=kind, conditional=True)
    response.headers["Vary"] = "Accept-Encoding"
    if gzipped:
        response.headers["Content-Encoding"] = "gzip"
    lasting = name.endswith((".js", ".css"))
    response.headers["Cache-Control"] = f"public, max-age={_YEAR}, immutable" if lasting else "no-cache"
    return response
