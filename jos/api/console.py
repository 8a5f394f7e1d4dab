"""/console: the built web console, served from this origin under a policy that lets it ask no other.

Its files are public and hold no secret: the page asks for a key, keeps it in memory, and speaks the public API with
it. A checkout without a build answers with a page that says how to make one.
May import: fastapi, jos.api. Tests: tests/integration/test_api_console.py. Sources: jos/console. For people:
docs/console.md.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse
from starlette.responses import Response

from jos.core.errors import NotFound

router = APIRouter(prefix="/console", include_in_schema=False)

BUILT = Path(__file__).parents[1] / "console" / "dist"
# Trusted types: the browser itself refuses to make HTML or script of a string, whatever a name holds
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_FOR_EVER = "public, max-age=31536000, immutable"  # their names hold a hash of what is in them
_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>JOS</title>
<h1>The console is not built</h1>
<p>This is a checkout in which the console was never built. With Node 20.19 or newer installed, run</p>
<pre>make console</pre>
<p>and load this page again; the service need not be started anew. Installed wheels carry the console. Everything else
works without it: see <a href="/docs">the API</a>.</p></html>
"""


@router.get("")
async def page() -> Response:
    index = BUILT / "index.html"
    if not index.is_file():
        return HTMLResponse(_NOT_BUILT, 503)
    return FileResponse(index, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


@router.get("/assets/{name}")
async def asset(name: str) -> Response:
    return _file(BUILT / "assets", name, _FOR_EVER)


@router.get("/{name}")
async def beside(name: str) -> Response:
    return _file(BUILT, name, "no-cache")


def _file(folder: Path, name: str, kept: str) -> Response:
    """Compared with what lies there, so that no name leads elsewhere."""
    kind = _KINDS.get(Path(name).suffix)
    if kind is None or not folder.is_dir() or name not in os.listdir(folder):
        raise NotFound("There is no such file of the console.")
    return FileResponse(folder / name, media_type=kind, headers={"Cache-Control": kept})
