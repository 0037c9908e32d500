"""`/docs`: what there is to ask for, as one page that is whole in itself: no script, nothing fetched."""

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final

from gateway.wire import ENDPOINTS

_OF_DIALECT: Final = {
    "chat": "OpenAI chat completions",
    "completions": "OpenAI completions",
    "responses": "OpenAI responses",
    "messages": "Anthropic messages",
    "embeddings": "embeddings",
    "pooling": "scores, ranks, classes",
    "tokens": "text to token ids and back",
    "audio": "transcriptions and translations",
}
_KEPT: Final = (
    (
        "GET",
        "/v1/responses/{id}",
        "A response that its engine keeps, where that was switched on; streamed if asked for",
    ),
    ("POST", "/v1/responses/{id}/cancel", "Stop one that runs in the background"),
)
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "body{color:#222;background:#fff}"
    "table{border-collapse:collapse;width:100%}td{padding:.3rem .8rem .3rem 0;border-bottom:1px solid #ddd;"
    "vertical-align:top}code{font:14px ui-monospace,monospace}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td{border-color:#444}a{color:#8bf}}"
)
Row = tuple[str, str, str]
"""Method, path, and what is behind it."""


def page(document: Mapping[str, Any]) -> str:
    """HTML. `document`: the OpenAPI document of the control plane."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{title}</h1>'
        "<p>An API key, where keys are set, goes into <code>Authorization: Bearer KEY</code> or <code>x-api-key</code>,"
        " whatever the path. What a model can do of this its engine says.</p>"
        f"<h2>Models</h2>{_table(_data_plane())}<h2>The gateway</h2>{_table(_control_plane(document))}"
        '<p>The second table for machines: <a href="/openapi.json">/openapi.json</a>.</p></body></html>'
    )


def _data_plane() -> Iterator[Row]:
    for path, endpoint in ENDPOINTS.items():
        yield "POST", path, _OF_DIALECT[endpoint.dialect] + (", streamed if asked for" if endpoint.streams else "")
    yield from _KEPT


def _control_plane(document: Mapping[str, Any]) -> Iterator[Row]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation["summary"]


def _table(rows: Iterable[Row]) -> str:
    cells = (f"<tr><td>{m}</td><td><code>{escape(p)}</code></td><td>{escape(s)}</td></tr>" for m, p, s in rows)
    return f"<table>{''.join(cells)}</table>"
