"""/docs: the description of the API as one plain page. It asks nobody for anything: no script, no font, no other host.

May import: fastapi, jos.api. Tests: tests/integration/test_api_service.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter()

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}
h2{margin-top:2.5rem;border-bottom:1px solid #d5dae1}details{margin:.4rem 0;border:1px solid #d5dae1;border-radius:6px}
summary{padding:.5rem .8rem;cursor:pointer}details>div{padding:0 1rem 1rem}
code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:#f4f6f8;padding:.8rem;overflow:auto;border-radius:6px}table{border-collapse:collapse;width:100%}
td{border-top:1px solid #e6e9ee;padding:.3rem .6rem;vertical-align:top}b.m{display:inline-block;width:4.5rem}
@media(prefers-color-scheme:dark){body{background:#14181e;color:#dfe5ec}pre{background:#1d232b}
details,h2,td{border-color:#313a45}a{color:#8ab8ff}}
"""


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    return HTMLResponse("".join(_page(request.app.openapi())))


def _page(found: dict[str, Any]) -> Iterator[str]:
    title = escape(f"{found['info']['title']} {found['info']['version']}")
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<h1>{title}</h1><p>{escape(found['info']['description'])}</p>"
    yield '<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>'
    operations = [
        (operation.get("tags", [""])[0], method, path, operation)
        for path, methods in found["paths"].items()
        for method, operation in methods.items()
    ]
    order = list(dict.fromkeys(tag for tag, *_ in operations))
    operations.sort(key=lambda one: order.index(one[0]))
    for tag, group in groupby(operations, key=lambda one: one[0]):
        yield f"<h2>{escape(tag)}</h2>"
        for _, method, path, operation in group:
            yield from _operation(method, path, operation)
    yield "<h2>Shapes</h2>"
    for name, schema in sorted(found["components"]["schemas"].items()):
        yield f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary><div>'
        yield f"<pre>{escape(json.dumps(schema, indent=2, ensure_ascii=False))}</pre></div></details>"


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f'<details><summary><b class="m">{method.upper()}</b> <code>{escape(path)}</code> '
    yield f"— {escape(operation.get('summary', ''))}</summary><div><p>{escape(operation.get('description', ''))}</p>"
    rows = [
        (f"{p['name']} ({p['in']})", _schema(p.get("schema", {})), p.get("description", ""))
        for p in operation.get("parameters", [])
    ]
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        rows.append(("body", _schema(media.get("schema", {})), escape(kind)))
    for status, answer in operation["responses"].items():
        shapes = [_schema(media.get("schema", {})) for media in answer.get("content", {}).values()]
        rows.append((f"→ {status}", " ".join(shapes), answer.get("description", "")))
    yield "<table>"
    for name, schema, text in rows:
        yield f"<tr><td><code>{escape(name)}</code><td>{schema}<td>{escape(text)}"
    yield "</table></div></details>"


def _schema(schema: dict[str, Any]) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "anyOf" in schema:
        return " or ".join(_schema(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return escape(" | ".join(map(str, schema["enum"])))
    if schema.get("type") == "array":
        return f"list of {_schema(schema.get('items', {}))}"
    words = [str(schema.get("type", ""))]
    words += [f"{name} {schema[name]}" for name in ("minimum", "maximum", "default") if name in schema]
    return escape(", ".join(word for word in words if word))
