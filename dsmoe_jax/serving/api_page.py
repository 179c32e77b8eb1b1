"""The page at /docs: an OpenAPI document as plain HTML, since the usual viewers need a CDN."""

import html
import json
from typing import Any

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 2rem; font-size: 1.1rem; overflow-wrap: anywhere; }
code, pre { font: 0.85rem/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; padding: 0.75rem; border: 1px solid #8886; border-radius: 4px; }
.method { text-transform: uppercase; display: inline-block; min-width: 4.5rem; }
summary { cursor: pointer; }
"""


def render(document: dict[str, Any]) -> str:
    """A page with every route, its parameters, forms and answers."""
    forms = document["components"]["schemas"]
    routes = [
        _route(path, method, operation, forms)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    schemas = [
        f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>{_json(schema)}'
        for name, schema in forms.items()
    ]
    title = html.escape(document["info"]["title"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{title}</title><style>{_STYLE}</style></head>'
        f"<body><main><h1>{title}</h1><p>{html.escape(document['info']['description'])} "
        'For programs: <a href="/openapi.json">openapi.json</a>. <a href="/">The page</a>.</p>'
        f"{''.join(routes)}<h1>Forms</h1>{''.join(schemas)}</main></body></html>"
    )


def _route(path: str, method: str, operation: dict[str, Any], forms: dict[str, Any]) -> str:
    parts = [
        f'<h2><span class="method">{html.escape(method)}</span> <code>{html.escape(path)}</code>'
        f"</h2><p>{html.escape(operation.get('description', ''))}</p>"
    ]
    for parameter in operation.get("parameters", []):
        described = {"in": parameter["in"], **parameter["schema"]}
        parts.append(
            f"<details><summary>parameter <code>{html.escape(parameter['name'])}</code></summary>"
            f"{_json(described)}</details>"
        )
    if "requestBody" in operation:
        [body] = operation["requestBody"]["content"].values()
        name = body["schema"]["$ref"].rpartition("/")[2]
        parts.append(
            f"<details><summary>body: <code>{html.escape(name)}</code></summary>"
            f"{_json(forms[name])}</details>"
        )
    statuses = ", ".join(f"<code>{html.escape(status)}</code>" for status in operation["responses"])
    return "".join([*parts, f"<p>Answers: {statuses}</p>"])


def _json(value: Any) -> str:
    text = html.escape(json.dumps(value, indent=2, ensure_ascii=False))
    return f'<pre tabindex="0">{text}</pre>'
